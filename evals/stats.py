"""Intervals for scores. Pure functions of numbers; knows nothing of tasks or files."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z95 = 1.959963984540054


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
    """Standard error of a mean, with n - 1 as lm-eval has it; 0 for fewer than two values."""
    n = len(values)
    if n < 2:
        return 0.0
    mean = sum(values) / n
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)


def macro(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Unweighted mean of independent scores and its standard error, from (value, stderr) of each.

    The subjects are taken as given, not as a sample of subjects.
    """
    values = [value for value, _ in parts]
    return sum(values) / len(values), math.sqrt(sum(stderr**2 for _, stderr in parts)) / len(values)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The chance that k of n samples hold a correct one, unbiased.

    Source: Chen et al. 2021 (2107.03374).
    """
    if n - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - correct + 1, n + 1))
