"""Probes against transformers on a model of the demo's shape, with random weights: what the other files do not compare.

The folder that transformers saved is loaded by the workbench, so weights come by its own loader. What is expected is
computed from transformers' attentions, hidden states and modules, in numpy or by hooks on its modules. Tolerances:
1e-5 for weights and shares, 1e-4 for logits and losses, ten times the rounding of float32 over six layers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from probes.attention import head_metrics, kv_groups
from probes.flow import rollout
from probes.logits import logit_attribution
from probes.norms import norm_linearity, rms_norms
from probes.patching import ablation, activation_patching
from probes.rope import loss_by_position
from workbench.hooks.capture import Capture
from workbench.hooks.hook_points import STATS
from workbench.model import Transformer

transformers = pytest.importorskip("transformers", reason="transformers is a test dependency")

LAYERS, HEADS, WIDTH = 6, 6, 32


@pytest.fixture(scope="module")
def theirs() -> Any:
    """Six layers of 192, six query heads over two key/value heads; gains around 1."""
    config = transformers.LlamaConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        head_dim=WIDTH,
        vocab_size=1280,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if parameter.ndim == 1 else 1.5 * noise * parameter.shape[-1] ** -0.5)
    return model


@pytest.fixture(scope="module")
def ours(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Transformer:
    folder: Path = tmp_path_factory.mktemp("shape")
    theirs.save_pretrained(folder)
    return wb.load_model(folder, device="cpu", dtype="float32").eval()


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    """Two rows of 20 tokens out of 30, so that tokens repeat."""
    return torch.randint(30, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def cap(ours: Transformer, tokens: torch.Tensor) -> Capture:
    hooks = {
        *head_metrics.HOOKS,
        *rms_norms.HOOKS,
        *norm_linearity.HOOKS,
        *logit_attribution.HOOKS,
        "blocks.*.attn.hook_stats",
    }
    with torch.no_grad():
        return ours.run_with_capture(tokens, hooks)[1]


@pytest.fixture(scope="module")
def output(theirs: Any, tokens: torch.Tensor) -> Any:
    with torch.no_grad():
        return theirs(tokens, output_attentions=True, output_hidden_states=True)


@contextmanager
def hooked(module: torch.nn.Module, before: Callable[..., Any]) -> Iterator[None]:
    """Within, `before` sees and may replace what the module reads."""
    handle = module.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def parts_of(theirs: Any, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """What every sublayer adds, and each head's output before o_proj, by hooks on transformers' modules.

    Shapes: attn, mlp, z: [layer, batch, pos, dim]
    """
    result: dict[str, list[torch.Tensor]] = {"attn": [], "mlp": [], "z": []}
    handles = []
    for block in theirs.model.layers:
        keep = result["attn"].append, result["mlp"].append, result["z"].append
        handles += [
            block.self_attn.register_forward_hook(lambda _, inputs, out, keep=keep[0]: keep(out[0])),
            block.mlp.register_forward_hook(lambda _, inputs, out, keep=keep[1]: keep(out)),
            block.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs, keep=keep[2]: keep(inputs[0])),
        ]
    theirs(tokens)
    for handle in handles:
        handle.remove()
    return {name: torch.stack(values) for name, values in result.items()}


def test_statistics_of_rows_without_a_pattern(cap: Capture, output: Any) -> None:
    for layer, weights in enumerate(output.attentions):
        a = weights.double().numpy()  # [batch, head, query_pos, key_pos]
        n = a.shape[-1]
        i = np.arange(n)
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -np.where(a > 0, a * np.log(a), 0).sum(-1)
        expected = {
            "entropy": entropy,
            "sink_1": a[..., 0],
            "sink_4": a[..., :4].sum(-1),
            "distance": (a * (i[:, None] - i)).sum(-1),
            "top_weight": a.max(-1),
        }
        result = dict(zip(STATS, cap[f"blocks.{layer}.attn.hook_stats"].unbind(-1), strict=True))
        for name, values in expected.items():
            assert result[name].numpy() == pytest.approx(values, abs=1e-4 if name == "distance" else 1e-5), name
        assert result["previous"][..., 1:].numpy() == pytest.approx(a[..., i[1:], i[:-1]], abs=1e-5)
        chosen = np.take_along_axis(a, result["top_position"].long().numpy()[..., None], -1)[..., 0]
        assert chosen == pytest.approx(a.max(-1), abs=1e-5)


@torch.no_grad()
def test_induction_scores(ours: Transformer, theirs: Any) -> None:
    block = 12
    scores = head_metrics.induction_scores(ours, block=block, batch=2, seed=3)
    repeated = head_metrics.repeated_blocks(ours, block=block, batch=2, seed=3)
    weights = theirs(repeated, output_attentions=True).attentions
    for layer, a in enumerate(weights):
        second = range(block, 2 * block)
        induction = np.mean([a[:, :, i, i - block + 1].numpy() for i in second], (0, 1))
        duplicate = np.mean([a[:, :, i, i - block].numpy() for i in second], (0, 1))
        assert scores.induction[layer] == pytest.approx(induction, abs=1e-5)
        assert scores.duplicate[layer] == pytest.approx(duplicate, abs=1e-5)


def test_distances_between_heads(cap: Capture, output: Any) -> None:
    """scipy's Jensen-Shannon distance between transformers' rows."""
    distance = pytest.importorskip("scipy.spatial.distance", reason="scipy comes with the evals").jensenshannon
    result = kv_groups.group_similarity(cap)
    a = output.attentions[3].double().numpy()[:, :, 1:]  # [batch, head, query_pos, key_pos]
    for head in range(HEADS):
        for other in range(head):
            expected = distance(a[:, head], a[:, other], base=2, axis=-1).mean()
            assert result.distance[3, head, other] == pytest.approx(expected, abs=1e-5)


def test_rollout(cap: Capture, output: Any) -> None:
    n = output.attentions[0].shape[-1]
    rolled = np.broadcast_to(np.eye(n), (2, n, n))
    for layer, weights in enumerate(output.attentions):
        rolled = (weights.double().numpy().mean(1) / 2 + np.eye(n) / 2) @ rolled
        assert rollout.rollout(cap).shares[layer] == pytest.approx(rolled, abs=1e-5)


def test_contribution_ratios(cap: Capture, theirs: Any, tokens: torch.Tensor, output: Any) -> None:
    parts = parts_of(theirs, tokens)
    result = rms_norms.contribution_ratios(cap)
    for layer in range(LAYERS):
        stream = output.hidden_states[layer]
        for at, name in enumerate(("attn", "mlp")):
            added = parts[name][layer]
            ratio = added.norm(dim=-1) / stream.norm(dim=-1)
            cosine = torch.nn.functional.cosine_similarity(added, stream, dim=-1)
            assert result.ratio[layer, at] == pytest.approx(ratio.numpy(), rel=1e-4)
            assert result.cosine[layer, at] == pytest.approx(cosine.numpy(), abs=1e-5)
            stream = stream + added


@torch.no_grad()
def test_frozen_scale_of_the_final_norm(
    cap: Capture, ours: Transformer, theirs: Any, tokens: torch.Tensor, output: Any
) -> None:
    """What transformers' own final norm makes of the last stream without a sublayer, against the fixed scale."""
    parts = parts_of(theirs, tokens)
    result = norm_linearity.linearised_norm(ours, cap, final=True)
    last = output.hidden_states[LAYERS - 1] + parts["attn"][-1] + parts["mlp"][-1]
    normed = theirs.model.norm(last)
    assert normed.numpy() == pytest.approx(output.hidden_states[LAYERS].numpy(), abs=1e-4)
    scale = (last.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    for layer, name in ((0, "attn"), (2, "mlp"), (5, "mlp")):
        part = parts[name][layer]
        change = theirs.model.norm(last - part) - normed
        predicted = -theirs.model.norm.weight * part / scale
        error = (change - predicted).norm(dim=-1) / change.norm(dim=-1)
        assert result.frozen_scale[result.parts.index((layer, name))] == pytest.approx(error.numpy(), abs=1e-4)


def test_recentring(cap: Capture, output: Any) -> None:
    result = norm_linearity.recentring(cap)
    for layer in range(LAYERS):
        x = output.hidden_states[layer].double()
        plain = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        centred = torch.nn.functional.layer_norm(x, (192,), eps=1e-5)
        change = (centred - plain).norm(dim=-1) / plain.norm(dim=-1)
        at = result.norms.index((layer, "ln1"))
        assert result.change[at] == pytest.approx(change.numpy(), abs=1e-5)
        assert result.share[at] == pytest.approx((x.mean(-1).abs() / x.square().mean(-1).sqrt()).numpy(), abs=1e-5)


@torch.no_grad()
def test_every_parts_logit(cap: Capture, ours: Transformer, theirs: Any, tokens: torch.Tensor, output: Any) -> None:
    """Every head through its columns of o_proj and every MLP, at the scale of transformers' last stream."""
    parts, token, row, at = parts_of(theirs, tokens), 77, 1, 13
    attribution = logit_attribution.logit_attribution(ours, cap, [token], position=at, row=row)
    last = (output.hidden_states[LAYERS - 1] + parts["attn"][-1] + parts["mlp"][-1])[row, at]
    direction = theirs.lm_head.weight[token] * theirs.model.norm.weight / (last.square().mean() + 1e-5).sqrt()
    expected = {("embed", -1, -1): direction @ output.hidden_states[0][row, at]}
    for layer, block in enumerate(theirs.model.layers):
        expected["mlp", layer, -1] = direction @ parts["mlp"][layer, row, at]
        for head in range(HEADS):
            mine = slice(WIDTH * head, WIDTH * (head + 1))
            written = block.self_attn.o_proj.weight[:, mine] @ parts["z"][layer, row, at, mine]
            expected["head", layer, head] = direction @ written
    values = dict(zip(attribution.parts, attribution.values[0], strict=True))
    assert values.keys() == expected.keys()
    assert [values[part] for part in expected] == pytest.approx([float(x) for x in expected.values()], abs=1e-4)
    assert sum(float(x) for x in expected.values()) == pytest.approx(float(output.logits[row, at, token]), abs=1e-4)


def losses(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Shapes: [prompt, pos, vocab], [prompt, pos] -> [prompt, pos - 1]"""
    return torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")


@torch.no_grad()
@pytest.mark.parametrize("replacement", ["zero", "mean"])
def test_heads_taken_away(
    ours: Transformer, theirs: Any, tokens: torch.Tensor, replacement: ablation.Replacement
) -> None:
    """The same columns of what o_proj reads, replaced in transformers, move the loss as much."""
    layer, head = 2, 4
    mine = slice(WIDTH * head, WIDTH * (head + 1))
    mean = parts_of(theirs, tokens)["z"][layer, ..., mine].mean((0, 1))

    def without(_: Any, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        z = inputs[0].clone()
        z[..., mine] = mean if replacement == "mean" else 0
        return z

    def target(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return losses(logits, ids).mean(-1)

    result = ablation.ablation_effect(ours, tokens, [[(layer, head)]], target=target, replacement=replacement)
    with hooked(theirs.model.layers[layer].self_attn.o_proj, without):
        expected = losses(theirs(tokens).logits, tokens).mean(-1)
    assert result.without[0] == pytest.approx(expected.numpy(), abs=1e-4)
    assert np.abs(result.effect).max() > 1e-3  # the head does something


@torch.no_grad()
def test_patches(ours: Transformer, theirs: Any, tokens: torch.Tensor) -> None:
    """One position of the stream, and one head at all positions, put into transformers' run on the other prompt."""
    clean, corrupted = tokens[:1], tokens[:1].clone()
    corrupted[0, 6] = 500
    answer, wrong, layer = 7, 9, 3
    pair = activation_patching.Pair(clean, corrupted, activation_patching.LogitDifference(answer, wrong))
    block = theirs.model.layers[layer]
    source = theirs(clean, output_hidden_states=True).hidden_states[layer]
    z = parts_of(theirs, clean)["z"][layer]

    def difference(module: torch.nn.Module, before: Callable[..., Any]) -> float:
        with hooked(module, before):
            logits = theirs(corrupted).logits[0, -1]
        return float(logits[answer] - logits[wrong])

    stream = activation_patching.patching(ours, pair, "resid_pre", layers=[layer])
    for position in (6, 12, 19):

        def at_position(_: Any, inputs: tuple[Any, ...], position: int = position) -> tuple[Any, ...]:
            x = inputs[0].clone()
            x[:, position] = source[:, position]
            return (x, *inputs[1:])

        expected = difference(block, at_position)
        assert stream.patched[0, 0, stream.positions.index(position), 0] == pytest.approx(expected, abs=1e-4)
    heads = activation_patching.patching(ours, pair, "heads", layers=[layer])
    for head in range(HEADS):
        mine = slice(WIDTH * head, WIDTH * (head + 1))

        def of_head(_: Any, inputs: tuple[torch.Tensor, ...], mine: slice = mine) -> torch.Tensor:
            x = inputs[0].clone()
            x[..., mine] = z[..., mine]
            return x

        assert heads.patched[0, head, 0, 0] == pytest.approx(difference(block.self_attn.o_proj, of_head), abs=1e-4)
    assert np.ptp(heads.patched) > 1e-3 and np.ptp(stream.patched) > 1e-2  # the patches do something


def test_loss_by_position(ours: Transformer, tokens: torch.Tensor, output: Any) -> None:
    result = loss_by_position.loss_by_position(ours, tokens, edges=[1, 5, 20])
    expected = losses(output.logits, tokens).mean(0)
    assert result.loss[0] == pytest.approx([float(expected[:4].mean()), float(expected[4:].mean())], abs=1e-4)
