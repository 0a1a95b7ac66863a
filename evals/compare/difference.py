"""Paired difference of one score in two runs: its interval, significance test and minimum detectable effect."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evals import stats
from evals.results.runs import Score


@dataclass(frozen=True)
class Part:
    """One task's values in both runs, question by question; `clusters` names the cluster of each question, if known.

    Shapes: a, b [question]
    """

    a: np.ndarray
    b: np.ndarray
    clusters: Sequence[Hashable] | None = None

    @property
    def binary(self) -> bool:
        return bool(np.isin(self.a, (0, 1)).all() and np.isin(self.b, (0, 1)).all())

    @property
    def units(self) -> Sequence[Hashable]:
        """The resampling units: clusters, or questions."""
        return range(len(self.a)) if self.clusters is None else self.clusters


@dataclass(frozen=True)
class Difference:
    """One metric of one task or group in both runs, over the questions they share.

    `low` and `high` bound the 95% interval of b minus a; None if there are too few questions or their differences do
    not vary. `test` is "mcnemar" (exact, for right or wrong answers), "bootstrap" (of questions, within each task) or
    "clustered" (bootstrap of clusters). `holm` is p adjusted for the number of comparisons in the same family.
    `minimum_detectable_effect` is the smallest difference detectable with 80% power at the 5% level. `only_a` and
    `only_b` count the questions that only one run answered correctly; None for answers that are not right or wrong.
    """

    a: Score
    b: Score
    value: float
    low: float | None
    high: float | None
    test: str
    p: float | None
    holm: float | None
    minimum_detectable_effect: float | None
    only_a: int | None
    only_b: int | None


def paired_difference(a: Score, b: Score, parts: Sequence[Part], *, seed: int = 0) -> Difference:
    """The difference b minus a over these tasks: the members of a group, or one task. `a.average` says how they are
    averaged.

    The result has the names and shots of `a` and `b`; their values, n and intervals are those of the shared questions.
    """
    macro = a.average == "macro"
    clustered = any(part.clusters is not None for part in parts)
    binary = all(part.binary for part in parts)
    exact = binary and not macro and not clustered
    a, b = (
        _over_shared_questions(score, [getattr(part, side) for part in parts], parts, exact)
        for score, side in ((a, "a"), (b, "b"))
    )
    differences = [part.b - part.a for part in parts]
    value = b.value - a.value
    only_a, only_b = (sum(int((sign * d > 0).sum()) for d in differences) for sign in (-1, 1))
    low: float | None
    high: float | None
    p: float | None
    if exact and len(parts) == 1:
        (low, high), p = stats.paired_interval(only_a, only_b, a.n), stats.mcnemar(only_a, only_b)
    else:
        clusters = [part.units for part in parts] if clustered else None
        draws = stats.bootstrap(differences, clusters=clusters, macro=macro, seed=seed)
        varied = bool(np.ptp(draws) > 1e-12)
        low, high = stats.percentiles(draws) if varied else (None, None)
        p = stats.bootstrap_p(draws, value) if varied else (1.0 if abs(value) < 1e-12 else None)
        p = stats.mcnemar(only_a, only_b) if exact else p
    if exact:
        detectable = stats.detectable_pairs(a.n, (only_a + only_b) / a.n)
    else:
        stderr = _stderr(differences, parts, macro)
        detectable = stats.detectable_mean(stderr) if stderr else None
    return Difference(
        a=a, b=b, value=value, low=low, high=high,
        test="clustered" if clustered else "mcnemar" if exact else "bootstrap",
        p=p, holm=None, minimum_detectable_effect=detectable,
        only_a=only_a if binary else None, only_b=only_b if binary else None,
    )  # fmt: skip


def holm_adjusted(differences: Sequence[Difference], families: Sequence[Hashable]) -> list[Difference]:
    """The same differences with `holm` set: p adjusted with Holm's method within each family of comparisons."""
    adjusted = list(differences)
    for family in dict.fromkeys(families):
        members = [i for i, name in enumerate(families) if name == family and differences[i].p is not None]
        for i, p in zip(members, stats.holm([differences[i].p or 0.0 for i in members]), strict=True):
            adjusted[i] = replace(differences[i], holm=p)
    return adjusted


def _over_shared_questions(score: Score, values: Sequence[np.ndarray], parts: Sequence[Part], exact: bool) -> Score:
    """The score of one run over the shared questions."""
    macro = score.average == "macro"
    n = sum(map(len, values))
    value = float(np.mean([v.mean() for v in values]) if macro else np.concatenate(values).mean())
    stderr = _stderr(values, parts, macro)
    low, high = stats.wilson(value * n, n) if exact else stats.normal(value, stderr)
    if score.metric.startswith("pass@") and not macro and all(part.clusters is None for part in parts):
        low, high = stats.problems_interval(np.concatenate(values))
    if all(part.binary for part in parts):
        low, high = max(0.0, low), min(1.0, high)
    return replace(score, n=n, value=value, stderr=stderr, low=low, high=high)


def _stderr(values: Sequence[np.ndarray], parts: Sequence[Part], macro: bool) -> float:
    """Standard error of the mean over all questions, or of the mean of the tasks' means; the tasks are fixed."""
    if macro:
        pairs = zip(values, parts, strict=True)
        return stats.macro([(0.0, stats.clustered_stderr(v.tolist(), part.units)) for v, part in pairs])[1]
    units = [(i, unit) for i, part in enumerate(parts) for unit in part.units]
    return stats.clustered_stderr(np.concatenate(values).tolist(), units)
