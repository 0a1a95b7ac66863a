"""What is missing for a task, collected for all tasks of a group and said at once."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from evals.tasks import requirements
from workbench.errors import DataError


class MissingDatasetError(DataError):
    """A dataset of the Hugging Face hub of which the data folder has no copy."""

    def __init__(self, dataset: str) -> None:
        super().__init__(f"the dataset {dataset!r} is missing")
        self.dataset = dataset


@dataclass(frozen=True)
class Placeholder:
    """Stands for a task that cannot be built, while lm-eval builds the other tasks of its group."""

    task_name: str


@dataclass(frozen=True)
class Problem:
    """Why one task cannot be built: the dataset that is missing, or another reason in one sentence."""

    task: str
    reason: str
    dataset: str | None = None

    @classmethod
    def of(cls, task: str, error: BaseException) -> Problem:
        if isinstance(error, MissingDatasetError):
            return cls(task, str(error), error.dataset)
        if isinstance(error, DataError):
            return cls(task, str(error))
        if metrics := list(dict.fromkeys(_hub_metrics(error))):
            return cls(task, f"{task} needs {requirements.listed('the metric', metrics)} of the Hugging Face hub.")
        if isinstance(error, ImportError) and (package := _package(error)):
            return cls(task, f"{task} {requirements.packages_problem([package])}.")
        if isinstance(error, ImportError):
            return cls(task, f"{task} does not work with the installed packages: {one_line(error).rstrip('.')}.")
        if isinstance(error, OSError):
            return cls(task, f"the dataset for {task} could not be loaded: {one_line(error)}")
        return cls(task, f"{task} cannot be loaded: {type(error).__name__}: {one_line(error)}")


def one_line(error: BaseException) -> str:
    """The text of an exception in one line, at most 300 characters."""
    return " ".join(str(error).split())[:300]


def sentence(name: str, problems: Sequence[Problem], root: Path) -> str:
    """Everything that is missing for a task or group. root: the data folder."""
    datasets = list(dict.fromkeys(problem.dataset for problem in problems if problem.dataset is not None))
    others = _reasons(name, [problem for problem in problems if problem.dataset is None])
    if not datasets:
        return " ".join(others)
    if len(datasets) == 1:
        dataset = datasets[0]
        place = f"{root / 'hub' / dataset}: add a copy with `workbench eval prepare {dataset or 'ORG/NAME'}=FOLDER`"
        start = f"the dataset {dataset or 'of this task'!r} is not in {place}"
    else:
        named = ", ".join(datasets)
        start = (
            f"{len(datasets)} datasets of {name} are not in {root / 'hub'}: {named}. Add a copy of each with "
            "`workbench eval prepare ORG/NAME=FOLDER`"
        )
    return " ".join([f"{start}, or allow the download with --online.", *others])


def _reasons(name: str, problems: Sequence[Problem]) -> list[str]:
    """The reasons, each once: what is the same for several tasks is said of the group."""
    same: dict[str, list[Problem]] = {}
    for problem in problems:
        same.setdefault(problem.reason.replace(problem.task, name), []).append(problem)
    return [reason if len(having) > 1 else having[0].reason for reason, having in same.items()]


def _package(error: BaseException | None) -> str | None:
    """The package that was not found; a task may raise its own error instead of the first."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            name = error.name.partition(".")[0]
            return None if requirements.installed(name) else name
        error = error.__cause__ or error.__context__
    return None


def _hub_metrics(error: BaseException | None) -> Iterator[str]:
    """The metrics that `evaluate` was loading when an exception was raised."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_globals.get("__name__") == "evaluate.loading" and frame.f_code.co_name == "load":
                yield str(frame.f_locals.get("path"))
        error = error.__cause__ or error.__context__
