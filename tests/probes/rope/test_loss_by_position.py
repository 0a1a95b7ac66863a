"""Loss by position: hand-made losses, intervals against scipy, and the demo model beyond what it was trained on."""

import random
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from probes.rope import loss_by_position
from workbench.errors import ConfigError, DataError
from workbench.model import Transformer
from workbench.training.demo_data.corpus import Corpus, Mix, Packer


@pytest.fixture(scope="module")
def demo() -> Transformer:
    return wb.load_model("demo", device="cpu").eval()


@pytest.fixture(scope="module")
def long_text(demo: Transformer) -> torch.Tensor:
    """Statements laid end to end as in training, but four times as long as the rows that it was trained on."""
    tokenizer = demo.tokenizer
    assert tokenizer is not None
    eos = tokenizer.special("<|end_of_text|>")
    packer = Packer(tokenizer.encode, tokenizer.bos_id, eos, 1024, 1024)
    rows = packer.rows(Corpus(Mix({"statement": 1.0})), random.Random(1), 6)
    return torch.from_numpy(rows.tokens)[:, :1024]


def test_windows_by_hand() -> None:
    text = list(range(10, 17))
    assert loss_by_position.windows(text, 3).tolist() == [[10, 11, 12], [13, 14, 15]]
    assert loss_by_position.windows(text, 3, bos=1).tolist() == [[1, 10, 11], [1, 12, 13], [1, 14, 15]]
    with pytest.raises(DataError, match="longer text"):
        loss_by_position.windows(text, 9)
    with pytest.raises(DataError, match="at least 2"):
        loss_by_position.windows(text, 1)


def test_stretches_cover_every_predicted_token_and_break_at_the_context() -> None:
    for length, context in ((1024, 512), (100, 30), (2, 8), (17, 16), (4096, 512)):
        edges = loss_by_position.stretches(length, context)
        assert edges[0] == 1 and edges[-1] == length and edges == sorted(set(edges))
        assert context in edges or context > length
    assert loss_by_position.stretches(1024, 512)[:3] == [1, 64, 128]


def test_losses_are_the_models_own_and_do_not_depend_on_the_slicing(
    tiny_model: Transformer, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        logprobs = tiny_model(tokens).log_softmax(-1)
    expected = -logprobs[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    assert torch.allclose(loss_by_position.token_losses(tiny_model, tokens), expected, atol=1e-5)
    monkeypatch.setattr(loss_by_position, "LOGIT_CHUNK", 5)
    assert torch.allclose(loss_by_position.token_losses(tiny_model, tokens, batch_tokens=1), expected, atol=1e-5)


def test_a_scored_text_has_the_same_loss(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    """The scoring of benchmarks, which knows nothing of this, sums to the same."""
    row = tokens[0].tolist()
    ((total, _),) = wb.score(tiny_model, [(row[:1], row[1:])])
    assert float(loss_by_position.token_losses(tiny_model, tokens[:1]).sum()) == pytest.approx(-total, abs=1e-3)


def test_means_and_changes_by_hand(
    tiny_model: Transformer, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([torch.tensor([[1.0, 3, 5], [3, 5, 9]]), torch.tensor([[2.0, 4, 5], [3, 5, 9]])])
    monkeypatch.setattr(loss_by_position, "token_losses", lambda *args, **options: next(losses))
    result = loss_by_position.loss_by_position(tiny_model, tokens[:, :4], {"other": []}, edges=[1, 3, 4])
    assert result.runs == ("plain", "other")
    assert result.loss.tolist() == [[3, 7], [3.5, 7]]
    assert result.change.tolist() == [[0, 0], [0.5, 0]]
    # Two windows with means 2 and 4: the standard error is 1, and t with one degree of freedom 12.706.
    assert (result.low[0, 0], result.high[0, 0]) == pytest.approx((3 - 12.706, 3 + 12.706))
    # The changes 1 and 0 are paired: standard error 1/2.
    assert (result.change_low[1, 0], result.change_high[1, 0]) == pytest.approx((0.5 - 6.353, 0.5 + 6.353))
    table = result.frame()
    assert table[["run", "start", "end", "loss"]].values.tolist()[2:] == [["other", 1, 3, 3.5], ["other", 3, 4, 7.0]]


def test_students_t_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with lm-eval")
    for degrees in (1, 2, 3, 4, 5, 8, 15, 40, 1000):
        assert loss_by_position.t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=2e-3)


def test_a_scaling_that_changes_nothing_changes_no_loss(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    runs = {"once": [wb.RopeScaling(yarn=1.0)], "half": [wb.RopeScaling(interpolation=2.0)]}
    result = loss_by_position.loss_by_position(tiny_model, tokens, runs)
    assert (result.change[:2] == 0).all() and (result.change_low[:2] == 0).all()
    assert np.abs(result.change[2]).max() > 1e-3
    alone = loss_by_position.loss_by_position(tiny_model, tokens[:1])
    assert np.isnan(alone.low).all() and np.isfinite(alone.loss).all()
    with tiny_model.intervene(*runs["half"]):
        under = loss_by_position.loss_by_position(tiny_model, tokens)
    assert np.array_equal(under.loss[0], result.loss[2])


def test_beyond_its_training_the_demo_model_breaks_down_and_yarn_mends_it(
    demo: Transformer, long_text: torch.Tensor
) -> None:
    """It was trained on rows of 256 tokens (recipe.toml), so its loss rises past them, and YaRN takes that back."""
    runs = {"yarn": [wb.RopeScaling(yarn=2.0)], "interpolation": [wb.RopeScaling(interpolation=2.0)]}
    result = loss_by_position.loss_by_position(demo, long_text, runs, edges=[1, 256, 512, 1024])
    assert (result.n_windows, result.context) == (6, 512)
    plain, yarn, interpolation = result.loss
    assert result.low[0, 1] > result.high[0, 0] and plain[2] > plain[1] > 2 * plain[0]
    assert result.change_high[1, 1] < 0 and yarn[1] < 0.5 * plain[1]
    # Interpolation alone crowds the near positions: it costs within the context what it wins beyond.
    assert result.change_low[2, 0] > 0 and result.change_high[2, 2] < 0
    fig = result.figure()
    assert [trace.name for trace in fig.data] == list(result.runs)
    assert np.array_equal(fig.data[1].y, yarn) and fig.data[0].error_y.array is not None
    assert "512" in fig.layout.annotations[0].text and "6 windows" in fig.layout.title.text
    change = result.figure(change=True)
    assert [trace.name for trace in change.data] == ["yarn", "interpolation"]


def test_mistakes_say_what_to_do(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    for edges in ([0, 4], [4], [5, 3], [1, 99]):
        with pytest.raises(DataError, match="edges must ascend"):
            loss_by_position.loss_by_position(tiny_model, tokens, edges=edges)
    with pytest.raises(DataError, match="another name"):
        loss_by_position.loss_by_position(tiny_model, tokens, {"plain": [wb.Ablate("L0H0")]})
    wrong: dict[str, Any] = {"ntk": 2.0, "yarn": 2.0}
    with pytest.raises(ConfigError, match="choose one"):
        loss_by_position.loss_by_position(tiny_model, tokens, {"both": [wb.RopeScaling(**wrong)]})
