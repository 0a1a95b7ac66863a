"""RoPE probes of models that were trained with linear scaling or YaRN, whose temperature is part of the scores."""

from dataclasses import replace

import pytest
import torch

import workbench as wb
from probes.rope import formulas, head_scores, what_if_heads

TOKENS = torch.randint(0, 96, (1, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[wb.LinearScaling(4.0), wb.YarnScaling(4.0, original_context=64, attention_factor=1.5)], ids=str)
def captured(request: pytest.FixtureRequest, tiny_model: wb.Transformer) -> wb.Capture:
    model = wb.Transformer(replace(tiny_model.config, rope_scaling=request.param))
    model.load_state_dict(tiny_model.state_dict())
    with torch.no_grad():
        return model.eval().run_with_capture(TOKENS, [*head_scores.HOOKS, "blocks.*.attn.hook_pattern"])[1]


def test_bands_sum_to_the_models_scores(captured: wb.Capture) -> None:
    bands = head_scores.band_contribution(captured, 1, 2)
    assert bands.error < 1e-4 and abs(bands.signed.sum() - bands.score) < 1e-5


def test_scores_at_their_own_distance_are_expected(captured: wb.Capture) -> None:
    """The first key and the first query alone: one pair of vectors, whose expected score is its score."""
    shown = head_scores.score_by_distance(captured, 0, 1, skip=19)
    assert shown.expected.tolist() == pytest.approx(shown.mean.tolist(), abs=1e-5)


def test_the_models_own_rotation_changes_nothing(captured: wb.Capture) -> None:
    own = formulas.model_frequencies(captured.config)
    same = head_scores.what_if(captured, 1, 2, own)
    assert same.moved.max() == 0
    pattern = captured["blocks.1.attn.hook_pattern"][0, 2]
    assert torch.allclose(torch.tensor(same.before).float(), pattern, atol=1e-5)
    assert what_if_heads.what_if_heads(captured, own).moved.max() == 0


def test_wavelengths_and_bands(captured: wb.Capture) -> None:
    waves = formulas.wavelengths(captured.config)
    ratio = waves.wavelength / waves.unscaled
    assert ratio.max() == pytest.approx(4.0) and ratio.min() >= 1
    linear = isinstance(captured.config.rope_scaling, wb.LinearScaling)
    assert ("unchanged" in waves.band) == (not linear) and "divided" in waves.band
