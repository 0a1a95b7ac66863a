"""Matched samples: the questions that two runs both answered, and why the others cannot be compared.

Two samples match if they have the same number, question, target and filter. The number alone is not enough: in another
version of the data it can be another question. Depends only on `results`.
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
class MatchedSamples:
    """One task's samples in two runs, in the same order for a and b; `notes` says what was left out.

    `means` has each metric's mean over all samples of a run, by (metric, filter), for a and for b.
    """

    task: str
    a: tuple[Row, ...]
    b: tuple[Row, ...]
    means: tuple[dict[tuple[str, str], float], dict[tuple[str, str], float]]
    notes: tuple[str, ...]

    def values(self, metric: str, filter: str) -> tuple[np.ndarray, np.ndarray, list[Row]]:
        """The values of one metric in a and in b for every question where both runs have it, and the rows of a.

        Shapes: [question], [question], [question]
        """
        rows = [
            (first, second)
            for first, second in zip(self.a, self.b, strict=True)
            if first["filter"] == filter and metric in first["scores"] and metric in second["scores"]
        ]
        values = np.array([[row["scores"][metric] for row in pair] for pair in rows], dtype=float).reshape(-1, 2)
        return values[:, 0], values[:, 1], [first for first, _ in rows]


def match_samples(a: Run, b: Run, task: str) -> MatchedSamples:
    """The samples of one task that both runs have.

    Raises: DataError if a run has no samples of the task, or the runs have no question in common.
    """
    first, second = _read(a, task), _read(b, task)
    shared = [key for key in first if key in second]
    same = [key for key in shared if _question(first[key]) == _question(second[key])]
    if not same:
        detail = (
            f"{len(shared)} have the same number but a different question or target" if shared else "no shared numbers"
        )
        raise DataError(
            f"{task}: the runs have no question in common ({len(first)} samples in A, {len(second)} in B, {detail}); "
            "run both on the same data."
        )
    notes = []
    for name, mine, theirs in (("A", first, second), ("B", second, first)):
        alone = {doc for doc, _ in mine} - {doc for doc, _ in theirs}
        if alone:
            notes.append(f"{task}: {len(alone)} questions are only in {name} and are left out")
        if filters := sorted({name for _, name in mine} - {name for _, name in theirs}):
            notes.append(f"{task}: answers with filter {', '.join(filters)} are only in {name} and are left out")
    if other := {doc for doc, _ in shared} - {doc for doc, _ in same}:
        notes.append(f"{task}: {len(other)} question numbers are different questions in A and B, and are left out")
    changed = {doc for doc, name in same if first[doc, name]["prompt"] != second[doc, name]["prompt"]}
    if changed:
        shots = " and ".join(_shots(run, task) for run in (a, b))
        total = len({doc for doc, _ in same})
        notes.append(f"{task}: {len(changed)} of {total} questions have different prompts ({shots} shots)")
    if spoilt := {doc for doc, name in same if _not_finite(first[doc, name]) or _not_finite(second[doc, name])}:
        notes.append(f"{task}: {len(spoilt)} questions are left out, because logits were not finite in A or B")
    means = _means(first.values()), _means(second.values())
    return MatchedSamples(
        task, tuple(first[key] for key in same), tuple(second[key] for key in same), means, tuple(notes)
    )


def clusters(rows: list[Row], field: str) -> list[Hashable] | None:
    """The value of a document field for each question, for example its passage; None if a document lacks the field."""
    if not all(isinstance(row["doc"], Mapping) and field in row["doc"] for row in rows):
        return None
    return [_canonical(row["doc"][field]) for row in rows]


def gold(row: Row) -> int | None:
    """Index of the right choice; None if the sample is not multiple choice. lm-eval's target is an index or a text."""
    choices, target = row.get("choices"), str(row["target"]).strip()
    if not isinstance(choices, list):
        return None
    if target.isdecimal() and int(target) < len(choices):
        return int(target)
    texts = [choice.strip() for choice in choices]
    return texts.index(target) if target in texts else None


def margin(row: Row) -> float | None:
    """Log-probability of the right choice minus that of the best other choice, in nats."""
    right = gold(row)
    if right is None or len(row["logprobs"]) < 2 or _not_finite(row):
        return None
    others = [value for i, value in enumerate(row["logprobs"]) if i != right]
    return float(row["logprobs"][right] - max(others))


def _read(run: Run, task: str) -> dict[Key, Row]:
    return {(int(row["doc_id"]), str(row["filter"])): row for row in run.samples(task).to_dict("records")}


def _not_finite(row: Row) -> bool:
    return row.get("not_finite") is True  # a table of other questions has NaN here


def _means(rows: Iterable[Row]) -> dict[tuple[str, str], float]:
    values_by_metric: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        for metric, value in row["scores"].items():
            values_by_metric.setdefault((metric, row["filter"]), []).append(value)
    return {key: sum(values) / len(values) for key, values in values_by_metric.items()}


def _question(row: Row) -> str:
    return _canonical([row["doc"], row["target"]])


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _shots(run: Run, task: str) -> str:
    return str((run.data.get("n-shot") or {}).get(task, "unknown"))
