"""Clustered standard errors: intervals for scores whose questions share something, for example a passage."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from evals import stats
from evals.compare.matching import Row, clusters
from evals.results.runs import Run, Score, leaves_of
from workbench.errors import DataError

Part = tuple[list[float], list[Hashable]]


def clustered(run: Run, field: str) -> Run:
    """The run with clustered standard errors and 95% intervals. Questions with the same value of `field` are a cluster.

    field: a field of the questions' documents. A score is not changed if its documents do not have the field, or if
    it is not a mean over its questions.
    Raises: DataError if no task has the field in all of its documents.
    """
    scores, children = run.scores, run.data.get("group_subtasks") or {}
    tasks = {score.task: leaves_of(score.task, children) for score in scores}
    rows: dict[str, list[Row]] = {
        task: run.samples(task).to_dict("records") for task in dict.fromkeys(sum(tasks.values(), []))
    }
    units = {task: values for task, samples in rows.items() if (values := clusters(samples, field)) is not None}
    if not any(units.values()):
        known = sorted({name for samples in rows.values() for row in samples for name in row["doc"]})
        raise DataError(
            f"no task has the field {field!r} in all of its documents; the fields are: {', '.join(known) or 'none'}."
        )
    parts = [[_values_and_units(score, rows[task], units.get(task)) for task in tasks[score.task]] for score in scores]
    changed = [_with_clustered_error(score, values) for score, values in zip(scores, parts, strict=True)]
    return replace(run, cluster=field, clustered_scores=tuple(changed))


def _values_and_units(score: Score, rows: Sequence[Row], units: Sequence[Hashable] | None) -> Part | None:
    """The values of one metric for a task's questions, and the cluster of each."""
    selected = [(row, unit) for row, unit in zip(rows, units or (), strict=False) if row["filter"] == score.filter]
    if not selected or any(score.metric not in row["scores"] for row, _ in selected):
        return None
    return [float(row["scores"][score.metric]) for row, _ in selected], [unit for _, unit in selected]


def _with_clustered_error(score: Score, parts: Sequence[Part | None]) -> Score:
    known = [part for part in parts if part is not None]
    if len(known) != len(parts) or score.average == "group_rule":
        return score
    if score.average == "macro":
        value, stderr = stats.macro([(sum(v) / len(v), stats.clustered_stderr(v, units)) for v, units in known])
    else:
        values = [value for part_values, _ in known for value in part_values]
        named = [(i, unit) for i, (_, units) in enumerate(known) for unit in units]
        value, stderr = sum(values) / len(values), stats.clustered_stderr(values, named)
    if abs(value - score.value) > 1e-6 * max(1.0, abs(value)):
        return score
    low, high = stats.normal(value, stderr)
    if score.proportion:
        low, high = max(0.0, low), min(1.0, high)
    return replace(score, stderr=stderr, low=low, high=high)
