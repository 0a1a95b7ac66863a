"""Comparison of two runs: by hand, against numpy and transformers, and under changes whose place is known."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import workbench as wb
from probes.comparison import alignment, compare_models, compare_runs
from workbench.cli import main
from workbench.config import ModelConfig
from workbench.errors import CaptureBudgetError, HookError, UnknownHookError
from workbench.hooks import hook_points
from workbench.hooks.capture import Capture
from workbench.hooks.hook_points import hook_names
from workbench.layers.rope import to_half_split
from workbench.model import Transformer

EVERYTHING = "*"


def capture(model: Transformer, tokens: torch.Tensor, *changes: Any, names: Any = EVERYTHING, **narrow: Any) -> Capture:
    with torch.no_grad(), model.intervene(*changes):
        return model.run_with_capture(tokens, names, **narrow)[1]


def same(result: compare_runs.Comparison, other: compare_runs.Comparison) -> None:
    """Equal up to float32's rounding of scores, whose blocks may be summed in another order."""
    assert result.hooks == other.hooks
    for a, b in ((result, other), (result.by_head, other.by_head), (result.logits, other.logits)):
        for name in a.AXES:
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-7)


def test_two_hooks_by_hand(tiny_config: ModelConfig) -> None:
    """Two tokens of two dimensions, and two tokens' choice among three."""
    config = replace(tiny_config, n_layers=1, dim=2, n_heads=1, n_kv_heads=1, vocab_size=3)
    tokens = torch.tensor([[0, 1]])
    logs = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]]))
    other = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]]))
    a = alignment.capture_from_tensors(
        config, tokens, {"hook_embed": torch.tensor([[[3.0, 4.0], [0.0, 5.0]]]), "hook_logits": logs}
    )
    b = alignment.capture_from_tensors(
        config, tokens, {"hook_embed": torch.tensor([[[4.0, 3.0], [0.0, 0.0]]]), "hook_logits": other}
    )
    comparison = compare_runs.compare(a, b)
    assert comparison.hooks == ("hook_embed", "hook_logits")
    assert comparison.largest[0] == 5
    assert comparison.relative[0] == pytest.approx(np.sqrt(1 + 1 + 25) / np.sqrt(50))
    assert comparison.cosine[0] == pytest.approx(24 / 25)  # the second token has no direction in B
    assert comparison.logits is not None and comparison.by_head is None
    assert comparison.logits.kl[0] == pytest.approx([0, 0.25 * np.log(2)], abs=1e-7)  # .5 ln 2 - .25 ln 2
    assert comparison.logits.rank.tolist() == [[0, 1]] and comparison.logits.agree.tolist() == [[True, False]]
    assert comparison.logits.agreement == 0.5
    assert (comparison.part(0.5), comparison.part(1.0)) == ("hook_embed", None)


def test_of_equal_logits_the_first_is_chosen_on_both_sides(tiny_config: ModelConfig) -> None:
    config = replace(tiny_config, n_layers=1, vocab_size=4)
    tokens = torch.tensor([[0, 1, 2, 3]])
    a = torch.tensor([[[0.0, 2, 1, 0], [0.0, 2, 1, 2], [0.0, 0, 3, 0], [1.0, 1, 1, 1]]])
    b = torch.tensor([[[1.0, 1, 1, 1], [0.0, 2, 0, 2], [3.0, 5, 5, 4], [0.0, 0, 0, 0]]])
    comparison = compare_runs.compare(
        *(alignment.capture_from_tensors(config, tokens, {"hook_logits": side}) for side in (a, b))
    ).logits
    assert comparison is not None
    # A takes 1, 1, 2 and 0; B takes 0, 1, 1 and 0, where all of its logits tie the one with the lowest id.
    assert comparison.rank.tolist() == [[1, 0, 1, 0]]
    assert comparison.agree.tolist() == [[False, True, False, True]]


def test_a_pattern_by_hand(tiny_config: ModelConfig) -> None:
    config = replace(tiny_config, n_layers=1, n_heads=2, n_kv_heads=1)
    name, tokens = "blocks.0.attn.hook_pattern", torch.tensor([[0, 1]])
    eye = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    a = alignment.capture_from_tensors(config, tokens, {name: torch.stack([eye, eye])[None]})
    b = alignment.capture_from_tensors(
        config, tokens, {name: torch.stack([eye, torch.tensor([[1.0, 0.0], [0.25, 0.75]])])[None]}
    )
    comparison = compare_runs.compare(a, b).by_head
    assert comparison is not None
    row = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert comparison.kl[0] == pytest.approx([0, row / 2]) and comparison.moved[0] == pytest.approx([0, 0.125])


def test_a_run_equals_itself(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    cap = capture(tiny_model, tokens)
    comparison = compare_runs.compare(cap, cap)
    names = [name for name in hook_names(tiny_model.config) if name not in comparison.left_out]
    assert list(comparison.hooks) == names and len(names) == 1 + 3 * 23 + 4
    assert (
        (comparison.largest == 0).all()
        and (comparison.relative == 0).all()
        and (comparison.cosine == pytest.approx(1, abs=1e-12))
    )
    assert (
        comparison.by_head is not None and (comparison.by_head.kl == 0).all() and (comparison.by_head.moved == 0).all()
    )
    assert comparison.logits is not None and (comparison.logits.kl == 0).all() and comparison.logits.agree.all()
    assert comparison.part(0.0) is None
    assert "blocks.0.attn.hook_stats" in comparison.left_out and set(comparison.left_out.values()) == {
        "a summary of the pattern"
    }


def test_numpy_says_the_same(tiny_model: Transformer, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every measure from its formula on whole tensors, and blocks of one token change nothing."""
    a, b = capture(tiny_model, tokens), capture(tiny_model, tokens, wb.Scale("blocks.1.attn.hook_q", 1.5))
    comparison = compare_runs.compare(a, b)
    assert comparison.by_head is not None and comparison.logits is not None
    for i, name in enumerate(comparison.hooks):
        x, y = (cap[name].double().numpy() for cap in (a, b))
        if name.endswith("scores"):
            x, y = (np.where(np.isinf(side), 0, side) for side in (x, y))
        assert comparison.largest[i] == pytest.approx(np.abs(x - y).max(), abs=1e-6), name
        assert comparison.relative[i] == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(x), abs=1e-6), name
        axes = a.axes(name)
        at = axes.index("pos" if "pos" in axes else "query_pos")
        rows = [np.moveaxis(side, at, 1).reshape(48, -1) for side in (x, y)]
        cosine = (rows[0] * rows[1]).sum(-1) / np.linalg.norm(rows[0], axis=-1) / np.linalg.norm(rows[1], axis=-1)
        assert comparison.cosine[i] == pytest.approx(cosine.mean(), abs=1e-6), name
        if "head" in axes:
            row, where = comparison.by_head.hooks.index(name), axes.index("head")
            for head in range(x.shape[where]):
                p, q = np.take(x, head, where), np.take(y, head, where)
                expected = np.linalg.norm(p - q) / np.linalg.norm(p)
                assert comparison.by_head.relative[row, head] == pytest.approx(expected, abs=1e-6)
            assert np.isnan(comparison.by_head.relative[row, x.shape[where] :]).all()
    p, q = (cap.stack("attn.hook_pattern").double().numpy() for cap in (a, b))  # [layer, batch, head, query, key]
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = np.where(p > 0, p * np.log(p / q), 0).sum(-1).mean((1, 3))
    assert comparison.by_head.kl == pytest.approx(kl, abs=1e-6)
    assert comparison.by_head.moved == pytest.approx(0.5 * np.abs(p - q).sum(-1).mean((1, 3)), abs=1e-6)
    p, q = (cap["hook_logits"].double().numpy() for cap in (a, b))
    logs = [side - np.log(np.exp(side).sum(-1, keepdims=True)) for side in (p, q)]
    assert comparison.logits.kl == pytest.approx((np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1), abs=1e-9)
    assert (comparison.logits.agree == (p.argmax(-1) == q.argmax(-1))).all()
    order = (-q).argsort(-1)
    expected = (order == p.argmax(-1)[..., None]).argmax(-1)
    assert (comparison.logits.rank == expected).all() and comparison.logits.rank.max() > 0
    monkeypatch.setattr(alignment, "CELLS", 1)
    same(comparison, compare_runs.compare(a, b))


def test_patterns_are_read_in_blocks(
    tiny_model: Transformer, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    cap = capture(tiny_model, tokens, names="blocks.*.attn.hook_pattern")
    sizes = []
    monkeypatch.setattr(alignment, "CELLS", 2000)
    monkeypatch.setattr(alignment, "compute", lambda *args: sizes.append((x := compute(*args)).numel()) or x)
    compute = hook_points.compute
    compare_runs.compare(cap, cap)
    assert max(sizes) <= 2000 and 0.5 < sum(sizes) / (2 * 3 * 2 * 4 * 24 * 24) < 0.7  # keys that nobody sees are left


def test_weights_that_an_intervention_adds_count(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    """A weight where the query saw nothing before; a weight on a later token stays masked."""
    added = torch.zeros(1, 1, 24, 24)
    added[0, 0, 20, 3], added[0, 0, 3, 20] = 0.5, 0.5
    name = "blocks.1.attn.hook_pattern"
    unseen = torch.zeros(1, 1, 24, 24).masked_fill(added.tril() > 0, -torch.inf)
    without = wb.Add("blocks.1.attn.hook_attn_scores", unseen, heads=[1])
    a = capture(tiny_model, tokens, without, names=name)
    b = capture(tiny_model, tokens, without, wb.Add(name, added, heads=[1]), names=name)
    for comparison in (compare_runs.compare(a, b), compare_runs.compare(b, a)):
        assert comparison.by_head is not None
        assert comparison.by_head.largest[0] == pytest.approx([0, 0.5, 0, 0], abs=1e-6)
        assert comparison.by_head.moved[0] == pytest.approx([0, 0.5 * 0.5 / 24, 0, 0], abs=1e-6)
    assert np.isinf(comparison.by_head.kl[0, 1])  # from B, whose weight A thinks impossible


def test_an_ablated_head_is_where_runs_part(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    comparison = compare_runs.compare(capture(tiny_model, tokens), capture(tiny_model, tokens, wb.Ablate("L1H2")))
    assert comparison.part() == "blocks.1.attn.hook_z" and comparison.part(0.0) == "blocks.1.attn.hook_z"
    heads = comparison.by_head.frame().set_index(["hook", "head"])["relative"]
    assert heads["blocks.1.attn.hook_z"].tolist() == [0, 0, 1, 0]
    assert np.isnan(
        comparison.by_head.cosine[comparison.by_head.hooks.index("blocks.1.attn.hook_z"), 2]
    )  # no direction left
    rows = comparison.frame().set_index("hook")["relative"]
    before = list(comparison.hooks[: comparison.hooks.index("blocks.1.attn.hook_z")])
    assert (rows[before] == 0).all() and rows["blocks.1.hook_attn_out"] > 0.1
    assert (comparison.by_head.kl[:2] == 0).all() and (comparison.by_head.kl[2] > 0).all()


def test_another_rotation_parts_at_the_turned_queries(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    comparison = compare_models.compare_runs(
        tiny_model, tiny_model, tokens, changes=[wb.RopeScaling(interpolation=4.0)]
    )
    assert comparison.part(0.0) == "blocks.0.attn.hook_rot_q"


def test_types_part_by_their_rounding() -> None:
    """bfloat16 keeps 8 bits, so a rounding is up to 2^-8 = 0.4%: six layers of it stay within a few per cent."""
    a, b = (wb.load_model("demo", device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    tokens = torch.randint(a.config.vocab_size, (1, 16), generator=torch.Generator().manual_seed(0))
    comparison = compare_models.compare_runs(a, b, tokens)
    assert comparison.relative.max() < 0.1 and comparison.part(2**-9) is not None and comparison.part(0.1) is None
    assert comparison.cosine.min() > 0.995
    assert comparison.logits is not None and comparison.logits.kl.max() < 0.05 and comparison.logits.agreement > 0.8


def test_runs_by_groups_are_runs_at_once(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    """A budget for one layer gives what one for all gives, and less than a layer is refused before it runs."""
    changes = [wb.Scale("blocks.0.hook_mlp_out", 0.5)]
    whole = compare_models.compare_runs(tiny_model, tiny_model, tokens, changes=changes)
    runs = []
    forward = tiny_model.tok_embeddings.register_forward_hook(lambda *_: runs.append(1))
    same(whole, compare_models.compare_runs(tiny_model, tiny_model, tokens, changes=changes, budget=800_000))
    forward.remove()
    assert len(runs) > 2
    assert list(whole.hooks) == sorted(whole.hooks, key=hook_names(tiny_model.config).index)
    with pytest.raises(CaptureBudgetError, match="layers="):
        compare_models.compare_runs(tiny_model, tiny_model, tokens, budget=1000)


def test_common_beginnings_and_ends(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    longer = torch.cat([tokens[:, :10], tokens[:, 12:]], 1)
    longer[:, 10] = 15 - tokens[:, 10]
    a, b = capture(tiny_model, tokens), capture(tiny_model, longer)
    with pytest.raises(HookError, match="the first 10 are the same"):
        compare_runs.compare(a, b)
    comparison = compare_runs.compare(a, b, align="prefix")
    assert comparison.logits is not None and comparison.logits.positions.tolist() == list(range(10))
    # A token's numbers do not depend on later ones; kernels sum other lengths in another order.
    assert comparison.relative.max() < 1e-5 and comparison.by_head is not None and comparison.by_head.kl.max() < 1e-9
    ends = compare_runs.compare(a, b, align="suffix")
    assert ends.logits is not None and ends.logits.positions.tolist()[-1] == 23 and len(ends.logits.positions) >= 11
    assert ends.relative[0] == 0 and ends.part(1e-3) == "blocks.0.attn.hook_rot_q"  # the same words, elsewhere
    assert "blocks.0.attn.hook_pattern" in ends.left_out
    with pytest.raises(HookError, match="share no token"):
        compare_runs.compare(a, capture(tiny_model, tokens + 20), align="prefix")
    with pytest.raises(HookError, match="batch rows"):
        compare_runs.compare(a, capture(tiny_model, tokens[:1]))


def test_other_shapes_are_named(tiny_model: Transformer, tiny_config: ModelConfig, tokens: torch.Tensor) -> None:
    torch.manual_seed(0)
    other = Transformer(replace(tiny_config, n_layers=2, n_kv_heads=4, ffn_dim=tiny_config.ffn_dim * 2)).eval()
    a, b = capture(tiny_model, tokens), capture(other, tokens)
    comparison = compare_runs.compare(a, b)
    assert "blocks.1.hook_resid_post" in comparison.hooks and "blocks.1.attn.hook_q" in comparison.hooks
    assert comparison.left_out["blocks.0.attn.hook_k"] == "2 head, 8 head_dim in A, 4 head, 8 head_dim in B"
    assert comparison.left_out["blocks.1.mlp.hook_post"].endswith("in B")
    assert comparison.left_out["blocks.2.hook_resid_pre"] == "captured only in A"
    runs = compare_models.compare_runs(tiny_model, other, tokens)
    assert "blocks.2.hook_resid_pre" in runs.left_out and runs.hooks[-1] == "hook_logits"
    rows = comparison.frame().set_index("hook")["relative"]
    assert runs.frame().set_index("hook")["relative"].to_dict() == {name: rows[name] for name in runs.hooks}
    only = capture(tiny_model, tokens, names="hook_embed")
    with pytest.raises(HookError, match="no hook"):
        compare_runs.compare(only, capture(tiny_model, tokens, names="hook_logits"))


def test_narrowed_captures(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    """Some heads and positions give the rows of the whole, by their numbers in the model."""
    change = wb.Scale("blocks.0.attn.hook_v", 2.0)
    whole = compare_runs.compare(capture(tiny_model, tokens), capture(tiny_model, tokens, change))
    narrow = {"heads": [1, 3], "positions": [4, 9]}
    a, b = capture(tiny_model, tokens, **narrow), capture(tiny_model, tokens, change, **narrow)
    comparison = compare_runs.compare(a, b)
    assert comparison.logits is not None and whole.logits is not None and comparison.by_head is not None
    assert comparison.logits.kl == pytest.approx(whole.logits.kl[:, [4, 9]])
    table = comparison.by_head.frame()
    assert set(table[table["hook"] == "blocks.1.attn.hook_z"]["head"]) == {1, 3}
    assert set(table[table["hook"] == "blocks.1.attn.hook_k"]["head"]) == {0, 1}
    z = comparison.by_head.hooks.index("blocks.1.attn.hook_z")
    x, y = (cap["blocks.1.attn.hook_z"][:, :, 1].double() for cap in (a, b))
    assert comparison.by_head.relative[z, 3] == pytest.approx(float((x - y).norm() / x.norm()))
    with pytest.raises(HookError, match="different positions"):
        compare_runs.compare(a, capture(tiny_model, tokens, positions=[4]))
    others = compare_runs.compare(a, capture(tiny_model, tokens, heads=[0, 3], positions=[4, 9]))
    assert others.left_out["blocks.0.attn.hook_z"] == "different heads were captured"


def test_nan_is_where_runs_part(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    spoilt = capture(tiny_model, tokens, wb.Patch("blocks.2.hook_mlp_out", float("nan"), positions=[5]))
    comparison = compare_runs.compare(capture(tiny_model, tokens), spoilt)
    assert comparison.part(1e9) == "blocks.2.hook_mlp_out"
    assert comparison.logits is not None
    spoilt_at = np.arange(24) == 5
    assert (comparison.logits.rank == np.where(spoilt_at, -1, 0)).all() and (
        comparison.logits.agree == ~spoilt_at
    ).all()
    assert (np.isnan(comparison.logits.kl) == spoilt_at).all()


@pytest.mark.gpu
def test_two_devices_run_the_same(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    """A capture on the CPU against one on a GPU, whose float32 products sum in another order."""
    a = capture(tiny_model, tokens)
    b = capture(tiny_model.to("cuda"), tokens.to("cuda"))
    for comparison in (compare_runs.compare(a, b), compare_runs.compare(b, a)):
        assert comparison.part(1e-4) is None and comparison.logits is not None and comparison.logits.agreement == 1


# --- a port of the model --------------------------------------------------------------------------------------


def transformers_capture(theirs: Any, config: ModelConfig, tokens: torch.Tensor, *, half_split: bool) -> Capture:
    """Hugging Face's run by our hook names: its hidden states and attentions, and what its projections give."""
    tensors: dict[str, torch.Tensor] = {}

    def keep(name: str, heads: int = 0) -> Any:
        def hook(module: Any, inputs: Any, out: torch.Tensor) -> None:
            tensors[name] = out.unflatten(-1, (heads, -1)) if heads else out

        return hook

    handles = []
    for i, block in enumerate(theirs.model.layers):
        handles += [
            block.self_attn.q_proj.register_forward_hook(keep(f"blocks.{i}.attn.hook_q", config.n_heads)),
            block.self_attn.k_proj.register_forward_hook(keep(f"blocks.{i}.attn.hook_k", config.n_kv_heads)),
            block.self_attn.v_proj.register_forward_hook(keep(f"blocks.{i}.attn.hook_v", config.n_kv_heads)),
            block.mlp.register_forward_hook(keep(f"blocks.{i}.hook_mlp_out")),
        ]
    with torch.no_grad():
        out = theirs(tokens, output_attentions=True, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    for i, attention in enumerate(out.attentions):
        tensors[f"blocks.{i}.attn.hook_pattern"] = attention
        tensors[f"blocks.{i}.hook_resid_pre"] = out.hidden_states[i]
    tensors |= {"ln_final.hook_out": out.hidden_states[-1], "hook_logits": out.logits}
    return alignment.capture_from_tensors(config, tokens, tensors, half_split=half_split)


def test_transformers_runs_the_same(tiny_model: Transformer, reference_model: Any, tokens: torch.Tensor) -> None:
    """Float32 in another order of sums: 1e-5 of each tensor's size; the rows of its patterns sum to 1 within 1e-7."""
    port = transformers_capture(reference_model, tiny_model.config, tokens, half_split=True)
    comparison = compare_runs.compare(capture(tiny_model, tokens), port)
    assert len(comparison.hooks) == 3 * 6 + 2 and comparison.part(1e-5) is None
    assert comparison.by_head is not None and comparison.by_head.kl.max() < 1e-7
    assert comparison.logits is not None and comparison.logits.kl.max() < 1e-9 and comparison.logits.agreement == 1


def test_an_error_in_a_port_is_found(tiny_model: Transformer, reference_model: Any, tokens: torch.Tensor) -> None:
    """The trap of the two orders, and a head whose rows were mixed up in one layer."""
    config = tiny_model.config
    wrong = transformers_capture(reference_model, config, tokens, half_split=False)
    comparison = compare_runs.compare(capture(tiny_model, tokens), wrong)
    apart = {
        name.rpartition(".")[2] for name, far in zip(comparison.hooks, comparison.relative, strict=True) if far > 1e-5
    }
    assert apart == {"hook_q", "hook_k"}  # the runs agree; only the order in which they are written does not
    with torch.no_grad():
        weight = reference_model.model.layers[1].self_attn.q_proj.weight
        weight.copy_(to_half_split(weight, config.n_heads))  # permuted once too often
    port = transformers_capture(reference_model, config, tokens, half_split=True)
    comparison = compare_runs.compare(capture(tiny_model, tokens), port)
    assert comparison.part(1e-5) == "blocks.1.attn.hook_q"


def test_foreign_tensors_are_checked(tiny_config: ModelConfig, tokens: torch.Tensor) -> None:
    with pytest.raises(HookError, match="batch, pos, dim"):
        alignment.capture_from_tensors(tiny_config, tokens, {"hook_embed": torch.zeros(2, 24, 3)})
    with pytest.raises(UnknownHookError):
        alignment.capture_from_tensors(tiny_config, tokens, {"embed": torch.zeros(2, 24, tiny_config.dim)})


# --- tables and figures ---------------------------------------------------------------------------------------


def test_figures_draw_what_was_found(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    comparison = compare_runs.compare(capture(tiny_model, tokens), capture(tiny_model, tokens, wb.Ablate("L1H2")))
    assert comparison.by_head is not None and comparison.logits is not None
    fig = comparison.figure(stamp={"of": "test"})
    squares = fig.data[0]
    assert "blocks.1.attn.hook_z" in fig.layout.title.text and fig.layout.meta == {"kind": "comparison", "of": "test"}
    at = list(squares.y).index("attn.hook_z"), list(squares.x).index("1")
    assert 10 ** squares.z[at] == pytest.approx(
        comparison.relative[comparison.hooks.index("blocks.1.attn.hook_z")], rel=1e-5
    )
    assert squares.z[list(squares.y).index("hook_resid_pre"), 0] == pytest.approx(-9)  # equal
    assert np.isnan(squares.z[list(squares.y).index("hook_embed"), 0])  # of no layer
    assert comparison.by_head.figure().data[0].z == pytest.approx(comparison.by_head.kl.astype(np.float32))
    heads = comparison.by_head.figure(measure="relative", point="attn.hook_z").data[0].z
    assert heads[1].tolist() == [0, 0, 1, 0]
    lines = comparison.logits.figure()
    assert lines.data[0].y == pytest.approx(comparison.logits.kl[0]) and len(lines.data) == 4
    assert len(lines.data[1].x) == int((~comparison.logits.agree[0]).sum())


def test_tables_have_a_row_for_each_number(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    comparison = compare_runs.compare(capture(tiny_model, tokens), capture(tiny_model, tokens, wb.Ablate("L1H2")))
    assert comparison.by_head is not None and comparison.logits is not None
    assert len(comparison.frame()) == len(comparison.hooks) and comparison.frame()["layer"].iloc[-1] == -1
    table = comparison.by_head.frame()
    assert (table.groupby("hook")["head"].count()["blocks.0.attn.hook_k"]) == 2
    assert table["kl"].notna().sum() == 3 * 4
    assert len(comparison.logits.frame()) == tokens.numel()


# --- the command ----------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(["probe", "compare", "--prompt", "one two three one two", "--device", "cpu", *argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_compares_what_it_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, "--ablate", "L2H3,L4H0")
    assert code == 0 and "from blocks.2.attn.hook_z on" in err and out.split("\n")[0].split()[0] == "hook"
    model = wb.load_model("demo", device="cpu")
    ids = model.tokenizer.encode("one two three one two", bos=True)
    file = tmp_path / "p.csv"
    assert run(capsys, "--by", "position", "--scaling", "ntk=4", "-o", str(file))[0] == 0
    expected = compare_models.compare_runs(model, model, torch.tensor([ids]), changes=[wb.RopeScaling(ntk=4.0)])
    assert expected.logits is not None
    table = pd.read_csv(file)
    pd.testing.assert_frame_equal(table, expected.logits.frame(), check_dtype=False, rtol=1e-4, atol=1e-9)
    about = json.loads((tmp_path / "p.csv.json").read_text())
    assert about["interventions"] == [{"kind": "rope_scaling", "ntk": 4.0}] and about["other"] == "demo"
    code, out, err = run(capsys, "--by", "head", "--dtype", "float32", "--other-dtype", "bfloat16")
    assert code == 0 and "kl" in out and "float32" not in err
    code, _, err = run(capsys, "--before", "A text before it. ", "--by", "position", "-o", str(file))
    assert code == 0 and pd.read_csv(file)["pos"].max() == len(ids) - 1
    code, _, err = run(capsys)
    assert code == 2 and "both runs are the same" in err
    assert run(capsys, "--ablate", "L2H9")[0] == 2 and run(capsys, "--scaling", "yarn")[0] == 2
