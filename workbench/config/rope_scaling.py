"""RoPE scalings that a checkpoint can state: values only; `workbench.layers.rope` computes the frequencies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.errors import ConfigError

# Context of the published Llama 3: 8,192 tokens; with scaled RoPE (3.1 and later) 131,072.
PLAIN_CONTEXT, SCALED_CONTEXT = 8_192, 131_072


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's RoPE scaling: low frequencies are divided by `factor`, high ones kept, with a ramp between."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = PLAIN_CONTEXT

    def __post_init__(self) -> None:
        if self.factor < 1 or self.original_context < 1 or self.low_freq_factor <= 0:
            raise ConfigError(f"RoPE scaling needs factor >= 1 and positive bounds, found {self}.")
        if self.high_freq_factor <= self.low_freq_factor:
            raise ConfigError(
                f"RoPE scaling needs high_freq_factor > low_freq_factor, "
                f"found {self.high_freq_factor} and {self.low_freq_factor}."
            )


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation: every frequency is divided by `factor` (arXiv 2306.15595)."""

    factor: float

    def __post_init__(self) -> None:
        if not 0 < self.factor < math.inf:
            raise ConfigError(f"linear RoPE scaling needs a positive factor, found {self.factor}.")


@dataclass(frozen=True)
class YarnScaling:
    """YaRN: pairs with fewer than `beta_slow` turns in the original context are slowed by `factor`, fast ones kept.

    The ramp between ends at `beta_fast` turns; with `truncate` its ends are rounded to whole pairs. `attention_factor`
    multiplies rotated q and k, each; None is YaRN's own, 0.1 ln(factor) + 1.
    Source: arXiv 2309.00071; transformers' `modeling_rope_utils`.
    """

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.attention_factor is None:
            object.__setattr__(self, "attention_factor", yarn_attention_factor(self.factor))
        assert self.attention_factor is not None
        numbers = (self.factor, self.original_context, self.beta_fast, self.beta_slow, self.attention_factor)
        if not all(0 < number < math.inf for number in numbers):
            raise ConfigError(f"YaRN needs positive numbers, found {self}.")
        if self.beta_fast < self.beta_slow:
            raise ConfigError(f"YaRN needs beta_fast >= beta_slow, found {self.beta_fast} and {self.beta_slow}.")


Scaling = Llama3Scaling | LinearScaling | YarnScaling


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """YaRN's factor for rotated q and k: 0.1 m ln(factor) + 1; 1 for a factor of at most 1."""
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def scaling_from_fields(fields: Mapping[str, Any]) -> Scaling:
    """The scaling with these fields, as `dataclasses.asdict` gives them."""
    kind = YarnScaling if "beta_fast" in fields else Llama3Scaling if "low_freq_factor" in fields else LinearScaling
    return kind(**fields)
