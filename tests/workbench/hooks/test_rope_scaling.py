"""RopeScaling against models built with the scaling, and against Hugging Face."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import workbench as wb
from workbench.errors import ConfigError, InterventionError
from workbench.hooks.interventions import from_json, to_json
from workbench.hooks.rope_scaling import scaling_of
from workbench.layers import rope

TOKENS = torch.randint(0, 96, (2, 24), generator=torch.Generator().manual_seed(0))
LLAMA3 = wb.Llama3Scaling(factor=4, original_context=64)
EACH: list[dict[str, Any]] = [
    {"theta": 200.0}, {"llama3": LLAMA3}, {"interpolation": 3.0}, {"ntk": 4.0}, {"yarn": 4.0},
    {"yarn": 4.0, "temperature": 1.0}, {"yarn": 4.0, "truncate": False}, {"theta": 200.0, "interpolation": 2.0},
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def remade(model: wb.Transformer, **changed: Any) -> wb.Transformer:
    """A model with another configuration and the same weights."""
    other = wb.Transformer(replace(model.config, **changed))
    other.load_state_dict(model.state_dict())
    return other.eval()


def test_factor_one_is_the_plain_model_to_the_last_bit(tiny_model) -> None:
    plain = tiny_model(TOKENS)
    once = wb.Llama3Scaling(factor=1)
    for parameters in ({}, {"interpolation": 1}, {"ntk": 1.0}, {"yarn": 1.0}, {"llama3": once}, {"theta": 10_000.0}):
        with tiny_model.intervene(wb.RopeScaling(**parameters)):
            assert torch.equal(tiny_model(TOKENS), plain), parameters
        assert torch.equal(tiny_model(TOKENS), plain)


def test_it_is_the_model_that_was_loaded_with_the_scaling(tiny_model) -> None:
    plain = tiny_model(TOKENS)
    with tiny_model.intervene(wb.RopeScaling(llama3=LLAMA3)):
        running = tiny_model(TOKENS)
    assert torch.equal(running, remade(tiny_model, rope_scaling=LLAMA3)(TOKENS))
    with tiny_model.intervene(wb.RopeScaling(theta=200.0)):
        assert torch.equal(tiny_model(TOKENS), remade(tiny_model, rope_theta=200.0)(TOKENS))
    scaled = remade(tiny_model, rope_scaling=LLAMA3)
    with scaled.intervene(wb.RopeScaling(interpolation=1.0)):  # a scaling replaces the model's own
        assert torch.equal(scaled(TOKENS), plain)
    with scaled.intervene(wb.RopeScaling(theta=200.0)):  # theta alone keeps it
        assert torch.equal(scaled(TOKENS), remade(tiny_model, rope_scaling=LLAMA3, rope_theta=200.0)(TOKENS))


def test_models_that_were_trained_with_another_scaling(tiny_model) -> None:
    """YaRN and linear scaling of a configuration, against the interventions; and what replaces them."""
    plain = tiny_model(TOKENS)
    linear = remade(tiny_model, rope_scaling=wb.LinearScaling(4.0))
    yarn = remade(tiny_model, rope_scaling=wb.YarnScaling(4.0, original_context=128))
    exact = remade(tiny_model, rope_scaling=wb.YarnScaling(4.0, original_context=128, truncate=False))
    assert not torch.allclose(yarn(TOKENS), exact(TOKENS), atol=1e-4)
    pairs: Any = ((linear, {"interpolation": 4.0}), (yarn, {"yarn": 4.0}), (exact, {"yarn": 4.0, "truncate": False}))
    for model, same in pairs:
        own = model(TOKENS)
        assert not torch.allclose(own, plain, atol=1e-3)
        with tiny_model.intervene(wb.RopeScaling(**same)):
            assert torch.allclose(tiny_model(TOKENS), own, atol=1e-6)
        with model.intervene(wb.RopeScaling(ntk=1.0)):  # a scaling replaces the model's own, its temperature too
            assert torch.equal(model(TOKENS), plain)
        with model.intervene(wb.RopeScaling(theta=10_000.0)):  # theta alone keeps both
            assert torch.equal(model(TOKENS), own)
        assert scaling_of("llama3=8", model.config).llama3.original_context == 128


@pytest.mark.parametrize("scaling", [wb.LinearScaling(4.0), wb.YarnScaling(4.0, original_context=16), LLAMA3])
def test_a_cache_and_a_saved_capture_of_a_scaled_model(tiny_model, tmp_path, scaling) -> None:
    model = remade(tiny_model, rope_scaling=scaling)
    logits, cap = model.run_with_capture(TOKENS, ["blocks.*.attn.hook_pattern", "blocks.*.attn.hook_rot_q"])
    cache = model.empty_cache(2, 24)
    steps = [model(part, cache) for part in TOKENS.split([9, 1, 1, 13], dim=1)]
    assert torch.allclose(torch.cat(steps, 1), logits, atol=1e-5)
    cap.save(tmp_path / "run.safetensors")
    again = wb.Capture.load(tmp_path / "run.safetensors")
    assert again.config == model.config and again.config.rope_scaling == scaling
    name = "blocks.1.attn.hook_pattern"
    assert torch.equal(again[name], cap[name])


def test_positions_twice_as_far_apart_interpolated_are_the_positions_themselves(tiny_model) -> None:
    """By hand: interpolation by 2 rotates position 2 i as the plain model rotates position i."""
    freqs = rope.what_if_frequencies(tiny_model.config, interpolation=2.0, dtype=torch.float32)
    at = torch.arange(12)
    plain = rope.rotations(at, rope.frequencies(8, 10_000.0))
    assert torch.equal(rope.Rotary(freqs).rotations(2 * at), plain)
    warm = rope.Rotary(freqs, 1.5).rotations(2 * at)
    assert torch.allclose(warm.abs(), torch.full_like(warm.real, 1.5)) and torch.allclose(warm, 1.5 * plain)


@pytest.mark.parametrize("kind", ["yarn", "yarn, not rounded", "linear"])
def test_a_whole_model_agrees_with_hugging_face(tiny_model, kind: str) -> None:
    """Logits of transformers' Llama with the same weights under its own implementation of the scaling."""
    transformers = pytest.importorskip("transformers", reason="transformers is a test dependency")
    parameters: dict[str, Any] = {"rope_type": kind.split(",")[0], "rope_theta": 10_000.0, "factor": 4.0}
    scaling: dict[str, Any] = {"interpolation": 4.0} if kind == "linear" else {"yarn": 4.0}
    if kind != "linear":
        parameters["original_max_position_embeddings"] = 128
    if kind == "yarn, not rounded":
        parameters["truncate"] = scaling["truncate"] = False
    described = tiny_model.config.to_hf() | {"max_position_embeddings": 128, "rope_parameters": parameters}
    described.pop("rope_theta", None), described.pop("rope_scaling", None)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**described)).eval()
    weights = {}
    for name, weight in tiny_model.state_dict().items():
        for ours, hf in {
            "attention.w": "self_attn.", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
            "feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm", "tok_embeddings": "embed_tokens",
        }.items():  # fmt: skip
            if ours in name:
                heads = {"wq": 4, "wk": 2}.get(name.split(".")[-2])
                weight = weight if heads is None else rope.to_half_split(weight, heads)
                name = name.replace(ours, hf)
                name = name.replace(".weight", "_proj.weight") if ours == "attention.w" else name
                break
        weights[name.replace("output.", "lm_head.") if "output" in name else f"model.{name}"] = weight
    theirs.load_state_dict(weights)
    with tiny_model.intervene(wb.RopeScaling(**scaling)):
        ours = tiny_model(TOKENS)
    assert torch.allclose(ours, theirs(TOKENS).logits, atol=1e-4)  # float32, three layers
    assert not torch.allclose(ours, tiny_model(TOKENS), atol=1e-2)


def test_the_whole_sequence_under_one_scaling_may_use_a_cache(tiny_model) -> None:
    """Prefill and decode steps equal the whole run, also with left padding; positions start at the first token."""
    pad = torch.tensor([0, 3])
    with tiny_model.intervene(wb.RopeScaling(yarn=4.0)):
        whole = tiny_model(TOKENS)
        cache = tiny_model.empty_cache(2, 24)
        stepped = [tiny_model(TOKENS[:, :20], cache)]
        stepped += [tiny_model(TOKENS[:, i : i + 1], cache) for i in range(20, 24)]
        assert torch.allclose(torch.cat(stepped, 1), whole, atol=1e-5)
        padded = tiny_model(TOKENS, tiny_model.empty_cache(2, 24, pad=pad))
        assert torch.allclose(padded[1, 3:], tiny_model(TOKENS[1:, 3:])[0], atol=1e-5)


def test_a_capture_says_that_it_acted_and_holds_no_more(tiny_model) -> None:
    with tiny_model.intervene(wb.RopeScaling(yarn=4.0)):
        _, cap = tiny_model.run_with_capture(TOKENS, ["blocks.1.attn.hook_rot_q", "blocks.1.attn.hook_q"])
    assert cap.provenance["interventions"] == [{"kind": "rope_scaling", "yarn": 4.0, "truncate": True}]
    assert len(cap.names) == 2
    norms = [cap[f"blocks.1.attn.hook_{name}"].norm(dim=-1) for name in ("rot_q", "q")]
    assert torch.allclose(norms[0], norms[1] * rope.yarn_temperature(4.0), rtol=1e-4)


def test_the_innermost_scaling_applies_together_with_other_interventions(tiny_model) -> None:
    outer, inner = wb.RopeScaling(theta=50.0), wb.RopeScaling(ntk=2.0)
    with tiny_model.intervene(inner):
        expected = tiny_model(TOKENS)
    with tiny_model.intervene(outer):
        with tiny_model.intervene(inner):
            assert torch.equal(tiny_model(TOKENS), expected)
        outside = tiny_model(TOKENS)
    assert torch.equal(outside, remade(tiny_model, rope_theta=50.0)(TOKENS))
    with tiny_model.intervene(inner, wb.Ablate("L1H2")):
        both = tiny_model(TOKENS)
    tiny_model.layers[1].attention.wo.weight[:, 16:24] = 0
    with tiny_model.intervene(inner):
        assert torch.allclose(tiny_model(TOKENS), both, atol=1e-6)


def test_gradients_and_inference_mode_share_a_scaling(tiny_model) -> None:
    scaling = wb.RopeScaling(ntk=3.75)
    with torch.inference_mode(), tiny_model.intervene(scaling):
        tiny_model(TOKENS)
    with torch.enable_grad(), tiny_model.intervene(scaling):
        tiny_model(TOKENS).sum().backward()
    assert tiny_model.layers[0].attention.wq.weight.grad.abs().max() > 0


@pytest.mark.parametrize("parameters", EACH, ids=str)
def test_json_gives_back_the_same_scaling(tiny_model, parameters: dict[str, Any]) -> None:
    scaling = wb.RopeScaling(**parameters)
    text = to_json([scaling, wb.Ablate("L0H0")])
    again = from_json(text)
    assert again[0] == scaling and to_json(again) == text


def test_what_does_not_fit_is_an_error_before_the_run(tiny_model) -> None:
    for parameters, message in (
        ({"ntk": 2.0, "yarn": 2.0}, "choose one"),
        ({"yarn": 0.5}, "at least 1"),
        ({"interpolation": float("nan")}, "at least 1"),
        ({"theta": 0}, "positive"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny_model.intervene(wb.RopeScaling(**parameters))
    with pytest.raises(ConfigError, match="temperature"):
        wb.RopeScaling(yarn=2.0, temperature=0)
    with pytest.raises(InterventionError, match="a number"):
        wb.RopeScaling(theta="big")  # type: ignore[arg-type]
    with pytest.raises(InterventionError, match="true or false"):
        wb.RopeScaling(yarn=4.0, truncate=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="set yarn"):
        wb.RopeScaling(ntk=4.0, truncate=False)
    with pytest.raises(InterventionError, match="not a list of interventions"):
        from_json('[{"kind": "rope_scaling", "factor": 8}]')
    with pytest.raises(InterventionError, match="not a list of interventions"):
        from_json('[{"kind": "rope_scaling", "llama3": {"times": 8}}]')
