"""One run, or several side by side, as a report: tables by group and subject, badges, and where the numbers come from.

What it says is decided here; how it is written, in `markup`. CSV and Parquet get one row a number. Knows of results,
nothing of models.
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
from evals.results.provenance import origin
from evals.results.runs import Run, Score, question_counts
from workbench.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_KEYS = ("checkpoint_sha256", "tokenizer_sha256", "dtype", "device", "seed", "commit")


@dataclass(frozen=True)
class _Column:
    """A run with its letter, and its scores by what they measure."""

    letter: str
    run: Run
    scores: dict[tuple[str, str, str, str], Score]


def document(runs: Sequence[Run], *, figures: Sequence[Published] = ()) -> Document:
    """The report of these runs in every format."""
    return Document(
        report=lambda: build(runs, figures=figures),
        frame=lambda: frame(runs, figures=figures),
        values=lambda: values(runs, figures=figures),
        more={},
    )


def build(runs: Sequence[Run], *, figures: Sequence[Published] = ()) -> Report:
    """The report of these runs; `figures` are published scores to stand beside them.

    Raises: DataError for no run, or more than there are letters.
    """
    if not 0 < len(runs) <= len(_LETTERS):
        raise DataError(f"a report is of 1 to {len(_LETTERS)} runs; found {len(runs)}.")
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
    found = [(column, one) for column in columns for one in compare_with_published(column.run, figures)]
    if found:
        tables.append(_published(found, alone=len(runs) == 1))
    title = f"Evaluation of {runs[0].model}" if len(runs) == 1 else f"{len(runs)} evaluations side by side"
    notes = (
        "Proportions are in per cent. Intervals are 95%: Wilson's for proportions, by resampling the problems for "
        "pass@k of several samples, from the standard error for macro averages and everything else. A micro average "
        "is over questions, a macro average over tasks.",
        *(
            f"Questions with the same {name} count as one: their errors are clustered."
            for name in dict.fromkeys(run.cluster for run in runs if run.cluster)
        ),
        *(f"{figure} was asked for, and no task here was published." for figure in _unmatched(figures, found)),
    )
    named = [("" if len(runs) == 1 else f"{column.letter}: ", column.run) for column in columns]
    warned = tuple(badge for of, run in named for badge in badges(run, of))
    origins = tuple((of + run.name, footer(run)) for of, run in named)
    return Report(title, warned, tuple(tables), notes, origins)


def frame(runs: Sequence[Run], *, figures: Sequence[Published] = ()) -> pd.DataFrame:
    """One row a score, with its run's origin; published ones below them, with their source and no n or interval."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for run in runs:
        about = origin(run)
        shared = {"run": run.name, "model": run.model} | {key: about.get(key) for key in _KEYS}
        for score in run.scores:
            asked, whole = question_counts(run, score.task)
            rows.append(
                {**shared, **vars(score), "questions": whole, "partial": asked < whole, "source": run.path.name}
            )
    wanted = {one.published: one.score for run in runs for one in compare_with_published(run, figures)}
    for figure, score in wanted.items():
        row = {"task": score.task, "metric": figure.metric, "average": score.average, "value": figure.value}
        shots = int(figure.shots) if figure.shots.isdecimal() else None
        rows.append({"run": "published", "model": figure.name, **row, "shots": shots, "source": figure.source})
    columns = ["run", "model", *Score.__dataclass_fields__, "questions", "partial", "source", *_KEYS]
    integers = dict.fromkeys(("shots", "n", "questions", "seed"), "Int64")
    return pd.DataFrame(rows, columns=columns).astype({**integers, "partial": "boolean"})


def values(runs: Sequence[Run], *, figures: Sequence[Published] = ()) -> list[dict[str, Any]]:
    """The rows of `frame` as JSON values, with None for what is not known."""
    table = frame(runs, figures=figures)
    return [dict(row) for row in table.astype(object).where(table.notna(), None).to_dict("records")]


def _roots(runs: Iterable[Run]) -> dict[str, str]:
    """The outermost group of every group and member of one."""
    parents: dict[str, str] = {}
    for run in runs:
        for name, under in (run.data.get("group_subtasks") or {}).items():
            parents |= dict.fromkeys(under, name)
    found = {}
    for name in {*parents, *parents.values()}:
        root = name
        while root in parents:
            root = parents[root]
        found[name] = root
    return found


def _table(title: str, keys: Sequence[tuple[str, str, str, str]], columns: Sequence[_Column]) -> Table:
    """A row a score. Shots and n have one column for all runs where no two runs differ in them."""
    found = [[column.scores.get(key) for column in columns] for key in keys]
    cells = [[_cells(column.run, one) for column, one in zip(columns, row, strict=True)] for row in found]
    same = all(len({cell[:2] for cell in row if cell is not None}) == 1 for row in cells)
    head, own = ["task", "metric"], ("shots", "n", "score", "95% interval")
    if same:
        head, own = [*head, *own[:2]], own[2:]
    head += [part if len(columns) == 1 else f"{column.letter}: {part}" for column in columns for part in own]
    rows = []
    for scores, row in zip(found, cells, strict=True):
        first = next(score for score in scores if score is not None)
        shared = next(cell for cell in row if cell is not None)[: 2 if same else 0]
        each = [part for cell in row for part in (cell or ("",) * 4)[4 - len(own) :]]
        rows.append((first.task, first.label, *shared, *each))
    return Table(title, tuple(head), tuple(rows), left=2)


def _cells(run: Run, score: Score | None) -> tuple[str, str, str, str] | None:
    if score is None:
        return None
    asked, whole = question_counts(run, score.task)
    n = f"{score.n} of {whole}" if asked < whole else str(score.n)
    shots = "" if score.shots is None else str(score.shots)
    return shots, n, number(score, score.value), interval(score)


def _published(found: Sequence[tuple[_Column, PublishedComparison]], *, alone: bool) -> Table:
    head = ("task", "metric", "published", "metric there", "source", "not the same")
    rows = []
    for column, one in found:
        figure = one.published
        task = one.score.task if alone else f"{column.letter}: {one.score.task}"
        inside = "inside" if one.within else "outside"
        rows.append((
            task, one.score.label, figure.name, figure.metric, figure.source,
            "; ".join(one.setup_differences) or "nothing known",
            number(one.score, one.score.value), f"{100 * figure.value:.1f}", f"{100 * one.difference:+.1f}", inside,
        ))  # fmt: skip
    head += ("measured", "score there", "difference", "of the interval")
    return Table("Beside published scores", head, tuple(rows), left=6)


def _unmatched(figures: Sequence[Published], found: Sequence[tuple[_Column, PublishedComparison]]) -> list[str]:
    matched = {one.published.name for _, one in found}
    return [name for name in dict.fromkeys(figure.name for figure in figures) if name not in matched]


def badges(run: Run, of: str = "") -> Iterable[str]:
    """What a reader of its scores must know; `of` goes before each."""
    for task in run.tasks:
        asked, whole = question_counts(run, task)
        if asked < whole:
            yield f"{of}partial: {asked} of {whole} questions of {task}"
    for task, reason in run.not_run.items():
        yield f"{of}partial: {task} was not run: {reason}"
    if changes := run.provenance.get("interventions"):
        yield f"{of}the model was changed: {json.dumps(changes)}"


def footer(run: Run) -> tuple[tuple[str, str], ...]:
    """A run's origin for its footer; task versions, data hashes and package versions each in one line."""
    lines: dict[str, list[str]] = {}
    for name, value in origin(run).items():
        head, dot, rest = name.partition(".")
        said = value if isinstance(value, str) else json.dumps(value, default=str)
        lines.setdefault(head, []).append(f"{rest} {said}" if dot else said)
    if run.date:
        lines["date"] = [f"{run.date:%Y-%m-%d %H:%M}"]
    return tuple((name, ", ".join(values)) for name, values in lines.items())
