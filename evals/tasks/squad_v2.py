"""SQuAD v2's metric, by the rules of its official evaluation script.

lm-eval downloads it from the Hugging Face hub; here it is computed for each question, so that its means have standard
errors. Knows nothing of lm-eval.

Source: Rajpurkar et al. 2018 (1806.03822), evaluate-v2.0.py.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

MEANS = ("exact", "f1", "HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1")
"""Metrics that are means over the questions that have them. Units: per cent, as in the official script."""


@dataclass(frozen=True)
class Answer:
    """A model's answer to one question: its score, and whether it is silent where it should be.

    Units: score is a proportion, no_answer a probability.
    """

    score: float
    no_answer: float
    has_answer: bool
    is_empty: bool


def normalized(text: str) -> str:
    """A text in lower case, without punctuation, articles and repeated spaces."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact(prediction: str, references: Sequence[str]) -> float:
    """1 if the normalized prediction equals one of the references; without references, if it is empty."""
    return max(float(normalized(prediction) == reference) for reference in _answers(references))


def f1(prediction: str, references: Sequence[str]) -> float:
    """The largest F1 score of the words of a prediction and of one of the references."""
    return max(_f1(normalized(prediction).split(), reference.split()) for reference in _answers(references))


def question_scores(prediction: str, references: Sequence[str], no_answer: float) -> dict[str, Any]:
    """The metrics of one question. The best ones are `Answer`s, because they depend on a threshold for all questions.

    Units: `MEANS` in per cent; no_answer is the model's probability that the question has no answer.
    """
    has_answer = bool(references)
    values = {"exact": exact(prediction, references), "f1": f1(prediction, references)}
    kind = "HasAns" if has_answer else "NoAns"
    answers = {f"best_{name}": Answer(value, no_answer, has_answer, prediction == "") for name, value in values.items()}
    percents = {name: 100 * value for name, value in values.items()}
    return {**percents, **{f"{kind}_{name}": value for name, value in percents.items()}, **answers}


def best(answers: Sequence[Answer]) -> float:
    """The mean score with the best threshold of `no_answer`, above which a question counts as not answered.

    Units: per cent.
    """
    score = highest = float(sum(not answer.has_answer for answer in answers))
    for answer in sorted(answers, key=lambda answer: answer.no_answer):
        score += answer.score if answer.has_answer else -float(not answer.is_empty)
        highest = max(highest, score)
    return 100 * highest / len(answers)


def task_methods(mean: Any) -> dict[str, Any]:
    """The methods of lm-eval's task that use this metric. mean: lm-eval's own, whose standard error it knows."""

    def process_results(self: Any, doc: Mapping[str, Any], results: Any) -> dict[str, Any]:
        continuation, (logprob, _) = results
        return question_scores(continuation, doc["answers"]["text"], exp(logprob))

    def aggregation(self: Any) -> dict[str, Any]:
        return {**dict.fromkeys(MEANS, mean), **dict.fromkeys(("best_exact", "best_f1"), best)}

    return {"process_results": process_results, "aggregation": aggregation}


def _answers(references: Sequence[str]) -> list[str]:
    return [text for text in map(normalized, references) if text] or [""]


def _f1(prediction: list[str], reference: list[str]) -> float:
    if not prediction or not reference:
        return float(prediction == reference)
    same = sum((Counter(prediction) & Counter(reference)).values())
    return 2 * same / (len(prediction) + len(reference))
