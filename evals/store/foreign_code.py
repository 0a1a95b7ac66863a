"""What in a stored run's settings chooses code to run. Stores may come from anywhere: the user says it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

YAML = (".yaml", ".yml")  # ends of the names of task definitions
OURS = "workbench"  # the backend that runs no code of a model


def chosen(request: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """The backend and its arguments, such as trust_remote_code, of a stored request; None for our own model."""
    settings = request.get("settings") or {}
    backend, arguments = settings.get("backend") or OURS, settings.get("model_args") or {}
    return None if backend == OURS and not arguments else (str(backend), arguments)


def described(backend: str, arguments: Mapping[str, Any]) -> str:
    listed = ", ".join(f"{key}={value}" for key, value in arguments.items())
    return f"the backend {backend!r}" + (f" with {listed}" if listed else "")


def command(backend: str, arguments: Mapping[str, Any]) -> str:
    """The options that say it again, for a command. The user writes the arguments, so that they are read."""
    return f" --backend {shlex.quote(backend)}" + (" --model_args ARGUMENTS" if arguments else "")


def definitions(tasks: Sequence[str], include_path: Sequence[str | Path]) -> tuple[Path, ...]:
    """The files and folders of task definitions among the settings of a run: lm-eval runs the code next to them."""
    paths = [Path(name) for name in tasks if "/" in name or "\\" in name or name.endswith(YAML)]
    return (*map(Path, include_path), *(path for path in paths if has_definitions(path)))


def has_definitions(path: Path) -> bool:
    """Whether a path is a task definition of lm-eval, or a folder that has some."""
    return path.suffix in YAML or (path.is_dir() and any(path.glob("*.yaml")))


def definitions_option(paths: Sequence[Path]) -> str:
    """The options that name task definitions again, for a command."""
    return "".join(f" --include_path {shlex.quote(str(path))}" for path in paths)


def summary(request: Mapping[str, Any]) -> str:
    """What a stored request chooses that runs code, in words; "" if nothing."""
    settings, backend = request.get("settings") or {}, chosen(request)
    paths = definitions(settings.get("tasks") or (), settings.get("include_path") or ())
    parts = [described(*backend)] if backend else []
    return " and ".join([*parts, *([f"the task definitions {', '.join(map(str, paths))}"] if paths else [])])


def options(request: Mapping[str, Any]) -> str:
    """All options that name again what runs code, for a command; "" if nothing does."""
    settings, backend = request.get("settings") or {}, chosen(request)
    paths = definitions(settings.get("tasks") or (), settings.get("include_path") or ())
    return (command(*backend) if backend else "") + definitions_option(paths)
