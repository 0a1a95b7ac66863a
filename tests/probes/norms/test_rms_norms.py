"""Norms and the stream: hand-worked entries, the residual's arithmetic, and Hugging Face's hidden states."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from probes.norms import rms_norms as probe
from workbench.errors import MissingHookError
from workbench.hooks.capture import Capture
from workbench.model import Transformer


def test_rms_by_hand() -> None:
    assert probe.rms(torch.tensor([3.0, 4.0]), 0.0).item() == pytest.approx(math.sqrt(12.5))
    assert probe.rms(torch.zeros(2), 1e-4).item() == pytest.approx(1e-2)
    assert probe.rms(torch.full((4,), 300.0, dtype=torch.float16), 0.0).item() == 300  # its square overflows float16


def test_input_rms_is_that_of_the_stream(captured: Capture) -> None:
    result = probe.input_rms(captured)
    assert result.norms == ((0, "ln1"), (0, "ln2"), (1, "ln1"), (1, "ln2"), (2, "ln1"), (2, "ln2"), (3, "ln_final"))
    eps = captured.config.norm_eps
    reads = {"ln1": "hook_resid_pre", "ln2": "hook_resid_mid"}
    for row, (layer, norm) in enumerate(result.norms):
        name = f"blocks.{layer}.{reads[norm]}" if norm in reads else "blocks.2.hook_resid_post"
        assert result.rms[row] == pytest.approx(probe.rms(captured[name], eps).numpy(), rel=1e-5)
    assert result.nonfinite == 0
    table = result.frame()
    assert list(table.columns) == ["layer", "norm", "batch", "pos", "rms"]
    assert len(table) == 7 * 2 * 24


def test_input_rms_agrees_with_hugging_face(captured: Capture, reference: Any) -> None:
    result = probe.input_rms(captured)
    for layer in range(3):
        x = reference.hidden_states[layer].double().numpy()  # what the block reads
        expected = np.sqrt((x**2).mean(-1) + captured.config.norm_eps)
        assert result.rms[result.norms.index((layer, "ln1"))] == pytest.approx(expected, rel=1e-4)


def test_broken_values_are_counted(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        tiny_model.tok_embeddings.weight[tokens[0, 0]] = math.inf
        _, cap = tiny_model.run_with_capture(tokens, probe.HOOKS)
    scales = torch.stack([cap[name] for name in cap.names if name.endswith("hook_scale")])
    assert probe.input_rms(cap).nonfinite == (~scales.isfinite()).sum() > 0
    result = probe.massive_activations(cap)
    assert result.nonfinite == (~cap.stack("hook_resid_post").isfinite()).sum() > 0
    assert np.isfinite(result.top).all()


def test_kurtosis_by_hand() -> None:
    assert probe.kurtosis(torch.tensor([-1.0, 1.0])).item() == 1
    assert probe.kurtosis(torch.tensor([0.0, 0, 0, 0, 5])).item() == pytest.approx(3.25)
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0)).double()
    assert probe.kurtosis(normal).item() == pytest.approx(3, abs=0.05)


def test_gain_statistics(tiny_model: Transformer) -> None:
    with torch.no_grad():
        tiny_model.layers[1].ffn_norm.weight[7] = 40.0
        tiny_model.norm.weight.copy_(torch.linspace(-1, 1, 32))
    result = probe.gain_statistics(tiny_model, top=2)
    row = result.norms.index((1, "ln2"))
    assert (result.top_dims[row, 0], result.top_values[row, 0]) == (7, 40.0)
    assert result.kurtosis[row] > 20
    final = result.norms.index((3, "ln_final"))
    assert result.quantiles[final] == pytest.approx([2 * q - 1 for q in probe.QUANTILES], abs=1e-6)
    assert result.mean[final] == pytest.approx(0, abs=1e-7)
    table = result.frame()
    assert len(table) == 7 and table["q50"].to_numpy() == pytest.approx(result.quantiles[:, 4])
    assert {"layer", "norm", "mean", "std", "kurtosis", "q0", "q100", "top_dim", "top_value"} <= set(table.columns)


def test_massive_entries_need_both_conditions() -> None:
    x = torch.full((1, 2, 3), 0.1)
    x[0, 0, 1], x[0, 1, 2] = -101.0, 99.0
    assert probe.massive_entries(x).nonzero().tolist() == [[0, 0, 1]]
    assert probe.massive_entries(x, threshold=50).sum() == 1  # 99 is only 990 times the median of 0.1
    assert probe.massive_entries(x, threshold=50, ratio=900).sum() == 2


def test_median_by_hand() -> None:
    assert probe.median(torch.tensor([4.0, 1.0, 3.0])).item() == 3
    assert probe.median(torch.tensor([4.0, 1.0, 3.0, 2.0, math.nan, math.inf])).item() == 2.5
    assert probe.median(torch.tensor([math.nan])).isnan()


def test_massive_activations_are_found_where_they_were_put(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    """An embedding with one huge entry stays in the stream of every layer, at that token and dimension."""
    tokens = tokens.clone()
    tokens[tokens == 11] = 10
    tokens[1, 4] = 11
    with torch.no_grad():
        tiny_model.tok_embeddings.weight[11, 5] = 4000.0
        _, cap = tiny_model.run_with_capture(tokens, probe.HOOKS)
    result = probe.massive_activations(cap)
    table = result.frame()
    assert list(table.columns) == ["layer", "batch", "pos", "dim", "value", "ratio"]
    assert table[["layer", "batch", "pos", "dim"]].to_numpy().tolist() == [[layer, 1, 4, 5] for layer in range(3)]
    assert table["value"].to_numpy() == pytest.approx(4000, rel=0.01)
    assert result.top[:, 0] == pytest.approx(table["value"].abs().to_numpy())
    assert table["ratio"].to_numpy() == pytest.approx(result.top[:, 0] / result.median)
    assert result.by_layer()["massive"].tolist() == [1, 1, 1]
    assert probe.massive_activations(cap, threshold=5000).by_layer()["massive"].tolist() == [0, 0, 0]


def test_largest_activations_agree_with_hugging_face(captured: Capture, reference: Any) -> None:
    result = probe.massive_activations(captured)
    for layer in (0, 1):  # transformers normalises its last hidden state
        size = np.sort(np.abs(reference.hidden_states[layer + 1].numpy()).ravel())
        assert result.top[layer] == pytest.approx(size[::-1][:3], rel=1e-4)
        assert result.median[layer] == pytest.approx(np.median(size), rel=1e-4)


def test_outlier_dimensions(captured: Capture) -> None:
    x = np.abs(captured.stack("hook_resid_post").numpy())  # [layer, batch, pos, dim]
    magnitude = float(np.quantile(x, 0.93))
    result = probe.outlier_dimensions(captured, magnitude=magnitude, layer_share=0.5, position_share=0.1, absolute=True)
    large = x >= magnitude
    expected = (large.any((1, 2)).mean(0) >= 0.5) & (large.mean((0, 1, 2)) >= 0.1)
    assert 0 < expected.sum() < 32
    assert result.dims == tuple(np.flatnonzero(expected))
    assert set(result.frame()["dim"][: len(result.dims)]) == set(result.dims)  # outliers come first
    assert probe.outlier_dimensions(captured, magnitude=1e6).dims == ()


def test_outlier_dimensions_do_not_depend_on_the_scale_of_the_stream(captured: Capture) -> None:
    def scaled(*factors: float) -> Capture:
        new = {name: captured[name] * factors[i] for i in range(2) for name in [f"blocks.{i}.hook_resid_post"]}
        return replace(captured, tensors={**captured.tensors, **new})

    options = {"magnitude": 2.0, "layer_share": 0.5, "position_share": 0.1}
    plain = probe.outlier_dimensions(captured, **options)
    large = probe.outlier_dimensions(scaled(10.0, 1000.0), **options)
    assert 0 < len(plain.dims) < 16 and plain.dims == large.dims
    assert (plain.position_share == large.position_share).all()
    x = np.abs(captured.stack("hook_resid_post").numpy())
    limit = 2.0 * np.median(x, -1, keepdims=True) / 0.67448975
    expected = ((x >= limit).any((1, 2)).mean(0) >= 0.5) & ((x >= limit).mean((0, 1, 2)) >= 0.1)
    assert plain.dims == tuple(np.flatnonzero(expected))


def test_normal_entries_have_no_outliers_and_their_deviation_is_found() -> None:
    x = torch.randn(4, 4096, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.1], [1.0], [7.0], [300.0]])
    sizes = probe.typical_size(x.abs().sort(-1).values)
    assert sizes.flatten().tolist() == pytest.approx([0.1, 1.0, 7.0, 300.0], rel=0.05)


def test_contribution_by_hand() -> None:
    ratio, cosine = probe.contribution(torch.tensor([0.0, 2.0]), torch.tensor([3.0, 4.0]))
    assert (ratio.item(), cosine.item()) == (pytest.approx(0.4), pytest.approx(0.8))


def test_contributions_are_bound_by_the_stream_they_make(captured: Capture) -> None:
    """|mid|^2 = |pre|^2 (1 + 2 ratio cosine + ratio^2), because mid = pre + attn_out; so for the MLP."""
    result = probe.contribution_ratios(captured)
    for layer in range(3):
        for sub, (before, after) in enumerate((("pre", "mid"), ("mid", "post"))):
            old, new = (captured[f"blocks.{layer}.hook_resid_{at}"].norm(dim=-1).numpy() for at in (before, after))
            ratio, cosine = result.ratio[layer, sub], result.cosine[layer, sub]
            assert new**2 == pytest.approx(old**2 * (1 + 2 * ratio * cosine + ratio**2), rel=1e-4)
    assert list(result.frame().columns) == ["layer", "sublayer", "batch", "pos", "ratio", "cosine"]
    assert len(result.frame()) == 3 * 2 * 2 * 24


def test_mistakes_say_what_to_add(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        _, cap = tiny_model.run_with_capture(tokens, ["hook_embed", "blocks.*.hook_attn_out"])
    for probing, missing in (
        (probe.input_rms, "hook_scale"),
        (probe.massive_activations, "hook_resid_post"),
        (probe.outlier_dimensions, "hook_resid_post"),
        (probe.contribution_ratios, "hook_resid_pre"),
    ):
        with pytest.raises(MissingHookError, match=missing):
            probing(cap)
