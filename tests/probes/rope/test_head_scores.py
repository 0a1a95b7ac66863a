"""RoPE: published numbers, the model's own scores rebuilt from frequency pairs, and rounding side by side."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from probes.rope import formulas, head_scores
from workbench.config import Llama3Scaling, ModelConfig
from workbench.errors import ConfigError, HookError, MissingHookError
from workbench.hooks.capture import Capture
from workbench.hooks.rope_scaling import RopeScaling
from workbench.model import Transformer


def llama(theta: float, scaling: Llama3Scaling | None = None, context: int = 8192) -> ModelConfig:
    """The shape of Llama's heads: 128 dimensions, 64 pairs."""
    return ModelConfig(
        dim=4096, n_layers=1, n_heads=32, n_kv_heads=8, ffn_dim=1, vocab_size=1,
        rope_theta=theta, rope_scaling=scaling, max_seq_len=context,
    )  # fmt: skip


def test_wavelengths_of_llama_3() -> None:
    result = head_scores.wavelengths(llama(500_000.0))
    assert len(result.wavelength) == 64
    assert result.longer_than_context == 29
    assert result.wavelength.max() == pytest.approx(2.56e6, rel=1e-3)
    assert result.wavelength[0] == pytest.approx(2 * math.pi)
    assert result.critical_dimension == 2 * 35
    assert set(result.band) == {"unchanged"}


def test_wavelengths_of_llama_3_1_and_2() -> None:
    scaled = head_scores.wavelengths(llama(500_000.0, Llama3Scaling(factor=8)))
    assert Counter(scaled.band) == {"unchanged": 29, "blended": 6, "divided": 29}
    divided = np.array(scaled.band) == "divided"
    assert scaled.wavelength[divided] == pytest.approx(8 * scaled.unscaled[divided])
    assert head_scores.wavelengths(llama(10_000.0, context=4096)).longer_than_context == 18
    table = scaled.frame()
    assert list(table.columns) == ["pair", "frequency", "wavelength", "unscaled", "turns", "band", "longer"]
    assert table["turns"].to_numpy() == pytest.approx(8192 / scaled.wavelength)


def test_decay_by_hand() -> None:
    """Two pairs: at distance 0 the partial sums are 1 and 2; elsewhere |1| and |e^{ir} + e^{ir theta}|."""
    config = ModelConfig(dim=4, n_layers=1, n_heads=1, n_kv_heads=1, ffn_dim=1, vocab_size=1, rope_theta=100.0)
    result = head_scores.decay(config, distances=[0, 3])
    assert result.bound.tolist() == pytest.approx([1.5, (1 + 2 * abs(math.cos((3 - 0.3) / 2))) / 2])
    assert result.cosine.tolist() == pytest.approx([2, math.cos(3) + math.cos(0.3)])
    assert result.first_negative == 3
    assert head_scores.decay(llama(10_000.0), distances=[0]).bound.item() == pytest.approx(65 / 2)


def test_decay_covers_the_context_once() -> None:
    distances = head_scores.decay(llama(500_000.0)).distance
    assert distances[0] == 0 and distances[-1] == 8191
    assert (np.diff(distances) > 0).all() and len(distances) <= 512


def test_band_scores_by_hand() -> None:
    """q = (1, 0), k = (0, 1): a quarter turn apart, so the score is sin of the angle turned, over sqrt 2."""
    q, k = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double()
    distance = torch.tensor([0, 1, 2])
    result = formulas.band_scores(q, k, distance, torch.tensor([0.5]).double())
    expected = [math.sin(0.5 * r) / math.sqrt(2) for r in (0, 1, 2)]
    assert result.squeeze(-1).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("head", [0, 1, 3])
def test_bands_sum_to_the_models_scores(captured: Capture, layer: int, head: int) -> None:
    result = head_scores.band_contribution(captured, layer, head, row=1)
    assert result.error < 1e-5
    assert result.signed.sum() == pytest.approx(result.score, abs=1e-6)
    assert result.share.sum() == pytest.approx(1)
    assert (result.absolute >= np.abs(result.signed) - 1e-12).all()
    assert result.n_scores == 24 * 25 // 2
    assert len(result.frame()) == 4


def test_bands_agree_with_hugging_face(captured: Capture, reference: Any) -> None:
    """Scores rebuilt pair by pair give, after softmax, the attention that transformers computes."""
    vectors = head_scores.head_vectors(captured, 1, 2)
    freqs = formulas.model_frequencies(captured.config)
    scores = torch.empty(24, 24, dtype=torch.float64)
    for query in range(24):
        parts = formulas.band_scores(vectors.q[query], vectors.k, vectors.distance[query], freqs)
        scores[query] = parts.sum(-1).masked_fill(vectors.distance[query] < 0, -torch.inf)
    assert torch.allclose(scores.softmax(-1).float(), reference.attentions[1][0, 2], atol=1e-5)


def test_scaled_models_are_measured_with_their_own_frequencies(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    scaling = Llama3Scaling(factor=4, original_context=64)
    config = replace(tiny_model.config, rope_scaling=scaling, rope_theta=500.0)
    scaled = Transformer(config)
    scaled.load_state_dict(tiny_model.state_dict())
    with torch.no_grad():
        _, cap = scaled.run_with_capture(tokens, head_scores.HOOKS)
    assert head_scores.band_contribution(cap, 2, 3).error < 1e-5


def test_shift_invariance_grows_with_rounding(captured: Capture) -> None:
    result = head_scores.relative_invariance(captured, 1, 3, shifts=[1, 64, 4096])
    by_name = dict(zip(result.arithmetic, result.largest, strict=True))
    assert by_name["float64"].max() < 1e-11
    assert by_name["float64"].max() < by_name["float32"].max() < by_name["bfloat16"].max()
    assert by_name["float32"].max() < 2e-3 * result.score_size
    assert by_name["bfloat16"].max() < 0.1 * result.score_size
    # Positions themselves in bfloat16 (256, 257 -> 256) lose the distance altogether.
    assert by_name["bfloat16 angles"][-1] > 3 * by_name["bfloat16"].max()
    assert (result.mean <= result.largest).all()
    assert list(result.frame().columns) == ["layer", "head", "arithmetic", "shift", "largest", "mean"]


def test_no_shift_changes_nothing(captured: Capture) -> None:
    assert head_scores.relative_invariance(captured, 0, 0, shifts=[0]).largest.max() == 0


def test_rotated_scores_are_the_models(captured: Capture) -> None:
    vectors = head_scores.head_vectors(captured, 2, 1)
    at, freqs = vectors.positions, formulas.model_frequencies(captured.config)
    own = formulas.rotated_scores(vectors.q, vectors.k, at, at, freqs, dtype=torch.float64, angles=torch.float64)
    assert torch.allclose(own, vectors.score, atol=1e-5)


def test_score_by_distance(captured: Capture) -> None:
    result = head_scores.score_by_distance(captured, 1, 2, skip=1)
    score = head_scores.head_vectors(captured, 1, 2).score
    assert result.count.tolist() == list(range(23, 0, -1))
    at_three = [float(score[i, i - 3]) for i in range(4, 24)]
    assert [result.low[3], result.high[3]] == pytest.approx(np.quantile(at_three, [0.1, 0.9]).tolist())
    assert result.mean[3] == pytest.approx(np.mean(at_three))
    vectors = head_scores.head_vectors(captured, 1, 2)
    freqs = formulas.model_frequencies(captured.config)
    every = formulas.band_scores(vectors.q[1:, None], vectors.k[None, 1:], torch.full((23, 23), 5), freqs).sum(-1)
    assert result.expected[5] == pytest.approx(float(every.mean()))


def test_the_parts_of_all_pairs_sum_to_the_score_at_every_distance(captured: Capture) -> None:
    whole = head_scores.score_by_distance(captured, 1, 2, skip=0)
    parts = [head_scores.score_by_distance(captured, 1, 2, skip=0, pair=pair) for pair in range(4)]
    np.testing.assert_allclose(sum(part.mean for part in parts), whole.mean, atol=1e-6)
    np.testing.assert_allclose(sum(part.expected for part in parts), whole.expected, atol=1e-6)
    for distance in (0, 5, 23):
        bands = head_scores.band_contribution(captured, 1, 2, distance=distance)
        assert bands.n_scores == 24 - distance and bands.score == pytest.approx(whole.mean[distance])
        np.testing.assert_allclose(bands.signed, [part.mean[distance] for part in parts], atol=1e-6)
        assert f"at distance {distance}" in bands.figure().layout.title.text


def test_expected_score_is_exact_for_constant_content(captured: Capture) -> None:
    """With the same q and the same k everywhere, position is all there is: measured and expected coincide."""
    config, n = captured.config, 16
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)).double()
    freqs = formulas.model_frequencies(config)
    at = torch.arange(n)
    args = {"dtype": torch.float64, "angles": torch.float64}
    scores = formulas.rotated_scores(q.expand(n, -1), k.expand(n, -1), at, at, freqs, **args)
    content = formulas.band_scores(q, k, at, freqs).sum(-1)
    for r in range(n):
        assert scores.diagonal(-r).tolist() == pytest.approx([float(content[r])] * (n - r))


def test_what_if(captured: Capture, tiny_model: Transformer) -> None:
    freqs = formulas.model_frequencies(captured.config)
    same = head_scores.what_if(captured, 1, 1, freqs)
    assert same.before == pytest.approx(captured.pattern(1)[0, 1].numpy(), abs=1e-5)
    assert np.abs(same.moved).max() == 0
    other = head_scores.what_if(captured, 1, 1, formulas.what_if_frequencies(captured.config, theta=100.0))
    assert other.after.sum(-1) == pytest.approx(np.ones(24), abs=1e-6)
    assert 0 < other.moved.max() <= 1
    # In the first layer q and k do not depend on RoPE: the prediction is what a model with that theta does.
    changed = Transformer(replace(tiny_model.config, rope_theta=100.0))
    changed.load_state_dict(tiny_model.state_dict())
    with torch.no_grad():
        _, cap = changed.run_with_capture(captured.tokens, "blocks.0.attn.hook_pattern")
    predicted = head_scores.what_if(captured, 0, 2, formulas.what_if_frequencies(captured.config, theta=100.0))
    assert predicted.after == pytest.approx(cap.pattern(0)[0, 2].numpy(), abs=1e-5)


@pytest.mark.parametrize("options", [{"ntk": 4.0}, {"yarn": 4.0}, {"llama3": Llama3Scaling(4, original_context=64)}])
def test_what_if_is_what_the_running_model_does_in_its_first_layer(
    captured: Capture, tiny_model: Transformer, options: dict[str, Any]
) -> None:
    """q and k of layer 0 do not depend on the rotation, so re-scoring them and running under it must agree."""
    scaling = RopeScaling(**options)
    with torch.no_grad(), tiny_model.intervene(scaling):
        _, cap = tiny_model.run_with_capture(captured.tokens, [*head_scores.HOOKS, "blocks.*.attn.hook_pattern"])
    freqs = formulas.what_if_frequencies(captured.config, **options)
    temperature = scaling.rotary(captured.config).temperature
    for head in range(4):
        predicted = head_scores.what_if(captured, 0, head, freqs, temperature=temperature)
        assert predicted.after == pytest.approx(cap.pattern(0)[0, head].numpy(), abs=1e-5)
        assert predicted.moved.max() > 1e-3
    later = head_scores.what_if(captured, 2, 1, freqs, temperature=temperature)
    assert np.abs(later.after - cap.pattern(2)[0, 1].numpy()).max() > 1e-4  # layers below it moved too
    with pytest.raises(HookError, match="under a RopeScaling"):
        head_scores.band_contribution(cap, 0, 0)


def test_what_if_frequencies_match_the_published_rules() -> None:
    config = llama(10_000.0)
    plain = formulas.model_frequencies(config)
    of = formulas.what_if_frequencies
    assert torch.equal(of(config), plain)
    assert torch.allclose(of(config, interpolation=4.0), plain / 4)
    ntk = of(config, ntk=4.0)
    assert ntk[0] == plain[0] and float(plain[-1] / ntk[-1]) == pytest.approx(4)  # by construction, 2306.15595's aim
    llama3 = of(config, llama3=Llama3Scaling(factor=8))
    assert torch.equal(llama3, formulas.model_frequencies(replace(config, rope_scaling=Llama3Scaling(factor=8))))
    with pytest.raises(ConfigError, match="one"):
        of(config, ntk=2.0, interpolation=2.0)
    with pytest.raises(ConfigError, match="at least 1"):
        of(config, ntk=0.5)


def test_narrowed_captures_find_the_right_head(
    tiny_model: Transformer, tokens: torch.Tensor, captured: Capture
) -> None:
    with torch.no_grad():
        _, part = tiny_model.run_with_capture(tokens, head_scores.HOOKS, layers=[1], heads=[3], positions=range(4, 20))
    mine, whole = head_scores.head_vectors(part, 1, 3), head_scores.head_vectors(captured, 1, 3)
    torch.testing.assert_close(mine.score, whole.score[4:20, 4:20], rtol=0, atol=1e-5)
    assert mine.positions.tolist() == list(range(4, 20))
    with pytest.raises(MissingHookError, match="heads 3"):
        head_scores.head_vectors(part, 1, 0)
    with pytest.raises(HookError, match="every position"):
        head_scores.what_if(part, 1, 3, formulas.model_frequencies(part.config))


def test_mistakes_say_what_to_do(captured: Capture) -> None:
    with pytest.raises(ConfigError, match=r"shape \(4,\)"):
        head_scores.what_if(captured, 0, 0, torch.ones(3))
    with pytest.raises(HookError, match="rows 0 to 1"):
        head_scores.band_contribution(captured, 0, 0, row=2)
    with pytest.raises(HookError, match="no key is left"):
        head_scores.score_by_distance(captured, 0, 0, skip=24)
    with pytest.raises(HookError, match="frequency pair 4; the head has pairs 0 to 3"):
        head_scores.score_by_distance(captured, 0, 0, pair=4)
    for distance in (-1, 24):
        with pytest.raises(HookError, match=f"{distance} tokens apart"):
            head_scores.band_contribution(captured, 0, 0, distance=distance)
