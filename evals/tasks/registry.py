"""Task registry: the names of the benchmarks, and lm-eval's task objects for them, with local data.

Prompts, few-shot examples, filters, metrics and groups are lm-eval's. Only the source of the questions and the way to
run generated code are replaced. Knows nothing of models.
"""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import datasets
import lm_eval.tasks
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Entry
from lm_eval.utils import apply_template

from evals.tasks import code_metrics, custom, hub, local_data, presets
from evals.tasks.code_metrics import CodeGrader
from workbench.errors import DataError

WORKBENCH_TASKS = Path(__file__).parent
LM_EVAL_TASKS = Path(lm_eval.tasks.__file__).parent
# Indexing all of lm-eval's tasks takes seconds; these are the ones with local data.
_LLAMA = ("gsm8k", "mmlu", "mmlu_cot", "arc_challenge")
_FOLDERS = ("mmlu/default", "gsm8k", "humaneval", *(f"llama3/instruct/{name}" for name in _LLAMA))
# Tags over many benchmarks: the few folders above do not have all of their tasks.
_EXCLUDED = {"chain_of_thought", "self_consistency", "math_word_problems"}
_PASS_AT_K = {"pass_at_k", "pass_at_1"}  # lm-eval's functions that call `code_eval`; both are pass@k here
_FORMATS = {"json", "csv", "parquet", "text"}
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
            where = (root or local_data.home()) / "hub" / name
            raise DataError(
                f"the dataset {name or 'of this task'!r} is not in {where}: add a copy with `workbench eval "
                f"prepare {name or 'ORG/NAME'}=FOLDER`, or allow the download with --online."
            )
        config = self.config  # type: ignore[attr-defined]
        test_split = config.test_split or config.validation_split
        self.data_sha256, self.examples_sha256 = (
            local_data.rows_sha256(self.dataset[split]) if self.dataset and split in self.dataset else None
            for split in (test_split, config.fewshot_split)
        )

    def _needs_no_hub(self, name: str) -> bool:
        """Whether a task generates its questions, or reads local files named in its definition."""
        return name in _FORMATS or callable(self.config.custom_dataset)  # type: ignore[attr-defined]


def _as_datasets(rows: local_data.Splits) -> dict[str, datasets.Dataset]:
    return {split: datasets.Dataset.from_list(split_rows) for split, split_rows in rows.items()}


class LocalTask(LocalData, ConfigurableTask):
    """An lm-eval task whose questions come from local files."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})


@dataclass(frozen=True)
class LoadedTasks:
    """Loaded tasks and groups by name, as lm-eval's evaluator expects them."""

    tasks: dict[str, Task]
    groups: dict[str, Group]
    group_map: dict[str, list[str]]

    def runs_code(self) -> list[str]:
        return [name for name, task in self.tasks.items() if getattr(task, "UNSAFE_CODE", False)]

    def as_dict(self) -> dict[str, Any]:
        return {"tasks": self.tasks, "groups": self.groups, "group_map": self.group_map}


@cache
def manager() -> TaskManager:
    """lm-eval's task manager for the few folders of `names`."""
    with _quiet():
        return TaskManager(
            include_defaults=False, include_path=[*(LM_EVAL_TASKS / name for name in _FOLDERS), WORKBENCH_TASKS]
        )


@cache
def _full_manager() -> TaskManager:
    """lm-eval's task manager for all of its tasks; takes seconds."""
    with _quiet():
        return TaskManager(include_path=[WORKBENCH_TASKS])


def _index(name: str) -> dict[str, Entry]:
    """The index that has a name: the small one, else lm-eval's full one; the small one if neither has it."""
    ours = manager().task_index
    if name in ours and name not in _EXCLUDED:
        return ours
    # Searching the files for the name takes a tenth of the time of indexing them, and is enough for a typo.
    if not any(name.encode() in path.read_bytes() for path in LM_EVAL_TASKS.rglob("*.yaml")):
        return ours
    return _full_manager().task_index


def names() -> list[str]:
    """Every benchmark with local data: tasks, groups and tags."""
    return [name for name in manager().all_tasks if name not in _EXCLUDED]


def check(task_names: Sequence[str]) -> None:
    """Return if each name is a benchmark or the path of a custom suite.

    Raises: DataError with near matches.
    """
    for name in task_names:
        if custom.is_path(name):
            custom.files(name)
        elif not name or name not in _index(name):
            near = difflib.get_close_matches(name, names(), n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "see `workbench eval tasks`."
            raise DataError(f"unknown task {name!r}; {hint}")
    if not task_names:
        raise DataError("no task given; use --tasks or --suite, see `workbench eval tasks`.")


def runs_code(name: str) -> bool:
    """Whether a task runs generated programs; read from its definition, without its data."""
    if custom.is_path(name):
        return any(custom.form_of(file) == "demo_humaneval" for file in custom.files(name))
    return bool((_index(name)[name].cfg or {}).get("unsafe_code"))


def load(
    task_names: Sequence[str],
    *,
    root: Path | None,
    grader: CodeGrader,
    preset: str = "lm-eval",
    chat: bool = False,
    samples: int | None = None,
    online: bool = False,
) -> LoadedTasks:
    """Task objects for these names, with their questions.

    root: the data folder; None uses `local_data.folder`. preset, chat: the preset of few-shot examples and answer
    lengths, see `presets`. samples: the number of generated programs per problem. online: missing data may be
    downloaded.
    Raises: DataError for an unknown name, missing data, or a task that is requested twice.
    """
    check(task_names)
    factory = _Factory(DataSource(local_data.folder(root), online), grader, samples)
    built: list[Task | Group] = []
    for name in dict.fromkeys(task_names):
        new = factory.make(name)
        built += new if isinstance(new, list) else [new]
    try:
        loaded = manager().load(built)
    except ValueError as error:
        raise DataError(f"the tasks overlap: {error}") from error
    result = LoadedTasks(loaded["tasks"], loaded.get("groups", {}), loaded.get("group_map", {}))
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

    def make(self, name: str) -> Task | Group | list[Task]:
        if custom.is_path(name):
            return [self._custom(file) for file in custom.files(name)]
        index = dict(_index(name))
        try:
            with _quiet():
                task: Task | Group | list[Task] = self.build(index[name], registry=index)
        except ImportError as error:
            raise DataError(f"{name} needs a package that is not installed: {str(error).rstrip('.')}.") from error
        except OSError as error:
            raise DataError(f"the dataset for {name} could not be loaded: {' '.join(str(error).split())}") from error
        return task

    def _build_task(self, entry: Entry, overrides: dict[str, Any] | None) -> Task:
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
        # A task with a Python class of its own: only the source of its questions is replaced.
        task_class = type(base.__name__, (LocalData, base), {"data_source": self.data_source})
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide lm-eval's warnings about names that several of its files have."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
