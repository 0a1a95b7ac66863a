"""What attention moves: Hugging Face's attentions and weights put together outright, and numbers by hand."""

from typing import Any

import numpy as np
import pytest
import torch

from probes.flow import value_weighted
from workbench.errors import HookError, MissingHookError
from workbench.hooks.capture import Capture
from workbench.model import Transformer


@pytest.fixture
def cap(tiny_model: Transformer, tokens: torch.Tensor) -> Capture:
    with torch.no_grad():
        return tiny_model.run_with_capture(tokens, value_weighted.HOOKS)[1]


@pytest.fixture
def theirs(reference_model: Any, reference: Any) -> list[torch.Tensor]:
    """Of every layer, A_ij v_j W_O in float64 as [batch, head, query_pos, key_pos, dim], all from Hugging Face."""
    layers = []
    for layer, block in enumerate(reference_model.model.layers):
        attention = block.self_attn
        normed = block.input_layernorm(reference.hidden_states[layer])
        values = attention.v_proj(normed).unflatten(-1, (2, 8)).repeat_interleave(2, 2)  # [batch, key_pos, head, 8]
        output = attention.o_proj.weight.unflatten(1, (4, 8))  # [dim, head, 8]
        with torch.no_grad():
            pattern = reference.attentions[layer]
            layers.append(torch.einsum("bhqk,bkhd,ehd->bhqke", pattern.double(), values.double(), output.double()))
    return layers


def test_one_heads_norms_agree_with_hugging_face(
    tiny_model: Transformer, cap: Capture, theirs: list[torch.Tensor], reference: Any
) -> None:
    for layer, head, row in ((0, 0, 0), (1, 3, 1), (2, 2, 0)):
        result = value_weighted.weighted_pattern(tiny_model, cap, layer, head, row=row)
        expected = theirs[layer][row, head].norm(dim=-1).numpy()
        assert result.norm == pytest.approx(expected, rel=1e-3, abs=1e-6)  # both models in float32
        assert result.attention == pytest.approx(reference.attentions[layer][row, head].numpy(), abs=1e-5)
        assert result.share.sum(-1) == pytest.approx(np.ones(24))


def test_a_layers_norms_agree_with_hugging_face(
    tiny_model: Transformer, cap: Capture, theirs: list[torch.Tensor], reference: Any
) -> None:
    own = torch.eye(24).unsqueeze(-1)
    for layer in range(3):
        result = value_weighted.weighted_pattern(tiny_model, cap, layer, row=1)
        stream = reference.hidden_states[layer][1].double()
        parts = theirs[layer][1].sum(0) + own * stream  # [query_pos, key_pos, dim]
        assert result.norm == pytest.approx(parts.norm(dim=-1).numpy(), rel=2e-3, abs=1e-4)
        # The parts are a decomposition: they sum to the stream after attention.
        assert parts.sum(1).numpy() == pytest.approx(cap[f"blocks.{layer}.hook_resid_mid"][1].numpy(), abs=1e-4)
        others = (parts.sum(1) - parts[range(24), range(24)]).norm(dim=-1)
        ratio = others / (others + parts[range(24), range(24)].norm(dim=-1))
        mixing = value_weighted.context_mixing(tiny_model, cap).ratio
        assert mixing[layer, 1] == pytest.approx(ratio.numpy(), abs=1e-4)


def test_the_first_tokens_shares_agree_with_hugging_face(
    tiny_model: Transformer, cap: Capture, theirs: list[torch.Tensor], reference: Any
) -> None:
    result = value_weighted.first_token(tiny_model, cap)
    for layer in range(3):
        norms = theirs[layer].norm(dim=-1)[:, :, 1:]  # [batch, head, query_pos, key_pos]
        expected = (norms[..., 0] / norms.sum(-1)).mean((0, 2))
        assert result.weighted[layer] == pytest.approx(expected.numpy(), abs=1e-4)
        attention = reference.attentions[layer][:, :, 1:, 0].mean((0, 2))
        assert result.attention[layer] == pytest.approx(attention.numpy(), abs=1e-5)
    assert list(result.frame().columns) == ["layer", "head", "attention", "weighted", "value"]


def test_a_head_with_values_of_one_length_moves_what_it_attends(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    """With the same token everywhere, all values are equal in the first layer: both shares are the same."""
    with torch.no_grad():
        _, cap = tiny_model.run_with_capture(torch.full((1, 6), 7), value_weighted.HOOKS)
    result = value_weighted.first_token(tiny_model, cap)
    assert result.weighted[0] == pytest.approx(result.attention[0], abs=1e-6)
    assert result.value[0] == pytest.approx(np.ones(4))
    pattern = value_weighted.weighted_pattern(tiny_model, cap, 0, 1)
    assert pattern.share == pytest.approx(pattern.attention, abs=1e-6)


def test_by_hand(tiny_model: Transformer) -> None:
    """Even attention over two tokens, the second's value three times the first's: 1/4 and 3/4 of what is moved."""
    with torch.no_grad():
        attention = tiny_model.layers[0].attention
        attention.wq.weight.zero_()
        attention.wv.weight.zero_()
        attention.wv.weight[:, 0] = 1
        tiny_model.layers[0].attention_norm.weight.fill_(1)
        tiny_model.tok_embeddings.weight.zero_()
        # Both have a root mean square of 1, so the norm leaves them (1e-5 is its epsilon): values 1 and 3.
        tiny_model.tok_embeddings.weight[1] = torch.tensor([1.0] + [1.0] * 31)
        rest = ((32 - 9) / 31) ** 0.5
        tiny_model.tok_embeddings.weight[2] = torch.tensor([3.0] + [rest] * 31)
        _, cap = tiny_model.run_with_capture(torch.tensor([[1, 2]]), value_weighted.HOOKS)
    result = value_weighted.weighted_pattern(tiny_model, cap, 0, 2)
    assert result.share[1] == pytest.approx([0.25, 0.75], abs=1e-6)
    assert value_weighted.first_token(tiny_model, cap).value[0] == pytest.approx(np.full(4, 1 / 3), abs=1e-6)
    assert value_weighted.context_mixing(tiny_model, cap).ratio[:, 0, 0] == pytest.approx(np.zeros(3), abs=1e-5)
    assert result.frame()["key"].tolist() == [0, 0, 1]


def test_blocks_change_nothing(tiny_model: Transformer, cap: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = value_weighted.weighted_pattern(tiny_model, cap, 1).norm
    monkeypatch.setattr(value_weighted, "_BLOCK_BYTES", 4 * 4 * 32 * 5)  # five keys at a time
    monkeypatch.setattr("probes.attention.head_metrics._BLOCK_BYTES", 4 * 2 * 4 * 24 * 7)  # seven queries
    assert value_weighted.weighted_pattern(tiny_model, cap, 1).norm == pytest.approx(whole, rel=1e-5)


def test_mistakes_say_what_to_do(tiny_model: Transformer, cap: Capture, tokens: torch.Tensor) -> None:
    with pytest.raises(HookError, match="heads 0 to 3, not 4"):
        value_weighted.weighted_pattern(tiny_model, cap, 0, 4)
    with torch.no_grad():
        _, some = tiny_model.run_with_capture(tokens, value_weighted.HOOKS, heads=[0])
        _, bare = tiny_model.run_with_capture(tokens, "blocks.*.attn.hook_pattern")
        _, single = tiny_model.run_with_capture(tokens[:, :1], value_weighted.HOOKS)
    with pytest.raises(HookError, match="without heads="):
        value_weighted.first_token(tiny_model, some)
    with pytest.raises(MissingHookError, match="hook_v"):
        value_weighted.weighted_pattern(tiny_model, bare, 0, 1)
    with pytest.raises(HookError, match="at least two"):
        value_weighted.first_token(tiny_model, single)


def test_figures(tiny_model: Transformer, cap: Capture) -> None:
    layer = value_weighted.weighted_pattern(tiny_model, cap, 0)
    assert "residual" in layer.figure().layout.title.text
    assert np.array(layer.figure().data[0].z)[3, :4] == pytest.approx(layer.share[3, :4], abs=1e-6)
    heads = value_weighted.first_token(tiny_model, cap)
    difference = heads.figure(stamp={"model": "tiny"})
    assert np.array(difference.data[0].z) == pytest.approx(heads.weighted - heads.attention, abs=1e-6)
    assert difference.layout.meta["model"] == "tiny"
    assert np.array(heads.figure(show="weighted").data[0].z) == pytest.approx(heads.weighted, abs=1e-6)
    mixing = value_weighted.context_mixing(tiny_model, cap)
    assert np.array(mixing.figure(row=1).data[0].z) == pytest.approx(mixing.ratio[:, 1], abs=1e-6)
    assert len(mixing.frame()) == 3 * 2 * 24
