"""Task registry: the names of the benchmarks, and lm-eval's task objects for them, with local data.

Prompts, few-shot examples, filters, metrics and groups are lm-eval's. Only the source of the questions and the way to
run generated code are replaced. Knows nothing of models.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
from lm_eval.api.group import Group
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Entry, Kind
from lm_eval.utils import apply_template

from evals.store import foreign_code
from evals.tasks import (
    code_metrics,
    custom,
    hub,
    index,
    local_data,
    missing,
    presets,
    requirements,
    squad_v2,
)
from evals.tasks.code_metrics import CodeGrader
from evals.tasks.index import LM_EVAL_TASKS, manager, names
from workbench.errors import DataError

__all__ = ["LM_EVAL_TASKS", "DataSource", "LoadedTasks", "check", "load", "manager", "names", "runs_code"]

_PASS_AT_K = {"pass_at_k", "pass_at_1"}  # lm-eval's functions that call `code_eval`; both are pass@k here
_FORMATS = {"json", "csv", "parquet", "arrow", "text"}
_SAMPLING_ARGS = {"do_sample": True, "temperature": 0.2, "top_p": 0.95}  # as in lm-eval's humaneval_64


@dataclass(frozen=True)
class DataSource:
    """Where questions may come from: the user's data folder, and the hub if `online`."""

    root: Path | None = None
    online: bool = False


class LocalData:
    """Mixin for lm-eval's tasks that reads the questions from local files."""

    data_source: ClassVar[DataSource] = DataSource()

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        name, part = str(self.DATASET_PATH or ""), self.DATASET_NAME  # type: ignore[attr-defined]
        root, copy = self.data_source.root, hub.local_copy(self.data_source.root, name)
        if local_data.present(name, part, root):
            self.dataset = _as_datasets(local_data.load(name, part, root))
        elif custom.is_path(name) and name.endswith(".jsonl"):
            self.dataset = _as_datasets(custom.read(Path(name)))
        elif copy is not None:
            self.dataset = hub.load(copy, part, dataset_kwargs or {})
        elif self.data_source.online or self._needs_no_hub(name):
            super().download(dataset_kwargs, **kwargs)  # type: ignore[misc]
        elif local_data.readable(name):
            local_data.load(name, part, root)  # raises an error that names the missing file
        else:
            if not name:
                raise DataError(f"{self.config.task}: its definition names no dataset_path.")  # type: ignore[attr-defined]
            raise missing.MissingDatasetError(name)
        config = self.config  # type: ignore[attr-defined]
        test_split = config.test_split or config.validation_split
        self.data_sha256, self.examples_sha256 = (
            local_data.rows_sha256(self.dataset[split]) if self.dataset and split in self.dataset else None
            for split in (test_split, config.fewshot_split)
        )

    def aggregation(self) -> dict[str, Any]:
        """The task's aggregations; a mean is lm-eval's own, whose standard error it knows."""
        aggregations = super().aggregation()  # type: ignore[misc]
        return {name: mean if function is np.mean else function for name, function in aggregations.items()}

    def _needs_no_hub(self, name: str) -> bool:
        """Whether a task generates its questions, or reads local files named in its definition."""
        local = name in _FORMATS or (bool(name) and Path(name).is_dir())
        return local or callable(self.config.custom_dataset)  # type: ignore[attr-defined]


def _as_datasets(rows: local_data.Splits) -> dict[str, datasets.Dataset]:
    return {split: datasets.Dataset.from_list(split_rows) for split, split_rows in rows.items()}


class LocalTask(LocalData, ConfigurableTask):
    """An lm-eval task whose questions come from local files."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})


@dataclass(frozen=True)
class LoadedTasks:
    """Loaded tasks and groups by name, as lm-eval's evaluator expects them, and why the others are not loaded."""

    tasks: dict[str, Task]
    groups: dict[str, Group]
    group_map: dict[str, list[str]]
    not_run: dict[str, str] = field(default_factory=dict)

    def runs_code(self) -> list[str]:
        return [name for name, task in self.tasks.items() if getattr(task, "UNSAFE_CODE", False)]

    def as_dict(self) -> dict[str, Any]:
        return {"tasks": self.tasks, "groups": self.groups, "group_map": self.group_map}


def check(task_names: Sequence[str], include: Sequence[Path] = ()) -> None:
    """Return if each name is a task, or the path of a task definition or of a custom suite.

    include: the user's folders of task definitions.
    Raises: DataError with near matches.
    """
    for folder in include:
        index.check_folder(folder)
    _check_names(task_names, include)


def _check_names(task_names: Sequence[str], include: Sequence[Path]) -> None:
    for name in task_names:
        if custom.is_path(name):
            _at_path(name)
        elif not name or name not in index.entries(name, include):
            near = index.near(name)
            hint = f"did you mean {', '.join(near)}?" if near else "see `workbench eval tasks --all`."
            if name and Path(name).exists():
                hint = f"for the path, write ./{name}."
            raise DataError(f"unknown task {name!r}; {hint}")
    if not task_names:
        raise DataError("no task given; use --tasks or --suite, see `workbench eval tasks`.")


def runs_code(name: str, include: Sequence[Path] = ()) -> bool:
    """Whether a task runs generated programs; read from its definition, without its data."""
    if custom.is_path(name):
        suites, own, known = _at_path(name)
        programs = any(custom.form_of(file) == "demo_humaneval" for file in suites)
        return programs or any(bool((known[task].cfg or {}).get("unsafe_code")) for task in own)
    return bool((index.entries(name, include)[name].cfg or {}).get("unsafe_code"))


def _at_path(name: str) -> tuple[list[Path], list[str], index.Index]:
    """The JSON Lines suites of a path, or the names of its task definitions with their index.

    JSON Lines files next to task definitions are their data.
    """
    path = Path(name).expanduser()
    return ([], *index.at_path(path)) if foreign_code.has_definitions(path) else (custom.files(path), [], {})


def load(
    task_names: Sequence[str],
    *,
    root: Path | None,
    grader: CodeGrader,
    preset: str = "lm-eval",
    chat: bool = False,
    samples: int | None = None,
    online: bool = False,
    include: Sequence[Path] = (),
    partial: bool = False,
) -> LoadedTasks:
    """Task objects for these names, with their questions.

    root: the data folder; None uses `local_data.folder`. preset, chat: the preset of few-shot examples and answer
    lengths, see `presets`. samples: the number of generated programs per problem. online: missing data may be
    downloaded. include: the user's folders of task definitions. partial: names that cannot be loaded do not stop the
    others, unless all of them cannot; they are in `not_run`.
    Raises: DataError for an unknown name, missing data, a missing package or metric, or a task that is requested twice.
    """
    _check_names(task_names, include)
    factory = _Factory(DataSource(local_data.folder(root), online), grader, samples)
    built: list[Task | Group] = []
    not_run: dict[str, str] = {}
    for name in dict.fromkeys(task_names):
        try:
            built += factory.make(name, include)
        except DataError as error:
            not_run[name] = str(error)
    if not_run and not (partial and built):
        raise DataError(" ".join(dict.fromkeys(not_run.values())))
    try:
        loaded = manager().load(built)
    except ValueError as error:
        raise DataError(f"the tasks overlap: {error}") from error
    result = LoadedTasks(loaded["tasks"], loaded.get("groups", {}), loaded.get("group_map", {}), not_run)
    if samples is not None and not result.runs_code():
        raise DataError(f"--samples is for tasks whose answers are programs; none of {', '.join(task_names)} is one.")
    for name, task in result.tasks.items():
        _apply_preset(task, presets.rule(preset, name, chat=chat))
    return result


def _apply_preset(task: Task, rule: presets.Rule | None) -> None:
    """Set a task's number of few-shot examples and answer length to those of a preset."""
    if rule is not None and rule.shots is not None:
        task.set_config("num_fewshot", rule.shots)
    if rule is not None and rule.tokens is not None:
        task.set_config("generation_kwargs", {"max_gen_toks": rule.tokens}, update=True)


class _Factory(TaskFactory):
    """lm-eval's task factory with tasks that read local files and run programs in the sandbox."""

    def __init__(self, data_source: DataSource, grader: CodeGrader, samples: int | None) -> None:
        super().__init__()
        self.data_source, self.grader, self.samples = data_source, grader, samples
        self.problems: list[missing.Problem] = []
        self.registry: index.Index = {}

    def make(self, name: str, include: Sequence[Path] = ()) -> list[Task | Group]:
        """The tasks and groups of a name.

        Raises: DataError with everything that is missing for it.
        """
        if not custom.is_path(name):
            return self._from_index(name, index.entries(name, include))
        suites, own, known = _at_path(name)
        tasks: list[Task | Group] = [self._custom(file) for file in suites]
        for task in own:
            tasks += self._from_index(task, index.own_index(known, task))
        return tasks

    def _from_index(self, name: str, entries: index.Index) -> list[Task | Group]:
        self.problems, self.registry = [], dict(entries)
        try:
            with index.quiet():
                built = self.build(self.registry[name], registry=self.registry)
        except DataError:
            raise
        except Exception as error:  # a group's definition can be wrong in many ways
            raise DataError(f"{name} cannot be loaded: {type(error).__name__}: {missing.one_line(error)}") from error
        if self.problems:
            raise DataError(missing.sentence(name, self.problems, self.data_source.root or local_data.home()))
        return list(built) if isinstance(built, list) else [built]

    def _build_group(
        self, group_name: str, raw_cfg: dict[str, Any], overrides: dict[str, Any] | None, registry: index.Index
    ) -> Group:
        """lm-eval's group. Tasks that are defined inside it are built as all others, and not by lm-eval itself."""
        members: list[Any] = []
        for member in raw_cfg["task"] if isinstance(raw_cfg.get("task"), list) else ():
            child = member if isinstance(member, str) else member.get("task")
            if child is not None and child not in registry:
                if isinstance(member, str):
                    raise DataError(f"the group {group_name} has the task {child!r}, which is not defined.")
                inline = f"{group_name}::{child}"  # lm-eval's name
                registry[inline] = Entry(name=inline, kind=Kind.TASK, yaml_path=None, cfg={**member, "task": inline})
                member = {**member, "task": inline}
            members.append(member)
        return super()._build_group(group_name, {**raw_cfg, "task": members}, overrides, registry)

    def _build_task(self, entry: Entry, overrides: dict[str, Any] | None) -> Task:
        """A task, or a placeholder if it cannot be built; then `problems` says why, and the others are still tried."""
        try:
            task = self._task(entry, overrides)
            if (problem := requirements.problem(task, LM_EVAL_TASKS)) is not None:
                raise DataError(f"{entry.name} {problem}.")
            task.definition_sha256 = index.definition_sha256(entry)
            return task
        except (Exception, SystemExit) as error:  # code and templates of many authors raise many types
            self.problems.append(missing.Problem.of(entry.name, error))
            return missing.Placeholder((overrides or {}).get("task") or entry.name)

    def _task(self, entry: Entry, overrides: dict[str, Any] | None) -> Task:
        if (entry.cfg or {}).get("unsafe_code"):
            # Not with lm-eval's factory: it would import lm-eval's own metric, which calls the hub.
            config = code_metrics.resolve_functions({**deepcopy(entry.cfg or {}), **(overrides or {})})
            return self._local({**config, **self._sandbox_config(entry.name, config)})
        full_config = self._load_full_config(entry, overrides)
        for key in ("tag", "group", "task_list"):
            full_config.pop(key, None)
        base = full_config.get("class", LocalTask)
        if issubclass(base, LocalTask):
            return self._local(full_config)
        # A task with a Python class of its own: only the source of its questions, and SQuAD's metric, are replaced.
        changes: dict[str, Any] = {"data_source": self.data_source}
        if base.__module__ == "lm_eval.tasks.squadv2.task":
            changes |= squad_v2.task_methods(mean)
        task_class = type(base.__name__, (LocalData, base), changes)
        task: Task = (
            task_class(config=full_config) if "config" in inspect.signature(base.__init__).parameters else task_class()
        )
        if getattr(task, "config", None) is not None:
            task.config.task = full_config["task"]
        return task

    def _local(self, config: dict[str, Any]) -> LocalTask:
        task: LocalTask = type("LocalTask", (LocalTask,), {"data_source": self.data_source})(config=config)
        return task

    def _custom(self, file: Path) -> LocalTask:
        if file.stem in manager().task_index:
            raise DataError(f"{file} has the same name as the benchmark {file.stem}; rename the file.")
        task_index = manager().task_index
        like = task_index[custom.form_of(file)].cfg or {}
        config = custom.config(file, like, program=task_index["humaneval"].cfg or {})
        if config.get("unsafe_code"):
            config = code_metrics.resolve_functions(config)
            config |= self._sandbox_config(file.stem, config)
        return self._local(config)

    def _sandbox_config(self, task: str, config: dict[str, Any]) -> dict[str, Any]:
        """The filter and metric settings of a code task, which run its programs in the sandbox."""
        if "metric_list" not in config:  # the embedded problems, which have HumanEval's format
            humaneval = code_metrics.resolve_functions(deepcopy(manager().task_index["humaneval"].cfg))
            config |= {key: humaneval[key] for key in ("metric_list", "filter_list")}
        target, metrics, filters = config["doc_to_target"], config["metric_list"], config.get("filter_list") or []
        steps = [step for filter_config in filters for step in filter_config["filter"]]
        join = steps[0].get("filter_fn") if len(steps) == 1 else None
        known = all(getattr(metric["metric"], "__name__", "") in _PASS_AT_K for metric in metrics)
        if not (known and isinstance(target, str) and callable(join) == bool(filters)):
            raise DataError(f"{task} runs generated code in its own way, which the sandbox does not support.")
        changes: dict[str, Any] = {}
        shots = [k for metric in metrics for k in metric.get("k", [1])]
        if self.samples is not None:
            shots = [k for k in (1, 10, 100) if k <= self.samples]
            sampling = {} if self.samples == 1 else _SAMPLING_ARGS
            changes = {"repeats": self.samples, "generation_kwargs": {**config["generation_kwargs"], **sampling}}
        metric = {"metric": self.grader.pass_at_k, "aggregation": "mean", "higher_is_better": True, "k": shots}
        run_step = {
            "function": "custom",
            "filter_fn": self.grader.program_filter(join, partial(apply_template, target)),
        }
        name = filters[0]["name"] if filters else "none"
        return changes | {"metric_list": [metric], "filter_list": [{"name": name, "filter": [run_step]}]}
