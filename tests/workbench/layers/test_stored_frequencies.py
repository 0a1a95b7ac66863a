"""Stored RoPE frequencies: those of the configuration in any dtype agree, others are described."""

import pytest
import torch
from torch import Tensor

from workbench.config import LinearScaling, Llama3Scaling, ModelConfig
from workbench.layers.stored_frequencies import contradiction

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def config(theta: float, scaling: LinearScaling | Llama3Scaling | None = None) -> ModelConfig:
    return ModelConfig(1024, 1, 8, 8, 16, 16, rope_theta=theta, rope_scaling=scaling)


def table(theta: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return (1 / theta ** (torch.arange(0, 128, 2).double() / 128)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0, 1_000_000.0])
def test_rounding_is_no_contradiction(theta: float, dtype: torch.dtype) -> None:
    assert contradiction(table(theta, dtype), config(theta)) is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("stored", "stated"), [(10_000.0, 500_000.0), (500_000.0, 10_000.0), (1e6, 10_000.0)])
def test_another_theta_is_named(stored: float, stated: float, dtype: torch.dtype) -> None:
    text = contradiction(table(stored, dtype), config(stated))
    assert text and f"have theta {stored:,.0f}, the configuration theta {stated:,.0f}; set rope_theta" in text


def test_scaled_tables() -> None:
    """Scaled or not, the table of a scaled model agrees; that of a model without scaling must not be scaled."""
    scaled = config(10_000.0, LinearScaling(4.0))
    assert contradiction(table(10_000.0), scaled) is None and contradiction(table(10_000.0) / 4, scaled) is None
    text = contradiction(table(10_000.0) / 4, config(10_000.0))
    assert text and "theta 10,000, divided by 4 (linear scaling)" in text


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (torch.ones(63), "expected 64 frequencies, found torch.float32 \\[63\\]"),
        (torch.ones(64, dtype=torch.int64), "found torch.int64"),
        (torch.linspace(1, 0.1, 64), "are not those of theta 10,000"),
        (torch.full((64,), float("nan")), "are not those of theta 10,000"),
        (torch.zeros(64), "are not those of theta 10,000"),
    ],
)
def test_other_tables(stored: Tensor, message: str) -> None:
    import re

    assert re.search(message, contradiction(stored, config(10_000.0)) or "")
