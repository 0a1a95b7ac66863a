"""Statistics: confidence intervals for scores and significance tests for differences. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

Z95 = 1.959963984540054
Z80 = 0.8416212335729143  # 80% power
DRAWS = 10_000
_CELLS = 4_000_000  # counts in memory at once in the bootstrap


def wilson(successes: float, n: int, *, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a proportion.

    Source: Wilson 1927.
    Exact:  stays within 0 and 1, and is not empty at 0 or n successes.
    """
    if n <= 0:
        return (0.0, 1.0)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (max(0.0, centre - half), min(1.0, centre + half))


def normal(value: float, stderr: float, *, z: float = Z95) -> tuple[float, float]:
    """The interval of a mean from its standard error."""
    return (value - z * stderr, value + z * stderr)


def mean_stderr(values: Sequence[float]) -> float:
    """Standard error of a mean, with n - 1 as in lm-eval; 0 for fewer than two values."""
    n = len(values)
    if n < 2:
        return 0.0
    mean = sum(values) / n
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)


def macro(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Unweighted mean of independent scores and its standard error, from (value, stderr) of each.

    The subjects are fixed, not a sample of subjects.
    """
    values = [value for value, _ in parts]
    return sum(values) / len(values), math.sqrt(sum(stderr**2 for _, stderr in parts)) / len(values)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of the probability that at least one of k samples is correct.

    Source: Chen et al. 2021 (2107.03374).
    """
    if n - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - correct + 1, n + 1))


def ks(samples: int) -> tuple[int, ...]:
    """The values of k whose pass@k is reported for this number of samples per problem."""
    return tuple(k for k in (1, 2, 5, 10, 20, 50, 100, 200) if k <= samples)


def clustered_stderr(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Clustered standard error of a mean; `clusters` names the cluster of each value, for example its passage.

    Source: Miller 2024 (2411.00640), with G / (G - 1) for G clusters.
    Exact:  equals `mean_stderr` if every question is its own cluster; 0 for fewer than two clusters.
    """
    sums, sizes = _cluster_sums(values, clusters)
    if len(sums) < 2:
        return 0.0
    residuals = sums - sizes * (sums.sum() / sizes.sum())
    return float(math.sqrt((residuals**2).sum() * len(sums) / (len(sums) - 1)) / sizes.sum())


def pass_at_k_score(counts: Sequence[tuple[int, int]], k: int, *, seed: int = 0) -> tuple[float, float, float, float]:
    """Mean pass@k over problems from (samples, correct samples) of each: value, standard error and 95% interval.

    The standard error is lm-eval's; the interval is computed separately, see `problems_interval`.
    """
    values = [pass_at_k(n, correct, k) for n, correct in counts]
    return sum(values) / len(values), mean_stderr(values), *problems_interval(values, seed=seed)


def problems_interval(values: Sequence[float] | np.ndarray, *, seed: int = 0) -> tuple[float, float]:
    """95% interval of the mean of the problems' estimates, each between 0 and 1.

    Problems are resampled together with their samples, so the interval includes the variation of both. If every
    estimate is 0 or 1, as with one sample per problem, the mean is a proportion of problems and the interval is
    Wilson's. Wilson's is also used if all estimates are equal, when resampling gives no variation: estimates with that
    mean vary most when each is 0 or 1.
    """
    if np.isin(values, (0, 1)).all() or np.ptp(values) == 0:
        return wilson(float(np.sum(values)), len(values))
    return percentiles(bootstrap([values], seed=seed))


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p of the exact McNemar test, from the numbers of questions that only one of two runs got right.

    Source: McNemar 1947, with the binomial distribution in integers.
    Exact:  1 if there is no such question.
    """
    n, fewer = only_a + only_b, min(only_a, only_b)
    total = term = 1
    for i in range(fewer):
        term = term * (n - i) // (i + 1)
        total += term
    return min(1.0, 2 * total / 2**n)


def paired_interval(only_a: int, only_b: int, n: int) -> tuple[float, float]:
    """95% interval of b's proportion minus a's over the same n questions, from the counts that only one got right.

    Source: Bonett and Price 2012: Wald's with one question more in both; not empty if the two never differ.
    """
    a, b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    low, high = normal(b - a, math.sqrt((a + b - (b - a) ** 2) / (n + 2)))
    return max(-1.0, low), min(1.0, high)


def bootstrap(
    strata: Sequence[Sequence[float] | np.ndarray],
    *,
    clusters: Sequence[Sequence[Hashable]] | None = None,
    macro: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
) -> np.ndarray:
    """Bootstrap means: questions are drawn with replacement within each stratum, for example a subject.

    The mean over all questions, or with `macro` the unweighted mean of the strata's means; `clusters` are drawn whole.
    Shapes: each of strata and of clusters [question] -> [draw]
    Source: Efron 1979. Equal values are drawn by their count, which is the same distribution.
    """
    random = np.random.default_rng(seed)
    total, weight = np.zeros(draws), 0.0
    for i, values in enumerate(strata):
        names = range(len(values)) if clusters is None else clusters[i]
        sums, sizes = _cluster_sums(values, names)
        units, counts = np.unique(np.stack([sums, sizes], 1), axis=0, return_counts=True)  # [unit, sum and size]
        share = 1.0 if macro else float(len(values))
        step = max(1, _CELLS // len(units))
        for first in range(0, draws, step):
            chunk = slice(first, min(first + step, draws))
            drawn = random.multinomial(len(sums), counts / counts.sum(), size=chunk.stop - first)  # [draw, unit]
            total[chunk] += share * (drawn @ units[:, 0]) / (drawn @ units[:, 1])
        weight += share
    return total / weight


def percentiles(draws: np.ndarray) -> tuple[float, float]:
    """The middle 95% of bootstrap draws."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_p(draws: np.ndarray, observed: float) -> float:
    """Two-sided p for a mean of 0: the share of draws at least as far from the observed mean as that mean is from 0.

    Source: Efron and Tibshirani 1993, chapter 16; one is added to both counts, so it is never 0.
    """
    far = np.abs(draws - observed) >= abs(observed) * (1 - 1e-12)
    return float((1 + far.sum()) / (1 + len(draws)))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm-adjusted p values: they control the probability of at least one false positive among all tests.

    Source: Holm 1979.
    """
    adjusted, most = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        most = max(most, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = most
    return adjusted


def detectable_pairs(n: int, discordance: float) -> float | None:
    """The smallest difference of two proportions over the same n questions that is detectable with 80% power at the 5%
    level.

    `discordance` is the share of questions that only one of them gets right. None if even a difference equal to
    `discordance` is not detectable.
    Source: Connor 1987, solved for the difference.
    """
    room = n - Z95**2 + Z80**2
    if discordance <= 0 or room <= 0:
        return None
    root = math.sqrt(discordance)
    difference = root * (Z95 * math.sqrt(n) + Z80 * math.sqrt(room)) / (n + Z80**2)
    return difference if difference <= discordance else None


def detectable_mean(stderr: float) -> float:
    """The smallest mean detectable as different from 0 with 80% power at the 5% level, from its standard error."""
    return (Z95 + Z80) * stderr


def _cluster_sums(values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and count of the values of each cluster. Shapes: [question] -> [cluster], [cluster]"""
    number = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    at = [number[name] for name in clusters]
    assert len(at) == len(values) > 0, "expected one cluster name for every value"
    return np.bincount(at, weights=np.asarray(values, dtype=float)), np.bincount(at).astype(float)
