"""Similarity of the patterns of query heads that share a key/value head. Does not use weights."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from probes.attention.head_metrics import HOOKS as HOOKS
from probes.attention.head_metrics import PATTERN, entropy, pattern_blocks
from probes.base import capture_access
from probes.base.result import Result, frozen, tidy
from workbench.errors import HookError
from workbench.hooks.capture import Capture


@dataclass(frozen=True)
class GroupSimilarity(Result):
    """Distance between the patterns of heads in one key/value group, and of heads in different groups.

    `distance` is [layer, head, head]; `within` and `across` are [layer], NaN if there is no such pair.
    """

    AXES = {"distance": ("layer", "head", "other_head"), "within": ("layer",), "across": ("layer",)}
    FIGURE = "probes.attention.figures.group_similarity"
    UNITS = "Jensen-Shannon distance, 0 (identical) to 1; ratio is within / across"

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    distance: np.ndarray
    within: np.ndarray
    across: np.ndarray

    def frame(self) -> pd.DataFrame:
        """One row per layer: layer, within, across, ratio (below 1: heads with a shared key are more similar)."""
        columns = {"within": self.within, "across": self.across, "ratio": self.within / self.across}
        return tidy({"layer": self.layers}, columns)


def group_similarity(cap: Capture) -> GroupSimilarity:
    """Jensen-Shannon distance between the patterns of each two heads of a layer, mean over queries after the first.

    Shapes: hook_pattern [layer, batch, head, query_pos, key_pos] -> [layer, head, head]
    Units:  the square root of the divergence in bits: 0 for equal rows, 1 for rows with no key in common.
    Raises: MissingHookError if `hook_pattern` was not captured for any layer; HookError for left-padded rows, or if
            only the first query was captured.
    Source: arXiv 1906.04341 (distances between heads), 2305.13245 (groups).
    """
    capture_access.unpadded(cap)
    heads = capture_access.heads(cap)
    layers = capture_access.layers(cap, PATTERN)
    queries = [position for position in capture_access.positions(cap).tolist() if position > 0]
    if not queries:
        raise HookError("the first position can only attend to itself; capture at least one more to compare heads.")
    distance = np.zeros((len(layers), len(heads), len(heads)))
    for row, layer in enumerate(layers):
        total = torch.zeros(len(heads), len(heads), dtype=torch.float64)
        for _, pattern in pattern_blocks(cap, layer, queries=queries):
            nats = entropy(pattern)  # [batch, head, query_pos]
            for i in range(len(heads) - 1):  # the distance is symmetric
                middle = entropy((pattern[:, i + 1 :] + pattern[:, i : i + 1]) / 2)
                divergence = (middle - (nats[:, i + 1 :] + nats[:, i : i + 1]) / 2) / np.log(2)
                total[i, i + 1 :] += divergence.clamp(0, 1).sqrt().sum((0, 2)).double().cpu()
        distance[row] = (total + total.T).numpy() / (len(queries) * cap.tokens.shape[0])
    group = np.array(heads) // cap.config.group_size
    same = group[:, None] == group
    different = ~np.eye(len(heads), dtype=bool)
    pairs = {"within": same & different, "across": ~same}
    means = {
        name: frozen(distance[:, mask].mean(-1) if mask.any() else np.full(len(layers), np.nan))
        for name, mask in pairs.items()
    }
    return GroupSimilarity(layers, heads, frozen(distance), means["within"], means["across"])
