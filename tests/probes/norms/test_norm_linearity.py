"""The norm lab: derivatives against autograd, LayerNorm against PyTorch's, and vectors worked by hand."""

import math

import numpy as np
import pytest
import torch

from probes.logits import logit_attribution
from probes.norms import norm_linearity, rms_norms
from workbench.errors import MissingHookError
from workbench.hooks.capture import Capture
from workbench.model import Transformer


@pytest.fixture
def lab(tiny_model: Transformer, tokens: torch.Tensor) -> Capture:
    with torch.no_grad():
        _, cap = tiny_model.run_with_capture(
            tokens, {*norm_linearity.HOOKS, *logit_attribution.HOOKS, *rms_norms.HOOKS}
        )
    return cap


def test_linearisation_by_hand() -> None:
    """x = (1, 1), r = 1. Along x nothing changes; across it N(1, 1 + d) is known."""
    x, gain = torch.ones(2).double(), torch.tensor([1.0, 2.0]).double()
    derivative, scale = norm_linearity.linearisation(x, 0.5 * x, gain, 0.0)
    assert scale.isinf() or scale > 1e12  # the frozen scale says 0.5 x, the norm says nothing
    derivative, scale = norm_linearity.linearisation(x, torch.tensor([1.0, -1.0]).double(), gain, 0.0)
    # N(2, 0) = (sqrt 2, 0), so the change is (sqrt 2 - 1, -2); d is across x, so both predict (1, -2).
    change = math.hypot(math.sqrt(2) - 1, 2)
    assert float(derivative) == pytest.approx((2 - math.sqrt(2)) / change)
    assert float(scale) == pytest.approx(float(derivative))
    derivative, scale = norm_linearity.linearisation(x, torch.tensor([1.0, 0.0]).double(), gain, 0.0)
    # N(2, 1) = (2, 2) / sqrt 2.5 with gain; the derivative says (1/2, -1), the frozen scale (1, 0).
    true = torch.tensor([2 / math.sqrt(2.5) - 1, 2 / math.sqrt(2.5) - 2]).double()
    for result, expected in ((derivative, [0.5, -1.0]), (scale, [1.0, 0.0])):
        assert float(result) == pytest.approx(float((true - torch.tensor(expected).double()).norm() / true.norm()))


def test_the_derivative_is_autograds(tiny_model: Transformer) -> None:
    """Against PyTorch's norm, with the model's gain, and autograd's Jacobian of it."""
    norm = tiny_model.layers[1].ffn_norm
    gain = norm.weight.detach().double()
    x, d = torch.randn(2, 32, generator=torch.Generator().manual_seed(3)).double()

    def theirs(v: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(v, v.shape, gain, norm.eps)

    change = theirs(x + d) - theirs(x)
    expected = torch.autograd.functional.jacobian(theirs, x) @ d
    error, _ = norm_linearity.linearisation(x, d, gain, norm.eps)
    assert float(error) == pytest.approx(float((change - expected).norm() / change.norm()), rel=1e-9)


def test_small_steps_are_linear_and_the_frozen_scale_is_not_the_slope() -> None:
    generator = torch.Generator().manual_seed(0)
    x, d = torch.randn(2, 50, 16, generator=generator).double()
    gain = torch.rand(16, generator=generator).double() + 0.5
    errors = [norm_linearity.linearisation(x, step * d, gain, 1e-5) for step in (1e-2, 1e-3, 1e-4)]
    slopes = [float(a[0].median() / b[0].median()) for a, b in zip(errors, errors[1:], strict=False)]
    assert slopes == pytest.approx([10, 10], rel=0.05)  # the error falls with the step ...
    assert float(errors[2][1].median()) == pytest.approx(
        float(errors[1][1].median()), rel=0.01
    )  # ... this one does not
    assert float(errors[2][1].median()) > 0.05


def test_parts_taken_away_are_what_the_norms_read(lab: Capture, tiny_model: Transformer) -> None:
    result = norm_linearity.linearised_norm(tiny_model, lab)
    assert result.parts == ((0, "attn"), (0, "mlp"), (1, "attn"), (1, "mlp"), (2, "attn"), (2, "mlp"))
    assert result.norms == ((0, "ln2"), (1, "ln1"), (1, "ln2"), (2, "ln1"), (2, "ln2"), (3, "ln_final"))
    # By the model's own norm: without layer 1's attention, ln2 of layer 1 reads the stream before it.
    norm = tiny_model.layers[1].ffn_norm
    with torch.no_grad():
        mid, pre = lab["blocks.1.hook_resid_mid"], lab["blocks.1.hook_resid_pre"]
        change = norm(pre, None) - norm(mid, None)
        scale = (mid.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        wrong = change + norm.weight * lab["blocks.1.hook_attn_out"] / scale
    expected = wrong.norm(dim=-1) / change.norm(dim=-1)
    assert result.frozen_scale[2] == pytest.approx(expected.numpy(), rel=1e-3)
    table = result.frame()
    assert len(table) == 6 * 2 * 24
    assert table.loc[table["part"] == "mlp", "norm"].unique().tolist() == ["ln1", "ln_final"]
    assert list(table.columns[:4]) == ["layer", "part", "norm_layer", "norm"]


def test_the_final_norm_is_judged_as_attribution_uses_it(lab: Capture, tiny_model: Transformer) -> None:
    """What attribution says an MLP adds to a logit, plus the error's vector, is what its absence really changes."""
    result = norm_linearity.linearised_norm(tiny_model, lab, final=True)
    assert result.parts[0] == (-1, "embed") and set(result.norms) == {(3, "ln_final")} and len(result.parts) == 7
    with torch.no_grad():
        stream, part = lab["blocks.2.hook_resid_post"][0, 7], lab["blocks.0.hook_mlp_out"][0, 7]
        change = tiny_model.norm(stream - part, None) - tiny_model.norm(stream, None)
        expected = -tiny_model.norm.weight * part / lab["ln_final.hook_scale"][0, 7]
        logits = tiny_model.unembed(expected[None, None])[0, 0]
    token = 5
    parts = logit_attribution.logit_attribution(tiny_model, lab, [token], position=7)
    assert logits[token] == pytest.approx(-parts.values[0, parts.parts.index(("mlp", 0, -1))], abs=1e-4)
    row = result.parts.index((0, "mlp"))
    assert result.frozen_scale[row, 0, 7] == pytest.approx(float((change - expected).norm() / change.norm()), rel=1e-3)


def test_recentring_by_hand_and_against_torch() -> None:
    share, change = norm_linearity.recentred(torch.tensor([3.0, 1.0]).double(), 0.0)
    assert float(share) == pytest.approx(2 / math.sqrt(5))
    # RMSNorm gives (3, 1) / sqrt 5, LayerNorm (1, -1).
    assert float(change) == pytest.approx(math.hypot(3 / math.sqrt(5) - 1, 1 / math.sqrt(5) + 1) / math.sqrt(2))
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(2)).double() + 0.3
    share, change = norm_linearity.recentred(x, 0.0)
    assert torch.allclose(change, (2 - 2 * (1 - share**2).sqrt()).sqrt())
    centred = x - x.mean(-1, keepdim=True)
    share, change = norm_linearity.recentred(centred, 1e-5)
    assert share.max() < 1e-14 and change.max() < 1e-12


def test_recentring_reads_what_every_norm_reads(lab: Capture) -> None:
    result = norm_linearity.recentring(lab)
    assert result.norms == rms_norms.input_rms(lab).norms
    x = lab["blocks.1.hook_resid_mid"].double()
    expected = (x.mean(-1).abs() / (x * x).mean(-1).sqrt()).numpy()
    assert result.share[result.norms.index((1, "ln2"))] == pytest.approx(expected)
    assert (result.share >= 0).all() and (result.share <= 1).all()
    table = result.by_norm()
    assert len(table) == 7 and list(table.columns)[2:] == ["share_median", "share_max", "change_median", "change_max"]
    assert table["share_median"][3] == pytest.approx(np.median(expected))


def test_times_are_of_the_same_arithmetic(tiny_model: Transformer) -> None:
    result = norm_linearity.norm_times(tiny_model.config, tokens=16, repeats=3)
    assert result.seconds.shape == (3, 3) and (result.seconds > 0).all()
    table = result.frame()
    assert (table["low"] <= table["median"]).all() and (table["median"] <= table["high"]).all()
    assert table["dim"].unique().tolist() == [32] and table["dtype"].unique().tolist() == ["float32"]


def test_figures_draw_what_was_found(lab: Capture, tiny_model: Transformer) -> None:
    result, centred = norm_linearity.linearised_norm(tiny_model, lab, final=True), norm_linearity.recentring(lab)
    line = result.figure().data[0]
    assert list(line.x)[:3] == ["embed", "L0.attn", "L0.mlp"]
    assert line.y[2] == pytest.approx(np.median(result.frozen_scale[result.parts.index((0, "mlp"))]))
    assert centred.figure().data[0].y[-1] == pytest.approx(np.median(centred.share[-1]))


def test_what_is_missing_is_named(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        _, cap = tiny_model.run_with_capture(tokens, "blocks.*.hook_resid_pre")
    with pytest.raises(MissingHookError, match="hook_resid_mid"):
        norm_linearity.recentring(cap)
    with pytest.raises(MissingHookError):
        norm_linearity.linearised_norm(tiny_model, cap)
