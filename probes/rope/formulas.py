"""Formulas of rotary position embedding, for frequencies and for vectors. Does not use captures.

The score of a query at position i and a key at j is a sum over frequency pairs m of
head_dim^-1/2 * Re[q_m conj(k_m) e^{i (i - j) theta_m}], with q and k before rotation and pairs adjacent as in Meta's
weights. Everything here follows from that formula. `workbench.layers.rope` computes the frequencies, for the model's
rotation and all others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.base.result import Result, frozen
from workbench.config import ModelConfig
from workbench.layers import rope
from workbench.layers.rope import frequencies, what_if_frequencies, yarn_temperature

__all__ = [
    "Decay",
    "Wavelengths",
    "as_pairs",
    "band_scores",
    "decay",
    "evenly_spaced",
    "model_frequencies",
    "model_temperature",
    "rotated_scores",
    "log_spaced",
    "wavelengths",
    "what_if_frequencies",
    "yarn_temperature",
]

# --- frequencies ----------------------------------------------------------------------------------------------


def model_frequencies(config: ModelConfig, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Angle per token of each pair, with the model's own theta and scaling.

    Shapes: -> [pair], radians per token
    """
    return frequencies(config.head_dim, config.rope_theta, config.rope_scaling, dtype=dtype)


def model_temperature(config: ModelConfig) -> float:
    """Factor by which the model multiplies rotated q and k, each: 1, except for a model that was trained with YaRN."""
    return rope.temperature(config.rope_scaling)


@dataclass(frozen=True)
class Wavelengths(Result):
    """Frequency and wavelength of each pair. Arrays are [pair], fastest first."""

    AXES = {"frequency": ("pair",), "wavelength": ("pair",), "unscaled": ("pair",)}
    FIGURE = "probes.rope.figures.wavelengths"
    UNITS = "frequency in radians per token, wavelengths in tokens"

    frequency: np.ndarray  # radians per token
    wavelength: np.ndarray  # tokens per turn
    unscaled: np.ndarray  # tokens per turn before any scaling
    band: tuple[str, ...]  # "unchanged", "blended" or "divided"
    context: int

    @property
    def longer_than_context(self) -> int:
        """Pairs that never complete a turn within the context."""
        return int((self.wavelength > self.context).sum())

    @property
    def critical_dimension(self) -> int:
        """Dimensions of the head whose pairs complete a turn within the context (arXiv 2310.05209)."""
        return 2 * int((self.wavelength <= self.context).sum())

    def frame(self) -> pd.DataFrame:
        """One row per pair: pair, frequency, wavelength, unscaled, turns (in the context), band, longer."""
        return pd.DataFrame(
            {
                "pair": np.arange(len(self.wavelength)),
                "frequency": self.frequency,
                "wavelength": self.wavelength,
                "unscaled": self.unscaled,
                "turns": self.context / self.wavelength,
                "band": self.band,
                "longer": self.wavelength > self.context,
            }
        )


def wavelengths(config: ModelConfig, *, context: int | None = None) -> Wavelengths:
    """Wavelength of each pair, compared with a context length (default: the model's own).

    Shapes: -> [pair]
    Units:  tokens; lambda_m = 2 pi theta^(2m / head_dim), made longer by the scaling if there is one.
    Source: arXiv 2310.05209; Llama 3.1's `use_scaled_rope`.
    """
    frequency = model_frequencies(config)
    plain = model_frequencies(replace(config, rope_scaling=None))
    ratios = plain / frequency  # 1 if unchanged, `factor` if fully divided
    factor = config.rope_scaling.factor if config.rope_scaling else 1.0
    band = tuple(
        "unchanged" if ratio < 1 + 1e-9 else "divided" if ratio > factor * (1 - 1e-9) else "blended"
        for ratio in ratios.tolist()
    )
    two_pi = 2 * math.pi
    return Wavelengths(
        frozen(frequency),
        frozen(two_pi / frequency),
        frozen(two_pi / plain),
        band,
        config.max_seq_len if context is None else context,
    )


@dataclass(frozen=True)
class Decay(Result):
    """How the score of identical vectors decreases with distance, by position alone. Arrays are [distance]."""

    AXES = {"distance": ("distance",), "bound": ("distance",), "cosine": ("distance",)}
    FIGURE = "probes.rope.figures.decay"
    UNITS = "distance in tokens; sums over frequency pairs"

    distance: np.ndarray
    bound: np.ndarray  # (2 / head_dim) sum_j |sum_{m < j} e^{i r theta_m}|
    cosine: np.ndarray  # sum_m cos(r theta_m)

    @property
    def first_negative(self) -> int | None:
        """The first distance at which an identical key scores below a random one: sum_m cos < 0 (arXiv 2405.14591)."""
        below = np.flatnonzero(self.cosine < 0)
        return int(self.distance[below[0]]) if len(below) else None

    def frame(self) -> pd.DataFrame:
        """One row per distance: distance, bound, cosine."""
        return pd.DataFrame({"distance": self.distance, "bound": self.bound, "cosine": self.cosine})


def decay(config: ModelConfig, *, distances: Sequence[int] | None = None) -> Decay:
    """RoPE's decay curves: Su et al.'s bound, and the sum of cosines that limits the usable context.

    Shapes: distances [distance] -> [distance]; default: at most 512, log-spaced over the model's context
    Units:  distance in tokens; bound and cosine are sums over pairs, bound = (head_dim / 2 + 1) / 2 at distance 0.
    Source: arXiv 2104.09864 section 3.4.3; 2405.14591.
    """
    if distances is None:
        distances = log_spaced(config.max_seq_len)
    steps = torch.tensor(list(distances), dtype=torch.float64)
    angles = steps.unsqueeze(-1) * model_frequencies(config)  # [distance, pair]
    partial = torch.polar(torch.ones_like(angles), angles).cumsum(-1)
    return Decay(
        frozen(steps, np.int64),
        frozen(partial.abs().mean(-1)),
        frozen(angles.cos().sum(-1)),
    )


def log_spaced(context: int, count: int = 512) -> list[int]:
    """At most `count` distances from 0 to below `context`: all small ones, then log-spaced."""
    steps = np.unique(np.geomspace(1, context, count).round().astype(int)) - 1
    return [int(step) for step in steps]


# --- q and k --------------------------------------------------------------------------------------------------


def as_pairs(x: Tensor) -> Tensor:
    """Adjacent pairs as complex numbers.

    Shapes: [..., head_dim] -> [..., pair] complex
    """
    return torch.view_as_complex(x.contiguous().unflatten(-1, (-1, 2)))


def band_scores(q: Tensor, k: Tensor, distance: Tensor, freqs: Tensor) -> Tensor:
    """Contribution of each frequency pair to the attention score of un-rotated q and k at a distance.

    Shapes: q, k [..., head_dim], distance [...], freqs [pair] -> [..., pair]; they broadcast
    Exact:  the sum over pairs is the model's scaled score.
    Source: arXiv 2410.06205, 2502.01563.
    """
    angles = distance.to(freqs.dtype).unsqueeze(-1) * freqs
    rotation = torch.polar(torch.ones_like(angles), angles)
    return (as_pairs(q) * as_pairs(k).conj() * rotation).real / math.sqrt(q.shape[-1])


def rotated_scores(
    q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor, freqs: Tensor, *, dtype: torch.dtype, angles: torch.dtype
) -> Tensor:
    """Scores as a model computes them: q and k rotated at their absolute positions, then the scaled dot product.

    The rotated vectors are rounded to `dtype`. The dot product accumulates in float32 or wider, as kernels do.
    Shapes: q [query_pos, head_dim], k [key_pos, head_dim], positions [query_pos], [key_pos], freqs [pair]
            -> [query_pos, key_pos] float64 or float32
    """
    wide = torch.promote_types(dtype, torch.float32)

    def rotated(x: Tensor, positions: Tensor) -> Tensor:
        angle = positions.to(angles).unsqueeze(-1) * freqs.to(angles)  # [pos, pair]
        cos, sin = angle.cos().to(wide), angle.sin().to(wide)
        even, odd = x.to(dtype).to(wide).unflatten(-1, (-1, 2)).unbind(-1)  # [pos, pair]
        pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
        return pairs.flatten(-2).to(dtype).to(wide)

    return rotated(q, q_pos) @ rotated(k, k_pos).T / math.sqrt(q.shape[-1])


def evenly_spaced(n: int, count: int) -> list[int]:
    """At most `count` evenly spaced indices below n, including the first and the last."""
    if count >= n:
        return list(range(n))
    return np.unique(np.linspace(0, n - 1, count).round().astype(int)).tolist()
