"""Paths between heads: against whole runs, by arithmetic, against dense matrices, and on a circuit that is known."""

from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from probes.attention import toy_induction_model
from probes.logits import component_attribution, logit_attribution
from probes.patching import path_patching
from probes.patching.prompt_pairs import LogitDifference, Pair
from workbench.errors import HookError
from workbench.hooks.hook_points import Subscription, subscribe
from workbench.model import Transformer

Z = "blocks.{}.attn.hook_z"


@pytest.fixture
def pair() -> Pair:
    clean = torch.randint(96, (2, 7), generator=torch.Generator().manual_seed(4))
    corrupted = clean.clone()
    corrupted[:, 2] = (clean[:, 2] + 5) % 96
    return Pair(clean, corrupted, LogitDifference(7, 11))


def held(cap: wb.Capture, sender: tuple[int, int], source: wb.Capture, mlps: bool = False) -> list[Any]:
    """Interventions on a whole run: the sender patched, every other head at its own value."""
    changes: list[Any] = []
    for layer in range(3):
        for head in range(4):
            value = source if (layer, head) == sender else cap
            changes.append(wb.Patch(Z.format(layer), value, heads=[head]))
        if mlps:
            changes.append(wb.Patch(f"blocks.{layer}.hook_mlp_out", cap))
    return changes


@torch.no_grad()
@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("through", ["q", "k", "v"])
def test_a_path_is_two_whole_runs(tiny_model: Transformer, pair: Pair, through: Any, direction: Any) -> None:
    """Heads held one by one from the embedding; receivers in two layers. Float32: 1e-5 for batches of other sizes."""
    before = tiny_model(pair.clean)
    receivers = [(2, 3), (1, 0), (2, 1)]
    result = path_patching.path_patching(tiny_model, pair, receivers, through=through, direction=direction, budget=30)
    assert result.layers == (0, 1) and result.receivers == ((1, 0), (2, 1), (2, 3))
    own, other = (pair.corrupted, pair.clean) if direction == "denoise" else (pair.clean, pair.corrupted)
    _, mine = tiny_model.run_with_capture(own, "blocks.*.attn.hook_z")
    _, source = tiny_model.run_with_capture(other, "blocks.*.attn.hook_z")
    name = f"blocks.{{}}.attn.hook_{through}"
    shared = 1 if through == "q" else 2  # query heads per key head
    for sender in [(0, 0), (0, 3), (1, 2)]:
        with tiny_model.intervene(*held(mine, sender, source)):
            _, seen = tiny_model.run_with_capture(own, [name.format(1), name.format(2)])
        chosen = {1: [0], 2: sorted({1 // shared, 3 // shared})}
        with tiny_model.intervene(*(wb.Patch(name.format(at), seen, heads=heads) for at, heads in chosen.items())):
            expected = pair.target(tiny_model(own), own)
        assert result.patched[sender[0], sender[1], 0] == pytest.approx(expected.numpy(), abs=1e-5)
    assert np.abs(result.moved).max() > 1e-3
    assert torch.equal(tiny_model(pair.clean), before)


@torch.no_grad()
@pytest.mark.parametrize("frozen", [False, True])
def test_the_path_to_the_logits(tiny_model: Transformer, pair: Pair, frozen: bool) -> None:
    """With MLPs held too, the last stream changes by the head's own change of output, and by nothing else."""
    result = path_patching.path_patching(tiny_model, pair, freeze_mlps=frozen)
    names = ["blocks.*.attn.hook_z", "blocks.*.hook_mlp_out", "blocks.2.hook_resid_post"]
    _, mine = tiny_model.run_with_capture(pair.corrupted, names)
    _, source = tiny_model.run_with_capture(pair.clean, names)
    for sender in [(0, 1), (1, 3), (2, 2)]:
        layer, head = sender
        if frozen:
            rise = (source[Z.format(layer)] - mine[Z.format(layer)])[:, :, head]
            columns = tiny_model.layers[layer].attention.wo.weight[:, 8 * head : 8 * head + 8]
            stream = mine["blocks.2.hook_resid_post"] + rise @ columns.T
            logits = tiny_model.unembed(tiny_model.norm(stream, None))
        else:
            with tiny_model.intervene(*held(mine, sender, source)):
                logits = tiny_model(pair.corrupted)
        expected = pair.target(logits, pair.corrupted)
        assert result.patched[layer, head, 0] == pytest.approx(expected.numpy(), abs=1e-5)


def test_layers_run_are_counted(tiny_model: Transformer, pair: Pair) -> None:
    ran = 0

    def count(_: object, x: torch.Tensor) -> None:
        nonlocal ran
        ran += len(x)

    names = frozenset(f"blocks.{layer}.hook_resid_pre" for layer in range(3))
    with subscribe(tiny_model, Subscription(names, observe=count)):
        result = path_patching.path_patching(tiny_model, pair, [(2, 0)])
    assert result.layer_runs == ran == 2 * (3 * 3 + 4 * (3 + 1) + 4 * (2 + 1))
    assert result.naive_layer_runs == 2 * 3 * (3 + 2 * 8)


def test_the_hand_set_circuit_is_a_path_through_keys() -> None:
    """The previous-token head tells the induction head where to look, not what to look for or to copy."""
    tokens = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    clean = torch.cat([tokens[:12], tokens[5:6]])[None]
    corrupted = clean.clone()
    corrupted[0, 5] = tokens[20]
    pair = Pair(clean, corrupted, LogitDifference(int(tokens[6]), int(tokens[2])))
    model = toy_induction_model.induction_model(noise=0)
    for through, expected in (("k", 1), ("q", 0), ("v", 0)):
        result = path_patching.path_patching(model, pair, [toy_induction_model.INDUCTION], through=through).moved[
            ..., 0
        ]
        assert result[toy_induction_model.PREVIOUS] == pytest.approx(expected, abs=0.01)
        assert np.delete(result.ravel(), 2) == pytest.approx(np.zeros(3), abs=1e-6)
    direct = path_patching.path_patching(model, pair).moved[..., 0]
    assert direct[toy_induction_model.INDUCTION] > 0.99 and abs(direct[toy_induction_model.PREVIOUS]) < 0.01


def test_mistakes_say_what_to_do(tiny_model: Transformer, pair: Pair) -> None:
    with pytest.raises(HookError, match="L0H0 to L2H3; found L3H0"):
        path_patching.path_patching(tiny_model, pair, [(3, 0)])
    with pytest.raises(HookError, match="layer 0 has no earlier heads"):
        path_patching.path_patching(tiny_model, pair, [(0, 1)])
    with pytest.raises(HookError, match="found 'z'"):
        path_patching.path_patching(tiny_model, pair, [(1, 1)], through="z")  # type: ignore[arg-type]


# --- logit paths ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_keys_sum_to_every_heads_direct_attribution(tiny_model: Transformer, pair: Pair) -> None:
    """For a difference of logits; the parts are those of another probe. Float32: 1e-5 for sums in another order."""
    hooks = {*component_attribution.SOURCE_HOOKS, *logit_attribution.HOOKS, "blocks.*.attn.hook_pattern"}
    _, cap = tiny_model.run_with_capture(pair.clean, hooks)
    result = path_patching.logit_paths(tiny_model, cap, (7, 11), position=5, row=1)
    whole = logit_attribution.logit_attribution(tiny_model, cap, [(7, 11)], position=5, row=1)
    for layer in range(3):
        for head in range(4):
            part = whole.values[0, whole.parts.index(("head", layer, head))]
            assert result.values[layer, head].sum() == pytest.approx(part, abs=1e-5)
            pattern = cap[f"blocks.{layer}.attn.hook_pattern"][1, head, 5].numpy()
            assert result.weights[layer, head] == pytest.approx(pattern, abs=1e-6)
    assert result.error < 1e-5 and (result.values[..., 6] == 0).all()  # nobody sees what is to come
    table = result.frame()
    assert (table["contribution"].abs().diff().dropna() <= 0).all() and len(table) == 3 * 4 * 7
    drawn = result.figure(labels=[f"{i} x" for i in range(7)])
    assert drawn.data[0].z[1, 2] == pytest.approx(result.values[0, 1, 2]) and drawn.data[0].x[2] == "2 x"
    assert "token 7 minus token 11, at position 5" in drawn.layout.title.text


@torch.no_grad()
def test_the_hand_set_induction_head_carries_what_it_copies() -> None:
    """Repeated tokens: the strongest path to the next token's logit is the induction head's, from where it stood."""
    tokens = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    prompt = torch.cat([tokens[:12], tokens[5:6]])[None]
    model = toy_induction_model.induction_model()
    _, cap = model.run_with_capture(prompt, component_attribution.SOURCE_HOOKS)
    first = path_patching.logit_paths(model, cap, int(tokens[6])).frame().iloc[0]
    assert (first["layer"], first["head"], first["key_pos"]) == (*toy_induction_model.INDUCTION, 6)


# --- composition ----------------------------------------------------------------------------------------------


def dense(model: Transformer, layer: int, head: int) -> dict[str, np.ndarray]:
    """W_Q, W_K, W_V with the gain, and W_O, of one head in float64."""
    at, gain = model.layers[layer].attention, model.layers[layer].attention_norm.weight
    kv = head // 2

    def rows(weight: torch.Tensor, which: int) -> np.ndarray:
        return (weight[8 * which : 8 * which + 8] * gain).detach().double().numpy()

    result = {"q": rows(at.wq.weight, head), "k": rows(at.wk.weight, kv), "v": rows(at.wv.weight, kv)}
    return {**result, "o": at.wo.weight[:, 8 * head : 8 * head + 8].detach().double().numpy()}


def test_scores_are_those_of_dense_matrices(tiny_model: Transformer) -> None:
    """The products of dim by dim that the function avoids; float64 against it, kept as float32: 1e-6."""
    result, norm = path_patching.composition(tiny_model), np.linalg.norm
    for writer, reader in [((0, 1), (1, 2)), ((0, 3), (2, 0)), ((1, 0), (2, 3))]:
        first, then = dense(tiny_model, *writer), dense(tiny_model, *reader)
        ov, qk, onward = first["o"] @ first["v"], then["q"].T @ then["k"], then["o"] @ then["v"]
        expected = {"q": qk.T @ ov, "k": qk @ ov, "v": onward @ ov}
        for kind, product in expected.items():
            scale = norm(ov) * norm(onward if kind == "v" else qk)
            assert getattr(result, kind)[(*writer, *reader)] == pytest.approx(norm(product) / scale, abs=1e-6)
    for kind in ("q", "k", "v"):
        score = getattr(result, kind)
        assert score.shape == (3, 4, 3, 4)
        for layer in range(3):
            assert np.isnan(score[layer, :, : layer + 1]).all() and not np.isnan(score[layer, :, layer + 1 :]).any()
            assert ((score[layer, :, layer + 1 :] >= 0) & (score[layer, :, layer + 1 :] <= 1)).all()
    table = result.frame()
    assert len(table) == 3 * 16 and (table["layer"] < table["to_layer"]).all()
    assert table["k"].iloc[5] == result.k[tuple(table.iloc[5, :4].astype(int))]


def test_chance_is_what_random_directions_give(tiny_model: Transformer) -> None:
    """Random weights of 32 dimensions: 48 pairs and 3 kinds, so their mean square is within 10% of 1 / 32."""
    table = path_patching.composition(tiny_model).frame()
    assert (table[["q", "k", "v"]].to_numpy() ** 2).mean() == pytest.approx(
        path_patching.composition(tiny_model).chance ** 2, rel=0.1
    )


def test_the_hand_set_circuit_composes_through_keys() -> None:
    """One writes 0.15 of the token as the token before, in 32 directions; the other's keys read 6 times all of them.

    0.9 sqrt(32) / (6 sqrt(32) 0.15 sqrt(32)); its queries and values read other directions.
    """
    result = path_patching.composition(toy_induction_model.induction_model(noise=0))
    at = (*toy_induction_model.PREVIOUS, *toy_induction_model.INDUCTION)
    assert result.k[at] == pytest.approx(32**-0.5)
    assert result.q[at] == result.v[at] == 0
    assert np.isnan(result.k[0, 1, 1, 1])  # a head that writes nothing
    table = path_patching.composition(toy_induction_model.induction_model()).frame()
    most = table.iloc[table["k"].argmax()]
    assert tuple(most.iloc[:4].astype(int)) == at  # through noise as well


def test_figures_show_paths(tiny_model: Transformer, pair: Pair) -> None:
    result = path_patching.path_patching(tiny_model, pair, [(2, 3), (1, 0)], through="v", direction="noise")
    drawn = result.figure(stamp={"capture": "abc"})
    assert drawn.layout.meta["capture"] == "abc"
    assert np.array(drawn.data[0].z) == pytest.approx(result.moved[..., 0], rel=1e-5)
    assert "lost by the path from each head to L1H0 L2H3 (v)" in drawn.layout.title.text
    scores = path_patching.composition(tiny_model)
    heat = scores.figure(through="q", theme="dark").data[0]
    at = list(heat.y).index("L2H3"), list(heat.x).index("L1H2")
    assert heat.z[at] == pytest.approx(scores.q[1, 2, 2, 3])
    assert list(result.frame().columns) == ["layer", "head", "pos", "patched", "restored", "low", "high"]
