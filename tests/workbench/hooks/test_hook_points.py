"""Activations at the hook points: consistent with each other, and equal to Hugging Face's outputs."""

import threading

import pytest
import torch

import workbench as wb
from tests.workbench.reference import hugging_face, ours
from workbench.errors import InterventionError, UnknownHookError
from workbench.hooks import hook_points
from workbench.layers.rope import rotate, rotations
from workbench.model import Transformer

TOKENS = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def run(tiny_model: Transformer):
    with torch.no_grad():
        logits, capture = tiny_model.run_with_capture(TOKENS, "*")
    return tiny_model, logits, capture


def test_every_row_of_the_table_is_reached_with_its_axes(run) -> None:
    model, _, capture = run
    sizes = {"batch": 2, "pos": 20, "query_pos": 20, "key_pos": 20, "query_tile": 20, "key_tile": 20}
    assert capture.names == wb.hook_names(model.config)
    assert len(capture.names) == 1 + 3 * 26 + 4 == len(set(capture.names))
    for name in capture.names:
        point = hook_points.point_of(name)
        expected = tuple(sizes.get(axis) or point.width(axis, model.config) for axis in point.axes)
        assert tuple(capture[name].shape) == expected, name


def test_the_stream_adds_up(run) -> None:
    model, _, capture = run
    assert torch.equal(capture["hook_embed"], capture["blocks.0.hook_resid_pre"])
    for layer in range(model.config.n_layers):
        at = f"blocks.{layer}.hook_"
        assert torch.equal(capture[at + "resid_mid"], capture[at + "resid_pre"] + capture[at + "attn_out"])
        assert torch.equal(capture[at + "resid_post"], capture[at + "resid_mid"] + capture[at + "mlp_out"])
        if layer:
            assert torch.equal(capture[at + "resid_pre"], capture[f"blocks.{layer - 1}.hook_resid_post"])


def test_norms_divide_by_the_rms_and_multiply_by_the_gain(run) -> None:
    model, _, capture = run
    stream = capture["blocks.1.hook_resid_mid"]
    rms = (stream.square().mean(-1, keepdim=True) + model.config.norm_eps).sqrt()
    assert torch.allclose(capture["blocks.1.ln2.hook_scale"], rms)
    assert torch.allclose(capture["blocks.1.ln2.hook_normalized"] * rms, stream, atol=1e-5)
    gain = model.layers[1].ffn_norm.weight
    assert torch.equal(capture["blocks.1.ln2.hook_out"], capture["blocks.1.ln2.hook_normalized"] * gain)


def test_attention_from_its_parts(run) -> None:
    """Scores from rotated q and k, rows that sum to 1, z from pattern and v, the output from the heads' results."""
    model, _, capture = run
    group = model.config.group_size
    positions = torch.arange(20)
    for layer in range(model.config.n_layers):
        at = f"blocks.{layer}.attn.hook_"
        q, k, v = (capture[at + name] for name in ("q", "k", "v"))
        freqs = 1.0 / model.config.rope_theta ** (torch.arange(0, 8, 2).float() / 8)
        assert torch.equal(capture[at + "rot_q"], rotate(q, rotations(positions, freqs)))
        rot_k = capture[at + "rot_k"].repeat_interleave(group, 2)
        scores = torch.einsum("bihd,bjhd->bhij", capture[at + "rot_q"], rot_k) / 8**0.5
        mask = torch.ones(20, 20, dtype=torch.bool).tril()
        assert torch.allclose(capture[at + "attn_scores"][..., mask], scores[..., mask], atol=1e-5)
        assert (capture[at + "attn_scores"][..., ~mask] == float("-inf")).all()
        pattern = capture[at + "pattern"]
        assert torch.allclose(pattern.sum(-1), torch.ones(2, 4, 20), atol=1e-6)
        z = torch.einsum("bhij,bjhd->bihd", pattern, v.repeat_interleave(group, 2))
        assert torch.allclose(capture[at + "z"], z, atol=1e-5)
        assert torch.allclose(capture[at + "result"].sum(2), capture[f"blocks.{layer}.hook_attn_out"], atol=1e-5)
        post = torch.nn.functional.silu(capture[f"blocks.{layer}.mlp.hook_pre"])
        post = post * capture[f"blocks.{layer}.mlp.hook_pre_linear"]
        assert torch.allclose(capture[f"blocks.{layer}.mlp.hook_post"], post, atol=1e-6)


def test_direct_logit_attribution_sums_to_the_logit(run) -> None:
    """Llama has no biases: embedding, heads and MLPs, through the frozen final norm, sum to the logit."""
    model, logits, capture = run
    parts = [capture["hook_embed"]]
    for layer in range(model.config.n_layers):
        parts += list(capture[f"blocks.{layer}.attn.hook_result"].unbind(2))
        parts.append(capture[f"blocks.{layer}.hook_mlp_out"])
    stacked = torch.stack(parts) * model.norm.weight / capture["ln_final.hook_scale"]  # [part, batch, pos, dim]
    contributions = stacked @ model.output.weight.T
    assert contributions.shape[0] == 1 + 3 * (4 + 1)
    assert torch.allclose(contributions.sum(0), logits, atol=1e-4)


@torch.no_grad()
def test_patterns_and_stream_equal_hugging_face() -> None:
    reference = hugging_face(heads=8, kv_heads=2, head_dim=16, scaled=True)
    model = ours(reference)
    tokens = torch.randint(0, 120, (2, 40), generator=torch.Generator().manual_seed(1))
    theirs = reference(tokens, output_attentions=True, output_hidden_states=True)
    _, capture = model.run_with_capture(tokens, ["blocks.*.attn.hook_pattern", "blocks.*.hook_resid_pre"])
    for layer in range(3):
        pattern = capture[f"blocks.{layer}.attn.hook_pattern"]
        assert pattern.max() > 0.9  # peaked: uniform patterns would agree by chance
        assert (pattern - theirs.attentions[layer]).abs().max() < 1e-5
        stream = capture[f"blocks.{layer}.hook_resid_pre"]
        assert (stream - theirs.hidden_states[layer]).abs().max() < 1e-4


@torch.no_grad()
def test_observing_everything_does_not_change_the_logits(tiny_model) -> None:
    bare = tiny_model(TOKENS)
    watched, _ = tiny_model.run_with_capture(TOKENS, "*")
    assert torch.equal(bare, watched)
    assert torch.equal(bare, tiny_model(TOKENS))
    assert not hook_points.active(tiny_model)


@torch.no_grad()
def test_hooks_see_absolute_positions_under_a_cache(tiny_model) -> None:
    _, whole = tiny_model.run_with_capture(TOKENS, "*")
    cache = tiny_model.empty_cache(2, 20)
    tiny_model(TOKENS[:, :15], cache)
    _, step = tiny_model.run_with_capture(TOKENS[:, 15:16], "*", cache=cache)
    tiny_model(TOKENS[:, 16:], cache)  # what follows must not change what was captured
    pattern = step["blocks.2.attn.hook_pattern"]
    assert pattern.shape == (2, 4, 1, 16)
    assert torch.allclose(pattern[:, :, 0], whole["blocks.2.attn.hook_pattern"][:, :, 15, :16], atol=1e-6)
    assert torch.allclose(step["blocks.2.attn.hook_rot_k"][:, 0], whole["blocks.2.attn.hook_rot_k"][:, 15], atol=1e-5)
    assert torch.allclose(step["hook_logits"][:, 0], whole["hook_logits"][:, 15], atol=1e-5)
    assert torch.equal(step.pattern(2, queries=[15]), pattern)


@pytest.mark.parametrize(
    "meddle",
    [
        lambda site, x: x.mul_(2),
        lambda site, x: x.data.mul_(2),  # past the version counter
        lambda site, x: x.data[0, 0].fill_(float("nan")),
        lambda site, x: x.numpy().fill(0),
    ],
)
def test_an_observer_cannot_change_a_value(tiny_model, meddle) -> None:
    meddling = hook_points.Subscription(frozenset(["blocks.0.hook_mlp_out"]), observe=meddle)
    message = "changed blocks.0.hook_mlp_out in place"
    with torch.no_grad(), pytest.raises(InterventionError, match=message), hook_points.subscribe(tiny_model, meddling):
        tiny_model(TOKENS)
    assert not hook_points.active(tiny_model)  # gone, though the run failed


def test_an_observer_of_a_run_that_is_not_finite_is_no_meddler(tiny_model) -> None:
    watch = hook_points.Subscription(frozenset(["blocks.0.hook_mlp_out"]), observe=lambda site, x: None)
    not_finite = wb.Scale("L0.mlp", float("nan"))
    with torch.no_grad(), tiny_model.intervene(not_finite), hook_points.subscribe(tiny_model, watch):
        assert tiny_model(TOKENS).isnan().any()


@pytest.mark.parametrize("returned", [None, 1.0, torch.zeros(3)], ids=["nothing", "number", "shape"])
def test_an_edit_returns_a_tensor_of_the_same_shape(tiny_model, returned) -> None:
    wrong = hook_points.Subscription(frozenset(["blocks.0.hook_mlp_out"]), edit=lambda site, x: returned)
    with (
        torch.no_grad(),
        pytest.raises(InterventionError, match="intervention on blocks.0.hook_mlp_out returned"),
        hook_points.subscribe(tiny_model, wrong),
    ):
        tiny_model(TOKENS)


@torch.no_grad()
def test_subscriptions_belong_to_one_context(tiny_model) -> None:
    """A second thread that uses the same model at the same time sees no subscriptions."""
    bare = tiny_model(TOKENS)
    subscriptions = []

    def other() -> None:
        with torch.no_grad():
            subscriptions.append(tiny_model(TOKENS))

    with tiny_model.intervene(wb.Ablate("L0H0")):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert not torch.equal(tiny_model(TOKENS), bare)
    assert torch.equal(subscriptions[0], bare)


def test_gradients_pass_through_what_is_captured(tiny_model) -> None:
    logits, capture = tiny_model.run_with_capture(
        TOKENS, ["blocks.1.hook_resid_pre", "blocks.0.attn.hook_pattern"], grad=True
    )
    (gradient,) = torch.autograd.grad(logits[0, -1, 3], capture["blocks.1.hook_resid_pre"])
    assert gradient[0, -1].abs().max() > 0
    assert gradient[1].abs().max() == 0  # the other row has no part in it
    pattern = capture["blocks.0.attn.hook_pattern"]
    (gradient,) = torch.autograd.grad(pattern[0, 0, 5, 0], tiny_model.layers[0].attention.wq.weight)
    assert gradient.abs().max() > 0


def test_unknown_names_get_near_matches(tiny_config) -> None:
    with pytest.raises(UnknownHookError, match=r"Did you mean .*blocks.0.attn.hook_pattern"):
        hook_points.expand("blocks.0.attn.hook_patern", tiny_config)
    with pytest.raises(UnknownHookError, match="layers 0 to 2"):
        hook_points.expand("blocks.7.hook_mlp_out", tiny_config)
    with pytest.raises(UnknownHookError, match="layers 0 to 2, not 3"):
        hook_points.expand("blocks.*.hook_mlp_out", tiny_config, layers=[3])
