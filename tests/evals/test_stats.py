"""Intervals and averages against values worked out by hand or by brute force."""

import itertools
import math

import pytest

from evals import stats


def test_wilson_against_a_published_value() -> None:
    # Newcombe 1998, table I: 81 of 263, Wilson without continuity correction.
    low, high = stats.wilson(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_wilson_solves_its_own_equation() -> None:
    for successes, n in ((0, 5), (3, 7), (29, 29), (500, 1319)):
        low, high = stats.wilson(successes, n)
        assert 0 <= low <= successes / n <= high <= 1 and low < high
        for bound in (low, high):
            if 0 < bound < 1:
                distance = abs(successes / n - bound) / math.sqrt(bound * (1 - bound) / n)
                assert distance == pytest.approx(stats.Z95)
    assert stats.wilson(0, 0) == (0.0, 1.0)


def test_half_widths_of_whole_benchmarks_at_even_odds() -> None:
    for n, points in ((14_042, 0.8), (1_319, 2.7), (164, 7.5)):
        low, high = stats.wilson(n / 2, n)
        assert 100 * (high - low) / 2 == pytest.approx(points, abs=0.1)


def test_macro_is_the_mean_of_independent_means() -> None:
    value, stderr = stats.macro([(0.5, 0.3), (1.0, 0.4)])
    assert value == 0.75 and stderr == pytest.approx(0.25)


def test_mean_stderr_is_lm_evals() -> None:
    metrics = pytest.importorskip("lm_eval.api.metrics", reason="lm_eval is not installed")
    values = [1.0, 0.0, 0.0, 1.0, 1.0, 0.25]
    assert stats.mean_stderr(values) == pytest.approx(metrics.mean_stderr(values))
    assert stats.mean_stderr([1.0]) == 0.0


def test_pass_at_k_counts_the_draws() -> None:
    for n, correct, k in ((5, 0, 2), (5, 1, 1), (6, 2, 3), (4, 4, 2), (7, 5, 4)):
        draws = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
        expected = sum(map(any, draws)) / len(draws)
        assert stats.pass_at_k(n, correct, k) == pytest.approx(expected)
