"""Norm-based attention: attention weighted by the value that it moves, the norm of A_ij v_j W_O.

A head can have a large weight on a token whose value is nearly 0, such as the first token. The norm shows this, the
pattern alone does not. The values come from the normalised stream, so the norm before attention is included. The norm
after attention divides a whole row by one number and does not change the shares.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.attention.head_metrics import PATTERN, pattern_blocks
from probes.base import capture_access
from probes.base.result import Result, frozen, tidy
from probes.base.weights import head_writer
from workbench.errors import HookError
from workbench.hooks.capture import Capture
from workbench.model import Transformer

HOOKS = (
    f"blocks.*.{PATTERN}",
    "blocks.*.attn.hook_v",
    "blocks.*.hook_resid_pre",
    "blocks.*.hook_resid_mid",
)
"""Hooks to capture for all probes in this module."""

_BLOCK_BYTES = 1 << 25  # of [head, key, dim] in memory


@dataclass(frozen=True)
class WeightedPattern(Result):
    """One head's pattern and the norms of what it moves; `head` is None for the whole layer with the residual.

    Arrays are [query_pos, key_pos]: `attention`, the weights (their mean over heads for a layer), and `norm`, the
    norm of the vector that each key adds to each query's stream.
    """

    layer: int
    head: int | None
    attention: np.ndarray
    norm: np.ndarray

    AXES = {"attention": ("query_pos", "key_pos"), "norm": ("query_pos", "key_pos")}
    FIGURE = "probes.flow.value_weighted_figures.weighted_pattern"
    UNITS = "attention from 0 to 1; norm in the units of the stream; share of the query's norms"

    @property
    def share(self) -> np.ndarray:
        """Each row of `norm` divided by its sum; NaN if the sum is 0. Shapes: -> [query_pos, key_pos]"""
        total = self.norm.sum(-1, keepdims=True)
        return np.divide(self.norm, total, out=np.full_like(self.norm, np.nan), where=total > 0)

    def frame(self) -> pd.DataFrame:
        """One row per query and visible key: query, key, attention, norm, share."""
        query, key = np.tril_indices(len(self.norm))
        columns = {"attention": self.attention, "norm": self.norm, "share": self.share}
        return pd.DataFrame({"query": query, "key": key, **{name: x[query, key] for name, x in columns.items()}})


@dataclass(frozen=True)
class FirstToken(Result):
    """Each head's attention to the first token, and its share by norm. Arrays are [layer, head].

    `attention` and `weighted` are shares between 0 and 1, means over the queries after the first. `value` is the norm
    of the first token's transformed value divided by the mean norm of the others'.
    """

    group_size: int
    attention: np.ndarray
    weighted: np.ndarray
    value: np.ndarray

    AXES = {name: ("layer", "head") for name in ("attention", "weighted", "value")}
    FIGURE = "probes.flow.value_weighted_figures.first_token"
    UNITS = "attention and weighted from 0 to 1; value is a ratio of norms"

    def frame(self) -> pd.DataFrame:
        """One row per head: layer, head, attention, weighted, value."""
        n_layers, n_heads = self.attention.shape
        columns = {"attention": self.attention, "weighted": self.weighted, "value": self.value}
        return tidy({"layer": range(n_layers), "head": range(n_heads)}, columns)


@dataclass(frozen=True)
class ContextMixing(Result):
    """Share of each position's stream after attention that comes from others. `ratio` is [layer, batch, pos]."""

    ratio: np.ndarray

    AXES = {"ratio": ("layer", "batch", "pos")}
    FIGURE = "probes.flow.value_weighted_figures.context_mixing"
    UNITS = "share from other positions, 0 to 1"

    def frame(self) -> pd.DataFrame:
        """One row per layer, batch row and position: layer, batch, pos, ratio."""
        n_layers, batch, pos = self.ratio.shape
        return tidy({"layer": range(n_layers), "batch": range(batch), "pos": range(pos)}, {"ratio": self.ratio})


@torch.no_grad()
def transformed_values(model: Transformer, cap: Capture, layer: int, head: int, *, row: int = 0) -> Tensor:
    """Transformed values v_j W_O: what one head adds to a query's stream for a weight of 1 on each key.

    Shapes: hook_v [batch, pos, kv_head, head_dim] -> [key_pos, dim] float32
    Raises: MissingHookError if `hook_v` of this layer was not captured; HookError for a head that does not exist, a
            capture of some heads or positions only, or a model that is split over processes.
    """
    require_complete(cap)
    if not 0 <= head < cap.config.n_heads:
        raise HookError(f"the model has heads 0 to {cap.config.n_heads - 1}, not {head}.")
    values = cap[f"blocks.{layer}.attn.hook_v"][capture_access.row_of(cap, row), :, head // cap.config.group_size]
    return values.float() @ head_writer(model, layer)[:, head].T


@torch.no_grad()
def weighted_pattern(
    model: Transformer, cap: Capture, layer: int, head: int | None = None, *, row: int = 0
) -> WeightedPattern:
    """Norms of what each key adds to each query's stream: by one head, or by all heads with the residual path.

    For a layer, this is the norm of the sum over heads; each position's own stream is added to its own part.
    Shapes: hook_pattern, hook_v, hook_resid_pre -> [query_pos, key_pos]; never [query_pos, key_pos, dim]
    Units:  those of the stream, computed in float32.
    Raises: MissingHookError for a hook that was not captured; HookError as `transformed_values`.
    Source: arXiv 2004.10102; the residual path arXiv 2109.07152.
    Exact:  the vectors of all keys sum to the head's output, or to the stream after attention.
    """
    require_complete(cap)
    row = capture_access.row_of(cap, row)
    attention, norms = [], []
    if head is not None:
        lengths = transformed_values(model, cap, layer, head, row=row).norm(dim=-1)  # [key_pos]
        for _, pattern in pattern_blocks(cap, layer, heads=[head]):
            attention.append(pattern[row, 0])
            norms.append(pattern[row, 0] * lengths)
        return WeightedPattern(layer, head, frozen(torch.cat(attention)), frozen(torch.cat(norms)))
    products = torch.cat(
        [part @ part.mT for part in _transformed_blocks(model, cap, layer, row)]
    )  # [key_pos, head, head]
    for queries, pattern in pattern_blocks(cap, layer):
        weights = pattern[row]  # [head, query_pos, key_pos]
        squares = torch.einsum("hqk,khg,gqk->qk", weights, products, weights)
        norm = squares.clamp(min=0).sqrt()
        at = torch.arange(len(queries), device=queries.device)
        norm[at, queries] = _own_part(model, cap, layer, row, queries, weights).norm(dim=-1)
        attention.append(weights.mean(0))
        norms.append(norm)
    return WeightedPattern(layer, None, frozen(torch.cat(attention)), frozen(torch.cat(norms)))


@torch.no_grad()
def first_token(model: Transformer, cap: Capture) -> FirstToken:
    """Each head's attention to the first token, and the first token's share of what the head moves.

    Shapes: hook_pattern, hook_v of every layer -> [layer, head]: means over batch rows and queries from 1 on
    Units:  shares between 0 and 1; `value` is a ratio of norms.
    Raises: HookError for prompts of one token, or as `transformed_values`.
    Source: arXiv 2004.10102, which finds that the most attended special tokens have the smallest values.
    """
    require_complete(cap)
    batch, seqlen = cap.tokens.shape
    if seqlen < 2:
        raise HookError("the prompt has only one token; give at least two.")
    means: dict[str, list[Tensor]] = {"attention": [], "weighted": [], "value": []}
    for layer in _require_all_layers(cap):
        lengths = torch.stack(
            [
                torch.cat([part.norm(dim=-1) for part in _transformed_blocks(model, cap, layer, row)]).T
                for row in range(batch)
            ]
        )  # [batch, head, key_pos]
        sums = {"attention": 0.0, "weighted": 0.0}
        for _, pattern in pattern_blocks(cap, layer, queries=range(1, seqlen)):
            moved = pattern * lengths.unsqueeze(2)  # [batch, head, query_pos, key_pos]
            sums["attention"] += pattern[..., 0].sum((0, 2))
            sums["weighted"] += (moved[..., 0] / moved.sum(-1)).sum((0, 2))
        for name, total in sums.items():
            means[name].append(total / (batch * (seqlen - 1)))
        means["value"].append((lengths[..., 0] / lengths[..., 1:].mean(-1)).mean(0))
    return FirstToken(cap.config.group_size, *(frozen(torch.stack(values)) for values in means.values()))


@torch.no_grad()
def context_mixing(model: Transformer, cap: Capture) -> ContextMixing:
    """Share of the stream after attention from other positions: norm(others) / (norm(others) + norm(own)).

    A position's own part is its stream before attention plus what all heads read from the position itself.
    Shapes: hook_pattern, hook_v, hook_resid_pre, hook_resid_mid -> [layer, batch, pos]
    Units:  between 0 and 1; 0 at position 0, up to rounding.
    Raises: MissingHookError for a hook that was not captured; HookError as `transformed_values`.
    Source: arXiv 2109.07152.
    Exact:  the own part and the others' sum to the stream after attention.
    """
    require_complete(cap)
    layers = []
    for layer in _require_all_layers(cap):
        stream = cap[f"blocks.{layer}.hook_resid_mid"].float()
        blocks = []
        for queries, pattern in pattern_blocks(cap, layer):
            own = torch.stack([_own_part(model, cap, layer, row, queries, pattern[row]) for row in range(len(stream))])
            others = (stream[:, queries] - own).norm(dim=-1)
            blocks.append(others / (others + own.norm(dim=-1)))
        layers.append(torch.cat(blocks, -1))
    return ContextMixing(frozen(torch.stack(layers)))


# --- shared with `probes.flow.information_flow_routes` -------------------------------------------------------


def require_complete(cap: Capture) -> None:
    """Check that no part of a stream is missing in a capture. Raises: HookError"""
    capture_access.whole(cap, "what attention moves")
    capture_access.unpadded(cap)
    if cap.heads is not None:
        raise HookError("the contributions to a stream need all heads; capture without heads=.")


def values_by_head(cap: Capture, layer: int, row: int) -> Tensor:
    """Values for each query head, from its key/value head. Shapes: -> [key_pos, head, head_dim] float32"""
    values = cap[f"blocks.{layer}.attn.hook_v"][row].float()
    return values.repeat_interleave(cap.config.group_size, 1)


def _require_all_layers(cap: Capture) -> tuple[int, ...]:
    layers = capture_access.layers(cap, PATTERN)
    if layers != tuple(range(cap.config.n_layers)):
        raise HookError("this probe needs all layers; capture without layers=.")
    return layers


def _transformed_blocks(model: Transformer, cap: Capture, layer: int, row: int) -> Iterator[Tensor]:
    """Transformed values of all heads, in blocks of keys. Shapes: -> [key_pos, head, dim]"""
    weight = head_writer(model, layer)
    step = max(1, _BLOCK_BYTES // (4 * cap.config.n_heads * cap.config.dim))
    for values in values_by_head(cap, layer, row).split(step):
        yield torch.einsum("khd,ehd->khe", values, weight)


def _own_part(model: Transformer, cap: Capture, layer: int, row: int, queries: Tensor, weights: Tensor) -> Tensor:
    """Each query's own part of its stream. Shapes: weights [head, query_pos, key_pos] -> [query_pos, dim]"""
    self_attention = weights[:, torch.arange(len(queries), device=queries.device), queries].T  # [query_pos, head]
    read = self_attention.unsqueeze(-1) * values_by_head(cap, layer, row)[queries]  # [query_pos, head, head_dim]
    added = read.flatten(1) @ head_writer(model, layer).flatten(1).T
    return cap[f"blocks.{layer}.hook_resid_pre"][row, queries].float() + added
