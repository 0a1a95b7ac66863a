"""Which benchmarks there are, and lm-eval's task objects for them: its own definitions over local data.

Prompts, few-shot examples, filters, metrics and groups are lm-eval's. What is replaced is where the
questions come from, and what runs generated code. Knows nothing of models.
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

OWN = Path(__file__).parent
THEIRS = Path(lm_eval.tasks.__file__).parent
# Indexing all of lm-eval's tasks takes seconds; these are the ones whose data can be read here.
_LLAMA = ("gsm8k", "mmlu", "mmlu_cot", "arc_challenge")
_FOLDERS = ("mmlu/default", "gsm8k", "humaneval", *(f"llama3/instruct/{name}" for name in _LLAMA))
# Names of kinds of tasks, over many benchmarks: these few folders do not hold all that they mean.
_LEFT_OUT = {"chain_of_thought", "self_consistency", "math_word_problems"}
_PASS = {"pass_at_k", "pass_at_1"}  # lm-eval's names of what calls `code_eval`; both are pass@k here
_FORMATS = {"json", "csv", "parquet", "text"}
_SAMPLED = {"do_sample": True, "temperature": 0.2, "top_p": 0.95}  # as lm-eval's humaneval_64


@dataclass(frozen=True)
class Place:
    """Where questions may come from: the user's data folder, and the hub where that is allowed."""

    root: Path | None = None
    online: bool = False


class Local:
    """Lets a task of lm-eval read its questions from local files."""

    place: ClassVar[Place] = Place()

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        name, part = str(self.DATASET_PATH or ""), self.DATASET_NAME  # type: ignore[attr-defined]
        root, there = self.place.root, hub.copy(self.place.root, name)
        if local_data.present(name, part, root):
            self.dataset = _tables(local_data.load(name, part, root))
        elif custom.is_path(name) and name.endswith(".jsonl"):
            self.dataset = _tables(custom.read(Path(name)))
        elif there is not None:
            self.dataset = hub.load(there, part, dataset_kwargs or {})
        elif self.place.online or self._needs_no_hub(name):
            super().download(dataset_kwargs, **kwargs)  # type: ignore[misc]
        elif local_data.readable(name):
            local_data.load(name, part, root)  # which says what it misses
        else:
            where = (root or local_data.home()) / "hub" / name
            raise DataError(
                f"the data set {name or 'of this task'!r} is not in {where}: bring a copy in with `workbench eval "
                f"prepare {name or 'ORG/NAME'}=FOLDER`, or allow its download with --online."
            )
        config = self.config  # type: ignore[attr-defined]
        asked = config.test_split or config.validation_split
        self.data_sha256, self.examples_sha256 = (
            local_data.digest(self.dataset[split]) if self.dataset and split in self.dataset else None
            for split in (asked, config.fewshot_split)
        )

    def _needs_no_hub(self, name: str) -> bool:
        """Whether a task makes its questions, or reads files that its definition names by their format."""
        return name in _FORMATS or callable(self.config.custom_dataset)  # type: ignore[attr-defined]


def _tables(rows: local_data.Splits) -> dict[str, datasets.Dataset]:
    return {split: datasets.Dataset.from_list(these) for split, these in rows.items()}


class LocalTask(Local, ConfigurableTask):
    """A task as lm-eval defines it, whose questions come from local files."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})


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
    with _quiet():
        return TaskManager(include_defaults=False, include_path=[*(THEIRS / name for name in _FOLDERS), OWN])


@cache
def _everything() -> TaskManager:
    """lm-eval's index over all of its tasks; takes seconds."""
    with _quiet():
        return TaskManager(include_path=[OWN])


def _index(name: str) -> dict[str, Entry]:
    """The index that has a name: ours, or where ours has it not the whole one; an index without it if none has."""
    ours = manager().task_index
    if name in ours and name not in _LEFT_OUT:
        return ours
    # Looking into its files takes a tenth of the time of reading them, and is enough for a slip of the pen.
    if not any(name.encode() in path.read_bytes() for path in THEIRS.rglob("*.yaml")):
        return ours
    return _everything().task_index


def names() -> list[str]:
    """Every benchmark whose data can be prepared: tasks, groups and tags."""
    return [name for name in manager().all_tasks if name not in _LEFT_OUT]


def check(asked: Sequence[str]) -> None:
    """Return if each name is a benchmark's, or the path of the user's own.

    Raises: DataError with near matches.
    """
    for name in asked:
        if custom.is_path(name):
            custom.files(name)
        elif not name or name not in _index(name):
            near = difflib.get_close_matches(name, names(), n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "see `workbench eval tasks`."
            raise DataError(f"unknown task {name!r}; {hint}")
    if not asked:
        raise DataError("no task was named; give --tasks or --suite, see `workbench eval tasks`.")


def runs_code(name: str) -> bool:
    """Whether a task has generated programs run; told from its definition, without its data."""
    if custom.is_path(name):
        return any(custom.form_of(file) == "demo_humaneval" for file in custom.files(name))
    return bool((_index(name)[name].cfg or {}).get("unsafe_code"))


def load(
    asked: Sequence[str],
    *,
    root: Path | None,
    judge: CodeGrader,
    preset: str = "lm-eval",
    chat: bool = False,
    samples: int | None = None,
    online: bool = False,
) -> Suites:
    """Task objects for these names, with their questions.

    root: the data folder; None takes `data.folder`'s. preset, chat: whose examples and lengths of answers a task has,
    see `presets`. samples: how many programs are generated for each problem. online: what is not there may be fetched.
    Raises: DataError for an unknown name, missing data, or a task that is asked for twice.
    """
    check(asked)
    factory = _Factory(Place(local_data.folder(root), online), judge, samples)
    built: list[Task | Group] = []
    for name in dict.fromkeys(asked):
        made = factory.make(name)
        built += made if isinstance(made, list) else [made]
    try:
        loaded = manager().load(built)
    except ValueError as error:
        raise DataError(f"the tasks overlap: {error}") from error
    found = Suites(loaded["tasks"], loaded.get("groups", {}), loaded.get("group_map", {}))
    if samples is not None and not found.runs_code():
        raise DataError(f"--samples is for tasks whose answers are programs; none of {', '.join(asked)} is one.")
    for name, task in found.tasks.items():
        _follow(task, presets.rule(preset, name, chat=chat))
    return found


def _follow(task: Task, rule: presets.Rule | None) -> None:
    """Set a task to a preset's examples and length of answers."""
    if rule is not None and rule.shots is not None:
        task.set_config("num_fewshot", rule.shots)
    if rule is not None and rule.tokens is not None:
        task.set_config("generation_kwargs", {"max_gen_toks": rule.tokens}, update=True)


class _Factory(TaskFactory):
    """lm-eval's factory, whose tasks read local files and have their programs run in the sandbox."""

    def __init__(self, place: Place, judge: CodeGrader, samples: int | None) -> None:
        super().__init__()
        self.place, self.judge, self.samples = place, judge, samples

    def make(self, name: str) -> Task | Group | list[Task]:
        if custom.is_path(name):
            return [self._custom(file) for file in custom.files(name)]
        index = dict(_index(name))
        try:
            with _quiet():
                made: Task | Group | list[Task] = self.build(index[name], registry=index)
        except ImportError as error:
            raise DataError(f"{name} needs a package that is not installed: {str(error).rstrip('.')}.") from error
        except OSError as error:
            raise DataError(f"the data of {name} could not be had: {' '.join(str(error).split())}") from error
        return made

    def _build_task(self, entry: Entry, overrides: dict[str, Any] | None) -> Task:
        if (entry.cfg or {}).get("unsafe_code"):
            # Not through the factory: it would import lm-eval's own metric, which calls the hub.
            config = code_metrics.resolved({**deepcopy(entry.cfg or {}), **(overrides or {})})
            return self._local({**config, **self._judged(entry.name, config)})
        theirs = self._load_full_config(entry, overrides)
        for key in ("tag", "group", "task_list"):
            theirs.pop(key, None)
        base = theirs.get("class", LocalTask)
        if issubclass(base, LocalTask):
            return self._local(theirs)
        # A task that is a program: what it does with its questions is its own, where they come from is not.
        made = type(base.__name__, (Local, base), {"place": self.place})
        task: Task = made(config=theirs) if "config" in inspect.signature(base.__init__).parameters else made()
        if getattr(task, "config", None) is not None:
            task.config.task = theirs["task"]
        return task

    def _local(self, config: dict[str, Any]) -> LocalTask:
        made: LocalTask = type("LocalTask", (LocalTask,), {"place": self.place})(config=config)
        return made

    def _custom(self, file: Path) -> LocalTask:
        if file.stem in manager().task_index:
            raise DataError(f"{file} has the name of a benchmark, {file.stem}; give the file another.")
        ours = manager().task_index
        like = ours[custom.form_of(file)].cfg or {}
        config = custom.config(file, like, program=ours["humaneval"].cfg or {})
        if config.get("unsafe_code"):
            config = code_metrics.resolved(config)
            config |= self._judged(file.stem, config)
        return self._local(config)

    def _judged(self, task: str, config: dict[str, Any]) -> dict[str, Any]:
        """The filter and the metric of a task whose answers are programs, with the sandbox behind them."""
        if "metric_list" not in config:  # the embedded problems, which are in HumanEval's form
            theirs = code_metrics.resolved(deepcopy(manager().task_index["humaneval"].cfg))
            config |= {key: theirs[key] for key in ("metric_list", "filter_list")}
        target, metrics, filters = config["doc_to_target"], config["metric_list"], config.get("filter_list") or []
        steps = [step for one in filters for step in one["filter"]]
        join = steps[0].get("filter_fn") if len(steps) == 1 else None
        known = all(getattr(metric["metric"], "__name__", "") in _PASS for metric in metrics)
        if not (known and isinstance(target, str) and callable(join) == bool(filters)):
            raise DataError(f"{task} has generated code run in a way of its own, for which there is no sandbox here.")
        changes: dict[str, Any] = {}
        shots = [k for metric in metrics for k in metric.get("k", [1])]
        if self.samples is not None:
            shots = [k for k in (1, 10, 100) if k <= self.samples]
            drawn = {} if self.samples == 1 else _SAMPLED
            changes = {"repeats": self.samples, "generation_kwargs": {**config["generation_kwargs"], **drawn}}
        metric = {"metric": self.judge.pass_at_k, "aggregation": "mean", "higher_is_better": True, "k": shots}
        run = {"function": "custom", "filter_fn": self.judge.judging(join, partial(apply_template, target))}
        name = filters[0]["name"] if filters else "none"
        return changes | {"metric_list": [metric], "filter_list": [{"name": name, "filter": [run]}]}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's remarks on names that several of its files have."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
