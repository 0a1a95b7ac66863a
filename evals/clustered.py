"""Intervals for scores whose questions share something, as a passage: passages are counted, not questions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from evals import stats
from evals.pairing import Row, clusters
from workbench.errors import DataError

if TYPE_CHECKING:
    from evals.results import Score

Part = tuple[list[float], list[Hashable]]


def clustered(
    scores: Sequence[Score], field: str, *, parts_of: Callable[[str], list[str]], rows_of: Callable[[str], list[Row]]
) -> list[Score]:
    """These scores; standard error and 95% interval of those whose documents have the field are over its values.

    field: of a question's document. parts_of: the tasks of a group, itself of a task. rows_of: the samples of a task.
    A score that is no mean over its questions stays as it is.
    Raises: DataError if no task's documents all have the field.
    """
    rows = {task: rows_of(task) for task in dict.fromkeys(part for one in scores for part in parts_of(one.task))}
    units = {task: found for task, some in rows.items() if (found := clusters(some, field)) is not None}
    if not any(units.values()):
        known = sorted({name for some in rows.values() for row in some for name in row["doc"]})
        raise DataError(f"no task's documents all have the field {field!r}; there are {', '.join(known) or 'none'}.")
    return [
        _over(score, [_part(score, rows[task], units.get(task)) for task in parts_of(score.task)]) for score in scores
    ]


def _part(score: Score, rows: Sequence[Row], units: Sequence[Hashable] | None) -> Part | None:
    """The values of one metric over a task's questions, and the unit of each."""
    some = [(row, unit) for row, unit in zip(rows, units or (), strict=False) if row["filter"] == score.filter]
    if not some or any(score.metric not in row["scores"] for row, _ in some):
        return None
    return [float(row["scores"][score.metric]) for row, _ in some], [unit for _, unit in some]


def _over(score: Score, parts: Sequence[Part | None]) -> Score:
    having = [part for part in parts if part is not None]
    if len(having) != len(parts) or score.average == "own":
        return score
    if score.average == "macro":
        value, stderr = stats.macro([(sum(v) / len(v), stats.clustered_stderr(v, units)) for v, units in having])
    else:
        values = [value for some, _ in having for value in some]
        named = [(i, unit) for i, (_, units) in enumerate(having) for unit in units]
        value, stderr = sum(values) / len(values), stats.clustered_stderr(values, named)
    if abs(value - score.value) > 1e-6 * max(1.0, abs(value)):
        return score
    low, high = stats.normal(value, stderr)
    if score.proportion:
        low, high = max(0.0, low), min(1.0, high)
    return replace(score, stderr=stderr, low=low, high=high)
