"""A run's scores as plain text for a terminal. Knows only of `results`."""

from __future__ import annotations

from evals.results import Run, Score

_HEAD = ("task", "shots", "metric", "n", "score", "95% interval")
_RIGHT = {"shots", "n", "score", "95% interval"}


def render(run: Run, *, tasks: bool = True) -> str:
    """The table, one line a score; without `tasks` the members of a group are left out.

    Units: proportions in per cent, other metrics as they are; the interval is Wilson's for proportions, from the
    standard error for macro averages.
    """
    members = {name for names in (run.data.get("group_subtasks") or {}).values() for name in names}
    rows = [_row(score) for score in run.scores if tasks or score.task not in members]
    rows += [(task, "", "not run", "", "", "") for task in run.not_run]
    widths = [max(len(row[i]) for row in [_HEAD, *rows]) for i in range(len(_HEAD))]
    lines = [_line(_HEAD, widths), "  ".join("-" * width for width in widths), *(_line(row, widths) for row in rows)]
    lines += [f"{task} was not run: {reason}" for task, reason in run.not_run.items()]
    return "\n".join(lines)


def number(score: Score, value: float | None) -> str:
    """A value in a score's units: per cent for proportions; empty for None."""
    if value is None:
        return ""
    return f"{100 * value:.1f}" if score.proportion else f"{value:.4g}"


def interval(score: Score) -> str:
    """A score's 95% interval in its units; empty where there is none."""
    ends = (score.low, score.high)
    return "" if None in ends else " - ".join(number(score, end) for end in ends)


def _row(score: Score) -> tuple[str, ...]:
    name = f"{score.task} ({score.average} average)" if score.average else score.task
    metric = score.metric if score.filter in ("none", "create_test") else f"{score.metric}, {score.filter}"
    shots = "" if score.shots is None else str(score.shots)
    return (name, shots, metric, str(score.n), number(score, score.value), interval(score))


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    aligned = (
        cell.rjust(width) if head in _RIGHT else cell.ljust(width)
        for cell, width, head in zip(cells, widths, _HEAD, strict=True)
    )
    return "  ".join(aligned).rstrip()
