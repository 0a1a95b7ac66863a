"""Input salience: transformers' gradients at inputs_embeds, integrated gradients written out, and completeness."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import workbench as wb
from probes.logits import input_salience as probe
from workbench.cli import main
from workbench.errors import HookError, WorkbenchWarning
from workbench.model import Transformer

PAIR = (5, 9)


@pytest.fixture
def ids(tokens: torch.Tensor) -> list[int]:
    return list(tokens[0, :10].tolist())


def their_logits(theirs: Any, embeddings: torch.Tensor, position: int) -> torch.Tensor:
    """Shapes: embeddings [batch, pos, dim] -> the difference of the pair's logits [batch]"""
    logits = theirs(inputs_embeds=embeddings).logits[:, position]
    return logits[:, PAIR[0]] - logits[:, PAIR[1]]


@pytest.mark.parametrize("position", [-1, 4])
def test_gradient_x_input_is_that_of_transformers(
    tiny_model: Transformer, reference_model: Any, ids: list[int], position: int
) -> None:
    theirs = reference_model.double()
    x = theirs.model.embed_tokens(torch.tensor([ids])).detach().requires_grad_()
    logit = their_logits(theirs, x, position)
    (grad,) = torch.autograd.grad(logit.sum(), x)
    expected = (grad * x).sum(-1)[0]
    assert position == -1 or not expected[position + 1 :].any()  # nothing after the position has an influence
    result = probe.gradient_x_input(tiny_model.double(), ids, [PAIR, 5], position=position)
    end = position % len(ids) + 1
    assert result.position == end - 1 and result.values.shape == (2, end)
    # Both normalise and rotate in float32.
    assert result.values[0] == pytest.approx(expected[:end].detach().numpy(), rel=1e-4, abs=2e-6)
    assert result.logits[0] == pytest.approx(logit.item(), abs=1e-6)
    assert result.converged and result.error == pytest.approx(
        np.abs(result.values.sum(-1) - result.logits + result.baseline_logits).max()
    )


@pytest.mark.parametrize("baseline", ["mean", 7])
def test_integrated_gradients_are_the_published_sum(
    tiny_model: Transformer, reference_model: Any, ids: list[int], baseline: probe.Baseline
) -> None:
    """(x - b) . 1/m sum_k dF(b + (k - 1/2) / m (x - b)), with 4,000 steps of transformers' model in float64."""
    theirs, steps = reference_model.double(), 4000
    x = theirs.model.embed_tokens(torch.tensor([ids])).detach()
    table = theirs.model.embed_tokens.weight.detach()
    b = (table.mean(0) if baseline == "mean" else table[7]).expand_as(x)
    total = torch.zeros_like(x)
    for shares in ((torch.arange(steps, dtype=torch.float64) + 0.5) / steps).split(1000):
        points = (b + shares[:, None, None] * (x - b)).requires_grad_()
        (grad,) = torch.autograd.grad(their_logits(theirs, points, -1).sum(), points)
        total += grad.sum(0, keepdim=True) / steps
    expected = (total * (x - b)).sum(-1)[0].numpy()
    change = float((their_logits(theirs, x, -1) - their_logits(theirs, b, -1)).detach())
    assert expected.sum() == pytest.approx(change, rel=1e-3)  # the sum is fine enough
    result = probe.integrated_gradients(tiny_model.double(), ids, [PAIR], baseline=baseline, tolerance=1e-3)
    assert result.logits[0] - result.baseline_logits[0] == pytest.approx(change, abs=1e-5)
    assert result.values[0] == pytest.approx(expected, rel=5e-3, abs=5e-3 * np.abs(expected).max())


@pytest.mark.parametrize("tolerance", [0.05, 0.005])
def test_the_sum_is_the_change_of_the_logit(tiny_model: Transformer, ids: list[int], tolerance: float) -> None:
    """Completeness, for every target, in float32; the error is in the table."""
    result = probe.integrated_gradients(tiny_model, ids, [PAIR, 5, 9], tolerance=tolerance)
    with torch.no_grad():
        logits = tiny_model(torch.tensor([ids]))[0, -1]
    assert result.logits[1:] == pytest.approx([logits[5].item(), logits[9].item()], abs=1e-5)
    change = result.logits - result.baseline_logits
    assert (np.abs(result.values.sum(-1) - change) <= tolerance * np.abs(change)).all() and result.converged
    assert result.values[0] == pytest.approx(result.values[1] - result.values[2], abs=tolerance * np.abs(change).sum())
    table = result.frame()
    assert list(table.columns) == ["token", "minus", "pos", "input", "salience", "error", "text"]
    assert table["input"].tolist() == ids * 3 and table["error"].abs().max() == pytest.approx(result.error)


def test_a_prompt_of_baselines_has_nothing_to_contribute(tiny_model: Transformer) -> None:
    result = probe.integrated_gradients(tiny_model, [7, 7, 7], [5], baseline=7)
    assert not result.values.any() and result.error == 0 and result.converged


def test_a_baseline_of_embeddings_may_keep_positions(tiny_model: Transformer, ids: list[int]) -> None:
    """A position whose baseline is its own embedding contributes nothing; the others contribute the rest."""
    table = tiny_model.tok_embeddings.weight.detach()
    start = table.mean(0).expand(len(ids), -1).clone()
    start[0] = table[ids[0]]
    result = probe.integrated_gradients(tiny_model, ids, [5], baseline=start)
    assert result.values[0, 0] == 0 and np.abs(result.values[0, 1:]).max() > 0 and result.converged
    vector = probe.integrated_gradients(tiny_model, ids, [5], baseline=table.mean(0))
    assert vector.values == pytest.approx(probe.integrated_gradients(tiny_model, ids, [5]).values, abs=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_mode_does_not_matter(tiny_model: Transformer, ids: list[int], mode: Callable[[], Any]) -> None:
    expected = probe.gradient_x_input(tiny_model, ids, [PAIR])
    with mode():
        result = probe.gradient_x_input(tiny_model.requires_grad_(False), torch.tensor([ids]), [PAIR])
    assert np.array_equal(result.values, expected.values)
    assert all(weight.grad is None for weight in tiny_model.parameters())


def test_interventions_act(tiny_model: Transformer, ids: list[int]) -> None:
    plain = probe.gradient_x_input(tiny_model, ids, [PAIR])
    with tiny_model.intervene(wb.Ablate("L1.mlp")):
        changed = probe.gradient_x_input(tiny_model, ids, [PAIR])
    assert not np.allclose(plain.values, changed.values, rtol=1e-2)
    with tiny_model.intervene(wb.Patch("blocks.1.hook_resid_post", torch.zeros(32))):
        for method in (probe.gradient_x_input, probe.integrated_gradients):
            unread = method(tiny_model, ids, [PAIR])
            assert not unread.values.any() and unread.error == 0 and unread.converged


def test_an_integral_that_misses_its_tolerance_warns(ids: list[int]) -> None:
    """From zeros the slope at the start is of order 10^14: RMSNorm divides by the length."""
    model = wb.load_model("demo", dtype="float32", device="cpu").eval()
    with pytest.warns(WorkbenchWarning, match="the sum is off by .* logits"):
        result = probe.integrated_gradients(model, ids, [PAIR], baseline="zero", max_gradients=100)
    assert not result.converged and result.error > 0 and result.n_gradients <= 100
    assert "more than was asked for" in result.figure().layout.title.text


def test_mistakes_say_what_to_do(tiny_model: Transformer, ids: list[int]) -> None:
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        ([], {}, "at least one"),
        (["a"], {}, "at least one"),
        (torch.zeros(1, 3), {}, "found torch.float32"),
        (torch.zeros(2, 3, dtype=torch.int64), {}, r"one prompt, \[pos\]"),
        ([96], {}, "0 to 95, found 96"),
        ([-1], {}, "0 to 95, found -1"),
        (ids, {"tokens": []}, "no token to attribute"),
        (ids, {"tokens": [(1, 96)]}, "found 96"),
        (ids, {"position": 10}, "positions 0 to 9, not 10"),
        (ids, {"position": -11}, "positions 0 to 9, not -11"),
        (ids, {"baseline": "nought"}, "found 'nought'"),
        (ids, {"baseline": 96}, "found 96"),
        (ids, {"baseline": torch.zeros(3)}, r"\(32,\) or \(10, 32\); found \(3,\)"),
        (ids, {"tolerance": 0}, "tolerance above 0"),
        (ids, {"tolerance": float("nan")}, "tolerance above 0"),
        (ids, {"max_gradients": 5}, "at least 18 gradients"),
    ]
    for prompt, options, message in wrong:
        with pytest.raises(HookError, match=message):
            probe.integrated_gradients(tiny_model, prompt, **{"tokens": [5], **options})


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ("probe", "salience", "--model", "demo", "--prompt", "one two one two", "--device", "cpu")
    assert main([*run, "--baseline", "5", "-o", str(tmp_path / "t.csv")]) == 0
    assert "largest error of the sums" in capsys.readouterr().err
    table, about = pd.read_csv(tmp_path / "t.csv"), json.loads((tmp_path / "t.csv.json").read_text())
    model = wb.load_model("demo", dtype="float32", device="cpu").eval()
    assert model.tokenizer is not None
    ids = model.tokenizer.encode("one two one two", bos=True)
    with torch.no_grad():
        best = tuple(model(torch.tensor([ids]))[0, -1].topk(2).indices.tolist())
    expected = probe.integrated_gradients(model, ids, [best], baseline=5)
    assert table["salience"].to_numpy() == pytest.approx(expected.values[0], abs=1e-4)
    assert about["targets"] == [list(best)] and about["converged"] and about["baseline"] == "5"
    assert main([*run, "--method", "gradient", "--position", "2", "--id", "7", "-o", str(tmp_path / "f.html")]) == 0
    assert "Gradient x input of the logit at position 2" in (tmp_path / "f.html").read_text()
    for wrong in (["--baseline", "nought"], ["--position", "99"], ["--position", "99", "--id", "7"]):
        assert main([*run, *wrong]) == 2
