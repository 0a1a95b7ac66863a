"""Which benchmarks there are, and lm-eval's task objects for them: its own definitions over local data.

Prompts, few-shot examples, filters, metrics and groups are lm-eval's. What is replaced is where the
questions come from, and what runs generated code. Knows nothing of models.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager

from evals import data
from evals.code import Judge
from workbench.errors import DataError

OWN = Path(__file__).parent / "tasks"
# Indexing all of lm-eval's tasks takes seconds; these are the ones whose data can be read here.
_FOLDERS = ("mmlu/default", "gsm8k", "humaneval")
# Sampled many times over, or with other data.
_LEFT_OUT = {"humaneval_64", "humaneval_64_instruct", "humaneval_plus", "gsm8k_cot_self_consistency"}
_LEFT_OUT |= {"chain_of_thought", "self_consistency", "math_word_problems"}


class LocalTask(ConfigurableTask):
    """A task as lm-eval defines it, whose questions come from local files."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        root = (dataset_kwargs or {}).get("data_root")
        rows = data.load(self.DATASET_PATH or "", self.DATASET_NAME, Path(root) if root else None)
        self.dataset = {split: datasets.Dataset.from_list(these) for split, these in rows.items()}
        self.data_sha256 = data.digest(rows["test"])


@dataclass(frozen=True)
class Suites:
    """Loaded tasks and groups, by name, in the form that lm-eval's evaluator takes."""

    tasks: dict[str, Task]
    groups: dict[str, Group]
    group_map: dict[str, list[str]]

    def runs_code(self) -> list[str]:
        return [name for name, task in self.tasks.items() if getattr(task, "UNSAFE_CODE", False)]

    def as_dict(self) -> dict[str, Any]:
        return {"tasks": self.tasks, "groups": self.groups, "group_map": self.group_map}


@cache
def manager() -> TaskManager:
    """lm-eval's index over the few folders that are ours."""
    theirs = Path(lm_eval.tasks.__file__).parent
    return TaskManager(include_defaults=False, include_path=[*(theirs / name for name in _FOLDERS), OWN])


def names() -> list[str]:
    """Every benchmark that can be asked for: tasks, groups and tags."""
    return [name for name in manager().all_tasks if name not in _LEFT_OUT]


def check(asked: Sequence[str]) -> None:
    """Return if each name is a benchmark's.

    Raises: DataError with near matches.
    """
    known = names()
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "see `workbench eval tasks`."
            raise DataError(f"unknown task {name!r}; {hint}")
    if not asked:
        raise DataError("no task was named; see `workbench eval tasks`.")


def runs_code(name: str) -> bool:
    """Whether a task has generated programs run; told from its definition, without its data."""
    return bool((manager().task_index[name].cfg or {}).get("unsafe_code"))


def load(asked: Sequence[str], *, root: Path | None, judge: Judge) -> Suites:
    """Task objects for these names, with their questions.

    Raises: DataError for an unknown name, missing data, or a task that is asked for twice.
    """
    check(asked)
    built: list[Task | Group] = []
    for name in dict.fromkeys(asked):
        made = _build(name, root, judge)
        built += made if isinstance(made, list) else [made]
    try:
        loaded = manager().load(built)
    except ValueError as error:
        raise DataError(f"the tasks overlap: {error}") from error
    return Suites(loaded["tasks"], loaded.get("groups", {}), loaded.get("group_map", {}))


def _build(name: str, root: Path | None, judge: Judge) -> Task | Group | list[Task]:
    index = manager().task_index
    entry = index[name]
    local: dict[str, Any] = {"class": LocalTask}
    if root is not None:
        local["dataset_kwargs"] = {"data_root": str(root)}
    if runs_code(name):
        # Not through the factory: it would import lm-eval's own metric, which calls the hub.
        return LocalTask(config={**deepcopy(entry.cfg or {}), **local, **_judged(entry.cfg or {}, judge)})
    return manager()._factory.build(entry, overrides=local, registry=index)


def _judged(config: dict[str, Any], judge: Judge) -> dict[str, Any]:
    """The filter and the metric of a task whose answers are programs, with the sandbox behind them."""
    instruct = "build_predictions_instruct" in str(config.get("filter_list"))
    join = judge.build_predictions_instruct if instruct else judge.build_predictions
    metric = {"metric": judge.pass_at_k, "aggregation": "mean", "higher_is_better": True, "k": [1]}
    return {
        "metric_list": [metric],
        "filter_list": [{"name": "create_test", "filter": [{"function": "custom", "filter_fn": join}]}],
    }
