"""Task names of a command line: separated by commas, and patterns such as `mmlu_*`."""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.runtime.printing import echo
from workbench.errors import DataError


def expanded(text: str, include: Sequence[Path] = ()) -> list[str]:
    """The names in a text. A pattern stands for the benchmarks that it matches, a group for its members.

    A pattern is looked for among the benchmarks of `workbench eval tasks` and the user's own tasks in the folders
    `include`; if none matches, among all of lm-eval's tasks. Patterns of YAML files are those of the shell.
    Raises: DataError for a pattern without a match.
    """
    names: list[str] = []
    for name in filter(None, map(str.strip, text.split(","))):
        # The characters of a pattern may also be in the path of a suite.
        if not any(character in name for character in "*?[") or Path(name).exists():
            names.append(name)
            continue
        is_path = "/" in name or name.endswith((".yaml", ".jsonl"))
        matches = sorted(glob.glob(name)) if is_path else _matches(name, include)
        if not matches:
            raise DataError(f"no {'file' if is_path else 'benchmark'} matches {name!r}; see `workbench eval tasks`.")
        more = f" and {len(matches) - 5} more" if len(matches) > 5 else ""
        echo(f"{name}: {', '.join(matches[:5])}{more}", err=True)
        names += matches
    return list(dict.fromkeys(names))


def _matches(pattern: str, include: Sequence[Path]) -> list[str]:
    """The benchmarks that a pattern matches, without those that another match contains."""
    from evals.tasks import index as tasks

    own = tasks.own_tasks(include)
    index: Mapping[str, Any] = {**tasks.manager().task_index, **own}
    found = fnmatch.filter(dict.fromkeys([*tasks.names(), *own]), pattern)
    if not found:
        index = tasks.full_manager().task_index
        found = fnmatch.filter(sorted(set(index) - tasks.EXCLUDED), pattern)
    # A tag has no score: its tasks are run in its place.
    found = [name for name in found if not _is_tag(index[name]) or not set(_children(index, name)) & set(found)]
    inside = {member for name in found for member in _members(index, name)}
    return [name for name in found if name not in inside]


def _is_tag(entry: Any) -> bool:
    return str(entry.kind.name) == "TAG"


def _children(index: Mapping[str, Any], name: str) -> list[str]:
    entry = index.get(name)
    if entry is None:
        return []
    if _is_tag(entry):
        return sorted(entry.tags)
    parts = (entry.cfg or {}).get("task")
    parts = parts if isinstance(parts, list) else []
    return [str(part.get("task") or part.get("group")) if isinstance(part, dict) else str(part) for part in parts]


def _members(index: Mapping[str, Any], name: str) -> set[str]:
    """Every group, tag and task inside a group."""
    children = set(_children(index, name)) - {name}
    return children | {member for child in children for member in _members(index, child)}
