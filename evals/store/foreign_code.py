"""What in a stored run's settings chooses code to run. Stores may come from anywhere: the user says it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

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
