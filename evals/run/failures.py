"""Tasks whose answers could not be scored: the other tasks of the run keep their results.

Does not know how a task scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from workbench.errors import DataError, WorkbenchError

Failures = dict[str, str]
"""The reason for each task that could not be scored."""


def reason(error: BaseException) -> str:
    """An error of a task in one line."""
    text = " ".join(str(error).split())
    return f"its answers could not be scored ({type(error).__name__}{': ' if text else ''}{text[:300]})."


@contextmanager
def collected(tasks: Mapping[str, Any], evaluator: Any) -> Iterator[Failures]:
    """Exceptions of filters, metrics and aggregations of these lm-eval tasks, which do not leave the evaluation.

    Raises: DataError for one while prompts are made.
    evaluator: the module of lm-eval that aggregates.
    """
    failures: Failures = {}
    for name, task in tasks.items():
        _guard(name, task, failures)
    compute = evaluator._compute_task_aggregations

    def aggregations(task: Any, raw_metrics: Any, *arguments: Any) -> Any:
        try:
            return compute(task, raw_metrics, *arguments)
        except Exception as error:
            failures.setdefault(task.task_name, reason(error))
            return {}, 0

    evaluator._compute_task_aggregations = aggregations
    try:
        yield failures
    finally:
        evaluator._compute_task_aggregations = compute


def _guard(name: str, task: Any, failures: Failures) -> None:
    build_all_requests = task.build_all_requests

    def requests(**options: Any) -> None:
        try:
            build_all_requests(**options)
        except WorkbenchError:
            raise
        except Exception as error:  # before the first answer, so nothing is lost
            text = " ".join(str(error).split())[:300]
            raise DataError(f"{name}: its prompts could not be made ({type(error).__name__}: {text}).") from error

    task.build_all_requests = requests
    apply_filters, process_results, doc_to_target = task.apply_filters, task.process_results, task.doc_to_target

    def guarded(function: Callable[..., Any], instead: Any) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if name in failures:
                return instead
            try:
                return function(*arguments, **options)
            except Exception as error:
                failures[name] = reason(error)
                return instead

        return call

    def filters() -> None:
        guarded(apply_filters, None)()
        # only now: while the prompts are made, a target that cannot be had is an error
        task.doc_to_target = guarded(doc_to_target, "")

    task.apply_filters = filters
    task.process_results = guarded(process_results, {})


def without(results: dict[str, Any], failures: Mapping[str, str]) -> dict[str, Any]:
    """lm-eval's results without these tasks and without the groups that they belong to."""
    children: dict[str, list[str]] = results.get("group_subtasks") or {}

    def fails(name: str) -> bool:
        return name in failures or any(fails(child) for child in children.get(name, ()))

    by_task = ("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
    kept = {
        key: {name: value for name, value in results[key].items() if not fails(name)}
        for key in (*by_task, "samples")
        if key in results
    }
    return {**results, **kept}
