"""The stream's arithmetic: parts that sum to the logit, and a lens whose last layer is the model's output."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from probes import residual
from workbench.capture import Capture
from workbench.errors import HookError, MissingHookError
from workbench.intervene import Ablate
from workbench.model import Transformer


@pytest.fixture
def run(tiny_model: Transformer, tokens: torch.Tensor) -> tuple[torch.Tensor, Capture]:
    with torch.no_grad():
        return tiny_model.run_with_capture(tokens, residual.HOOKS)


@pytest.mark.parametrize("position", [0, 7, -1])
def test_parts_sum_to_the_logit(tiny_model: Transformer, run: tuple[torch.Tensor, Capture], position: int) -> None:
    logits, cap = run
    found = residual.logit_attribution(tiny_model, cap, [3, 50, 95], position=position, row=1)
    expected = logits[1, position, [3, 50, 95]].numpy()
    assert found.logits == pytest.approx(expected, abs=1e-5)
    assert found.values.sum(-1) == pytest.approx(expected, abs=1e-4)
    assert found.error < 1e-4
    assert len(found.parts) == found.values.shape[1] == 1 + 3 * (4 + 1)
    table = found.frame()
    assert list(table.columns) == ["token", "kind", "layer", "head", "contribution"]
    assert table.groupby("token")["contribution"].sum().to_numpy() == pytest.approx(expected, abs=1e-4)


def test_tied_outputs_are_attributed_too(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    tied = Transformer(replace(tiny_model.config, tied_output=True)).eval()
    weights = {name: weight for name, weight in tiny_model.state_dict().items() if name != "output.weight"}
    tied.load_state_dict(weights)
    with torch.no_grad():
        logits, cap = tied.run_with_capture(tokens, residual.HOOKS)
    found = residual.logit_attribution(tied, cap, [5])
    assert found.values.sum() == pytest.approx(float(logits[0, -1, 5]), abs=1e-4)


def test_a_heads_part_is_what_its_ablation_takes_away(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    """In the last layer a head reaches the logits directly alone: the logit, at the old final scale, loses its part."""
    head = 2
    with torch.no_grad():
        tiny_model.layers[2].feed_forward.w2.weight.zero_()  # nothing after the head may react to it
        _, cap = tiny_model.run_with_capture(tokens, residual.HOOKS)
        with tiny_model.intervene(Ablate(f"L2H{head}")):
            _, without = tiny_model.run_with_capture(tokens, residual.HOOKS)
    found = residual.logit_attribution(tiny_model, cap, [9])
    part = found.values[0, found.parts.index(("head", 2, head))]
    scale = float(cap["ln_final.hook_scale"][0, -1] / without["ln_final.hook_scale"][0, -1])
    ablated = residual.logit_attribution(tiny_model, without, [9])
    assert found.logits[0] - ablated.logits[0] / scale == pytest.approx(part, abs=1e-4)


def test_the_lens_ends_at_the_models_output(tiny_model: Transformer, run: tuple[torch.Tensor, Capture]) -> None:
    logits, cap = run
    found = residual.logit_lens(tiny_model, cap, k=3, row=1)
    final = logits[1].log_softmax(-1)
    assert found.ids.shape == (3, 24, 3)
    assert np.array_equal(found.ids[-1], final.topk(3, -1).indices.numpy())
    assert found.logprobs[-1] == pytest.approx(final.topk(3, -1).values.numpy(), abs=1e-5)
    assert np.abs(found.kl[-1]).max() < 1e-5 and (found.rank[-1] == 0).all()
    assert (found.kl[0] > 0).all()
    assert list(found.frame().columns) == ["layer", "pos", "token", "logprob", "kl", "rank"]


def test_the_lens_agrees_with_hugging_face(tiny_model: Transformer, run: tuple[Any, Capture], reference: Any) -> None:
    """KL and rank computed from transformers' hidden states with numpy."""
    _, cap = run
    found = residual.logit_lens(tiny_model, cap)
    weights = {name: weight.double().numpy() for name, weight in tiny_model.state_dict().items()}

    def logprobs(logits: np.ndarray) -> np.ndarray:
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    final = logprobs(reference.logits[0].double().numpy())
    for layer in (0, 1):
        x = reference.hidden_states[layer + 1][0].double().numpy()
        normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + tiny_model.config.norm_eps) * weights["norm.weight"]
        here = logprobs(normed @ weights["output.weight"].T)
        assert found.kl[layer] == pytest.approx((np.exp(final) * (final - here)).sum(-1), abs=1e-4)
        order = np.argsort(-here, -1)
        rank = [list(order[i]).index(final[i].argmax()) for i in range(24)]
        assert found.rank[layer].tolist() == rank


def test_mistakes_say_what_to_do(tiny_model: Transformer, tokens: torch.Tensor, run: tuple[Any, Capture]) -> None:
    _, cap = run
    with pytest.raises(HookError, match="0 to 95"):
        residual.logit_attribution(tiny_model, cap, [96])
    with pytest.raises(HookError, match="not 24"):
        residual.logit_attribution(tiny_model, cap, [1], position=24)
    with torch.no_grad():
        _, some = tiny_model.run_with_capture(tokens, residual.HOOKS, heads=[1])
        _, none = tiny_model.run_with_capture(tokens, "hook_embed")
    with pytest.raises(HookError, match="every head"):
        residual.logit_attribution(tiny_model, some, [1])
    with pytest.raises(MissingHookError, match="hook_resid_post"):
        residual.logit_lens(tiny_model, none)
