"""Which benchmarks there are, and whether their questions are here; no question is read.

Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from evals.tasks import custom, hub, local_data, registry


@dataclass(frozen=True)
class Listed:
    """A benchmark in the list of what there is: `data` is embedded, here, partly or missing; `source` its data set."""

    name: str
    data: str
    source: str


def benchmarks(root: Path | None) -> list[Listed]:
    """Every benchmark of `suites.names`, with whether a data folder has its questions; they are not read."""
    rows = []
    for name in registry.names():
        sets = _data_sets(name)
        found = [local_data.present(*which, root) or hub.copy(root, which[0]) is not None for which in sets]
        state = "here" if all(found) else "partly" if any(found) else "missing"
        whose = ", ".join(sorted({dataset for dataset, _ in sets}))
        rows.append(Listed(name, "embedded" if local_data.is_embedded(whose) else state, whose))
    return rows


def own(path: Path) -> list[Listed]:
    """The user's own suites at a path."""
    return [Listed(file.stem, "here", str(file)) for file in custom.files(path)]


@cache
def _data_sets(name: str) -> frozenset[tuple[str, str | None]]:
    """The data sets, with configuration, of a task, or of all tasks of a group or tag."""
    entry = registry.manager().task_index[name]
    if "dataset_path" in (entry.cfg or {}):
        return frozenset({(entry.cfg["dataset_path"], entry.cfg.get("dataset_name"))})
    members = (entry.cfg or {}).get("task") or entry.tags
    return frozenset().union(*(_data_sets(member) for member in members))
