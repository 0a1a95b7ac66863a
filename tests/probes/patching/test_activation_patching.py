"""Activation patching: against whole runs with `Patch`, by causality, and on a circuit that is known."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import workbench as wb
from probes.attention import toy_induction_model
from probes.patching import activation_patching, commands
from probes.patching import attribution_patching as estimates
from probes.patching.prompt_pairs import LogitDifference, Pair
from workbench.cli import main
from workbench.errors import DataError, HookError
from workbench.hooks.hook_points import Subscription, subscribe
from workbench.model import Transformer

FIRST = 4  # the first position that is corrupted
EVERY = tuple(activation_patching.SITES)


@pytest.fixture
def pair() -> Pair:
    """Three prompts of nine tokens, two of them corrupted at positions 4 and 7, one at 7 alone."""
    clean = torch.randint(96, (3, 9), generator=torch.Generator().manual_seed(2))
    corrupted = clean.clone()
    corrupted[:2, FIRST] = (clean[:2, FIRST] + 5) % 96
    corrupted[:, 7] = (clean[:, 7] + 9) % 96
    return Pair(clean, corrupted, LogitDifference([7, 8, 9], 11))


def naive(
    model: Transformer, pair: Pair, what: activation_patching.What, direction: activation_patching.Direction, layer: int
) -> Callable[[int, int], torch.Tensor]:
    """One patch by a whole run from the embedding, with the values of a capture."""
    own, other = (pair.corrupted, pair.clean) if direction == "denoise" else (pair.clean, pair.corrupted)
    name = f"blocks.{layer}.{activation_patching.SITES[what]}"
    _, cap = model.run_with_capture(other, name)

    def value(head: int, pos: int) -> torch.Tensor:
        heads = None if head < 0 else [head]
        positions = None if pos < 0 else [pos]
        with model.intervene(wb.Patch(name, cap, heads=heads, positions=positions)):
            logits = model(own)
        answers = torch.tensor([7, 8, 9])
        return logits[torch.arange(3), -1, answers] - logits[:, -1, 11]

    return value


@torch.no_grad()
@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("what", EVERY)
def test_every_patch_is_that_of_a_whole_run(
    tiny_model: Transformer, pair: Pair, what: activation_patching.What, direction: activation_patching.Direction
) -> None:
    """Float32, logits of order 1: 1e-5 for sums over batches of another size. The model is as it was."""
    before = tiny_model(pair.clean)
    result = activation_patching.patching(tiny_model, pair, what, direction=direction, budget=100)
    for layer in range(3):
        run = naive(tiny_model, pair, what, direction, layer)
        for i, head in enumerate(result.heads):
            for j, pos in enumerate(result.positions):
                assert result.patched[layer, i, j] == pytest.approx(run(head, pos).numpy(), abs=1e-5)
    assert torch.equal(tiny_model(pair.clean), before)


def test_shapes_and_shares(tiny_model: Transformer, pair: Pair) -> None:
    shapes = {"heads": (3, 4, 1, 3), "heads_by_position": (3, 4, 9, 3), "resid_pre": (3, 1, 9, 3)}
    for what, shape in shapes.items():
        assert activation_patching.patching(tiny_model, pair, what).patched.shape == shape
    result = activation_patching.patching(tiny_model, pair, "resid_mid", layers=[2, 0])
    assert (result.what, result.group_size) == ("resid_mid", 2)
    assert result.layers == (0, 2) and result.heads == (-1,)
    lost = (result.patched - result.corrupted).mean(-1) / (result.clean - result.corrupted).mean()
    assert result.restored == pytest.approx(lost)
    assert result.moved == pytest.approx(result.restored)
    table = result.frame()
    assert list(table.columns) == ["layer", "head", "pos", "patched", "restored", "low", "high"]
    assert len(table) == 2 * 9 and (table["low"] <= table["high"]).all()
    back = activation_patching.patching(tiny_model, pair, "resid_mid", direction="noise")
    assert back.moved == pytest.approx(1 - back.restored)
    assert back.clean == pytest.approx(result.clean) and back.corrupted == pytest.approx(result.corrupted)


def test_keys_and_values_are_patched_by_key_value_head(tiny_model: Transformer, pair: Pair) -> None:
    """4 query heads share 2 key/value heads: the sweep and its figures have 2, those of q and of patterns have 4."""
    for kind in ("q", "pattern"):
        result = activation_patching.patching(tiny_model, pair, kind)  # type: ignore[arg-type]
        assert result.heads == (0, 1, 2, 3) and result.figure().layout.xaxis.title.text == "head"
    for kind in ("k", "v"):
        result = activation_patching.patching(tiny_model, pair, kind)  # type: ignore[arg-type]
        assert result.heads == (0, 1) and result.patched.shape == (3, 2, 1, 3) and result.group_size == 1
        fig = result.figure()
        assert fig.layout.xaxis.title.text == "key/value head" and "key/value head" in fig.layout.title.text
        placed = activation_patching.patching(tiny_model, pair, f"{kind}_by_position")  # type: ignore[arg-type]
        assert set(placed.frame()["head"]) == {0, 1} and placed.figure().data[0].y[0] == "L0KV0"


def test_the_hand_set_circuit_by_its_parts() -> None:
    """Denoising: the previous-token head sends a's token to b's position by its value there, never by its pattern.

    The induction head finds b by its key, from the last query; its own queries are the same in both prompts.
    """
    model, (pair, a, b) = toy_induction_model.induction_model(noise=0), circuit_pair()
    moved = {
        kind: activation_patching.patching(model, pair, f"{kind}_by_position").moved  # type: ignore[arg-type]
        for kind in ("q", "k", "v", "pattern")
    }
    group = model.config.group_size
    (first, sender), (second, receiver) = toy_induction_model.PREVIOUS, toy_induction_model.INDUCTION
    assert moved["v"][first, sender // group, a] > 0.99 and np.abs(moved["pattern"][first, sender]).max() < 1e-6
    assert moved["k"][second, receiver // group, b] > 0.99 and moved["pattern"][second, receiver, -1] > 0.99
    assert np.abs(moved["q"][second, receiver]).max() < 1e-6


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_causality(tiny_model: Transformer, pair: Pair, direction: activation_patching.Direction) -> None:
    """Before the first difference a patch does nothing; after the last layer the target's own position is all."""
    result = activation_patching.patching(tiny_model, pair, "resid_post", direction=direction)
    assert (result.moved[:, 0, :FIRST] == 0).all()
    assert result.moved[-1, 0, -1] == pytest.approx(1, abs=5e-5)
    assert result.moved[-1, 0, :-1] == pytest.approx(np.zeros(8), abs=5e-5)  # nobody reads them any more
    assert np.abs(result.moved[0, 0, FIRST:]).min() > 1e-4


def test_layers_run_are_counted_and_few(tiny_model: Transformer, pair: Pair) -> None:
    """The count is that of an observer at every layer's entry, and the target of a general kind changes no number."""
    ran = 0

    def count(_: object, x: torch.Tensor) -> None:
        nonlocal ran
        ran += len(x)

    names = frozenset(f"blocks.{layer}.hook_resid_pre" for layer in range(3))
    with subscribe(tiny_model, Subscription(names, observe=count)):
        result = activation_patching.patching(tiny_model, pair, "heads_by_position")
    assert result.layer_runs == ran == 3 * (2 * 3 + 4 * 5 * (3 + 2 + 1))
    assert result.naive_layer_runs == 3 * 3 * (2 + 3 * 4 * 9)
    whole = Pair(pair.clean, pair.corrupted, lambda logits, tokens: pair.target(logits, tokens))
    other = activation_patching.patching(tiny_model, whole, "heads_by_position", budget=1)
    assert other.patched == pytest.approx(result.patched, abs=1e-5)
    assert other.layer_runs == result.layer_runs


@torch.no_grad()
def test_an_intervention_around_a_sweep_acts_once(tiny_model: Transformer, pair: Pair) -> None:
    """A run that goes on must not scale again what was scaled before it."""
    with tiny_model.intervene(wb.Scale("blocks.*.hook_resid_pre", 1.3), wb.Scale("L1.mlp", 2.0)):
        result = activation_patching.patching(tiny_model, pair, "attn_out")
        for layer in range(3):
            expected = naive(tiny_model, pair, "attn_out", "denoise", layer)(-1, 7)
            assert result.patched[layer, 0, 7] == pytest.approx(expected.numpy(), abs=1e-5)


def circuit_pair() -> tuple[Pair, int, int]:
    """`... a b ... a` against `... x b ... a`: only the first says that b comes next. Where a and b stand."""
    tokens = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    clean = torch.cat([tokens[:12], tokens[5:6]])[None]
    corrupted = clean.clone()
    corrupted[0, 5] = tokens[20]
    return Pair(clean, corrupted, LogitDifference(int(tokens[6]), int(tokens[2]))), 5, 6


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_the_hand_set_circuit_lights_up(direction: activation_patching.Direction) -> None:
    """a's token goes by the previous-token head to b's position, by the induction head from there to the end.

    Without noise no other head writes anything: they carry nothing at all.
    """
    model, (pair, a, b) = toy_induction_model.induction_model(noise=0), circuit_pair()
    heads = activation_patching.patching(model, pair, "heads", direction=direction).moved[..., 0]
    assert heads[toy_induction_model.PREVIOUS] > 0.99 and heads[toy_induction_model.INDUCTION] > 0.99
    others = [
        heads[i, j]
        for i in range(2)
        for j in range(4)
        if (i, j) not in (toy_induction_model.PREVIOUS, toy_induction_model.INDUCTION)
    ]
    assert np.abs(others).max() < 1e-6
    placed = activation_patching.patching(model, pair, "heads_by_position", direction=direction).moved
    assert placed[0, 2, b] > 0.99 and placed[1, 1, -1] > 0.99
    stream = activation_patching.patching(model, pair, "resid_pre", direction=direction).moved[:, 0]
    assert stream[0].argmax() == a and stream[1].argmax() == b
    assert stream[0, a] == pytest.approx(1, abs=1e-5)  # the only token that differs


def test_a_target_that_does_not_differ_has_no_share(tiny_model: Transformer, pair: Pair) -> None:
    """At a position before the first difference; the raw values are there all the same."""
    early = Pair(pair.clean, pair.corrupted, LogitDifference(1, 2, position=2))
    result = activation_patching.patching(tiny_model, early, "mlp_out")
    assert np.isnan(result.restored).all() and np.isfinite(result.patched).all()
    assert result.frame()["restored"].isna().all()


def test_a_single_prompt_has_no_interval(tiny_model: Transformer, pair: Pair) -> None:
    single = Pair(pair.clean[:1], pair.corrupted[:1], LogitDifference(7, 11))
    table = activation_patching.patching(tiny_model, single, "attn_out").frame()
    assert table["low"].isna().all() and table["restored"].notna().all()


# --- from a gradient ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", EVERY)
def test_the_estimate_is_the_slope_of_the_patch(
    tiny_model: Transformer, pair: Pair, what: activation_patching.What
) -> None:
    """A step of a thousandth of the way, run in float64, rises a thousandth of the estimate: 1% for the curvature."""
    model = tiny_model.double()
    result = estimates.attribution_patching(model, pair, what)
    layer, i, j = 1, len(result.heads) - 1, len(result.positions) - 1
    head, pos = result.heads[i], result.positions[j]
    name, step = f"blocks.{layer}.{activation_patching.SITES[what]}", 1e-3
    with torch.no_grad():
        _, clean = model.run_with_capture(pair.clean, name)
        logits, own = model.run_with_capture(pair.corrupted, name)
        towards = step * (clean[name] - own[name])
        places = {"heads": None if head < 0 else [head], "positions": None if pos < 0 else [pos]}
        head_axis, position_axis = (1, 2) if name.endswith("pattern") else (2, 1)
        if places["heads"]:
            towards = towards.index_select(head_axis, torch.tensor([head]))
        if places["positions"]:
            towards = towards.index_select(position_axis, torch.tensor([pos]))
        with model.intervene(wb.Add(name, towards, **places)):
            rise = pair.target(model(pair.corrupted), pair.corrupted) - pair.target(logits, pair.corrupted)
    assert (result.patched[layer, i, j] - result.corrupted) * step == pytest.approx(rise.numpy(), rel=0.01, abs=1e-6)


def test_a_linear_target_is_estimated_exactly(tiny_model: Transformer, pair: Pair) -> None:
    """What the last layer writes reaches the logits through the final norm alone; one that only scales is linear."""
    gain = tiny_model.norm.weight.detach()

    class Frozen(torch.nn.Module):
        def forward(self, x: torch.Tensor, _: object) -> torch.Tensor:
            return x * gain

    tiny_model.norm = Frozen()  # type: ignore[assignment]
    tiny_model.norm.weight = gain
    for exact_of, what in ((2, "resid_post"), (2, "mlp_out")):
        exact = activation_patching.patching(tiny_model, pair, what, layers=[exact_of])
        estimate = estimates.attribution_patching(tiny_model, pair, what, layers=[exact_of])
        error = estimates.gradient_error(exact, estimate)
        assert error.largest < 1e-4 and error.correlation == pytest.approx(1)


def test_the_estimates_error_is_reported(tiny_model: Transformer, pair: Pair) -> None:
    exact = activation_patching.patching(tiny_model, pair, "heads")
    estimate = estimates.attribution_patching(tiny_model, pair, "heads")
    result = estimates.gradient_error(exact, estimate)
    table = result.frame()
    assert table["error"].abs().max() == pytest.approx(result.largest) and result.largest > 1e-3
    assert table["error"].abs().mean() == pytest.approx(result.mean)
    assert result.correlation == pytest.approx(table["exact"].corr(table["estimate"]))
    assert estimate.layer_runs < exact.layer_runs
    with pytest.raises(HookError, match="found 'gradient' and 'gradient'"):
        estimates.gradient_error(estimate, estimate)
    with pytest.raises(HookError, match="differ in layers"):
        estimates.gradient_error(exact, estimates.attribution_patching(tiny_model, pair, "heads", layers=[1]))


def test_weights_without_gradients_can_be_estimated_too(tiny_model: Transformer, pair: Pair) -> None:
    expected = estimates.attribution_patching(tiny_model, pair, "mlp_out")
    with torch.no_grad():
        result = estimates.attribution_patching(tiny_model.requires_grad_(False), pair, "mlp_out")
    assert np.array_equal(result.patched, expected.patched)
    assert all(parameter.grad is None for parameter in tiny_model.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("what", ["resid_pre", "heads", "pattern_by_position"])
def test_an_estimate_does_not_depend_on_the_callers_mode(
    tiny_model: Transformer, pair: Pair, mode: Callable[[], Any], what: activation_patching.What
) -> None:
    expected = estimates.attribution_patching(tiny_model, pair, what)
    with mode():
        made = Pair(pair.clean.clone(), pair.corrupted.clone(), pair.target)  # inference tensors, in one of the modes
        result = estimates.attribution_patching(tiny_model, made, what)
        activation_patching.patching(tiny_model, made, what)
    assert np.array_equal(result.patched, expected.patched)


def test_a_gradient_that_cannot_be_is_refused(tiny_model: Transformer, pair: Pair) -> None:
    rank = Pair(pair.clean, pair.corrupted, lambda logits, _: logits[:, -1].argmax(-1).double())
    with pytest.raises(HookError, match="the target has no gradient"):
        estimates.attribution_patching(tiny_model, rank)
    with torch.inference_mode():
        model = wb.Transformer(tiny_model.config)
        with pytest.raises(HookError, match="load the model outside"):
            estimates.attribution_patching(model, pair)


def test_an_activation_that_the_target_does_not_read_has_no_slope(tiny_model: Transformer, pair: Pair) -> None:
    """Under an intervention that replaces the stream after layer 1, nothing before it matters."""
    fixed = wb.Patch("blocks.1.hook_resid_post", torch.randn(3, 9, 32, generator=torch.Generator().manual_seed(0)))
    with tiny_model.intervene(fixed):
        result = estimates.attribution_patching(tiny_model, pair, "mlp_out")
    assert np.array_equal(result.patched[0], np.broadcast_to(result.corrupted, result.patched[0].shape))


def test_mistakes_say_what_to_do(tiny_model: Transformer, pair: Pair) -> None:
    with pytest.raises(DataError, match=r"found \(3, 9\) and \(3, 8\)"):
        Pair(pair.clean, pair.corrupted[:, :-1], pair.target)
    with pytest.raises(DataError, match="the same tokens"):
        Pair(pair.clean, pair.clean.clone(), pair.target)
    with pytest.raises(DataError, match="the same tokens"):
        Pair(pair.clean, pair.clean.int(), pair.target)
    for empty in (pair.clean[:0], pair.clean[:, :0]):
        with pytest.raises(DataError, match="the prompts are empty"):
            Pair(empty, empty, pair.target)
    with pytest.raises(DataError, match="found torch.float32"):
        Pair(pair.clean, pair.corrupted.float(), pair.target)
    with pytest.raises(DataError, match="found list"):
        Pair(pair.clean.tolist(), pair.corrupted, pair.target)  # type: ignore[arg-type]
    with pytest.raises(HookError, match="found float"):
        activation_patching.patching(tiny_model, Pair(pair.clean, pair.corrupted, lambda *_: 1.0))  # type: ignore[arg-type,return-value]
    with pytest.raises(HookError, match=r"layers 0 to 2; found \[3\]"):
        activation_patching.patching(tiny_model, pair, layers=[3])
    with pytest.raises(HookError, match="found 'resid'"):
        activation_patching.patching(tiny_model, pair, "resid")  # type: ignore[arg-type]
    with pytest.raises(HookError, match=r"one number per prompt, shape \(3,\)"):
        activation_patching.patching(tiny_model, Pair(pair.clean, pair.corrupted, lambda logits, _: logits.mean()))
    with pytest.raises(DataError, match="position 9"):
        activation_patching.patching(tiny_model, Pair(pair.clean, pair.corrupted, LogitDifference(1, 2, position=9)))
    with pytest.raises(DataError, match="2 token ids for 3 prompts"):
        activation_patching.patching(tiny_model, Pair(pair.clean, pair.corrupted, LogitDifference([1, 2], 2)))
    with pytest.raises(DataError, match="token id 96"):
        activation_patching.patching(tiny_model, Pair(pair.clean, pair.corrupted, LogitDifference(96, 2)))


# --- figures --------------------------------------------------------------------------------------------------


def test_figures_show_the_shares(tiny_model: Transformer, pair: Pair) -> None:
    stream = activation_patching.patching(tiny_model, pair, "resid_pre", direction="noise")
    drawn = stream.figure(labels=[f"{i} &lt;" for i in range(9)], stamp={"capture": "abc"})
    assert drawn.layout.meta == {"kind": "patching", "capture": "abc"}
    assert np.array(drawn.data[0].z) == pytest.approx(stream.moved[:, 0], rel=1e-5)
    assert drawn.data[0].x[3] == "3 &lt;" and drawn.data[0].zmin == -drawn.data[0].zmax
    assert "lost to the stream before a layer" in drawn.layout.title.text
    heads = activation_patching.patching(tiny_model, pair, "heads")
    square = heads.figure()
    assert square.layout.meta["kind"] == "atlas" and len(square.layout.shapes) == 2  # a bracket for each key head
    assert np.array(square.data[0].z) == pytest.approx(heads.moved[..., 0], rel=1e-5)
    placed = activation_patching.patching(tiny_model, pair, "heads_by_position")
    assert list(placed.figure(theme="dark").data[0].y[:5]) == ["L0H0", "L0H1", "L0H2", "L0H3", "L1H0"]
    result = estimates.gradient_error(heads, estimates.attribution_patching(tiny_model, pair, "heads"))
    cloud = result.figure()
    assert list(cloud.data[0].x) == pytest.approx(result.exact.ravel().tolist())
    assert cloud.data[0].text[5] == "layer 1 · head 1" and "correlation" in cloud.layout.title.text


def test_only_the_strongest_heads_are_rows(
    tiny_model: Transformer, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    from probes.patching import figures as figures_patching

    monkeypatch.setattr(figures_patching, "MOST_ROWS", 2)
    result = activation_patching.patching(tiny_model, pair, "heads_by_position")
    most = np.abs(result.moved).max(-1)
    expected = {f"L{i // 4}H{i % 4}" for i in np.argsort(-most.ravel())[:2]}
    assert set(result.figure().data[0].y) == expected


# --- commands -------------------------------------------------------------------------------------------------

TEXTS = ("--prompt", "b c d b", "--corrupted", "b f d b", "--answer", " c", "--wrong", " f", "--device", "cpu")


def command(*argv: str) -> int:
    return main(["probe", *argv])


@pytest.mark.parametrize("options", [[], ["--what", "heads", "--noise"], ["--what", "attn_out", "--gradient"]], ids=str)
def test_the_sweeps_command(tmp_path: Path, options: list[str]) -> None:
    """The table is the function's, its origin says what was patched, and the figure has the prompt's tokens."""
    assert command("patch", *TEXTS, *options, "-o", str(tmp_path / "t.csv")) == 0
    assert command("patch", *TEXTS, *options, "-o", str(tmp_path / "f.html")) == 0
    table, about = pd.read_csv(tmp_path / "t.csv"), json.loads((tmp_path / "t.csv.json").read_text())
    model = wb.load_model("demo", device="cpu").eval()
    assert model.tokenizer is not None
    clean, corrupted = (torch.tensor([model.tokenizer.encode(text, bos=True)]) for text in (TEXTS[1], TEXTS[3]))
    answer, wrong = (model.tokenizer.encode(text)[0] for text in (TEXTS[5], TEXTS[7]))
    pair = Pair(clean, corrupted, LogitDifference(answer, wrong))
    assert (about["answer"], about["wrong"]) == (answer, wrong)
    if "--gradient" in options:
        expected = activation_patching.patching(model, pair, "attn_out").restored
        assert table["exact"].to_numpy() == pytest.approx(expected.ravel(), abs=1e-4)
        assert about["what"] == "attn_out" and "estimate" in table
        return
    heads = "--noise" in options
    result = activation_patching.patching(
        model, pair, "heads" if heads else "resid_pre", direction="noise" if heads else "denoise"
    )
    assert table["restored"].to_numpy() == pytest.approx(result.restored.ravel(), abs=1e-4)
    assert about["direction"] == result.direction
    assert heads or f"{clean.shape[1] - 1}  b" in (tmp_path / "f.html").read_text()


def test_the_paths_command(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    assert command("path", *TEXTS, "--to", "L2H1", "--through", "k", "-o", str(file)) == 0
    assert sorted(set(pd.read_csv(file)["layer"])) == [0, 1]
    about = json.loads((tmp_path / "t.csv.json").read_text())
    assert (about["to"], about["through"]) == ("L2H1", "k")


def test_the_logit_paths_command(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    run = ("logit-paths", *TEXTS[:2], "--device", "cpu")
    assert command(*run, "--answer", "7", "--wrong", "11", "-o", str(file)) == 0
    assert json.loads((tmp_path / "t.csv.json").read_text())["target"] == [7, 11]
    table = pd.read_csv(file)
    assert len(table) == 36 * table["key_pos"].nunique() and table["contribution"].abs().is_monotonic_decreasing
    assert command(*run, "--wrong", "11") == 2


def test_a_difference_that_the_dtype_rounds_away_is_noted(
    tiny_model: Transformer, pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    """bfloat16 has 8 bits: eps 2^-7, and a hundred of them are 0.78 of the largest logit."""
    result = activation_patching.patching(tiny_model, pair, "attn_out")
    noted = []
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad():
            largest = float(tiny_model.to(dtype)(pair.clean)[:, -1].abs().max())
        for apart in (0.77 * largest, 0.79 * largest):
            commands._note(replace(result, clean=result.corrupted + apart), tiny_model, pair)
            noted.append("bfloat16 rounds" in capsys.readouterr().err)
    assert noted == [False, False, True, False]


def test_a_command_may_run_in_float32(tmp_path: Path) -> None:
    for options, dtype in (([], wb.load_model("demo").dtype), (["--dtype", "float32"], torch.float32)):
        assert command("patch", *TEXTS, *options, "-o", str(tmp_path / "t.csv")) == 0
        assert json.loads((tmp_path / "t.csv.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


def test_mistakes_of_a_command_are_answered_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def error_of(**changed: str) -> str:
        argv = list(TEXTS)
        for option, text in changed.items():
            argv[argv.index(f"--{option}") + 1] = text
        assert command("patch", *argv) == 2
        return capsys.readouterr().err

    assert "--corrupted" in error_of(corrupted="b c d b f e f e f e") and "the same number" in error_of(corrupted="b f")
    assert "same token" in error_of(wrong=" c")
    assert "--answer is empty" in error_of(answer="")
    assert "the same tokens" in error_of(corrupted="b c d b")
    assert "vocabulary of 1280" in error_of(answer="1280")
