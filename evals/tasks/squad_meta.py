"""Prompts and answers of SQuAD v2 in Meta's setting; used by `squad_meta.yaml`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.tasks.squad_v2 import exact, normalized

UNANSWERABLE = "unanswerable"
"""What a prompt's examples answer if a passage has no answer."""


def with_previous(dataset: Any) -> Any:
    """The questions with the earlier questions about the same passage and their answers, in a column `previous`."""
    earlier: dict[tuple[str, str], str] = {}
    column = []
    for row in dataset:
        passage = (row["title"], row["context"])
        column.append(earlier.get(passage, ""))
        answer = (row["answers"]["text"] or [UNANSWERABLE])[0]
        earlier[passage] = f"{column[-1]}Question: {row['question']}\n\nAnswer: {answer}\n\n"
    return dataset.add_column("previous", column)


def exact_match(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether an answer is right; an answer "unanswerable" is none, which is right if the passage has no answer."""
    prediction = "" if normalized(results[0]) == UNANSWERABLE else results[0]
    return {"exact_match": exact(prediction, doc["answers"]["text"])}
