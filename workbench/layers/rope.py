"""Rotary position embedding: frequencies, context-extension methods, and the two orders of pairs.

Meta rotates adjacent pairs (x0, x1), (x2, x3), ...; Hugging Face rotates (x_i, x_{i + head_dim/2}). The model
works in Meta's order; `to_half_split` and `to_adjacent` are the permutation between the two.
Source: Su et al. 2021 (arXiv 2104.09864); Llama 3.1's reference code for the scaling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.config import LinearScaling, Llama3Scaling, ModelConfig, Scaling, YarnScaling
from workbench.config.rope_scaling import yarn_attention_factor
from workbench.errors import ConfigError


def frequencies(
    head_dim: int,
    theta: float,
    scaling: Scaling | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Rotation angle of each pair per position.

    Shapes: -> [head_dim / 2]
    Units:  radians per token; the wavelength is 2 pi / frequency tokens.
    Exact:  computed as Meta and Hugging Face do, in `dtype`.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device=device).to(dtype) / head_dim
    freqs = 1.0 / theta**exponents
    # Blending a frequency with itself would round it; factor 1 changes nothing.
    if scaling is None or scaling.factor == 1:
        return freqs
    if isinstance(scaling, LinearScaling):
        return freqs / scaling.factor
    return scale_yarn(freqs, theta, scaling) if isinstance(scaling, YarnScaling) else scale_llama3(freqs, scaling)


def temperature(scaling: Scaling | None) -> float:
    """Factor by which a model with this scaling multiplies rotated q and k, each; 1 except for YaRN."""
    if not isinstance(scaling, YarnScaling):
        return 1.0
    assert scaling.attention_factor is not None
    return scaling.attention_factor


def scale_llama3(freqs: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Llama 3.1's scaling: long wavelengths are divided by the factor, short ones kept, with a ramp between.

    Shapes: [head_dim / 2] -> [head_dim / 2], radians per token.
    """
    wavelengths = 2 * math.pi / freqs
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = (scaling.original_context / wavelengths - low) / (high - low)
    blended = (1 - smooth) * freqs / scaling.factor + smooth * freqs
    slowed = torch.where(wavelengths > scaling.original_context / low, freqs / scaling.factor, blended)
    return torch.where(wavelengths < scaling.original_context / high, freqs, slowed)


def scale_yarn(freqs: Tensor, theta: float, scaling: YarnScaling) -> Tensor:
    """YaRN's scaling: slow pairs are divided by the factor, fast ones kept, with a ramp over pair indices between.

    Shapes: [head_dim / 2] -> [head_dim / 2], radians per token.
    Source: arXiv 2309.00071; ends and rounding of the ramp as in transformers.
    """
    dim = 2 * len(freqs)

    def pair_with(turns: float) -> float:
        """The index of the pair that makes this many turns in the original context."""
        return dim * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0.0), min(high, dim - 1.0)
    ramp = (torch.arange(dim // 2, dtype=torch.float64, device=freqs.device) - low) / ((high - low) or 1e-3)
    return torch.lerp(freqs, freqs / scaling.factor, ramp.clamp(0, 1).to(freqs.dtype))


def what_if_frequencies(
    config: ModelConfig,
    *,
    theta: float | None = None,
    llama3: Llama3Scaling | None = None,
    interpolation: float | None = None,
    ntk: float | None = None,
    yarn: float | None = None,
    truncate: bool = True,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The frequencies of a model with another theta, or another context-extension method.

    At most one scaling, which replaces the model's own; `theta` alone keeps the model's own scaling. `interpolation`,
    `ntk` and `yarn` are context-extension factors. YaRN also needs `yarn_temperature`; `truncate` rounds the ends of
    its ramp to whole pairs, as its published code and transformers do unless a configuration says otherwise.
    Shapes: -> [pair], radians per token
    Raises: ConfigError for more than one scaling, or a factor below 1.
    Source: position interpolation arXiv 2306.15595; NTK-aware theta s^(d / (d - 2)) and YaRN arXiv 2309.00071, whose
            ramp is over pair indices between 32 and 1 rotations: `scale_yarn`; Llama 3.1.
    Exact:  in float32, a factor of 1 gives the frequencies of an unscaled model, bit for bit.
    """
    factors = {"interpolation": interpolation, "ntk": ntk, "yarn": yarn}
    requested = [name for name, factor in {**factors, "llama3": llama3}.items() if factor is not None]
    if len(requested) > 1:
        raise ConfigError(f"choose one scaling, found {' and '.join(requested)}.")
    for name, factor in factors.items():
        if factor is not None and not 1 <= factor < math.inf:
            raise ConfigError(f"{name} is a context-extension factor and must be at least 1, found {factor}.")
    dim, theta = config.head_dim, config.rope_theta if theta is None else theta
    if not 0 < theta < math.inf:
        raise ConfigError(f"theta must be positive, found {theta}.")
    if not requested or llama3 is not None:
        return frequencies(dim, theta, llama3 or config.rope_scaling, dtype=dtype)
    plain = frequencies(dim, theta, dtype=dtype)
    if interpolation is not None:
        return plain / interpolation
    if ntk is not None:
        # A single pair (dim 2) would give a division by 0.
        return frequencies(dim, theta * ntk ** (dim / max(dim - 2, 1)), dtype=dtype)
    assert yarn is not None
    if theta <= 1:
        raise ConfigError(f"YaRN needs theta > 1, found {theta}.")
    return scale_yarn(plain, theta, YarnScaling(yarn, config.original_context, truncate=truncate))


def yarn_temperature(factor: float) -> float:
    """Factor by which YaRN multiplies rotated q and k, each: 0.1 ln s + 1 (arXiv 2309.00071)."""
    return yarn_attention_factor(factor)


@dataclass(frozen=True)
class Rotary:
    """Rotary embedding of a run: each pair's angle per token, and a factor for rotated q and k.

    Shapes: frequencies [head_dim / 2]
    """

    frequencies: Tensor
    temperature: float = 1.0

    def rotations(self, positions: Tensor) -> Tensor:
        """As the module's `rotations`, times the temperature."""
        unscaled = rotations(positions, self.frequencies.to(positions.device))
        return unscaled if self.temperature == 1 else unscaled * self.temperature


def rotations(positions: Tensor, freqs: Tensor) -> Tensor:
    """Unit complex numbers that rotate each pair at each position.

    Shapes: positions [...] int64, freqs [head_dim / 2] float32 -> [..., head_dim / 2] complex64
    """
    angles = positions.to(freqs.dtype).unsqueeze(-1) * freqs
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate adjacent pairs of x by `rotation`, in float32 (or float64), and return x's dtype.

    Shapes: x [batch, pos, head, head_dim], rotation [pos | batch, pos, head_dim / 2] -> as x
    """
    real = torch.float64 if rotation.dtype == torch.complex128 else torch.float32
    pairs = torch.view_as_complex(x.to(real).reshape(*x.shape[:-1], -1, 2))  # [batch, pos, head, head_dim / 2]
    rotated = pairs * rotation.unsqueeze(-2)
    return torch.view_as_real(rotated).flatten(-2).to(x.dtype)


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
