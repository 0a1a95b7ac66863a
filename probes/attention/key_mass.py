"""Attention received by each key, and mean maps, for prompts too long to store the full pattern."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd

from probes.base import capture_access
from probes.base.result import Result, frozen, tidy
from workbench.hooks.capture import Capture
from workbench.layers.attention_stats import map_factor

KEY_MASS, MAP = "attn.hook_key_mass", "attn.hook_map"
HOOKS = (f"blocks.*.{KEY_MASS}",)
"""Hooks to capture for `key_mass`."""
MAP_HOOKS = (f"blocks.*.{MAP}",)
"""Hooks to capture for `mean_map`."""


@dataclass(frozen=True)
class KeyMass(Result):
    """Attention that each key of one batch row receives. Arrays are [layer, head, key].

    `mass` is summed over the queries; over all keys of a head it sums to the number of queries. `mean` is the mean
    over the queries that can see the key, so early keys, which more queries see, have no advantage.
    """

    AXES: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(("mass", "mean"), ("layer", "head", "key"))
    FIGURE = "probes.attention.key_mass_figures.key_mass"
    UNITS = "mass is attention summed over queries; mean is per query that sees the key, 0 to 1"

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    mass: np.ndarray
    mean: np.ndarray

    def frame(self) -> pd.DataFrame:
        """One row per head and key: layer, head, key (absolute position), mass, mean."""
        axes = {"layer": self.layers, "head": self.heads, "key": range(self.mass.shape[-1])}
        return tidy(axes, {"mass": self.mass, "mean": self.mean})


def key_mass(cap: Capture, *, row: int = 0) -> KeyMass:
    """Attention that each key receives, without storing patterns: shows sinks and other tokens with much attention.

    Shapes: hook_key_mass [layer, batch, head, key_pos] -> [layer, head, key]
    Units:  probability summed over queries, and its mean over the captured queries that see the key (NaN for none).
    Raises: MissingHookError if `hook_key_mass` was not captured for any layer; HookError for left-padded rows.
    Source: arXiv 2309.17453 (sinks); 2306.14048 (accumulated attention).
    """
    capture_access.unpadded(cap)
    layers, row = capture_access.layers(cap, KEY_MASS), capture_access.row_of(cap, row)
    mass = frozen(cap.stack(KEY_MASS)[:, row])
    queries = capture_access.positions(cap).numpy()
    seen_by = (queries[:, None] >= np.arange(mass.shape[-1])).sum(0)
    mean = np.where(seen_by > 0, mass / np.maximum(seen_by, 1), np.nan)
    return KeyMass(layers, capture_access.heads(cap), mass, frozen(mean, np.float32))


@dataclass(frozen=True)
class MeanMap(Result):
    """One head's attention over a whole prompt, NaN after the query.

    `weights` is [query_tile, key_tile]: the sum over `factor` keys, as the mean over `factor` queries.
    """

    AXES: ClassVar[Mapping[str, tuple[str, ...]]] = {"weights": ("query_tile", "key_tile")}
    FIGURE = "probes.attention.key_mass_figures.mean_map"
    UNITS = "attention, 0 to 1, on a whole tile of keys"

    layer: int
    head: int
    factor: int
    weights: np.ndarray

    def frame(self) -> pd.DataFrame:
        """One row per cell on or below the diagonal: layer, head, query, key (first positions), weight."""
        query, key = np.nonzero(~np.isnan(self.weights))
        columns = {"query": query * self.factor, "key": key * self.factor, "weight": self.weights[query, key]}
        return pd.DataFrame({"layer": self.layer, "head": self.head, **columns})


def mean_map(cap: Capture, layer: int, head: int, *, row: int = 0) -> MeanMap:
    """One head's pattern for a prompt of any length, at most 256 cells per side.

    `head_map.head_map` shows the largest weight of a tile, which keeps thin lines visible. Here each row sums to 1,
    which shows attention that is spread over many keys.
    Shapes: hook_map [batch, head, query_tile, key_tile] -> [query_tile, key_tile]
    Units:  probability.
    Raises: MissingHookError for a layer or head that was not captured; HookError for left-padded rows or a capture
            that does not have all positions.
    """
    capture_access.unpadded(cap)
    capture_access.whole(cap, "A head's map")
    index, _ = capture_access.head_index(cap, head)
    weights = frozen(cap[f"blocks.{layer}.{MAP}"][capture_access.row_of(cap, row), index])
    future = np.triu(np.ones(weights.shape, bool), 1)
    return MeanMap(layer, head, map_factor(cap.tokens.shape[1]), frozen(np.where(future, np.nan, weights)))
