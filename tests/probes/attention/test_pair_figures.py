"""Two patterns beside each other: one scale, a symmetric difference, blanks where nothing can be subtracted."""

import numpy as np

from probes.attention.head_map import HeadMap
from probes.attention.pair_figures import SIDE, difference, side_by_side


def pattern(*rows: list[float]) -> HeadMap:
    weights = np.full((len(rows), len(rows)), np.nan, np.float32)
    for at, row in enumerate(rows):
        weights[at, : at + 1] = row
    return HeadMap(1, 2, 0, len(rows), 1, weights)


A = pattern([1], [0.25, 0.75])
B = pattern([1], [0.5, 0.5], [0.2, 0.2, 0.6])


def test_the_difference_is_b_less_a_where_both_hold_the_position() -> None:
    np.testing.assert_array_equal(difference(A, B, 3), [[0, np.nan], [0.25, -0.25]])
    np.testing.assert_array_equal(difference(A, B, 1), [[0]])
    assert difference(A, B, 0).size == 0


def test_a_and_b_share_a_scale_and_the_difference_is_centred() -> None:
    fig = side_by_side(A, B, shared=2)
    assert [trace.coloraxis for trace in fig.data] == ["coloraxis", "coloraxis", "coloraxis2"]
    assert (fig.layout.coloraxis.cmin, fig.layout.coloraxis.cmax) == (0, 1)
    assert (fig.layout.coloraxis2.cmin, fig.layout.coloraxis2.cmax) == (-0.25, 0.25)
    np.testing.assert_array_equal(fig.data[1].z, B.weights)
    assert len(side_by_side(A, B, shared=0).data) == 2


def test_the_largest_maps_stay_within_a_figures_budget() -> None:
    random = np.random.default_rng(0)
    rows = [random.dirichlet(np.ones(n + 1)).tolist() for n in range(SIDE)]
    fig = side_by_side(pattern(*rows), pattern(*rows), shared=SIDE)
    assert len(fig.to_json()) < 1_500_000
