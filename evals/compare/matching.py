"""The questions that two runs both answered, and what keeps the others from being compared.

Two samples belong together if they have the same number, the same question, the same target and the same filter: a
number alone means another question under another version of the data. Knows only of `results`.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evals.results.runs import Run
from workbench.errors import DataError

Row = dict[str, Any]
Key = tuple[int, str]  # a question's number, and the filter


@dataclass(frozen=True)
class Paired:
    """One task's samples in two runs, those of a and of b in the same order; notes say what was left out.

    `means` has each metric's mean over all of a run's samples, by (metric, filter), for a and for b.
    """

    task: str
    a: tuple[Row, ...]
    b: tuple[Row, ...]
    means: tuple[dict[tuple[str, str], float], dict[tuple[str, str], float]]
    notes: tuple[str, ...]

    def values(self, metric: str, filter: str) -> tuple[np.ndarray, np.ndarray, list[Row]]:
        """One metric of every question that both runs have a number for, and the questions.

        Shapes: [question], [question], [question]
        """
        rows = [
            (first, second)
            for first, second in zip(self.a, self.b, strict=True)
            if first["filter"] == filter and metric in first["scores"] and metric in second["scores"]
        ]
        values = np.array([[row["scores"][metric] for row in pair] for pair in rows], dtype=float).reshape(-1, 2)
        return values[:, 0], values[:, 1], [first for first, _ in rows]


def pair(a: Run, b: Run, task: str) -> Paired:
    """The samples of one task that both runs have.

    Raises: DataError if a run has no samples of it, or they have no question in common.
    """
    first, second = _read(a, task), _read(b, task)
    shared = [key for key in first if key in second]
    same = [key for key in shared if _question(first[key]) == _question(second[key])]
    if not same:
        found = f"{len(shared)} have the same number and differ in question or target" if shared else "none are shared"
        raise DataError(
            f"{task}: the runs have no question in common ({len(first)} samples and {len(second)}, {found}); "
            "run both on the same data."
        )
    notes = []
    for name, mine, theirs in (("A", first, second), ("B", second, first)):
        alone = {doc for doc, _ in mine} - {doc for doc, _ in theirs}
        if alone:
            notes.append(f"{task}: {len(alone)} questions only in {name} are left out")
        if filters := sorted({name for _, name in mine} - {name for _, name in theirs}):
            notes.append(f"{task}: answers under {', '.join(filters)} only in {name} are left out")
    if other := {doc for doc, _ in shared} - {doc for doc, _ in same}:
        notes.append(f"{task}: {len(other)} numbers are other questions in B than in A, and are left out")
    changed = {doc for doc, name in same if first[doc, name]["prompt"] != second[doc, name]["prompt"]}
    if changed:
        shots = " and ".join(_shots(run, task) for run in (a, b))
        total = len({doc for doc, _ in same})
        notes.append(f"{task}: the prompts of {len(changed)} of {total} questions differ ({shots} shots)")
    means = _means(first.values()), _means(second.values())
    return Paired(task, tuple(first[key] for key in same), tuple(second[key] for key in same), means, tuple(notes))


def clusters(rows: list[Row], field: str) -> list[Hashable] | None:
    """What each question has in a field of its document, as its passage; None where one has no such field."""
    if not all(isinstance(row["doc"], Mapping) and field in row["doc"] for row in rows):
        return None
    return [_canonical(row["doc"][field]) for row in rows]


def gold(row: Row) -> int | None:
    """Which choice is right; None for what is no choice. lm-eval gives its number or its text."""
    choices, said = row.get("choices"), str(row["target"]).strip()
    if not isinstance(choices, list):
        return None
    if said.isdecimal() and int(said) < len(choices):
        return int(said)
    texts = [choice.strip() for choice in choices]
    return texts.index(said) if said in texts else None


def margin(row: Row) -> float | None:
    """How much likelier the right choice is than the best other one, in nats; below 0, another one is."""
    right = gold(row)
    if right is None or len(row["logprobs"]) < 2:
        return None
    others = [value for i, value in enumerate(row["logprobs"]) if i != right]
    return float(row["logprobs"][right] - max(others))


def _read(run: Run, task: str) -> dict[Key, Row]:
    return {(int(row["doc_id"]), str(row["filter"])): row for row in run.samples(task).to_dict("records")}


def _means(rows: Iterable[Row]) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        for metric, value in row["scores"].items():
            found.setdefault((metric, row["filter"]), []).append(value)
    return {key: sum(values) / len(values) for key, values in found.items()}


def _question(row: Row) -> str:
    return _canonical([row["doc"], row["target"]])


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _shots(run: Run, task: str) -> str:
    return str((run.data.get("n-shot") or {}).get(task, "unknown"))
