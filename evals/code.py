"""Scores for generated programs, in the form lm-eval asks of a metric, with the sandbox doing the running.

Takes the place of lm-eval's `code_eval`, which fetches its metric from a hub and is no sandbox. Knows
nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from evals import sandbox, stats
from evals.sandbox import Engine, Limits, Program, ProgramRun


def tests_of(doc: dict[str, Any]) -> str:
    """The tests of a HumanEval-style problem, as lm-eval's target for it."""
    return f"{doc['test']}\ncheck({doc['entry_point']})"


@dataclass
class Judge:
    """Runs the programs of one evaluation, several at a time, and remembers what became of each.

    All of them run after the last was generated, so model and programs never share the machine. The same program is
    run once. `engine` None is the sandbox that is found here, `workers` None what suits the cores; `k` stands in for
    the task's own numbers of samples.
    """

    limits: Limits = Limits(seconds=10.0)
    engine: Engine | None = None
    workers: int | None = None
    k: tuple[int, ...] = ()
    runs: dict[tuple[str, str], ProgramRun] = field(default_factory=dict, repr=False)

    def build_predictions(self, resps: list[list[str]], docs: Sequence[dict[str, Any]]) -> list[list[str]]:
        """lm-eval's filter: prompt and answer joined to programs, which are run here, all of them at once."""
        return self._run_all([[doc["prompt"] + r for r in resp] for resp, doc in zip(resps, docs, strict=True)], docs)

    def build_predictions_instruct(self, resps: list[list[str]], docs: Sequence[dict[str, Any]]) -> list[list[str]]:
        """The same for answers in a chat, which end where their block of code does."""
        programs = [
            [doc["prompt"] + r.partition("```")[0] for r in resp] for resp, doc in zip(resps, docs, strict=True)
        ]
        return self._run_all(programs, docs)

    def _run_all(self, programs: list[list[str]], docs: Sequence[dict[str, Any]]) -> list[list[str]]:
        jobs = {(code, tests_of(doc)): doc for codes, doc in zip(programs, docs, strict=True) for code in codes}
        keys = [key for key in jobs if key not in self.runs]
        given = (Program(*key, entry_point=jobs[key]["entry_point"], context=jobs[key]["prompt"]) for key in keys)
        for place, run in sandbox.run_all(given, limits=self.limits, engine=self.engine, workers=self.workers):
            self.runs[keys[place]] = run
        return programs

    def pass_at_k(self, references: list[str], predictions: list[list[str]], k: list[int]) -> dict[str, float]:
        """lm-eval's metric: the unbiased estimate over each problem's programs, which were run before."""
        counts = [
            (len(codes), sum(self.runs[code, tests].passed for code in codes))
            for codes, tests in zip(predictions, references, strict=True)
        ]
        return {f"pass@{n}": sum(stats.pass_at_k(*count, n) for count in counts) / len(counts) for n in self.k or k}
