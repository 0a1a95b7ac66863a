"""Which of a run's scores a preset calls the result of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence

from evals.results.runs import Run, Score
from evals.tasks import presets


def headline(preset: str, task: str, scores: Sequence[Score], *, chat: bool) -> Score | None:
    """That of a run's scores which the preset calls the task's result; None where it names none of them."""
    said = presets.rule(preset, task, chat=chat)
    if said is None:
        return None
    # A single subject has no average.
    named = {(said.metric, said.filter, said.average), (said.metric, said.filter, "")}
    return next((s for s in scores if s.task == task and (s.metric, s.filter, s.average) in named), None)


def headlines(run: Run) -> list[tuple[Score, presets.Rule]]:
    """The results of a run's benchmarks by the preset that it was made with."""
    about = run.provenance
    name, chat = about.get("preset"), bool(about.get("chat"))
    if name not in presets.PRESETS:
        return []
    found = []
    for task in dict.fromkeys(score.task for score in run.scores):
        said, score = presets.rule(name, task, chat=chat), headline(name, task, run.scores, chat=chat)
        if said is not None and score is not None:
            found.append((score, said))
    return found
