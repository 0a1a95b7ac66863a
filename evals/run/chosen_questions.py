"""Runs that ask chosen questions only, or that write answers without scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workbench.errors import DataError

if TYPE_CHECKING:
    from evals.tasks.registry import LoadedTasks


def ask_only(loaded: LoadedTasks, questions: Mapping[str, Sequence[int]]) -> None:
    """Make lm-eval's tasks ask these questions only, by task; a task that is not named asks all of its questions.

    lm-eval's own `samples` numbers the chosen questions again while they are asked; here a question keeps its number.
    Raises: DataError for a task that is not loaded, or a question that it does not have.
    """
    if unknown := sorted(set(questions) - set(loaded.tasks) - set(loaded.not_run)):
        raise DataError(f"--samples names {', '.join(unknown)}; the tasks of this run are {', '.join(loaded.tasks)}.")
    for name in questions.keys() & loaded.tasks.keys():
        numbers = questions[name]
        task, count = loaded.tasks[name], len(loaded.tasks[name].eval_docs)
        if outside := [number for number in numbers if number >= count]:
            raise DataError(f"--samples: {name} has {count} questions, 0 to {count - 1}; found {outside[0]}.")
        task.doc_iterator = _iterator(task, sorted(set(numbers)))


def _iterator(task: Any, numbers: Sequence[int]) -> Any:
    def chosen(**options: Any) -> Iterator[tuple[int, Any]]:
        wanted = set(numbers)
        return ((number, doc) for number, doc in enumerate(task.eval_docs) if number in wanted)

    return chosen


def without_scores(loaded: LoadedTasks) -> None:
    """Make lm-eval's tasks keep answers as they are, without filters and metrics; no program runs."""
    for task in loaded.tasks.values():
        task.apply_filters, task.process_results = _keep(task), _no_metrics


def _keep(task: Any) -> Any:
    def keep() -> None:
        for instance in task.instances:
            text = instance.request_type == "generate_until"
            instance.filtered_resps = {"none": list(instance.resps) if text else instance.resps[0]}

    return keep


def _no_metrics(doc: Any, results: Any) -> dict[str, Any]:
    return {}
