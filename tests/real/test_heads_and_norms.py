"""Probes find what is known of the real model: its massive activation, sinks, induction and previous-token heads.

The model puts no begin token before a text, so a text's first token is its sink.
"""

import pytest
import torch

from probes.attention import head_types
from probes.norms import rms_norms
from workbench.model import Transformer

pytestmark = pytest.mark.real

TEXTS = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Once upon a time there was a little girl who lived in a village near the forest.",
    "def add(a, b):\n    return a + b\n",
    "Water boils at 100 degrees Celsius at sea level, and freezes at 0 degrees.",
)


def ids_of(model: Transformer, text: str) -> list[int]:
    assert model.tokenizer is not None and not model.tokenizer.adds_bos
    ids = model.tokenizer.encode(text, bos=True)
    assert ids[0] not in model.tokenizer.special_tokens.values()
    return ids


@pytest.mark.parametrize("text", TEXTS)
def test_one_massive_activation_at_the_first_token(model: Transformer, text: str) -> None:
    with torch.no_grad():
        _, cap = model.run_with_capture(torch.tensor([ids_of(model, text)]), rms_norms.HOOKS)
    table = rms_norms.massive_activations(cap).frame()
    first = table[(table.dim == 507) & (table.pos == 0)]
    assert first.layer.tolist() == list(range(11, 28))
    assert first.value.between(20_000, 25_500).all()
    rest = table.drop(first.index)
    assert (rest.value.abs() < 5_000).all()
    outliers = rms_norms.outlier_dimensions(cap).frame()
    assert outliers.iloc[0].dim == 507 and outliers.iloc[0].outlier


@pytest.mark.slow
def test_head_catalogue(model: Transformer) -> None:
    text_scores = head_types.text_scores(model, [ids_of(model, text) for text in TEXTS])
    result = head_types.catalogue(head_types.repeat_scores(model, batch=2), text_scores)
    assert result.is_type("sink").shape == (30, 9)
    assert 205 <= len(result.of("sink")) <= 240
    previous, induction = result.of("previous"), result.of("induction")
    assert previous[0] == (16, 0) and 0.7 < result.mean["previous"][16, 0] < 0.95
    assert induction[0] == (18, 6) and 0.8 < result.mean["induction"][18, 6] < 0.92
    assert {(18, 6), (17, 3), (17, 4), (17, 5), (18, 7)} <= set(induction)
    assert min(layer for layer, _ in induction) > previous[0][0], "induction heads read what L16H0 wrote"
