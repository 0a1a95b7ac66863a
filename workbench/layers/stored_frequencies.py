"""Compares RoPE frequencies that a checkpoint stores (`rope.freqs`, `inv_freq`) with those of its configuration."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workbench.config import ModelConfig
from workbench.layers.rope import frequencies

# Half floats have 8 or 11 bits, and float16 nothing below 6e-8.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_COARSE, _SMALLEST = 1e-2, 1e-7


def contradiction(stored: Tensor, config: ModelConfig) -> str | None:
    """What is wrong with stored frequencies, as the end of a sentence; None if they are the configuration's.

    Frequencies before scaling agree too: old files of linearly scaled models store them.
    Shapes: stored [head_dim / 2], any floating dtype
    """
    pairs = config.head_dim // 2
    if tuple(stored.shape) != (pairs,) or not stored.is_floating_point():
        return f"expected {pairs} frequencies, found {stored.dtype} {list(stored.shape)}"
    values = stored.double()
    tolerance = _TOLERANCE.get(stored.dtype, _COARSE)

    def agrees(computed: Tensor) -> bool:
        return torch.allclose(values, computed, rtol=tolerance, atol=_SMALLEST if tolerance == _COARSE else 0.0)

    plain = frequencies(config.head_dim, config.rope_theta, dtype=torch.float64)
    scaled = frequencies(config.head_dim, config.rope_theta, config.rope_scaling, dtype=torch.float64)
    if agrees(plain) or agrees(scaled):
        return None
    factor = 1 / float(values[0]) if values[0] > 0 else math.inf
    theta = _theta(values * factor) if math.isfinite(factor) else None
    if theta is None or not agrees(frequencies(config.head_dim, theta, dtype=torch.float64) / factor):
        return f"the stored frequencies are not those of theta {config.rope_theta:,.0f}, which the configuration gives"
    divided = "" if abs(factor - 1) < tolerance else f", divided by {factor:.4g} (linear scaling)"
    return (
        f"the stored frequencies have theta {_round(theta, tolerance):,.0f}{divided}, the configuration theta "
        f"{config.rope_theta:,.0f}; set rope_theta, or remove the stored tensor"
    )


def _theta(values: Tensor) -> float | None:
    """Theta of unscaled frequencies; None if one pair is all, or it is not positive."""
    pairs = len(values)
    pair = -(-3 * (pairs - 1) // 4)  # the last ones may be too small for float16
    if pair < 1 or not 0 < values[pair] < math.inf:
        return None
    theta = math.exp(min(-pairs / pair * math.log(float(values[pair])), 100.0))
    return theta if theta < 1e30 else None


def _round(theta: float, tolerance: float) -> float:
    """Theta to the digits that the stored dtype can show."""
    return float(f"{theta:.2g}" if tolerance == _COARSE else f"{theta:.4g}")
