"""Lists the benchmarks and whether their data is available locally; reads no questions.

Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from evals.tasks import custom, hub, local_data, registry


@dataclass(frozen=True)
class BenchmarkInfo:
    """A benchmark in the list: `data` is embedded, here, partly or missing; `source` is its dataset."""

    name: str
    data: str
    source: str


def benchmarks(root: Path | None) -> list[BenchmarkInfo]:
    """Every benchmark of `registry.names`, and whether a data folder has its questions; they are not read."""
    rows = []
    for name in registry.names():
        sets = _data_sets(name)
        available = [local_data.present(*which, root) or hub.local_copy(root, which[0]) is not None for which in sets]
        state = "here" if all(available) else "partly" if any(available) else "missing"
        source = ", ".join(sorted({dataset for dataset, _ in sets}))
        rows.append(BenchmarkInfo(name, "embedded" if local_data.is_embedded(source) else state, source))
    return rows


def custom_suites(path: Path) -> list[BenchmarkInfo]:
    """The user's own suites at a path."""
    return [BenchmarkInfo(file.stem, "here", str(file)) for file in custom.files(path)]


@cache
def _data_sets(name: str) -> frozenset[tuple[str, str | None]]:
    """The datasets, with configuration, of a task, or of all tasks of a group or tag."""
    entry = registry.manager().task_index[name]
    if "dataset_path" in (entry.cfg or {}):
        return frozenset({(entry.cfg["dataset_path"], entry.cfg.get("dataset_name"))})
    members = (entry.cfg or {}).get("task") or entry.tags
    return frozenset().union(*(_data_sets(member) for member in members))
