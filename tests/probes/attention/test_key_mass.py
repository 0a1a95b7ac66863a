"""What keys receive and the map of a long prompt, against the patterns that are never held."""

import numpy as np
import pytest
import torch

from probes.attention import head_metrics, key_mass
from probes.attention import key_mass_figures as figures_received
from workbench.errors import HookError, MissingHookError
from workbench.model import Transformer

pytestmark = pytest.mark.filterwarnings("ignore:a run of 300 tokens is longer than the model's context")

TOKENS = torch.randint(0, 96, (2, 300), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def run(tiny_model: Transformer):
    names = (*key_mass.HOOKS, *key_mass.MAP_HOOKS, *head_metrics.HOOKS)
    with torch.no_grad():
        yield tiny_model.run_with_capture(TOKENS, names)[1]


def test_key_mass_is_the_sum_of_the_pattern_s_columns(run) -> None:
    result = key_mass.key_mass(run, row=1)
    pattern = run.stack("attn.hook_pattern")[:, 1].double().numpy()  # [layer, head, query, key]
    assert np.abs(result.mass - pattern.sum(2)).max() < 1e-4  # sums of up to 300 float32 weights
    assert result.mass.sum(-1) == pytest.approx(300, abs=1e-3)
    assert result.mean[..., -1] == pytest.approx(pattern[..., -1, -1], abs=1e-6)  # one query sees the last key
    assert result.mean[..., 0] == pytest.approx(pattern[..., 0].mean(-1), abs=1e-6)
    table = result.frame()
    assert len(table) == 3 * 4 * 300 and list(table) == ["layer", "head", "key", "mass", "mean"]
    assert figures_received.key_mass(result).data[0].z.shape == (12, 300)


def test_key_mass_of_some_queries_counts_those(tiny_model: Transformer) -> None:
    with torch.no_grad():
        _, cap = tiny_model.run_with_capture(TOKENS, key_mass.HOOKS, positions=[3, 10], heads=[2])
    result = key_mass.key_mass(cap)
    assert result.heads == (2,) and result.mass.sum(-1) == pytest.approx(2, abs=1e-5)
    assert np.isnan(result.mean[..., 11:]).all()
    assert result.mean[..., 4:11] == pytest.approx(result.mass[..., 4:11])  # only the second query sees them


def test_a_mean_map_pools_the_pattern(run) -> None:
    result = key_mass.mean_map(run, 2, 3, row=1)
    pattern = run.pattern(2)[1, 3].double().numpy()
    tiles = pattern.reshape(150, 2, 150, 2).mean(1).sum(-1)
    lower = np.tril(np.ones((150, 150), bool))
    assert result.factor == 2 and np.abs(result.weights[lower] - tiles[lower]).max() < 1e-6
    assert np.isnan(result.weights[~lower]).all()
    assert np.nansum(result.weights, -1) == pytest.approx(1, abs=1e-5)
    assert result.frame().iloc[-1][["query", "key"]].tolist() == [298, 298]
    assert figures_received.mean_map(result).data[0].x[-1] == 298


def test_what_was_not_captured_is_said(run, tiny_model: Transformer) -> None:
    with pytest.raises(MissingHookError, match="has heads"):
        key_mass.mean_map(run, 0, 4)
    with torch.no_grad():
        _, other = tiny_model.run_with_capture(TOKENS, ["hook_embed", *key_mass.MAP_HOOKS], positions=[3])
    with pytest.raises(MissingHookError, match="hook_key_mass"):
        key_mass.key_mass(other)
    with pytest.raises(HookError, match="every position"):
        key_mass.mean_map(other, 0, 0)


def test_head_metrics_from_statistics_are_those_from_patterns(tiny_model: Transformer, run) -> None:
    """To 1e-5, the statistics' own tolerance; of distances up to 300 tokens 3e-4."""
    with torch.no_grad():
        _, long = tiny_model.run_with_capture(TOKENS, head_metrics.LONG_HOOKS)
    a, b = head_metrics.head_metrics(long), head_metrics.head_metrics(run)
    assert a.layers == b.layers and a.n_queries == b.n_queries
    for name in head_metrics.METRICS:
        tolerance = 3e-4 if name == "distance" else 1e-5
        if name == "duplicate":
            assert np.isnan(a.values[name]).all()
        else:
            assert a.values[name] == pytest.approx(b.values[name], abs=tolerance), name
    rows = [head_metrics.query_metrics(cap, 1).values for cap in (long, run)]
    for name in ("entropy_norm", "previous"):
        assert np.array_equal(np.isnan(rows[0][name]), np.isnan(rows[1][name])), name
