"""Rotation sensitivity: how much each head's pattern would change under another rotation.

`probes.rope.head_scores.what_if` computes one head; this module summarises all layers and heads.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor

from probes.base import capture_access
from probes.base.result import Result, frozen, tidy
from probes.rope.head_scores import HOOKS, what_if
from workbench.hooks.capture import Capture

__all__ = ["HOOKS", "RotationSensitivity", "what_if_heads"]


@dataclass(frozen=True)
class RotationSensitivity(Result):
    """How much of each head's attention would go to other keys under another rotation. Arrays are [layer, head].

    `moved` is the total variation distance between the two patterns, from 0 to 1, as the mean over queries and batch
    rows. `low` and `high` are its 10% and 90% quantiles over queries and rows.
    """

    AXES = {"moved": ("layer", "head"), "low": ("layer", "head"), "high": ("layer", "head")}
    FIGURE = "probes.rope.figures.rotation_sensitivity"
    UNITS = "total variation distance (share of attention that goes to other keys), 0 to 1"

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    moved: np.ndarray
    low: np.ndarray
    high: np.ndarray
    group_size: int = 1  # query heads that share a key/value head

    def frame(self) -> pd.DataFrame:
        """One row per head: layer, head, moved, low, high."""
        axes = {"layer": self.layers, "head": self.heads}
        return tidy(axes, {name: getattr(self, name) for name in ("moved", "low", "high")})


def what_if_heads(cap: Capture, freqs: Tensor, *, temperature: float | None = None) -> RotationSensitivity:
    """`what_if` of each captured head: how much another theta or scaling would change its pattern.

    Each head uses the q and k that the model's own rotation produced in earlier layers.
    Shapes: hook_q, hook_k [batch, pos, head, head_dim], freqs [pair] -> [layer, head]; the first query, which can
            only look at itself, is left out if there are others
    Units:  a share of attention, between 0 and 1.
    Raises: as `what_if`.
    Source: arXiv 2306.15595, 2309.00071 for the other rotations.
    Exact:  0 for the model's own frequencies.
    """
    layers, heads = capture_access.layers(cap, "attn.hook_q"), capture_access.heads(cap)
    rows = range(cap.tokens.shape[0])
    skip = int(cap.tokens.shape[1] > 1)
    moved = np.array(
        [
            [
                np.concatenate(
                    [what_if(cap, layer, head, freqs, temperature=temperature, row=row).moved[skip:] for row in rows]
                )
                for head in heads
            ]
            for layer in layers
        ]
    )  # [layer, head, batch * query]
    low, high = np.quantile(moved, [0.1, 0.9], axis=-1)
    return RotationSensitivity(layers, heads, frozen(moved.mean(-1)), frozen(low), frozen(high), cap.config.group_size)
