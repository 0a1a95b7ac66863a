"""Bootstrap intervals of means over prompts, resampled with a fixed seed."""

import numpy as np

RESAMPLES, LEVEL = 1000, 0.95
"""Default resamples and confidence level of the bootstrap intervals over prompts."""


def draws(n: int, resamples: int, seed: int) -> np.ndarray:
    """Count of each of n prompts in each bootstrap sample. Shapes: -> [resample, prompt], rows sum to n"""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples).astype(float)


def percentiles(means: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the central interval along the first axis; NaN where every resample is NaN."""
    known = np.where(np.isnan(means).all(0), 0.0, means)
    low, high = np.nanquantile(known, [(1 - level) / 2, (1 + level) / 2], axis=0)
    blank = np.isnan(means).all(0)
    return np.where(blank, np.nan, low), np.where(blank, np.nan, high)
