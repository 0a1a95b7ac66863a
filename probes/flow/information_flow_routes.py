"""Information flow routes: contributions of heads, tokens and MLPs to the stream, and the routes to one position.

The contribution of a part is how much nearer it brings the stream to its sum. A part that points in another direction,
or is cancelled by others, contributes nothing. Everything comes from one run without patching, so a route does not
prove a cause.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.attention.head_metrics import PATTERN
from probes.base import capture_access
from probes.base.result import Result, frozen, tidy
from probes.flow.value_weighted import HOOKS as VALUE_HOOKS
from probes.flow.value_weighted import require_complete, transformed_values
from workbench.errors import HookError
from workbench.hooks.capture import Capture
from workbench.model import Transformer

HOOKS = (*VALUE_HOOKS, "blocks.*.hook_mlp_out", "blocks.*.hook_resid_post")
"""Hooks to capture for all probes in this module."""

_BLOCK_BYTES = 1 << 22  # of [query_pos, key_pos, dim] in memory: blocks that fit the CPU cache are four times as fast
EPS = 1e-6


@dataclass(frozen=True)
class AttentionContributions(Result):
    """Shares of the stream after one layer's attention; for each query, `heads` and `residual` sum to 1.

    `heads` is [head, query_pos, key_pos], `residual` [query_pos]; `queries` are the positions. `error` is the largest
    difference between the stream and the sum of its parts, divided by the stream's largest entry.
    """

    layer: int
    queries: tuple[int, ...]
    heads: np.ndarray
    residual: np.ndarray
    error: float

    AXES = {"heads": ("head", "query_pos", "key_pos"), "residual": ("query_pos",)}
    FIGURE = "probes.flow.route_figures.attention_contributions"
    UNITS = "shares of the stream after attention, 0 to 1"

    @property
    def tokens(self) -> np.ndarray:
        """Share of each token, through all heads. Shapes: -> [query_pos, key_pos]"""
        total: np.ndarray = self.heads.sum(0)
        return total

    def frame(self) -> pd.DataFrame:
        """One row per head, query and visible key: head, query, key, share; the residual has head and key -1."""
        axes = {"head": range(len(self.heads)), "query": self.queries, "key": range(self.heads.shape[2])}
        table = tidy(axes, {"share": self.heads})
        residual = pd.DataFrame({"head": -1, "query": self.queries, "key": -1, "share": self.residual})
        return pd.concat([table[table["key"] <= table["query"]], residual], ignore_index=True)


@dataclass(frozen=True)
class StreamContributions(Result):
    """Shares of each layer's stream, for one sequence: after attention by head, and after the MLP.

    `heads` [layer, head, pos] and `past_attn` [layer, pos] sum to 1. `mlp` [layer, pos] is the MLP's share; the stream
    that bypasses it has the rest. `error` is as in `AttentionContributions`, the largest over layers.
    """

    heads: np.ndarray
    past_attn: np.ndarray
    mlp: np.ndarray
    error: float

    AXES = {"heads": ("layer", "head", "pos"), "past_attn": ("layer", "pos"), "mlp": ("layer", "pos")}
    FIGURE = "probes.flow.route_figures.stream_contributions"
    UNITS = "shares of the stream to which the part is added, 0 to 1"

    def frame(self) -> pd.DataFrame:
        """One row per layer, part and position: layer, part (h0, ..., past_attn, mlp), pos, share."""
        n_heads = self.heads.shape[1]
        parts = [*(f"h{head}" for head in range(n_heads)), "past_attn", "mlp"]
        values = np.concatenate([self.heads, self.past_attn[:, None], self.mlp[:, None]], 1)  # [layer, part, pos]
        return tidy({"layer": range(len(values)), "part": parts, "pos": range(values.shape[2])}, {"share": values})


@dataclass(frozen=True)
class Routes(Result):
    """Edges with a share of at least `threshold` that lead to one position's final stream.

    `edges` has a row per edge (see `frame`). `reached` is [layer, pos] bool: whether a route goes through the stream
    before layer 0, 1, ... and after the last layer.
    """

    position: int
    threshold: float
    edges: pd.DataFrame
    reached: np.ndarray

    AXES = {"reached": ("layer", "pos")}
    FIGURE = "probes.flow.route_figures.routes"
    UNITS = "shares of the stream at the end of the edge, 0 to 1"

    def frame(self) -> pd.DataFrame:
        """One row per edge, from the last layer to the first: layer, kind, head, source, target, share.

        kind: "head" (from position `source` to position `target`) and "past_attn" lead from the stream before the
        layer to the stream after its attention. "mlp" and "past_mlp" lead from there to the stream after the layer.
        head is -1 for all kinds but "head".
        """
        return self.edges.copy()


def shares(near: Tensor, *, eps: float = EPS) -> Tensor:
    """Nearness normalised to shares: max(near, eps) divided by the sum over parts.

    Shapes: near [..., part] from `nearness`, -inf for an absent part -> [..., part]; sums to 1
    """
    floored = torch.where(near == -torch.inf, 0, near.clamp(min=eps))
    return floored / floored.sum(-1, keepdim=True)


def nearness(part: Tensor, total: Tensor) -> Tensor:
    """How much nearer a part x brings the sum to the total y: norm1(y) - norm1(y - x); at most norm1(x).

    Shapes: [..., dim], [..., dim] -> [...]
    Source: arXiv 2403.00824.
    """
    return total.abs().sum(-1) - (total - part).abs().sum(-1)


@torch.no_grad()
def attention_contributions(
    model: Transformer, cap: Capture, layer: int, *, queries: tuple[int, ...] | None = None, row: int = 0
) -> AttentionContributions:
    """Share of each token through each head, and of the residual, in the stream after attention.

    Shapes: `HOOKS` without the MLP's -> [head, query_pos, key_pos] and [query_pos]; time grows with their size x dim
    Units:  shares between 0 and 1; a query's parts sum to 1.
    Raises: MissingHookError for a hook that was not captured; HookError for a capture of some heads or positions only,
            or a model that is split over processes.
    Source: arXiv 2403.00824: max(norm1(y) - norm1(y - x_j), eps), normalised.
    Exact:  the parts sum to the stream; `error` is the largest deviation.
    """
    require_complete(cap)
    row, seqlen, dim = capture_access.row_of(cap, row), cap.tokens.shape[1], cap.config.dim
    chosen = tuple(range(seqlen)) if queries is None else queries
    if not chosen or min(chosen) < 0 or max(chosen) >= seqlen:
        raise HookError(f"queries must be positions of the capture, 0 to {seqlen - 1}; found {list(chosen)}.")
    total = cap[f"blocks.{layer}.hook_resid_mid"][row, list(chosen)].float()  # [query_pos, dim]
    before = cap[f"blocks.{layer}.hook_resid_pre"][row, list(chosen)].float()
    summed, by_head = before.clone(), []
    future = torch.arange(seqlen, device=total.device) > torch.tensor(chosen, device=total.device).unsqueeze(-1)
    step = max(1, _BLOCK_BYTES // (4 * seqlen * dim))
    for head in range(cap.config.n_heads):
        values = transformed_values(model, cap, layer, head, row=row)  # [key_pos, dim]
        near = []
        for start in range(0, len(chosen), step):
            block = slice(start, start + step)
            visible = max(chosen[block]) + 1  # later keys have no weight in any of these rows
            weights = cap.pattern(layer, heads=[head], queries=chosen[block])[row, 0, :, :visible]
            summed[block] += weights @ values[:visible]
            parts = weights.unsqueeze(-1) * values[:visible]  # [query_pos, key_pos, dim]
            part = nearness(parts, total[block].unsqueeze(1))
            near.append(torch.nn.functional.pad(part, (0, seqlen - visible)))
        by_head.append(torch.cat(near).masked_fill(future, -torch.inf))
    heads = torch.stack(by_head, 1).flatten(1)  # [query_pos, head x key_pos]
    all_shares = shares(torch.cat([heads, nearness(before, total).unsqueeze(-1)], -1))
    head_shares = all_shares[:, :-1].unflatten(-1, (cap.config.n_heads, seqlen)).transpose(0, 1)
    error = float((summed - total).abs().max() / total.abs().max())
    return AttentionContributions(layer, chosen, frozen(head_shares), frozen(all_shares[:, -1]), error)


@torch.no_grad()
def mlp_shares(cap: Capture, layer: int, *, row: int = 0) -> Tensor:
    """The MLP's share of the stream after a layer; the stream before it has the rest.

    Shapes: -> [pos] float32, the captured positions
    Raises: HookError for left-padded rows.
    """
    capture_access.unpadded(cap)
    row = capture_access.row_of(cap, row)
    names = ("hook_mlp_out", "hook_resid_mid", "hook_resid_post")
    added, before, total = (cap[f"blocks.{layer}.{name}"][row].float() for name in names)
    return shares(torch.stack([nearness(added, total), nearness(before, total)], -1))[..., 0]


def stream_contributions(model: Transformer, cap: Capture, *, row: int = 0) -> StreamContributions:
    """Share of each head and each MLP in the stream to which it is added, layer by layer.

    Shapes: `HOOKS` of every layer -> heads [layer, head, pos], past_attn, mlp [layer, pos]
    Units:  shares between 0 and 1; a head's is the sum over its keys.
    Raises: HookError as `attention_contributions`, or if a layer is missing.
    Source: arXiv 2403.00824.
    """
    layers = _require_all_layers(cap)
    contributions = [attention_contributions(model, cap, layer, row=row) for layer in layers]
    return StreamContributions(
        frozen(np.stack([layer_part.heads.sum(-1) for layer_part in contributions])),
        frozen(np.stack([layer_part.residual for layer_part in contributions])),
        frozen(torch.stack([mlp_shares(cap, layer, row=row) for layer in layers])),
        max(layer_part.error for layer_part in contributions),
    )


def routes(model: Transformer, cap: Capture, *, position: int = -1, threshold: float = 0.04, row: int = 0) -> Routes:
    """Edges that contribute at least `threshold` of the stream at their end, traced back from one position.

    Goes from the last layer to the first and expands only streams that an edge has reached, so a low threshold costs
    more.
    Shapes: `HOOKS` of every layer -> a table of edges, and reached [layer + 1, pos]
    Units:  position is absolute, or negative from the last; threshold a share between 0 and 1.
    Raises: HookError as `attention_contributions`, for a missing layer, an unknown position, or a threshold outside
            0 to 1.
    Source: arXiv 2403.00824; here each pair of a head and a token is an edge.
    """
    layers, seqlen = _require_all_layers(cap), cap.tokens.shape[1]
    target = capture_access.place(cap, position)
    if not 0 < threshold < 1:
        raise HookError(f"threshold must be between 0 and 1 (a share of the stream); found {threshold:g}.")
    reached = np.zeros((len(layers) + 1, seqlen), bool)
    reached[-1, target] = True
    rows: list[tuple[int, str, int, int, int, float]] = []
    for layer in reversed(layers):
        targets = tuple(np.flatnonzero(reached[layer + 1]).tolist())
        if not targets:
            break
        added = mlp_shares(cap, layer, row=row).tolist()
        for pos in targets:
            both = (("mlp", added[pos]), ("past_mlp", 1 - added[pos]))
            rows += [(layer, kind, -1, pos, pos, share) for kind, share in both if share >= threshold]
        # Both start at the stream after attention, and one of them has at least half of the share.
        contributions = attention_contributions(model, cap, layer, queries=targets, row=row)
        for i, pos in enumerate(targets):
            if contributions.residual[i] >= threshold:
                rows.append((layer, "past_attn", -1, pos, pos, float(contributions.residual[i])))
                reached[layer, pos] = True
        for head, i, key in np.argwhere(contributions.heads >= threshold).tolist():
            rows.append((layer, "head", head, key, targets[i], float(contributions.heads[head, i, key])))
            reached[layer, key] = True
    edges = pd.DataFrame(rows, columns=["layer", "kind", "head", "source", "target", "share"])
    return Routes(target, threshold, edges, frozen(reached))


def _require_all_layers(cap: Capture) -> tuple[int, ...]:
    layers = capture_access.layers(cap, PATTERN)
    if layers != tuple(range(cap.config.n_layers)):
        raise HookError("this probe needs all layers; capture without layers=.")
    return layers
