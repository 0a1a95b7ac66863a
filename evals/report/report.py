"""Report of one run, or of several side by side: tables by group and subject, badges, and provenance.

The content is chosen here; `markup` renders it. CSV and Parquet have one row per score. Does not use models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evals.compare.published import Published, PublishedComparison, compare_with_published
from evals.report.document import Document
from evals.report.markup import Report, Table
from evals.report.terminal_table import interval, number
from evals.results import answer_counts
from evals.results.provenance import origin
from evals.results.runs import Run, Score, not_finite_count, question_counts
from workbench.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_KEYS = ("checkpoint_sha256", "tokenizer_sha256", "dtype", "device", "seed", "commit")


@dataclass(frozen=True)
class _Column:
    """A run with its letter, and its scores by (task, metric, filter, average)."""

    letter: str
    run: Run
    scores: dict[tuple[str, str, str, str], Score]


def document(runs: Sequence[Run], *, figures: Sequence[Published] = ()) -> Document:
    """The report of these runs in every format."""
    return Document(
        report=lambda: build(runs, figures=figures),
        frame=lambda: frame(runs, figures=figures),
        values=lambda: values(runs, figures=figures),
        extra_tables={},
    )


def build(runs: Sequence[Run], *, figures: Sequence[Published] = ()) -> Report:
    """The report of these runs; `figures` are published scores to compare them with.

    Raises: DataError if there are no runs, or more runs than letters.
    """
    if not 0 < len(runs) <= len(_LETTERS):
        raise DataError(f"a report needs 1 to {len(_LETTERS)} runs; found {len(runs)}.")
    columns = [
        _Column(letter, run, {(s.task, s.metric, s.filter, s.average): s for s in run.scores})
        for letter, run in zip(_LETTERS, runs, strict=False)
    ]
    keys = list(dict.fromkeys(key for column in columns for key in column.scores))
    roots = _roots(runs)
    whole = [key for key in keys if roots.get(key[0], key[0]) == key[0]]
    tables = [_table("Tasks and groups", whole, columns)]
    for root in dict.fromkeys(roots.values()):
        members = [key for key in keys if roots.get(key[0]) == root and key[0] != root]
        tables.append(_table(f"Members of {root}", members, columns))
    comparisons = [
        (column, comparison) for column in columns for comparison in compare_with_published(column.run, figures)
    ]
    if comparisons:
        tables.append(_published(comparisons, alone=len(runs) == 1))
    title = f"Evaluation of {runs[0].model}" if len(runs) == 1 else f"{len(runs)} evaluations side by side"
    notes = (
        "Proportions are in per cent. Intervals are 95%: Wilson's for proportions, bootstrap over problems for pass@k "
        "with several samples, and from the standard error for macro averages and other metrics. A micro average is "
        "over questions, a macro average over tasks.",
        *(
            f"Standard errors are clustered by {name}: questions with the same {name} are one cluster."
            for name in dict.fromkeys(run.cluster for run in runs if run.cluster)
        ),
        *(
            f"No published score of {figure} is for a task of these runs."
            for figure in _unmatched(figures, comparisons)
        ),
    )
    named = [("" if len(runs) == 1 else f"{column.letter}: ", column.run) for column in columns]
    warned = tuple(badge for prefix, run in named for badge in badges(run, prefix))
    origins = tuple((prefix + run.name, footer(run)) for prefix, run in named)
    return Report(title, warned, tuple(tables), notes, origins)


def frame(runs: Sequence[Run], *, figures: Sequence[Published] = ()) -> pd.DataFrame:
    """One row per score, with its run's provenance; then the published scores, without n and interval."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for run in runs:
        about = origin(run)
        shared = {"run": run.name, "model": run.model} | {key: about.get(key) for key in _KEYS}
        for score in run.scores:
            answered, total = question_counts(run, score.task)
            row = {**shared, **vars(score), "questions": total, "partial": answered < total, "source": run.path.name}
            row |= {"not_finite": not_finite_count(run, score.task)} if run.not_finite else {}
            kinds = answer_counts.shown(run)
            rows.append(row | {kind: answer_counts.count(run, kind, score.task, score.filter) for kind in kinds})
    score_of = {
        comparison.published: comparison.score for run in runs for comparison in compare_with_published(run, figures)
    }
    for figure, score in score_of.items():
        row = {"task": score.task, "metric": figure.metric, "average": score.average, "value": figure.value}
        shots = int(figure.shots) if figure.shots.isdecimal() else None
        rows.append({"run": "published", "model": figure.name, **row, "shots": shots, "source": figure.source})
    columns = ["run", "model", *Score.__dataclass_fields__, "questions", "partial", "source", *_KEYS]
    integers = dict.fromkeys(("shots", "n", "questions", "seed"), "Int64")
    if any(run.not_finite for run in runs):
        columns.append("not_finite")
        integers["not_finite"] = "Int64"
    counted = _counted(runs)
    integers |= dict.fromkeys(counted, "Int64")
    return pd.DataFrame(rows, columns=[*columns, *counted]).astype({**integers, "partial": "boolean"})


def values(runs: Sequence[Run], *, figures: Sequence[Published] = ()) -> list[dict[str, Any]]:
    """The rows of `frame` as JSON values, with None for unknown values."""
    table = frame(runs, figures=figures)
    return [dict(row) for row in table.astype(object).where(table.notna(), None).to_dict("records")]


def _roots(runs: Iterable[Run]) -> dict[str, str]:
    """The top-level group of every group and group member."""
    parents: dict[str, str] = {}
    for run in runs:
        for name, under in (run.data.get("group_subtasks") or {}).items():
            parents |= dict.fromkeys(under, name)
    roots = {}
    for name in {*parents, *parents.values()}:
        root = name
        while root in parents:
            root = parents[root]
        roots[name] = root
    return roots


def _table(title: str, keys: Sequence[tuple[str, str, str, str]], columns: Sequence[_Column]) -> Table:
    """One row per score. Shots and n have one column for all runs if they are the same in all runs."""
    score_rows = [[column.scores.get(key) for column in columns] for key in keys]
    kinds = _counted([column.run for column in columns])
    cells = [
        [_cells(column.run, cell_score, kinds) for column, cell_score in zip(columns, row, strict=True)]
        for row in score_rows
    ]
    same = all(len({cell[:2] for cell in row if cell is not None}) == 1 for row in cells)
    head = ["task", "metric"]
    per_run = ("shots", "n", "score", "95% interval", *(answer_counts.COLUMNS[kind] for kind in kinds))
    width = len(per_run)
    if same:
        head, per_run = [*head, *per_run[:2]], per_run[2:]
    head += [part if len(columns) == 1 else f"{column.letter}: {part}" for column in columns for part in per_run]
    rows = []
    for scores, row in zip(score_rows, cells, strict=True):
        first = next(score for score in scores if score is not None)
        shared = next(cell for cell in row if cell is not None)[: 2 if same else 0]
        each = [part for cell in row for part in (cell or ("",) * width)[width - len(per_run) :]]
        rows.append((first.task, first.label, *shared, *each))
    return Table(title, tuple(head), tuple(rows), left=2)


def _counted(runs: Sequence[Run]) -> list[str]:
    """The counts of answers and prompts that are not zero in every run."""
    kinds = {kind for run in runs for kind in answer_counts.shown(run)}
    return [kind for kind in answer_counts.COLUMNS if kind in kinds]


def _cells(run: Run, score: Score | None, kinds: Sequence[str]) -> tuple[str, ...] | None:
    if score is None:
        return None
    answered, total = question_counts(run, score.task)
    n = f"{score.n} of {total}" if answered < total else str(score.n)
    shots = "" if score.shots is None else str(score.shots)
    counts = (str(answer_counts.count(run, kind, score.task, score.filter)) for kind in kinds)
    return shots, n, number(score, score.value), interval(score), *counts


def _published(comparisons: Sequence[tuple[_Column, PublishedComparison]], *, alone: bool) -> Table:
    head = ("task", "metric", "model", "published metric", "source", "different setup")
    rows = []
    for column, comparison in comparisons:
        figure = comparison.published
        task = comparison.score.task if alone else f"{column.letter}: {comparison.score.task}"
        inside = "inside" if comparison.within else "outside"
        rows.append((
            task, comparison.score.label, figure.name, figure.metric, figure.source,
            "; ".join(comparison.setup_differences) or "nothing known",
            number(comparison.score, comparison.score.value), f"{100 * figure.value:.1f}",
            f"{100 * comparison.difference:+.1f}", inside,
        ))  # fmt: skip
    head += ("measured", "published", "difference", "95% interval")
    return Table("Published scores", head, tuple(rows), left=6)


def _unmatched(figures: Sequence[Published], comparisons: Sequence[tuple[_Column, PublishedComparison]]) -> list[str]:
    matched = {comparison.published.name for _, comparison in comparisons}
    return [name for name in dict.fromkeys(figure.name for figure in figures) if name not in matched]


def badges(run: Run, prefix: str = "") -> Iterable[str]:
    """Warnings about a run's scores, each with `prefix` in front."""
    for task in run.tasks:
        answered, total = question_counts(run, task)
        if answered + not_finite_count(run, task) + run.not_judged.get(task, 0) < total:
            yield f"{prefix}partial: {answered} of {total} questions of {task}"
    for task in run.not_finite:
        yield f"{prefix}{run.not_finite_note(task)}"
    for note in answer_counts.notes(run):
        yield f"{prefix}{note}"
    for task, reason in run.not_run.items():
        yield f"{prefix}partial: {task} was not run: {reason}"
    if changes := run.provenance.get("interventions"):
        yield f"{prefix}the run used interventions: {json.dumps(changes)}"


def footer(run: Run) -> tuple[tuple[str, str], ...]:
    """A run's provenance for the footer; task versions, data hashes and package versions are one line each."""
    lines: dict[str, list[str]] = {}
    for name, value in origin(run).items():
        head, dot, part = name.partition(".")
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        lines.setdefault(head, []).append(f"{part} {text}" if dot else text)
    if run.date:
        lines["date"] = [f"{run.date:%Y-%m-%d %H:%M}"]
    return tuple((name, ", ".join(values)) for name, values in lines.items())
