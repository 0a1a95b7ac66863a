"""Every head's what-if: one head's by hand, none under the model's own rotation, and what a real run moves."""

import numpy as np
import pytest
import torch

from probes.rope import formulas, head_scores, what_if_heads
from workbench.hooks.capture import Capture
from workbench.hooks.rope_scaling import RopeScaling
from workbench.model import Transformer


def test_each_head_is_its_own_what_if(captured: Capture) -> None:
    freqs = formulas.what_if_frequencies(captured.config, yarn=4.0)
    result = what_if_heads.what_if_heads(captured, freqs, temperature=1.2)
    assert result.moved.shape == (3, 4) and len(result.frame()) == 12
    both = [head_scores.what_if(captured, 1, 2, freqs, temperature=1.2, row=row).moved[1:] for row in (0, 1)]
    assert result.moved[1, 2] == pytest.approx(np.mean(both))
    assert [result.low[1, 2], result.high[1, 2]] == pytest.approx(np.quantile(both, [0.1, 0.9]).tolist())
    assert (result.moved > 0).all() and (result.moved < 1).all()


def test_the_models_own_rotation_moves_nothing(captured: Capture) -> None:
    assert what_if_heads.what_if_heads(captured, formulas.model_frequencies(captured.config)).high.max() == 0


def test_the_first_layer_moves_as_the_running_model_does(captured: Capture, tiny_model: Transformer) -> None:
    freqs = formulas.what_if_frequencies(captured.config, theta=50.0)
    result = what_if_heads.what_if_heads(captured, freqs)
    with torch.no_grad(), tiny_model.intervene(RopeScaling(theta=50.0)):
        _, cap = tiny_model.run_with_capture(captured.tokens, "blocks.0.attn.hook_pattern")
    ran = 0.5 * (cap.pattern(0) - captured.pattern(0)).abs().sum(-1)[:, :, 1:].mean((0, 2))
    assert result.moved[0] == pytest.approx(ran.numpy(), abs=1e-5)
