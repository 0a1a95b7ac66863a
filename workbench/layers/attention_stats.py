"""Attention statistics computed tile by tile, without storing the full pattern: row statistics, pooled map, key mass.

Scores are computed and reduced one tile at a time, in float32. A tile has the query heads that share a key head, a
block of queries, and every key that the block may see. It fits a processor's cache, or keeps a GPU's kernels
large. Its rows are complete, so the softmax needs one pass, and keys after the block are never scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from workbench.layers.attention_mask import Mask

STATS = ("entropy", "logsumexp", "sink_1", "sink_4", "previous", "distance", "top_weight", "top_position")
"""Columns of `hook_stats`: nats, nats, mass on the first 1 and 4 tokens, mass on the previous token, mean distance in
tokens, weight and absolute position of the strongest key."""

MAP_SIDE = 256
"""Maximum number of tiles along a side of `hook_map`."""

TILE_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 25}
"""Scores in memory at once: 4 MiB of float32, about a core's cache; on a GPU 128 MiB, for few and large kernels."""

_MAX_ROWS = 256  # of a block: half of a block's square lies above the diagonal, so scoring it is wasted work
_HIDDEN = torch.finfo(torch.float32).min  # a masked score: its weight is 0, and 0 * score is 0 where -inf gives NaN


@dataclass(frozen=True)
class Tile:
    """Scores or weights of some units (a row of the batch and the heads that share a key head) and some queries.

    Shapes: values [unit, group, query_pos, key_pos]; keys after the last one are hidden from all of its queries.
    """

    units: slice
    rows: slice
    values: Tensor


def score_tiles(q: Tensor, k: Tensor, mask: Mask) -> Iterator[Tile]:
    """Scaled and masked scores, tile by tile.

    Shapes: q [batch, head, query_pos, head_dim], k [batch, kv_head, key_pos, head_dim]
    """
    batch, heads, n_queries, width = q.shape
    n_kv, n_keys = k.shape[1:3]
    group, units = heads // n_kv, batch * n_kv
    queries = (q.float() * width**-0.5).reshape(units, group, n_queries, width)
    keys = k.float().reshape(units, n_keys, width).transpose(1, 2)
    row_of = torch.arange(units, device=q.device) // n_kv  # which row of the batch a unit belongs to
    budget = TILE_ELEMENTS["cpu" if q.device.type == "cpu" else "cuda"]
    n_rows = min(_MAX_ROWS, max(16, budget // (group * n_keys)), n_queries)
    n_units = max(1, budget // (group * n_rows * n_keys))
    plain = mask.pad is None and mask.tree is None
    positions = mask.positions.tolist()  # one synchronisation with the device, not one per block
    for start in range(0, n_queries, n_rows):
        rows = slice(start, min(start + n_rows, n_queries))
        seen = max(positions[rows]) + 1 if mask.tree is None else n_keys
        visible = min(positions[rows]) + 1 if plain else 0  # all queries of the block see the keys before this one
        hidden = ~mask.allowed(seen, rows)[..., visible:]
        for first in range(0, units, n_units):
            unit_slice = slice(first, first + n_units)
            tile = (queries[unit_slice, :, rows].flatten(1, 2) @ keys[unit_slice, :, :seen]).unflatten(1, (group, -1))
            tile[..., visible:].masked_fill_(hidden if len(hidden) == 1 else hidden[row_of[unit_slice]], _HIDDEN)
            yield Tile(unit_slice, rows, tile)


def weight_tiles(tiles: Iterable[Tile]) -> Iterator[Tile]:
    """Weights of score tiles."""
    return (Tile(tile.units, tile.rows, tile.values.softmax(-1)) for tile in tiles)


def stats(tiles: Iterable[Tile], shape: torch.Size, mask: Mask) -> Tensor:
    """The columns of `STATS` for every row, from tiles of scores.

    Shapes: `shape` of the pattern -> float32 [batch, head, query_pos, stat]
    """
    out: Tensor | None = None
    batch, heads, n_queries, _ = shape
    for tile in tiles:
        if out is None:
            out = _empty(tile, shape, n_queries, len(STATS))
        first = _first_keys(mask, batch, len(out))[tile.units]
        out[tile.units, :, tile.rows] = _row_stats(tile.values, mask.positions[tile.rows], first)
    assert out is not None, "a pattern has at least one row"
    return out.reshape(batch, heads, n_queries, len(STATS))


def _row_stats(scores: Tensor, positions: Tensor, first: Tensor) -> Tensor:
    """Shapes: scores [unit, group, query_pos, key_pos], positions [query_pos], first [unit] -> [..., stat]"""
    n_keys = scores.shape[-1]
    top = scores.max(-1)
    weights = scores.softmax(-1)
    top_weight = weights.gather(-1, top.indices.unsqueeze(-1)).squeeze(-1)
    logsumexp = top.values - top_weight.log()
    # In place, because the scores are not needed any more: new memory would cost as much as the product.
    weighted = weights * scores if scores.requires_grad else scores.mul_(weights)
    entropy = (logsumexp - weighted.sum(-1)).clamp(min=0)
    sinks = first[:, None, None] + torch.arange(4, device=scores.device)  # [unit, 1, 4]
    previous = (positions - 1)[None, :, None].expand(len(first), -1, -1)  # [unit, query_pos, 1]
    columns = torch.cat([sinks.expand(-1, len(positions), -1), previous], -1).unsqueeze(1)  # [unit, 1, query_pos, 5]
    exists = (columns >= 0) & (columns < n_keys)
    index = columns.clamp(0, n_keys - 1).expand(*scores.shape[:3], 5)
    mass = weights.gather(-1, index).masked_fill(~exists, 0.0)
    # Distances are relative to the block's first query: large positions would cancel and lose precision.
    origin = positions[:1]
    offsets = (torch.arange(n_keys, device=scores.device) - origin).to(weights.dtype)
    distance = (positions - origin).to(weights.dtype) - weights @ offsets
    stat_columns = [
        entropy, logsumexp, mass[..., 0], mass[..., :4].sum(-1), mass[..., 4], distance,
        top_weight, top.indices.to(weights.dtype),
    ]  # fmt: skip
    return torch.stack(stat_columns, -1)


def key_mass(tiles: Iterable[Tile], shape: torch.Size, mask: Mask) -> Tensor:
    """Weight that every key receives, summed over the queries without padding, from tiles of weights.

    Shapes: `shape` of the pattern -> float32 [batch, head, key_pos]
    """
    out: Tensor | None = None
    batch, heads, _, n_keys = shape
    for tile in tiles:
        if out is None:
            out = _empty(tile, shape, n_keys).zero_()
        real = _real(mask, batch, len(out), tile)  # [unit, query_pos]
        received = real[:, None, None, :] @ tile.values  # [unit, group, 1, key_pos]
        out[tile.units, :, : tile.values.shape[-1]] += received.squeeze(2)
    assert out is not None, "a pattern has at least one row"
    return out.reshape(batch, heads, n_keys)


def pooled_map(tiles: Iterable[Tile], shape: torch.Size, mask: Mask) -> Tensor:
    """The pattern at a fixed size, from tiles of weights.

    Each cell is the mass that an average query of its rows, without padding, puts on its keys; a row of the map sums
    to 1.
    Shapes: `shape` of the pattern -> float32 [batch, head, query_tile, key_tile], see `map_side`
    """
    out: Tensor | None = None
    batch, heads, n_queries, n_keys = shape
    per_query, per_key = map_factor(n_queries), map_factor(n_keys)
    side, key_side = map_side(n_queries), map_side(n_keys)
    for tile in tiles:
        if out is None:
            out, count = _empty(tile, shape, side, key_side).zero_(), _empty(tile, shape, side)[:, 0].zero_()
            row_tile = torch.arange(n_queries, device=out.device) // per_query
        real = _real(mask, batch, len(out), tile)
        # Pad the keys to complete tiles and to the map's width.
        padded = F.pad(tile.values * real[:, None, :, None], (0, key_side * per_key - tile.values.shape[-1]))
        out[tile.units].index_add_(2, row_tile[tile.rows], padded.unflatten(-1, (key_side, per_key)).sum(-1))
        count[tile.units].index_add_(1, row_tile[tile.rows], real)
    assert out is not None, "a pattern has at least one row"
    return (out / count.clamp(min=1)[:, None, :, None]).reshape(batch, heads, side, key_side)


def map_factor(n: int) -> int:
    """Positions in one tile of a map of n positions."""
    return -(-n // MAP_SIDE)


def map_side(n: int) -> int:
    """Tiles along a side of a map of n positions: n itself up to `MAP_SIDE`."""
    return -(-n // map_factor(n))


def _empty(tile: Tile, shape: torch.Size, *rest: int) -> Tensor:
    """Memory for a result by unit and group, as in the tiles. Shapes: -> [unit, group, *rest]"""
    group = tile.values.shape[1]
    return tile.values.new_empty(shape[0] * shape[1] // group, group, *rest)


def _first_keys(mask: Mask, batch: int, units: int) -> Tensor:
    """Absolute position of the first real token of each unit's sequence. Shapes: -> [unit]"""
    return mask.first_key(batch).repeat_interleave(units // batch)


def _real(mask: Mask, batch: int, units: int, tile: Tile) -> Tensor:
    """1 for queries that are tokens, 0 for padding. Shapes: -> [unit of the tile, query_pos of the tile]"""
    first = _first_keys(mask, batch, units)[tile.units]
    return (mask.positions[tile.rows] >= first[:, None]).to(tile.values.dtype)
