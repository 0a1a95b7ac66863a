"""Published scores of Meta's models, each with its source, and their comparison with measured scores.

Published scores are shown only for a model that the user named: the code does not guess which model a checkpoint is.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from evals.results.runs import Run, Score, question_counts
from workbench.errors import DataError

FILE = Path(__file__).parent.parent / "assets" / "published_scores.csv"
# A model card's macro average is compared with ours, and a plain score with a task's score or its micro average.
_METRICS = ("acc", "exact_match", "em", "pass@1")
# Task name suffixes: the same questions with prompts for chat models.
_WORDINGS = ("", "_llama", "_instruct", "_meta")
_RENAMED = {"gsm8k_cot": "gsm8k_llama"}  # lm-eval's name of the task with Meta's prompts for chat models


@dataclass(frozen=True)
class Published:
    """One published score. Units: value is a proportion; shots as in the source, "3-5" for a range."""

    model: str
    variant: str
    task: str
    shots: str
    metric: str
    value: float
    source: str

    @property
    def name(self) -> str:
        """The model's name in this package: `llama-3.1-8b`, `llama-3.1-8b-instruct`."""
        return self.model if self.variant == "base" else f"{self.model}-{self.variant}"


@dataclass(frozen=True)
class PublishedComparison:
    """A measured score and a published one of the same task.

    `difference` is measured minus published. `within`: whether the published score is in the 95% interval of the
    measured one. `setup_differences` says what else is different.
    """

    score: Score
    published: Published
    difference: float
    within: bool
    setup_differences: tuple[str, ...]


@cache
def published() -> tuple[Published, ...]:
    """All published scores in the file."""
    with FILE.open(encoding="utf-8", newline="") as file:
        return tuple(
            Published(
                **{name: row[name] for name in ("model", "variant", "task", "shots", "metric", "source")},
                value=round(float(row["score"]) / 100, 6),
            )
            for row in csv.DictReader(file)
        )


def scores_of_model(name: str) -> tuple[Published, ...]:
    """The published scores of one model.

    Raises: DataError if there are none; the message lists the models that have published scores.
    """
    scores = tuple(score for score in published() if score.name == name)
    if not scores:
        known = ", ".join(dict.fromkeys(score.name for score in published()))
        raise DataError(f"no published scores for {name!r}; there are scores for {known}.")
    return scores


def models_of_size(parameters: int | None) -> list[str]:
    """The models with published scores that have exactly this many parameters."""
    from workbench.published import PUBLISHED

    same = {name for name, config in PUBLISHED.items() if config.n_params == parameters}
    return list(dict.fromkeys(score.name for score in published() if score.model in same))


def compare_with_published(run: Run, figures: Sequence[Published]) -> list[PublishedComparison]:
    """The scores of a run that have a published score for the same task, in the order of the run."""
    comparisons = []
    for score in run.scores:
        for figure in figures:
            macro = "macro" in figure.metric or figure.metric.startswith("average")
            wanted = ("macro",) if macro else ("", "micro")
            same = score.task in {figure.task + wording for wording in _WORDINGS} | {_RENAMED.get(figure.task)}
            if not same or score.metric not in _METRICS or score.average not in wanted:
                continue
            low, high = score.low, score.high
            within = low is not None and high is not None and low <= figure.value <= high
            comparisons.append(
                PublishedComparison(
                    score, figure, score.value - figure.value, within, _differences_in_setup(run, score, figure)
                )
            )
    return comparisons


def _differences_in_setup(run: Run, score: Score, figure: Published) -> tuple[str, ...]:
    differences = []
    if str(score.shots) != figure.shots:
        differences.append(f"shots {'unknown' if score.shots is None else score.shots}, published {figure.shots}")
    chat = bool(run.data.get("chat_template") or run.data.get("chat_template_sha"))
    if chat != (figure.variant == "instruct"):
        differences.append(f"{'chat' if chat else 'plain'} prompts, published for the {figure.variant} model")
    if score.task != figure.task:
        differences.append(f"task {score.task}, published as {figure.task}")
    answered, total = question_counts(run, score.task)
    if answered < total:
        differences.append(f"{answered} of {total} questions")
    if run.provenance.get("interventions"):
        differences.append("the run used interventions")
    return tuple(differences)
