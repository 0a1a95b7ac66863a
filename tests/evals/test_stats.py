"""Intervals and averages compared with values worked out by hand or by brute force."""

import itertools
import math

import numpy as np
import pytest

from evals import stats

scipy_stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")


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


def test_half_widths_of_whole_benchmarks_at_usual_scores() -> None:
    # 66.7% of MMLU, 79.6% of GSM8K, 62.2% of HumanEval: an 8-billion-parameter model's published scores.
    for p, n, points in ((0.667, 14_042, 0.8), (0.796, 1_319, 2.2), (0.622, 164, 7.4)):
        low, high = stats.wilson(p * n, n)
        assert 100 * (high - low) / 2 == pytest.approx(points, abs=0.1)


def test_mcnemar_by_hand_and_against_scipy() -> None:
    assert stats.mcnemar(1, 5) == 2 * (1 + 6) / 64
    assert stats.mcnemar(0, 0) == stats.mcnemar(4, 4) == 1.0
    for a, b in ((0, 1), (0, 20), (3, 14), (40, 61), (700, 801)):
        assert stats.mcnemar(a, b) == stats.mcnemar(b, a)
        assert stats.mcnemar(a, b) == pytest.approx(scipy_stats.binomtest(a, a + b).pvalue, rel=1e-12)


def test_paired_interval_by_hand() -> None:
    # (1 + 1) / 22 and (5 + 1) / 22: a difference of 4 / 22, its variance (8 / 22 - 16 / 484) / 22.
    low, high = stats.paired_interval(1, 5, 20)
    half = 1.959964 * math.sqrt((8 / 22 - 16 / 484) / 22)
    assert (low, high) == pytest.approx((4 / 22 - half, 4 / 22 + half), rel=1e-6)
    low, high = stats.paired_interval(0, 0, 50)
    assert low == -high < 0


def test_paired_interval_covers_what_it_says() -> None:
    # Of 600 repetitions a 95% interval misses 30 on average; 50 would be four standard deviations off.
    random, n, shares = np.random.default_rng(1), 60, (0.1, 0.25, 0.65)
    missed = 0
    for a, b, _ in random.multinomial(n, shares, size=600):
        low, high = stats.paired_interval(int(a), int(b), n)
        missed += not low <= 0.15 <= high
    assert 10 <= missed <= 50


def test_bootstrap_of_questions_has_the_standard_error_of_the_mean() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=200)
    draws = stats.bootstrap([values])
    # Resampling divides by n, not n - 1; 10,000 draws give a standard deviation to 0.7%, here 4 of those.
    expected = stats.mean_stderr(values.tolist()) * math.sqrt(199 / 200)
    assert draws.std() == pytest.approx(expected, rel=0.03)
    assert draws.mean() == pytest.approx(values.mean(), abs=4 * expected / 100)


def test_bootstrap_against_scipys() -> None:
    values = np.random.default_rng(2).exponential(size=80)
    theirs = scipy_stats.bootstrap((values,), np.mean, n_resamples=9_999, method="percentile", rng=5)
    ours = stats.percentiles(stats.bootstrap([values]))
    # Both are random: the 2.5% point of 10,000 draws is known to about 3% of a standard error.
    tolerance = 0.1 * theirs.standard_error
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=tolerance)


def test_bootstrap_of_subjects_keeps_each_subjects_size() -> None:
    ends = [np.zeros(10), np.ones(30)]  # nothing varies within a subject, so nothing varies at all
    assert np.ptp(stats.bootstrap(ends)) == 0 and stats.bootstrap(ends)[0] == 0.75
    assert stats.bootstrap(ends, macro=True)[0] == 0.5
    random = np.random.default_rng(3)
    parts = [random.integers(0, 2, size) for size in (40, 160)]
    errors = [np.std(part) / math.sqrt(len(part)) for part in parts]
    micro = math.hypot(40 * errors[0], 160 * errors[1]) / 200
    assert stats.bootstrap(parts).std() == pytest.approx(micro, rel=0.03)
    assert stats.bootstrap(parts, macro=True).std() == pytest.approx(math.hypot(*errors) / 2, rel=0.03)


def test_bootstrap_is_seeded_and_does_not_depend_on_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(12.0)
    whole = stats.bootstrap([values], draws=500, seed=4)
    assert not np.array_equal(whole, stats.bootstrap([values], draws=500, seed=5))
    monkeypatch.setattr(stats, "_CELLS", 12 * 7)
    assert np.array_equal(whole, stats.bootstrap([values], draws=500, seed=4))


def test_clusters_by_hand_and_by_the_double_sum() -> None:
    # Means 1/2; residuals of the two passages +1 and -1; sqrt(2 * 2 / 1) / 4.
    assert stats.clustered_stderr([1.0, 1.0, 0.0, 0.0], ["p", "p", "q", "q"]) == pytest.approx(0.5)
    random = np.random.default_rng(6)
    values, names = random.random(30), random.integers(0, 7, 30)
    off = values - values.mean()
    pairs = sum(off[i] * off[j] for i in range(30) for j in range(30) if names[i] == names[j])
    assert stats.clustered_stderr(values.tolist(), names.tolist()) == pytest.approx(math.sqrt(pairs * 7 / 6) / 30)
    assert stats.clustered_stderr(values.tolist(), range(30)) == pytest.approx(stats.mean_stderr(values.tolist()))
    assert stats.clustered_stderr([1.0, 0.0], ["p", "p"]) == 0.0


def test_clusters_are_drawn_whole() -> None:
    random = np.random.default_rng(7)
    names = np.repeat(np.arange(40), random.integers(1, 6, 40))
    values = random.random(40)[names]
    spread = stats.bootstrap([values], clusters=[names.tolist()]).std()
    # The mean's denominator is drawn too, which the linear formula leaves out: to 5% with 40 clusters.
    expected = stats.clustered_stderr(values.tolist(), names.tolist())
    assert spread == pytest.approx(expected, rel=0.05)
    assert spread > 1.3 * stats.bootstrap([values]).std()


def test_a_bootstrap_p_value_is_the_t_tests_for_many_questions() -> None:
    values = np.random.default_rng(8).normal(0.12, 1.0, 400)
    p = stats.bootstrap_p(stats.bootstrap([values]), values.mean())
    assert p == pytest.approx(scipy_stats.ttest_1samp(values, 0.0).pvalue, abs=0.015)
    assert stats.bootstrap_p(np.zeros(99), 0.0) == 1.0
    assert stats.bootstrap_p(np.full(99, 0.5), 0.5) == 0.01


def test_holm_by_hand() -> None:
    # 0.01 x 4; 0.02 x 3; 0.03 x 2 is no more than that; 0.9 alone.
    assert stats.holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert stats.holm([]) == [] and stats.holm([0.6, 0.7]) == [1.0, 1.0]


def test_pass_at_k_over_problems() -> None:
    counts = [(10, c) for c in (0, 0, 3, 10, 7, 1, 0, 10)]
    value, stderr, low, high = stats.pass_at_k_score(counts, 1)
    shares = [c / n for n, c in counts]
    assert value == pytest.approx(sum(shares) / 8) and stderr == pytest.approx(stats.mean_stderr(shares))
    assert 0 <= low < value < high <= 1
    assert stats.pass_at_k_score(counts, 5)[0] > value
    # Its error has both the problems' spread and the samples' chance: the spread of whole repetitions.
    random = np.random.default_rng(9)
    repeated = []
    for _ in range(150):
        drawn = random.beta(0.5, 0.5, 60)
        repeated.append(stats.pass_at_k_score([(5, int(c)) for c in random.binomial(5, drawn)], 2)[:2])
    means, errors = zip(*repeated, strict=True)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.18)  # 150 repetitions: 6%, here 3 of those


def test_the_interval_of_pass_at_k_by_hand() -> None:
    """Six problems, two samples of each, one right in three of them: the mean of six resampled is j / 12, and of 64
    equally likely ways one has j = 0 and six j = 1: 1.6% and 10.9%, so the middle 95% is from 1/12 to 5/12."""
    value, stderr, low, high = stats.pass_at_k_score([(2, 0)] * 3 + [(2, 1)] * 3, 1)
    assert (value, low, high) == pytest.approx((1 / 4, 1 / 12, 5 / 12))
    assert stats.normal(value, stderr) == pytest.approx((1 / 4 - 0.21913, 1 / 4 + 0.21913), abs=1e-5), "is another"
    # pass@2 of two samples is 0 or 1: a proportion of problems. Drawing anew would say of six sixes that none can fail.
    assert stats.pass_at_k_score([(2, 0)] * 3 + [(2, 1)] * 3, 2)[2:] == stats.wilson(3, 6)
    assert stats.pass_at_k_score([(1, 1)] * 6, 1)[2:] == stats.wilson(6, 6)
    # All alike: drawing anew would give a width of 0.
    assert stats.pass_at_k_score([(2, 1)] * 6, 1)[2:] == stats.wilson(3, 6)


def test_a_detectable_difference_is_detected_four_times_in_five() -> None:
    for n, discordance in ((14_042, 0.2), (1_319, 0.15), (164, 0.3)):
        difference = stats.detectable_pairs(n, discordance)
        assert difference is not None
        # The formula that gives n from the difference, as Connor wrote it.
        spread = math.sqrt(discordance - difference**2)
        assert ((stats.Z95 * math.sqrt(discordance) + stats.Z80 * spread) / difference) ** 2 == pytest.approx(n)
    shares = ((0.15 - found_at(1_319)) / 2, (0.15 + found_at(1_319)) / 2, 0.85)
    drawn = np.random.default_rng(10).multinomial(1_319, shares, size=400)
    seen = np.mean([stats.mcnemar(int(a), int(b)) < 0.05 for a, b, _ in drawn])
    assert 0.70 <= seen <= 0.87  # the exact test is a little stricter than 5%; 400 repetitions: 2 points
    assert stats.detectable_pairs(5, 0.5) is None and stats.detectable_pairs(100, 0.0) is None
    assert stats.detectable_mean(0.5) == pytest.approx(0.5 * 2.8016, abs=1e-4)


def found_at(n: int) -> float:
    difference = stats.detectable_pairs(n, 0.15)
    assert difference is not None
    return difference
