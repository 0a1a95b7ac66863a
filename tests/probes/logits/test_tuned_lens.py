"""The tuned lens: nothing at zero, the right gradient, the same twice, better on held-out text, one checkpoint's."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import workbench as wb
from probes.logits import logit_lens, tuned_lens
from probes.rope import loss_by_position
from workbench.errors import CheckpointError, HookError
from workbench.model import Transformer


@pytest.fixture(scope="module")
def demo() -> wb.Transformer:
    return wb.load_model("demo", device="cpu").eval()


@pytest.fixture(scope="module")
def windows(demo: wb.Transformer) -> torch.Tensor:
    """24 windows of 32 tokens of this project's own prose; the last 8 are held out."""
    root = Path(__file__).resolve().parents[3]
    text = "".join((root / name).read_text(encoding="utf-8") for name in ("README.md", "docs/footguns.md"))
    ids = demo.tokenizer.encode(text, bos=True)
    return loss_by_position.windows(ids[1:], 32, bos=ids[0])[:24]


@pytest.fixture(scope="module")
def trained(demo: wb.Transformer, windows: torch.Tensor) -> tuned_lens.TunedLens:
    return tuned_lens.train_tuned_lens(demo, windows[:16], steps=24, batch=2)


def test_zero_is_the_logit_lens(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    """In bfloat16 too: the way through float32 rounds nothing."""
    for model in (tiny_model, tiny_model.bfloat16()):
        with torch.no_grad():
            _, cap = model.run_with_capture(tokens, logit_lens.HOOKS)
        plain = logit_lens.logit_lens(model, cap, targets=[3], row=1)
        lens = tuned_lens.tuned_lens(model, cap, tuned_lens.TunedLens.zero(model), targets=[3], row=1)
        for name in ("ids", "logprobs", "kl", "rank"):
            assert np.array_equal(getattr(lens, name), getattr(plain, name)), name
        assert np.array_equal(lens.curves.logprobs, plain.curves.logprobs)


def test_a_translator_by_hand(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    """W_U N(x + A x + b), written out with numpy in float64."""
    zero = tuned_lens.TunedLens.zero(tiny_model)
    assert zero.layers == (-1, 0, 1) and zero.weight.shape == (3, 32, 32)
    generator = torch.Generator().manual_seed(0)
    made = replace(
        zero,
        weight=0.1 * torch.randn(zero.weight.shape, generator=generator),
        bias=torch.randn(zero.bias.shape, generator=generator),
    )
    with torch.no_grad():
        logits, cap = tiny_model.run_with_capture(tokens, logit_lens.HOOKS)
    lens = tuned_lens.tuned_lens(tiny_model, cap, made, targets=range(96))
    gain, table = (tiny_model.state_dict()[name].double().numpy() for name in ("norm.weight", "output.weight"))
    for at, name in enumerate(("hook_embed", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post")):
        x = cap[name][0].double().numpy()
        x = x + x @ made.weight[at].double().numpy().T + made.bias[at].double().numpy()
        here = torch.tensor((x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * gain) @ table.T)
        assert lens.curves.logprobs[at] == pytest.approx(here.log_softmax(-1).numpy(), abs=1e-4)
    last = logits[0].log_softmax(-1).numpy()
    assert lens.curves.logprobs[-1] == pytest.approx(last, abs=1e-5) and np.abs(lens.kl[-1]).max() < 1e-5


def test_training_does_not_depend_on_the_callers_mode(
    demo: wb.Transformer, windows: torch.Tensor, trained: tuned_lens.TunedLens
) -> None:
    with torch.inference_mode():
        again = tuned_lens.train_tuned_lens(demo, windows[:16].clone(), steps=24, batch=2)
    assert torch.equal(again.weight, trained.weight) and trained.weight.abs().max() > 0


def test_the_gradient_is_the_slope(
    tiny_model: Transformer, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Central differences of the mean divergence that the lens itself reports, in blocks that do not divide."""
    tiny_model.double()
    monkeypatch.setattr(logit_lens, "MAX_LOGITS", 7 * 96)
    generator = torch.Generator().manual_seed(2)
    zero = tuned_lens.TunedLens.zero(tiny_model)
    weight = 0.1 * torch.randn(zero.weight.shape, generator=generator)
    made = replace(zero, weight=weight, bias=torch.randn(zero.bias.shape, generator=generator))
    pairs = zip(made.weight, made.bias, strict=True)
    gradients = tuned_lens._gradients(tiny_model, tokens, [t.clone().requires_grad_() for pair in pairs for t in pair])
    step = 1e-2  # float32 parameters: rounding 1e-6 / 1e-2, curvature 1e-4

    def divergence(at: tuple[int, int, int], by: float) -> float:
        moved = made.weight.clone()
        moved[at] += by
        both = tuned_lens.lens_divergence(tiny_model, tokens, replace(made, weight=moved))
        return float(both.tuned[at[0]].mean())

    for at in ((0, 3, 5), (1, 30, 2), (2, 11, 11)):
        slope = (divergence(at, step) - divergence(at, -step)) / (2 * step)
        assert float(gradients[2 * at[0]][at[1:]]) == pytest.approx(slope, rel=0.02, abs=2e-4)
    assert all(parameter.grad is None for parameter in tiny_model.parameters())


def test_training_lowers_held_out_divergence(
    demo: wb.Transformer, windows: torch.Tensor, trained: tuned_lens.TunedLens
) -> None:
    result = tuned_lens.lens_divergence(demo, windows[16:], trained)
    table = result.frame()
    assert result.layers == (-1, 0, 1, 2, 3, 4, 5) and result.logit.shape == (7, 8)
    assert (table["high"][:-1] < 0).all()  # the whole interval, at every layer that has a translator
    assert table["tuned"].iloc[:-1].sum() < 0.9 * table["logit"].iloc[:-1].sum()
    assert table["tuned"].iloc[-1] == pytest.approx(0, abs=1e-5)
    assert (table["low"] <= table["change"] + 1e-12).all() and (table["change"] <= table["high"] + 1e-12).all()


def test_the_same_seed_gives_the_same_lens(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    before = {name: weight.clone() for name, weight in tiny_model.state_dict().items()}
    many = tokens.repeat(3, 1)
    many[:, 5] = torch.arange(6)
    made = [tuned_lens.train_tuned_lens(tiny_model, many, steps=5, batch=2, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(made[0].weight, made[1].weight) and torch.equal(made[0].bias, made[1].bias)
    assert not torch.equal(made[0].weight, made[2].weight)
    assert not made[0].weight.requires_grad
    assert all(torch.equal(before[name], weight) for name, weight in tiny_model.state_dict().items())
    about = made[2].provenance
    assert (about["seed"], about["steps"], about["windows"]) == (1, 5, [6, 24])


def test_a_lens_belongs_to_its_checkpoint(
    demo: wb.Transformer, trained: tuned_lens.TunedLens, tiny_model: Transformer, tmp_path: Path
) -> None:
    path = trained.save(tmp_path)
    assert path == tmp_path / tuned_lens.FILE
    again = tuned_lens.TunedLens.load(tmp_path, demo)
    assert torch.equal(again.weight, trained.weight) and torch.equal(again.bias, trained.bias)
    assert again.layers == trained.layers and dict(again.provenance) == dict(trained.provenance)
    assert again.provenance["checkpoint_sha256"] == demo.source.checkpoint_sha256
    with pytest.raises(CheckpointError, match="comes from no file"):
        tuned_lens.TunedLens.load(path, tiny_model)
    other = replace(trained, provenance={**trained.provenance, "checkpoint_sha256": "0" * 64})
    other.save(path)
    with pytest.raises(CheckpointError, match="000000000000"):
        tuned_lens.TunedLens.load(path, demo)
    assert [file.name for file in tmp_path.iterdir()] == [tuned_lens.FILE]


def test_mistakes_say_what_to_do(
    demo: wb.Transformer, tiny_model: Transformer, tokens: torch.Tensor, tmp_path: Path
) -> None:
    with torch.no_grad():
        _, cap = tiny_model.run_with_capture(tokens, logit_lens.HOOKS)
    with pytest.raises(HookError, match="6 layers of 192"):
        tuned_lens.tuned_lens(tiny_model, cap, tuned_lens.TunedLens.zero(demo))
    with pytest.raises(HookError, match="steps"):
        tuned_lens.train_tuned_lens(tiny_model, tokens, steps=0)
    with pytest.raises(HookError, match="windows"):
        tuned_lens.train_tuned_lens(tiny_model, tokens[:0])
    with pytest.raises(CheckpointError, match="belongs to a checkpoint"):
        tuned_lens.TunedLens.zero(tiny_model).save(tmp_path / "a")
    with pytest.raises(CheckpointError, match="written"):
        tuned_lens.TunedLens.zero(demo).save(tmp_path / "no" / "a")
    (tmp_path / "noise").write_bytes(b"noise")
    for name in ("noise", "none"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            tuned_lens.TunedLens.load(tmp_path / name, demo)
    save_file({"weight": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="not a tuned lens"):
        tuned_lens.TunedLens.load(tmp_path / "other", demo)


def test_one_window_has_no_interval(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    table = tuned_lens.lens_divergence(tiny_model, tokens[:1], tuned_lens.TunedLens.zero(tiny_model)).frame()
    assert table["low"].isna().all() and (table["change"] == 0).all() and not math.isnan(table["logit"][0])


def test_the_figure_shows_both_lenses(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    zero = tuned_lens.TunedLens.zero(tiny_model)
    result = tuned_lens.lens_divergence(tiny_model, tokens, replace(zero, bias=zero.bias + 1))
    fig = result.figure(stamp={"capture": "abc"})
    assert fig.layout.meta == {"kind": "lens_divergence", "capture": "abc"}
    assert fig.layout.title.text and fig.layout.xaxis.title.text and fig.layout.yaxis.title.text
    assert fig.data[0].y == pytest.approx(result.logit.mean(1)) and list(fig.data[0].x) == ["embed", "0", "1", "2"]
    assert fig.data[1].y == pytest.approx(result.tuned.mean(1)) and fig.data[1].y[0] != fig.data[0].y[0]
