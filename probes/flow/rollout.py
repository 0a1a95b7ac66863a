"""Attention rollout and attention flow: attention traced back to the input tokens through all layers.

Both use each layer's mean pattern, averaged with the identity for the residual path. Values, norms and MLPs are
ignored: an assumption of the paper that no real model satisfies. `probes.flow.information_flow_routes` uses the real
contributions.
"""

from dataclasses import dataclass

import networkx as nx
import numpy as np
import pandas as pd
import torch
from networkx.algorithms.flow import build_residual_network, preflow_push
from torch import Tensor

from probes.attention.head_metrics import HOOKS as HOOKS
from probes.attention.head_metrics import PATTERN
from probes.base import capture_access
from probes.base.result import Result, frozen
from workbench.errors import HookError
from workbench.hooks.capture import Capture

_UNIT = 2**40  # capacities are integers in units of 1 / _UNIT, so that the search is exact and terminates


@dataclass(frozen=True)
class Rollout(Result):
    """Share of each position's stream that comes from each input token, after each layer.

    `shares` is [layer, batch, query_pos, key_pos], float64; each row sums to 1.
    """

    shares: np.ndarray

    AXES = {"shares": ("layer", "batch", "query_pos", "key_pos")}
    FIGURE = "probes.flow.figures.rollout"
    UNITS = "shares of a position's stream, 0 to 1"

    def frame(self) -> pd.DataFrame:
        """One row per layer, batch row, query and visible key: layer, batch, query, key, share."""
        layer, batch, query, key = np.indices(self.shares.shape, sparse=False).reshape(4, -1)
        causal = key <= query
        columns = {"layer": layer, "batch": batch, "query": query, "key": key, "share": self.shares.reshape(-1)}
        return pd.DataFrame({name: column[causal] for name, column in columns.items()})


@dataclass(frozen=True)
class AttentionFlow(Result):
    """Maximum flow from one position's final stream back to each input token. Arrays are [key].

    `flow` is the maximum flow that the weights allow, between 0 and 1. The flows of several tokens use the same edges,
    so they do not sum to 1. `share` is `flow` divided by its sum; `rollout` is the position's row of the rollout.
    `error` is an upper bound for the effect of rounding the weights on any flow.
    """

    position: int
    flow: np.ndarray
    share: np.ndarray
    rollout: np.ndarray
    error: float

    AXES = {"flow": ("key",), "share": ("key",), "rollout": ("key",)}
    FIGURE = "probes.flow.figures.attention_flow"
    UNITS = "flow from 0 to 1; share and rollout each sum to 1"

    def frame(self) -> pd.DataFrame:
        """One row per token up to the position: key, flow, share, rollout."""
        columns = {"flow": self.flow, "share": self.share, "rollout": self.rollout}
        return pd.DataFrame({"key": np.arange(len(self.flow)), **columns})


def mixing(cap: Capture) -> Tensor:
    """Each layer's mean pattern with the residual path: A / 2 + I / 2. All layers are in memory together.

    Shapes: hook_pattern of every layer -> [layer, batch, query_pos, key_pos] float64, on the CPU; rows sum to 1
    Raises: HookError if a layer, a head or a position is missing in the capture.
    """
    capture_access.whole(cap, "attention through the layers")
    capture_access.unpadded(cap)
    if capture_access.layers(cap, PATTERN) != tuple(range(cap.config.n_layers)) or cap.heads is not None:
        raise HookError("attention rollout and flow need all layers and heads; capture without layers= and heads=.")
    means = [cap.pattern(layer).detach().double().mean(1).cpu() for layer in range(cap.config.n_layers)]
    return (torch.stack(means) + torch.eye(cap.tokens.shape[1], dtype=torch.float64)) / 2


def rollout(cap: Capture, *, max_bytes: int = 1 << 29) -> Rollout:
    """Attention rollout: R_l = (A_l / 2 + I / 2) R_{l-1}, where A_l is the mean over heads.

    Shapes: hook_pattern of every layer -> [layer, batch, query_pos, key_pos], float64; each row sums to 1
    Units:  share of a position's stream that comes from each input token, if values and MLPs changed nothing.
    Raises: HookError if a layer, a head or a position is missing in the capture, or if the products of all layers
            take more than `max_bytes` of memory.
    Source: arXiv 2005.00928.
    """
    batch, seqlen = cap.tokens.shape
    size = 8 * cap.config.n_layers * batch * seqlen**2
    if size > max_bytes:
        raise HookError(
            f"the rollout of {seqlen:,} tokens needs {size / 2**30:.1f} GiB, but the limit is max_bytes={max_bytes:,}; "
            "capture a shorter prompt."
        )
    return Rollout(frozen(_running_products(mixing(cap))))


def attention_flow(cap: Capture, *, position: int = -1, row: int = 0, max_tokens: int = 64) -> AttentionFlow:
    """Maximum flow from one position after the last layer to each input token, with attention weights as capacities.

    The graph has a node for each position of each layer's stream, and an edge from a query to each visible key with
    capacity A / 2 + I / 2. The flow to each token is computed separately and may use the whole graph. All flows
    together take about 1 s for 6 layers of 32 tokens, 5 s for 64 tokens, 15 s for 32 layers of 64 tokens; `max_tokens`
    limits this cost.
    Shapes: hook_pattern of every layer -> [key], the tokens up to `position`; negative ones count from the last
    Units:  share of the position's stream, at most 1; at least the rollout's, which is one such flow.
    Raises: HookError as `rollout`, for an unknown position or row, or for more than `max_tokens` tokens up to the
            position.
    Source: arXiv 2005.00928.
    Exact:  for weights rounded to multiples of 2^-40, which `error` bounds.
    """
    row = capture_access.row_of(cap, row)
    target = capture_access.place(cap, position)
    if target >= max_tokens:
        raise HookError(
            f"the flow to position {target} uses {target + 1} tokens, but the limit is max_tokens={max_tokens}. Choose "
            "an earlier position or a shorter prompt, or raise the limit: twice the tokens take about 7 times as long."
        )
    mixed = mixing(cap)[:, row, : target + 1, : target + 1]  # [layer, query_pos, key_pos]
    flow = max_flows(mixed.numpy())
    shares = _running_products(mixed.unsqueeze(1))[-1, 0, target]
    return AttentionFlow(target, frozen(flow), frozen(flow / flow.sum()), frozen(shares), mixed.numel() / _UNIT)


def max_flows(capacity: np.ndarray) -> np.ndarray:
    """Maximum flow from the last layer's last position to each position before the first layer.

    Shapes: capacity [layer, query_pos, key_pos], lower triangular, from `mixing` -> [key_pos]
    Raises: HookError for weights that are not finite.
    """
    if not np.isfinite(capacity).all():
        raise HookError("the attention pattern has NaN or infinite weights; attention flow needs finite ones.")
    n_layers, seqlen = capacity.shape[:2]
    graph = nx.DiGraph()
    capacities = np.rint(capacity * _UNIT).astype(np.int64)
    source = (n_layers, seqlen - 1)
    graph.add_nodes_from([source, *((0, key) for key in range(seqlen))])
    for layer, query, key in np.argwhere(capacities > 0).tolist():
        graph.add_edge((layer + 1, query), (layer, key), capacity=int(capacities[layer, query, key]))
    flows = np.zeros(seqlen)
    for key in range(seqlen):
        # No edge leads to a later position, so earlier positions cannot reach this one.
        part = graph.subgraph([node for node in graph if node[1] >= key])
        residual = build_residual_network(part, "capacity")
        solved = preflow_push(part, source, (0, key), residual=residual, value_only=True)
        flows[key] = solved.graph["flow_value"] / _UNIT
    return flows


def _running_products(mixed: Tensor) -> Tensor:
    """Running products over the layers. Shapes: [layer, batch, query_pos, key_pos] -> the same"""
    products = [mixed[0]]
    for layer in mixed[1:]:
        products.append(layer @ products[-1])
    return torch.stack(products)
