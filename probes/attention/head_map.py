"""Head map: one head's pattern, limited to a window and pooled so that it is small enough to draw."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from probes.attention.head_metrics import HOOKS, pattern_blocks
from probes.base import arguments, capture_access
from probes.base.result import Result, frozen
from workbench.errors import HookError
from workbench.hooks.capture import Capture

__all__ = ["HOOKS", "MAX_CELLS", "HeadMap", "StrongestKeys", "head_map", "pool", "strongest_keys"]

MAX_CELLS = 448
"""Largest side of a map: as a figure's JSON, 448 x 448 float32 weights and their labels stay under 1.5 MB."""


@dataclass(frozen=True)
class HeadMap(Result):
    """Attention weights of one head over a window of positions, NaN after the query.

    `weights` is [query_tile, key_tile]: each cell is the largest weight of `factor` x `factor` positions.
    """

    AXES = {"weights": ("query_tile", "key_tile")}
    FIGURE = "probes.attention.map_figures.head_map"
    UNITS = "attention, 0 to 1"

    layer: int
    head: int
    start: int
    stop: int
    factor: int
    weights: np.ndarray

    @property
    def pooling(self) -> str:
        """Description of the pooling for the title; empty if the map is not pooled."""
        return f"largest of {self.factor} x {self.factor} positions" if self.factor > 1 else ""

    def labels(self, tokens: Sequence[str]) -> list[str]:
        """A label for each row and column; for a pooled map, the first and last position of the tile.

        Shapes: tokens [pos], one for each position from 0 -> [tile]
        """
        assert len(tokens) >= self.stop, "one label for every position"
        if self.factor == 1:
            return list(tokens[self.start : self.stop])
        firsts = range(self.start, self.stop, self.factor)
        return [f"{first}–{min(first + self.factor, self.stop) - 1}" for first in firsts]

    def frame(self) -> pd.DataFrame:
        """One row per cell on or below the diagonal: layer, head, query, key (first positions), weight."""
        query, key = np.nonzero(~np.isnan(self.weights))
        return pd.DataFrame(
            {
                "layer": self.layer,
                "head": self.head,
                "query": self.start + query * self.factor,
                "key": self.start + key * self.factor,
                "weight": self.weights[query, key],
            }
        )


def pool(values: np.ndarray, factor: int, *, magnitude: bool = False) -> np.ndarray:
    """Maximum of each factor x factor tile, ignoring NaN. With `magnitude`, the value with the largest magnitude.

    Shapes: [rows, columns] -> [ceil(rows / factor), ceil(columns / factor)]
    """
    if factor == 1:
        return values
    pad = [(0, -size % factor) for size in values.shape]
    padded = np.pad(values, pad, constant_values=np.nan)
    rows, columns = (size // factor for size in padded.shape)
    tiles = padded.reshape(rows, factor, columns, factor).swapaxes(1, 2).reshape(rows, columns, factor * factor)
    if not magnitude:
        return np.fmax.reduce(tiles, -1)
    strongest = np.where(np.isnan(tiles), -1, np.abs(tiles)).argmax(-1)
    return np.take_along_axis(tiles, strongest[..., None], -1)[..., 0]


def head_map(
    cap: Capture,
    layer: int,
    head: int,
    *,
    row: int = 0,
    window: tuple[int, int] | None = None,
    max_cells: int = MAX_CELLS,
) -> HeadMap:
    """One head's pattern for positions start to stop, pooled to at most `max_cells` per side.

    Computed in blocks of queries, so memory does not grow with the square of the prompt length.
    Shapes: hook_pattern [batch, head, query_pos, key_pos] -> [query_tile, key_tile]
    Units:  probability; rows of an unpooled map over the whole prompt sum to 1.
    Raises: MissingHookError for a layer or head that was not captured; HookError for an empty window, left-padded rows
            or a capture that does not have all positions.
    """
    arguments.at_least(1, max_cells=max_cells)
    capture_access.unpadded(cap)
    capture_access.whole(cap, "A head's map")
    length = cap.tokens.shape[1]
    start, stop = (0, length) if window is None else window
    if not 0 <= start < stop <= length:
        raise HookError(f"the window must be within 0 to {length} and not empty; found {start} to {stop}.")
    row = capture_access.row_of(cap, row)
    factor = -(-(stop - start) // max_cells)
    parts: list[np.ndarray] = []
    pending = np.empty((0, stop - start), np.float32)  # rows that do not fill a tile yet
    for queries, pattern in pattern_blocks(cap, layer, heads=(head,), queries=range(start, stop)):
        keys = torch.arange(start, stop, device=queries.device)
        future = keys > queries.unsqueeze(-1)
        rows = pattern[row, 0, :, start:stop].masked_fill(future, torch.nan).cpu().numpy()
        pending = np.concatenate([pending, rows])
        full = len(pending) // factor * factor
        parts.append(pool(pending[:full], factor))
        pending = pending[full:]
    if len(pending):
        parts.append(pool(pending, factor))
    return HeadMap(layer, head, start, stop, factor, frozen(np.concatenate(parts)))


@dataclass(frozen=True)
class StrongestKeys(Result):
    """Keys with the largest attention weights for one query of one head. Arrays are [rank], strongest first."""

    AXES = {"keys": ("rank",), "weights": ("rank",)}
    FIGURE = "probes.attention.figures.strongest_keys"
    UNITS = "attention, 0 to 1; distance in tokens"

    layer: int
    head: int
    query: int
    keys: np.ndarray
    weights: np.ndarray

    def frame(self) -> pd.DataFrame:
        """One row per key, strongest first: layer, head, query, key, weight, distance."""
        head = {"layer": self.layer, "head": self.head, "query": self.query}
        columns = {"key": self.keys, "weight": self.weights, "distance": self.query - self.keys}
        return pd.DataFrame({**head, **columns})


def strongest_keys(cap: Capture, layer: int, head: int, query: int, *, row: int = 0, k: int = 10) -> StrongestKeys:
    """Keys with the largest attention weights for one query, strongest first.

    Shapes: hook_pattern [batch, head, query_pos, key_pos] -> [rank], at most k
    Units:  probability.
    Raises: MissingHookError for a layer, head or query that was not captured; HookError for left-padded rows.
    """
    arguments.at_least(1, k=k)
    capture_access.unpadded(cap)
    weights = cap.pattern(layer, heads=[head], queries=[query])[capture_access.row_of(cap, row), 0, 0].detach().cpu()
    weights = weights[: query + 1]
    top = weights.topk(min(k, len(weights)))
    return StrongestKeys(layer, head, query, frozen(top.indices), frozen(top.values))
