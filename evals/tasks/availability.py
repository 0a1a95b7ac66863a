"""Lists the benchmarks and whether their data is available locally; reads no questions.

Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from evals.tasks import custom, hub, index, local_data, registry


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


@dataclass(frozen=True)
class ListedTask:
    """A task, group or tag of lm-eval: its kind, its number of examples, and its dataset or its number of members.

    shots is None if the definition does not say; a run then has none. Members are None for a task.
    """

    name: str
    kind: str
    shots: int | None
    dataset: str
    members: int | None


def all_tasks(text: str = "") -> list[ListedTask]:
    """Every name that lm-eval knows, sorted; with a text, those that have it in the name or in the dataset.

    Upper and lower case are the same. Takes seconds: all of lm-eval's definitions are read.
    """
    rows = []
    for name, entry in sorted(index.full_manager().task_index.items()):
        config = entry.cfg or {}
        parts = config.get("task") if isinstance(config.get("task"), list) else sorted(entry.tags)
        members = None if entry.kind.name in ("TASK", "PY_TASK") else len(parts)
        dataset = "/".join(str(config[key]) for key in ("dataset_path", "dataset_name") if config.get(key))
        kind = {"PY_TASK": "task"}.get(entry.kind.name, entry.kind.name.lower())
        if text.lower() in name.lower() or text.lower() in dataset.lower():
            rows.append(ListedTask(name, kind, config.get("num_fewshot"), dataset, members))
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
