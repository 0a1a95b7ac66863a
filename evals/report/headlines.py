"""Headline scores: the score that a preset defines as the result of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence

from evals.results.runs import Run, Score
from evals.tasks import presets


def headline(preset: str, task: str, scores: Sequence[Score], *, chat: bool) -> Score | None:
    """The score that the preset defines as the task's result; None if there is none."""
    rule = presets.rule(preset, task, chat=chat)
    if rule is None:
        return None
    # A single subject has no average.
    named = {(rule.metric, rule.filter, rule.average), (rule.metric, rule.filter, "")}
    return next((s for s in scores if s.task == task and (s.metric, s.filter, s.average) in named), None)


def headlines(run: Run) -> list[tuple[Score, presets.Rule]]:
    """The headline scores of a run, by the preset it was made with."""
    record = run.provenance
    name, chat = record.get("preset"), bool(record.get("chat"))
    if name not in presets.PRESETS:
        return []
    results = []
    for task in dict.fromkeys(score.task for score in run.scores):
        rule, score = presets.rule(name, task, chat=chat), headline(name, task, run.scores, chat=chat)
        if rule is not None and score is not None:
            results.append((score, rule))
    return results
