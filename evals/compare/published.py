"""Scores that were published for Meta's models, each with its source, and measured ones beside them.

A figure is shown only for a model that somebody named: nothing here guesses that a checkpoint is one of these.
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
# A model card's macro average stands beside ours, and a plain score beside a task's or its micro average.
_METRICS = ("acc", "exact_match", "em", "pass@1")
# The same questions in a chat model's wording.
_WORDINGS = ("", "_llama", "_instruct")


@dataclass(frozen=True)
class Published:
    """One published score. Units: value is a proportion; shots as the source has it, "3-5" for a range."""

    model: str
    variant: str
    task: str
    shots: str
    metric: str
    value: float
    source: str

    @property
    def name(self) -> str:
        """What the model is called here: `llama-3.1-8b`, `llama-3.1-8b-instruct`."""
        return self.model if self.variant == "base" else f"{self.model}-{self.variant}"


@dataclass(frozen=True)
class PublishedComparison:
    """A measured score and a published one of the same task.

    `difference` is the measured less the published; `within`, whether the published one lies in the measured one's
    95% interval; `unlike` says what else is not the same.
    """

    score: Score
    published: Published
    difference: float
    within: bool
    setup_differences: tuple[str, ...]


@cache
def published() -> tuple[Published, ...]:
    """Every published score that is known here."""
    with FILE.open(encoding="utf-8", newline="") as file:
        return tuple(
            Published(
                **{name: row[name] for name in ("model", "variant", "task", "shots", "metric", "source")},
                value=round(float(row["score"]) / 100, 6),
            )
            for row in csv.DictReader(file)
        )


def named(name: str) -> tuple[Published, ...]:
    """The published scores of one model.

    Raises: DataError if there are none; the models that have some are named.
    """
    found = tuple(one for one in published() if one.name == name)
    if not found:
        known = ", ".join(dict.fromkeys(one.name for one in published()))
        raise DataError(f"no published scores of {name!r}; there are {known}.")
    return found


def of_size(parameters: int | None) -> list[str]:
    """The models with published scores that have exactly this many parameters: what a run may be asked about."""
    from workbench.published import PUBLISHED

    same = {name for name, config in PUBLISHED.items() if config.n_params == parameters}
    return list(dict.fromkeys(one.name for one in published() if one.model in same))


def compare_with_published(run: Run, figures: Sequence[Published]) -> list[PublishedComparison]:
    """A run's scores with the published ones of the same task, in the run's order."""
    found = []
    for score in run.scores:
        for figure in figures:
            macro = "macro" in figure.metric or figure.metric.startswith("average")
            wanted = ("macro",) if macro else ("", "micro")
            same = score.task in {figure.task + wording for wording in _WORDINGS}
            if not same or score.metric not in _METRICS or score.average not in wanted:
                continue
            low, high = score.low, score.high
            within = low is not None and high is not None and low <= figure.value <= high
            found.append(
                PublishedComparison(
                    score, figure, score.value - figure.value, within, _differences_in_setup(run, score, figure)
                )
            )
    return found


def _differences_in_setup(run: Run, score: Score, figure: Published) -> tuple[str, ...]:
    unlike = []
    if str(score.shots) != figure.shots:
        unlike.append(f"shots {'unknown' if score.shots is None else score.shots}, published {figure.shots}")
    chat = bool(run.data.get("chat_template") or run.data.get("chat_template_sha"))
    if chat != (figure.variant == "instruct"):
        unlike.append(f"{'chat' if chat else 'plain'} prompts, published for the {figure.variant} model")
    if score.task != figure.task:
        unlike.append(f"task {score.task}, published as {figure.task}")
    asked, whole = question_counts(run, score.task)
    if asked < whole:
        unlike.append(f"{asked} of {whole} questions")
    if run.provenance.get("interventions"):
        unlike.append("the model was changed")
    return tuple(unlike)
