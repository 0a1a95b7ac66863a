"""Planted NaN and infinities are found where they were planted; what is undefined or masked on purpose is not."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import workbench as wb
from probes.attention import head_metrics
from probes.base import capture_access, non_finite
from workbench.cli import main
from workbench.hooks.capture import Capture
from workbench.hooks.hook_points import hook_names
from workbench.layers.kv_cache import KVCache
from workbench.model import Transformer

NAN, INF = math.nan, math.inf


def capture(model: Transformer, tokens: torch.Tensor, *changes: Any, names: Any = "*", **options: Any) -> Capture:
    with torch.no_grad(), model.intervene(*changes):
        return model.run_with_capture(tokens, names, **options)[1]


def reported(result: non_finite.NonFinite) -> tuple[Any, ...]:
    assert result.first is not None
    return (
        result.first.hook,
        result.first.layer,
        result.first.tokens,
        result.first.nan,
        result.first.plus,
        result.first.minus,
    )


@pytest.mark.parametrize("materialize", [False, True])
def test_a_finite_run_is_not_reported(tiny_model: Transformer, tokens: torch.Tensor, materialize: bool) -> None:
    """The causal mask's -inf is no infinity of the model's; every hook was looked at."""
    cap = capture(tiny_model, tokens, materialize=materialize)
    if materialize:
        assert cap["blocks.0.attn.hook_attn_scores"].isinf().any()
    result = non_finite.non_finite(cap)
    assert (result.hooks, result.first, len(result.frame())) == ((), None, 0)
    lazy = 0 if materialize else 3 * 2  # scores and patterns of three layers, held as q and k
    assert result.n_checked == sum(map(capture_access.of_tokens, hook_names(tiny_model.config))) - lazy
    assert non_finite.trace_non_finite(tiny_model, tokens).first is None


@pytest.mark.parametrize(
    "name", ["hook_embed", "blocks.1.attn.hook_v", "blocks.2.mlp.hook_pre", "blocks.0.ln2.hook_out"]
)
def test_a_planted_nan_is_where_it_began(tiny_model: Transformer, tokens: torch.Tensor, name: str) -> None:
    change = wb.Patch(name, NAN, positions=[7])
    result = non_finite.non_finite(capture(tiny_model, tokens, change))
    layer = None if name == "hook_embed" else int(name.split(".")[1])
    width = capture(tiny_model, tokens, names=name)[name][:, 7].numel()
    assert reported(result) == (name, layer, ((0, 7), (1, 7)), width, 0, 0)
    with tiny_model.intervene(change):
        traced = non_finite.trace_non_finite(tiny_model, tokens)
    assert traced.first == result.first
    # hook_result is not watched by the trace; all else is the same, in the order of a run.
    watched = [hook for hook in result.hooks if not hook.endswith("result")]
    assert list(traced.hooks) == watched == sorted(watched, key=hook_names(tiny_model.config).index)
    assert (result.spoilt[result.hooks.index("hook_logits"), :, 7]).all()


def test_one_entry_of_one_row_and_each_kind(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    value = torch.zeros(2, 24, tiny_model.config.dim)
    value[1, 3, 5], value[1, 3, 6], value[0, 9, :2] = NAN, INF, -INF
    result = non_finite.non_finite(capture(tiny_model, tokens, wb.Add("blocks.1.hook_mlp_out", value)))
    assert reported(result) == ("blocks.1.hook_mlp_out", 1, ((0, 9), (1, 3)), 1, 1, 2)
    assert str(result.first) == (
        "blocks.1.hook_mlp_out, layer 1: 1 NaN, 1 +inf, 2 -inf at batch row 0, position 9 and 1 more"
    )
    row = result.frame().iloc[0]
    assert row.to_dict() == {
        "hook": "blocks.1.hook_mlp_out", "layer": 1, "nan": 1, "plus": 1, "minus": 2, "tokens": 2, "batch": 0, "pos": 9
    }  # fmt: skip


def test_a_weight_spoils_every_token_from_its_layer_on(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        tiny_model.layers[1].feed_forward.w3.weight[4, 2] = NAN
    result = non_finite.non_finite(capture(tiny_model, tokens))
    everywhere = tuple((row, pos) for row in range(2) for pos in range(24))
    assert reported(result) == ("blocks.1.mlp.hook_pre_linear", 1, everywhere, 48, 0, 0)


def test_a_value_reaches_earlier_positions(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    """0 x NaN is NaN: why the first hook in the order of a run counts, and not the first token."""
    change = wb.Patch("blocks.0.attn.hook_v", NAN, positions=[20])
    result = non_finite.non_finite(capture(tiny_model, tokens, change))
    assert reported(result)[:3] == ("blocks.0.attn.hook_v", 0, ((0, 20), (1, 20)))
    spoilt = result.spoilt[result.hooks.index("blocks.0.attn.hook_z")]
    assert spoilt[:, 20:].all() and spoilt[:, :20].any()


def test_lazy_patterns_are_judged_by_what_they_are_made_from(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    change = wb.Patch("blocks.1.attn.hook_k", INF, heads=[1], positions=[4])
    cap = capture(tiny_model, tokens, change, names="blocks.*.attn.hook_pattern")
    first = non_finite.non_finite(cap).first
    assert first is not None and first.hook == "blocks.1.attn.hook_rot_k" and first.tokens == ((0, 4), (1, 4))
    some = capture(tiny_model, tokens, change, names=["blocks.1.attn.hook_pattern", "*rot_k"], positions=[10])
    assert non_finite.non_finite(some).first == first  # the key at 4 is held, though position 10 alone was asked for
    with tiny_model.intervene(change):
        assert non_finite.trace_non_finite(tiny_model, tokens).first.hook == "blocks.1.attn.hook_k"


def test_scores_below_the_diagonal_count(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    """One head's -inf, which an intervention put there, is told from the mask's."""
    blocked = torch.zeros(1, 1, 24, 24)
    blocked[0, 0, 9, 2] = -INF
    name = "blocks.1.attn.hook_attn_scores"
    result = non_finite.non_finite(capture(tiny_model, tokens, wb.Add(name, blocked, heads=[3])))
    assert reported(result) == (name, 1, ((0, 9), (1, 9)), 0, 0, 2)
    assert result.hooks == (name,)  # the pattern is finite again


def test_left_padding_is_masked_too(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    for materialize in (False, True):
        cache = KVCache.empty(tiny_model.config, 2, 24, dtype=torch.float32, device="cpu", pad=torch.tensor([0, 5]))
        assert non_finite.non_finite(capture(tiny_model, tokens, cache=cache, materialize=materialize)).first is None


def test_positions_are_absolute_under_a_cache(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    cache = tiny_model.empty_cache(2, 24)
    with torch.no_grad():
        tiny_model(tokens[:, :20], cache)
    cap = capture(tiny_model, tokens[:, 20:], wb.Patch("blocks.2.attn.hook_q", NAN, positions=[22]), cache=cache)
    assert reported(non_finite.non_finite(cap))[:3] == ("blocks.2.attn.hook_q", 2, ((0, 22), (1, 22)))


def test_half_precision_overflows_where_it_does(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    """float16 ends at 65,504: gains that float32 bears become infinite at the first product."""
    with torch.no_grad():
        tiny_model.layers[1].ffn_norm.weight.mul_(1e6)
    assert non_finite.trace_non_finite(tiny_model, tokens).first is None
    first = non_finite.trace_non_finite(tiny_model.to(torch.float16), tokens).first
    assert first is not None and first.hook == "blocks.1.ln2.hook_out" and first.plus and first.minus


# --- which numbers of a result are touched --------------------------------------------------------------------


def test_a_result_lists_its_numbers_that_are_not_finite(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    cap = capture(tiny_model, tokens, wb.Patch("blocks.1.attn.hook_q", NAN, heads=[2]), names=head_metrics.HOOKS)
    metrics = head_metrics.head_metrics(cap)
    touched = metrics.non_finite_indices()
    heads = set(map(tuple, np.concatenate([at for name, at in touched.items() if name.startswith("values")]).tolist()))
    assert (1, 2) in heads and heads <= {(1, 2), *((2, head) for head in range(4))}
    assert "not finite" in metrics._repr_html_()
    clean = head_metrics.head_metrics(capture(tiny_model, tokens, names=head_metrics.HOOKS))
    assert clean.non_finite_indices() == {} and "not finite" not in clean._repr_html_()


def test_touched_by_hand() -> None:
    result = non_finite.NonFinite(
        (), np.array([1.0, NAN]), np.array([[1.0, -INF], [INF, 0]]), np.array([1]), np.array([]), 0
    )
    assert {name: at.tolist() for name, at in result.non_finite_indices().items()} == {
        "nan": [[1]],
        "plus": [[0, 1], [1, 0]],
    }


def test_the_figure_shows_the_share_of_tokens(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    change = wb.Patch("blocks.2.hook_mlp_out", NAN, positions=[7])
    fig = non_finite.non_finite(capture(tiny_model, tokens, change)).figure()
    squares = fig.data[0]
    assert "blocks.2.hook_mlp_out, layer 2" in fig.layout.title.text
    assert list(squares.y)[:2] == ["hook_mlp_out", "hook_resid_post"] and list(squares.x) == ["2", "model"]
    assert squares.z[0, 0] == pytest.approx(1 / 24) and np.isnan(squares.z[0, 1])
    assert "No NaN" in non_finite.non_finite(capture(tiny_model, tokens)).figure().layout.title.text


# --- the commands ---------------------------------------------------------------------------------------------

RUN = ("--prompt", "one two three one two", "--device", "cpu")


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> wb.Transformer:
    """The demo model with a gain that float32 cannot bear in the last layer but one, for every command."""
    model = wb.load_model("demo", device="cpu", dtype="float32").eval()
    with torch.no_grad():
        model.layers[4].ffn_norm.weight[0] = 3e38
    monkeypatch.setattr(wb, "load_model", lambda *args, **options: model)
    return model


def call(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, list[str]]:
    code = main(["probe", *argv, *RUN])
    out, err = capsys.readouterr()
    routine = ("units:", "more rows")
    return code, out, [line for line in err.splitlines() if not any(part in line for part in routine)]


def test_commands_say_where_it_began(
    capsys: pytest.CaptureFixture[str], spoilt: wb.Transformer, tmp_path: Path
) -> None:
    """The capture of `rms` holds scales alone; what is reported is the first hook of the whole run."""
    file = tmp_path / "rms.csv"
    code, _, err = call(capsys, "rms", "-o", str(file))
    first = non_finite.trace_non_finite(spoilt, torch.tensor([spoilt.tokenizer.encode(RUN[1], bos=True)])).first
    assert first is not None and first.layer == 4
    table = pd.read_csv(file)
    touched = int((~np.isfinite(table["rms"])).sum())
    assert code == 0 and len(err) == 2 and str(first) in err[0]
    assert touched and f" {touched} of the table's {len(table)} numbers" in err[1]
    assert json.loads((tmp_path / "rms.csv.json").read_text())["non_finite"] == str(first)
    assert call(capsys, "heads")[2][0] == err[0]
    code, out, err = call(capsys, "finite")
    assert code == 0 and first.hook in out.splitlines()[1] and err == []


def test_commands_on_a_finite_run_raise_no_alarm(capsys: pytest.CaptureFixture[str]) -> None:
    """`linear` and `positions` write NaN where a number is undefined; nothing is wrong with their runs."""
    assert call(capsys, "finite")[:2] == (0, "none found\n")
    code, out, err = call(capsys, "positions")
    assert code == 0 and "NaN" in out and err == []  # one window has no interval
    assert call(capsys, "heads")[2] == []


@pytest.mark.parametrize(
    "words",
    [
        ("induction", "--block", "8"),
        ("ablation", "--block", "8", "--draws", "2", "--heads", "L2H3"),
        ("catalogue", "--prompt", "one two one two"),
        ("patch", "--prompt", "a b c", "--corrupted", "a d c", "--answer", "1", "--wrong", "2"),
        ("compare", "--prompt", "one two", "--ablate", "L2H3"),
    ],
    ids=lambda words: words[0],
)
def test_commands_that_capture_nothing_themselves_say_it_too(
    capsys: pytest.CaptureFixture[str], spoilt: wb.Transformer, words: tuple[str, ...]
) -> None:
    assert main(["probe", *words, "--device", "cpu"]) == 0
    assert "note: NaN or infinity begins at blocks.4." in capsys.readouterr().err
