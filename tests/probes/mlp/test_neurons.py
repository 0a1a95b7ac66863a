"""Neurons: hand-worked sparsity and tokens, the attribution they sum to, brute force, and Hugging Face's MLPs."""

import math
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from probes.logits import logit_attribution
from probes.mlp import figures as figures_neurons
from probes.mlp import neurons as probe
from workbench.errors import HookError, MissingHookError
from workbench.hooks.capture import Capture
from workbench.model import Transformer


@pytest.fixture
def fired(tiny_model: Transformer, tokens: torch.Tensor) -> Capture:
    with torch.no_grad():
        return tiny_model.run_with_capture(tokens, probe.HOOKS)[1]


def test_sparsity_by_hand() -> None:
    x = torch.tensor([[1.0, -1, 1, -1], [0, 0, -7, 0], [3, 4, 0, 0], [0, 0, 0, 0]])
    result = probe.hoyer(x)
    assert result[:3].tolist() == pytest.approx([0, 1, 2 - 7 / 5])
    assert result[3].isnan() and probe.hoyer(torch.ones(1)).isnan()


def test_statistics_are_those_of_hugging_face_s_neurons(
    fired: Capture, tiny_model: Transformer, reference_model: Any, tokens: torch.Tensor
) -> None:
    """transformers' own gates and the input of its down projection, reduced by numpy in float64."""
    seen: dict[str, torch.Tensor] = {}
    for layer, block in enumerate(reference_model.model.layers):
        block.mlp.gate_proj.register_forward_hook(lambda m, i, o, layer=layer: seen.update({f"gate{layer}": o}))
        block.mlp.down_proj.register_forward_hook(lambda m, i, o, layer=layer: seen.update({f"post{layer}": i[0]}))
    with torch.no_grad():
        reference_model(tokens)
    result = probe.neuron_statistics(fired, top=3)
    for layer in range(3):
        gate, post = (seen[f"{name}{layer}"].double().numpy() for name in ("gate", "post"))
        flat = post.reshape(48, 64)
        assert result.open_share[layer] == pytest.approx((gate > 0).mean((0, 1)), abs=1e-6)
        assert result.mean[layer] == pytest.approx(flat.mean(0), abs=1e-5)
        assert result.rms[layer] == pytest.approx(np.sqrt((flat**2).mean(0)), rel=1e-3)
        centred = flat - flat.mean(0)
        assert result.kurtosis[layer] == pytest.approx((centred**4).mean(0) / (centred**2).mean(0) ** 2, rel=1e-3)
        sparse = (48**0.5 - np.abs(flat).sum(0) / np.linalg.norm(flat, axis=0)) / (48**0.5 - 1)
        assert result.sparsity[layer] == pytest.approx(sparse, abs=1e-4)
        best = np.abs(flat).argmax(0)
        assert result.top_batch[layer, :, 0].tolist() == (best // 24).tolist()
        assert result.top_pos[layer, :, 0].tolist() == (best % 24).tolist()
        assert result.top_value[layer, :, 0] == pytest.approx(flat[best, np.arange(64)], rel=1e-3)
    assert result.nonfinite.tolist() == [0, 0, 0]
    table = result.frame()
    assert len(table) == 3 * 64 and table.loc[64 + 5, "rms"] == result.rms[1, 5]
    tops = result.tops(1, 5)
    assert tops["value"].abs().is_monotonic_decreasing and len(tops) == 3


def test_statistics_keep_absolute_positions_and_count_what_is_broken(
    tiny_model: Transformer, tokens: torch.Tensor
) -> None:
    with torch.no_grad():
        _, some = tiny_model.run_with_capture(tokens, probe.HOOKS, positions=[7, 20])
        result = probe.neuron_statistics(some)
        assert set(result.top_pos.flatten().tolist()) == {7, 20}
        tiny_model.layers[2].feed_forward.w3.weight[9] = math.nan
        _, broken = tiny_model.run_with_capture(tokens, probe.HOOKS)
    result = probe.neuron_statistics(broken)
    assert result.nonfinite.tolist() == [0, 0, 48]
    assert np.isnan(result.rms).nonzero()[1].tolist() == [9]


def test_statistics_need_both_hooks(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    for names, absent in (("blocks.*.mlp.hook_pre", "hook_post"), ("blocks.*.mlp.hook_post", "hook_pre")):
        _, cap = tiny_model.run_with_capture(tokens, [names])
        with pytest.raises(MissingHookError, match=absent):
            probe.neuron_statistics(cap)


def test_tokens_by_hand(tiny_model: Transformer) -> None:
    """A neuron that writes along one dimension promotes the tokens whose rows have most of it."""
    assert tiny_model.output is not None
    with torch.no_grad():
        tiny_model.layers[1].feed_forward.w2.weight[:, 4] = 0
        tiny_model.layers[1].feed_forward.w2.weight[3, 4] = 2.0
        tiny_model.norm.weight[3] = -0.5
        tiny_model.output.weight[:, 3] = torch.arange(96.0)
    result = probe.neuron_tokens(tiny_model, 1, [4], k=3)
    assert result.promoted.tolist() == [[0, 1, 2]] and result.promoted_effect.tolist() == [[0, -1, -2]]
    assert result.suppressed.tolist() == [[95, 94, 93]] and result.suppressed_effect.tolist() == [[-95, -94, -93]]
    table = result.frame()
    assert list(table.columns) == ["layer", "neuron", "side", "rank", "token", "effect", "text"]
    assert table["token"].tolist() == [0, 1, 2, 95, 94, 93] and set(table["text"]) == {""}


def test_neurons_sum_to_the_mlp_s_attribution(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        _, cap = tiny_model.run_with_capture(tokens, {*probe.HOOKS, *logit_attribution.HOOKS})
    wanted = (5, 71)
    expected = logit_attribution.logit_attribution(tiny_model, cap, wanted, position=-1, row=1)
    for layer in range(3):
        result = probe.neuron_tokens(tiny_model, layer, range(64), k=96)
        effect = np.zeros((64, 96))
        np.put_along_axis(effect, result.promoted, result.promoted_effect, 1)
        fired = cap[f"blocks.{layer}.mlp.hook_post"][1, -1].numpy()
        total = fired @ effect / float(cap["ln_final.hook_scale"][1, -1])
        mlp = expected.parts.index(("mlp", layer, -1))
        assert total[list(wanted)] == pytest.approx(expected.values[:, mlp], abs=1e-5)


def test_tokens_have_their_text() -> None:
    model = wb.load_model("demo", device="cpu")
    result = probe.neuron_tokens(model, 5, [0, 7], k=4)
    row = result.frame().iloc[0]
    assert row["text"] == repr(model.tokenizer.token_bytes(int(row["token"])))[2:-1] != ""


@pytest.mark.parametrize(("layer", "neuron"), [(3, 0), (-1, 0), (0, 64), (0, -1)])
def test_neurons_that_are_not_there(tiny_model: Transformer, layer: int, neuron: int) -> None:
    with pytest.raises(HookError, match="0 to"):
        probe.neuron_tokens(tiny_model, layer, [neuron])


def test_logit_variance_is_that_of_all_logits(tiny_model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against every cosine written out; the vocabulary comes in pieces that do not divide it."""
    monkeypatch.setattr(probe, "ROWS", 36)
    result = probe.entropy_neurons(tiny_model, layers=[2, 0])
    assert tiny_model.output is not None
    rows = (tiny_model.output.weight * tiny_model.norm.weight).detach().double().numpy()
    for at, layer in enumerate((2, 0)):
        columns = tiny_model.layers[layer].feed_forward.w2.weight.detach().double().numpy()
        norm = np.linalg.norm(columns, axis=0)
        cosine = rows @ columns / np.linalg.norm(rows, axis=1)[:, None] / norm
        assert result.norm[at] == pytest.approx(norm, rel=1e-6)
        assert result.logit_variance[at] == pytest.approx(cosine.var(0), rel=1e-6)


def test_a_planted_entropy_neuron_is_found(tiny_model: Transformer) -> None:
    """Its direction has no part in any row of W_U, so only the final norm can feel it; scale changes no variance."""
    before = probe.entropy_neurons(tiny_model)
    assert tiny_model.output is not None
    with torch.no_grad():
        tiny_model.output.weight[:, 11] = 0
        weight = tiny_model.layers[2].feed_forward.w2.weight
        weight[:, 40] = 0
        weight[11, 40] = 9.0
        weight[:, 41] = 0  # a neuron that writes nothing is no candidate, and hides no other
    result = probe.entropy_neurons(tiny_model)
    assert result.chosen[2, 40] and not before.chosen[2, 40]
    assert result.logit_variance[2, 40] == 0
    assert np.isnan(result.logit_variance[2, 41]) and not result.chosen[2, 41]
    assert tuple(result.frame().loc[0, ["layer", "neuron"]]) == (2, 40)
    with torch.no_grad():
        tiny_model.layers[0].feed_forward.w2.weight.mul_(5)
    scaled = probe.entropy_neurons(tiny_model)
    assert scaled.logit_variance[0] == pytest.approx(result.logit_variance[0], rel=1e-6)
    assert scaled.norm[0] == pytest.approx(5 * result.norm[0], rel=1e-6)


def test_figures_show_what_was_found(fired: Capture, tiny_model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = probe.neuron_statistics(fired)
    written = probe.neuron_tokens(tiny_model, 1, [4], k=3)
    entropy = probe.entropy_neurons(tiny_model, norm_quantile=0.5, variance_quantile=0.5)
    assert statistics.figure().data[2].y == pytest.approx(statistics.token_sparsity)
    bars = written.figure().data[0]
    assert list(bars.x) == sorted(bars.x) and bars.y[-1] == f"{written.promoted[0, 0]} "
    others, candidates = entropy.figure().data
    assert (len(candidates.x), len(others.x)) == (entropy.chosen.sum(), (~entropy.chosen).sum())
    monkeypatch.setattr(figures_neurons, "MAX_POINTS", 50)
    others, candidates = entropy.figure().data
    assert len(candidates.x) == entropy.chosen.sum() and 0 < len(others.x) <= 50 and "one in" in others.name
