"""Rotary position embedding: frequencies, Llama 3.1's scaling, and the two orders of pairs.

Meta rotates adjacent pairs (x0, x1), (x2, x3), ...; Hugging Face rotates (x_i, x_{i + head_dim/2}). The model
works in Meta's order; `to_half_split` and `to_adjacent` are the permutation between the two.
Source: Su et al. 2021 (arXiv 2104.09864); Llama 3.1's reference code for the scaling.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workbench.config import Llama3Scaling


def frequencies(
    head_dim: int,
    theta: float,
    scaling: Llama3Scaling | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Angle by which each pair turns per position.

    Shapes: -> [head_dim / 2]
    Units:  radians per token; the wavelength is 2 pi / frequency tokens.
    Exact:  computed as Meta and Hugging Face do, in `dtype`.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device=device).to(dtype) / head_dim
    freqs = 1.0 / theta**exponents
    return freqs if scaling is None else scale_llama3(freqs, scaling)


def scale_llama3(freqs: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Llama 3.1's scaling: pairs longer than the original context are slowed, short ones kept, a ramp between.

    Shapes: [head_dim / 2] -> [head_dim / 2], radians per token.
    """
    wavelengths = 2 * math.pi / freqs
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = (scaling.original_context / wavelengths - low) / (high - low)
    blended = (1 - smooth) * freqs / scaling.factor + smooth * freqs
    slowed = torch.where(wavelengths > scaling.original_context / low, freqs / scaling.factor, blended)
    return torch.where(wavelengths < scaling.original_context / high, freqs, slowed)


def rotations(positions: Tensor, freqs: Tensor) -> Tensor:
    """Unit complex numbers that turn each pair at each position.

    Shapes: positions [...] int64, freqs [head_dim / 2] float32 -> [..., head_dim / 2] complex64
    """
    angles = positions.to(freqs.dtype).unsqueeze(-1) * freqs
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn adjacent pairs of x by `rotation`, in float32 (or float64), and return x's dtype.

    Shapes: x [batch, pos, head, head_dim], rotation [pos | batch, pos, head_dim / 2] -> as x
    """
    real = torch.float64 if rotation.dtype == torch.complex128 else torch.float32
    pairs = torch.view_as_complex(x.to(real).unflatten(-1, (-1, 2)))  # [batch, pos, head, head_dim / 2]
    turned = pairs * rotation.unsqueeze(-2)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def to_half_split(weight: Tensor, n_heads: int) -> Tensor:
    """Rows of wq or wk from Meta's adjacent pairs to Hugging Face's half split.

    Shapes: [n_heads * head_dim, ...] -> the same
    """
    pairs = weight.unflatten(0, (n_heads, -1, 2))  # [head, head_dim / 2, 2, ...]
    split: Tensor = pairs.transpose(1, 2).reshape(weight.shape)
    return split


def to_adjacent(weight: Tensor, n_heads: int) -> Tensor:
    """Rows of wq or wk from Hugging Face's half split to Meta's adjacent pairs: the inverse of `to_half_split`."""
    halves = weight.unflatten(0, (n_heads, 2, -1))  # [head, 2, head_dim / 2, ...]
    adjacent: Tensor = halves.transpose(1, 2).reshape(weight.shape)
    return adjacent
