"""Effects of rotary position embedding on attention heads: frequency bands, shift invariance, distance, other scalings.

Measured on the model's own un-rotated q and k, and checked against its own rotated ones. The wavelengths and decay
curves of a configuration, and the formulas, are in `probes.rope.formulas`; they are also exported here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.base import arguments, capture_access
from probes.base.result import Result, frozen, tidy
from probes.rope.formulas import (
    Decay,
    Wavelengths,
    as_pairs,
    band_scores,
    decay,
    evenly_spaced,
    model_frequencies,
    model_temperature,
    rotated_scores,
    wavelengths,
    what_if_frequencies,
    yarn_temperature,
)
from workbench.config import ModelConfig
from workbench.errors import ConfigError, HookError
from workbench.hooks.capture import Capture

__all__ = [
    "ARITHMETICS",
    "BandContribution",
    "Decay",
    "HOOKS",
    "HeadVectors",
    "RelativeInvariance",
    "ScoreByDistance",
    "Wavelengths",
    "WhatIf",
    "band_contribution",
    "decay",
    "head_vectors",
    "invariance_of",
    "relative_invariance",
    "score_by_distance",
    "wavelengths",
    "what_if",
    "what_if_frequencies",
    "yarn_temperature",
]

HOOKS = (
    "blocks.*.attn.hook_q",
    "blocks.*.attn.hook_k",
    "blocks.*.attn.hook_rot_q",
    "blocks.*.attn.hook_rot_k",
)
"""Hooks to capture for the probes in this module."""

ARITHMETICS = {
    "float64": (torch.float64, torch.float64),
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.float32),
    "bfloat16 angles": (torch.bfloat16, torch.bfloat16),
}
"""Name -> dtype of q and k, dtype of the angles. A bfloat16 model uses float32 angles; the last row shows why."""


@dataclass(frozen=True)
class HeadVectors:
    """One head's queries and its group's keys, before and after rotation, in float64 on the CPU.

    Shapes: q, k, rot_q, rot_k [pos, head_dim]; positions [pos], absolute.
    """

    q: Tensor
    k: Tensor
    rot_q: Tensor
    rot_k: Tensor
    positions: Tensor

    @property
    def distance(self) -> Tensor:
        """Query position minus key position; negative for later keys. Shapes: -> [query_pos, key_pos]"""
        return self.positions.unsqueeze(-1) - self.positions

    @property
    def score(self) -> Tensor:
        """The model's own scaled scores, unmasked. Shapes: -> [query_pos, key_pos] float64"""
        return self.rot_q @ self.rot_k.T / math.sqrt(self.q.shape[-1])

    def score_of(self, pair: int) -> Tensor:
        """Contribution of one frequency pair to `score`. Shapes: -> [query_pos, key_pos] float64"""
        q, k = as_pairs(self.rot_q)[:, pair], as_pairs(self.rot_k)[:, pair]
        return torch.outer(q, k.conj()).real / math.sqrt(self.q.shape[-1])


def head_vectors(cap: Capture, layer: int, head: int, *, row: int = 0) -> HeadVectors:
    """One head's vectors from a capture of `HOOKS`, for one batch row.

    Raises: MissingHookError if hook_q, hook_k, hook_rot_q or hook_rot_k of the layer, or the head, was not captured;
            HookError for left-padded rows, or a capture made under another rotation.
    """
    capture_access.unpadded(cap)
    capture_access.own_rotation(cap)
    q_head, kv_head = capture_access.head_index(cap, head)
    row = capture_access.row_of(cap, row)
    index_of = {"q": q_head, "k": kv_head, "rot_q": q_head, "rot_k": kv_head}
    vectors = {
        name: cap[f"blocks.{layer}.attn.hook_{name}"][row, :, index].detach().double().cpu()
        for name, index in index_of.items()
    }
    return HeadVectors(**vectors, positions=capture_access.positions(cap))


@dataclass(frozen=True)
class BandContribution(Result):
    """Contribution of each frequency pair to one head's scores, over causal pairs of query and key. Arrays are [pair].

    `distance` is the distance between query and key, None for all distances.

    `signed` is the mean contribution; it sums to `score`, the mean score. `absolute` is the mean absolute contribution
    and `share` is its share of the total over pairs. `error` is the largest difference between the sum over pairs and
    the score from the model's own rotated q and k.
    """

    AXES = {"wavelength": ("pair",), "signed": ("pair",), "absolute": ("pair",), "share": ("pair",)}
    FIGURE = "probes.rope.figures.band_contribution"
    UNITS = "wavelength in tokens; signed, absolute and error as scores before softmax; share sums to 1"

    layer: int
    head: int
    wavelength: np.ndarray
    signed: np.ndarray
    absolute: np.ndarray
    share: np.ndarray
    score: float
    error: float
    n_scores: int
    distance: int | None = None

    def frame(self) -> pd.DataFrame:
        """One row per pair: layer, head, pair, wavelength, signed, absolute, share, error (of the sum)."""
        return pd.DataFrame(
            {
                "layer": self.layer,
                "head": self.head,
                "pair": np.arange(len(self.signed)),
                "wavelength": self.wavelength,
                "signed": self.signed,
                "absolute": self.absolute,
                "share": self.share,
                "error": self.error,
            }
        )


def band_contribution(
    cap: Capture, layer: int, head: int, *, row: int = 0, distance: int | None = None, max_queries: int = 128
) -> BandContribution:
    """Signed and absolute contribution of each frequency pair to one head's scores, from the model's own q and k.

    distance: use only queries and keys that are this many tokens apart; None for all.
    Shapes: hook_q, hook_k [batch, pos, head, head_dim] -> [pair]; at most `max_queries` evenly spaced queries
            against all their keys
    Units:  score (the softmax's input), computed in float64.
    Raises: MissingHookError if hook_q, hook_k, hook_rot_q or hook_rot_k of the layer was not captured; HookError if
            no query and key are that far apart.
    Source: arXiv 2410.06205, 2502.01563.
    Exact:  the contributions sum to the score; `error` is the largest deviation.
    """
    arguments.at_least(1, max_queries=max_queries)
    vectors = head_vectors(cap, layer, head, row=row)
    freqs = model_frequencies(cap.config, dtype=torch.float32).double()  # the precision that the model uses
    gain = model_temperature(cap.config) ** 2
    pairs = cap.config.head_dim // 2
    signed, absolute = torch.zeros(pairs, dtype=torch.float64), torch.zeros(pairs, dtype=torch.float64)
    count, total, error = 0, 0.0, 0.0
    scores, distances = vectors.score, vectors.distance
    used = distances >= 0 if distance is None else distances == distance  # [query_pos, key_pos]
    queries = used.any(1).nonzero().flatten().tolist()
    if not queries or (distance or 0) < 0:
        raise HookError(
            f"no query and key are {distance} tokens apart; the capture has {len(vectors.positions)} positions."
        )
    for query in (queries[i] for i in evenly_spaced(len(queries), max_queries)):
        keys = used[query]
        parts = gain * band_scores(vectors.q[query], vectors.k[keys], distances[query, keys], freqs)  # [key_pos, pair]
        expected = scores[query, keys]
        signed += parts.sum(0)
        absolute += parts.abs().sum(0)
        total += float(expected.sum())
        count += len(expected)
        error = max(error, float((parts.sum(-1) - expected).abs().max()))
    return BandContribution(
        layer,
        head,
        frozen(2 * math.pi / freqs),
        frozen(signed / count),
        frozen(absolute / count),
        frozen(absolute / absolute.sum()),
        total / count,
        error,
        count,
        distance,
    )


@dataclass(frozen=True)
class RelativeInvariance(Result):
    """How much a head's scores change when query and key shift together. Arrays are [arithmetic, shift].

    In exact arithmetic nothing changes; all differences come from rounding. `largest` is the maximum and `mean` the
    average of |s(i + D, j + D) - s(i, j)| over the sampled pairs.
    """

    AXES = {"shift": ("shift",), "largest": ("arithmetic", "shift"), "mean": ("arithmetic", "shift")}
    FIGURE = "probes.rope.figures.relative_invariance"
    UNITS = "shift in tokens; the others as scores before softmax"

    layer: int
    head: int
    arithmetic: tuple[str, ...]
    shift: np.ndarray
    largest: np.ndarray
    mean: np.ndarray
    score_size: float  # largest |score|, for comparison with the errors

    def frame(self) -> pd.DataFrame:
        """One row per arithmetic and shift: layer, head, arithmetic, shift, largest, mean."""
        columns = {"largest": self.largest, "mean": self.mean}
        table = tidy({"arithmetic": self.arithmetic, "shift": self.shift}, columns)
        table.insert(0, "layer", self.layer)
        table.insert(1, "head", self.head)
        return table


def relative_invariance(
    cap: Capture, layer: int, head: int, *, shifts: Sequence[int] | None = None, row: int = 0, max_positions: int = 32
) -> RelativeInvariance:
    """How much the scores of fixed q and k change under a common shift, for each of `ARITHMETICS`.

    Shapes: hook_q, hook_k [batch, pos, head, head_dim] -> [arithmetic, shift], over all causal pairs of at most
            `max_positions` evenly spaced positions; default shifts: powers of two up to the model's context
    Units:  score (the softmax's input).
    Raises: MissingHookError as `band_contribution`.
    Source: arXiv 2104.09864; the bfloat16 angles of arXiv 2411.13476.
    """
    arguments.at_least(1, max_positions=max_positions)
    vectors = head_vectors(cap, layer, head, row=row)
    chosen = torch.tensor(evenly_spaced(len(vectors.positions), max_positions))
    q, k, positions = vectors.q[chosen], vectors.k[chosen], vectors.positions[chosen]
    if shifts is None:
        shifts = [2**n for n in range(int(math.log2(max(1, cap.config.max_seq_len))) + 1)]
    return replace(invariance_of(q, k, positions, cap.config, shifts=shifts), layer=layer, head=head)


def invariance_of(
    q: Tensor, k: Tensor, positions: Tensor, config: ModelConfig, *, shifts: Sequence[int]
) -> RelativeInvariance:
    """`relative_invariance` of given vectors; layer and head are -1.

    Shapes: q, k [pos, head_dim], positions [pos] -> [arithmetic, shift]
    """
    causal = positions.unsqueeze(-1) >= positions
    gain = model_temperature(config) ** 2
    largest, mean = np.zeros((len(ARITHMETICS), len(shifts))), np.zeros((len(ARITHMETICS), len(shifts)))
    size = 0.0
    for a, (dtype, angles) in enumerate(ARITHMETICS.values()):
        freqs = model_frequencies(config, dtype=torch.promote_types(angles, torch.float32))

        def scores(shift: int, dtype: torch.dtype = dtype, angles: torch.dtype = angles, f: Tensor = freqs) -> Tensor:
            shifted = positions + shift
            return gain * rotated_scores(q, k, shifted, shifted, f, dtype=dtype, angles=angles)[causal].double()

        unshifted = scores(0)
        size = max(size, float(unshifted.abs().max())) if a == 0 else size
        for s, shift in enumerate(shifts):
            change = (scores(shift) - unshifted).abs()
            largest[a, s], mean[a, s] = float(change.max()), float(change.mean())
    return RelativeInvariance(-1, -1, tuple(ARITHMETICS), frozen(np.array(shifts)), frozen(largest), frozen(mean), size)


@dataclass(frozen=True)
class ScoreByDistance(Result):
    """One head's scores by distance, or the contribution of one frequency `pair` to them. Arrays are [distance].

    `mean`, `low` and `high` (10% and 90%) describe the observed scores at that distance. `expected` is the mean score
    over all pairs of a captured query and key, as if each pair had that distance: the effect of position alone.
    """

    AXES = dict.fromkeys(("distance", "count", "mean", "low", "high", "expected"), ("distance",))
    FIGURE = "probes.rope.figures.score_by_distance"
    UNITS = "distance in tokens; the others as scores before softmax"

    layer: int
    head: int
    distance: np.ndarray
    count: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    expected: np.ndarray
    pair: int | None = None

    def frame(self) -> pd.DataFrame:
        """One row per distance: layer, head, distance, count, mean, low, high, expected."""
        names = ("distance", "count", "mean", "low", "high", "expected")
        return pd.DataFrame({"layer": self.layer, "head": self.head, **{n: getattr(self, n) for n in names}})


def score_by_distance(
    cap: Capture, layer: int, head: int, *, row: int = 0, pair: int | None = None, skip: int = 1,
    max_positions: int = 1024,
) -> ScoreByDistance:  # fmt: skip
    """The head's own scores by distance, and the score expected from position alone.

    Positions below `skip` are left out, because the score of a sink does not depend on distance. Only the last
    `max_positions` captured positions are used. pair: use only the contribution of this frequency pair; all pairs sum
    to the score.
    Shapes: hook_rot_q, hook_rot_k [batch, pos, head, head_dim] -> [distance]
    Units:  score (the softmax's input); distance in tokens.
    Raises: MissingHookError as `band_contribution`; HookError if no key is left, or the pair does not exist.
    Source: arXiv 2104.09864; the mean over pairs factorises by frequency.
    """
    arguments.at_least(1, max_positions=max_positions)
    arguments.at_least(0, skip=skip)
    vectors = head_vectors(cap, layer, head, row=row)
    n_pairs = cap.config.head_dim // 2
    if pair is not None and not 0 <= pair < n_pairs:
        raise HookError(f"there is no frequency pair {pair}; the head has pairs 0 to {n_pairs - 1}.")
    used = (vectors.positions >= skip).nonzero().flatten()[-max_positions:]
    if not len(used):
        raise HookError(
            f"no key is left: the last captured position is {int(vectors.positions[-1])}, and {skip} are skipped."
        )
    scores = (vectors.score if pair is None else vectors.score_of(pair))[used][:, used]
    apart = vectors.distance[used][:, used]
    apart, scores = apart[apart >= 0], scores[apart >= 0]  # the causal pairs
    distances, counts = apart.unique(return_counts=True)
    by_distance = scores[apart.argsort(stable=True)].split(counts.tolist())
    bounds = torch.stack([torch.quantile(row, torch.tensor([0.1, 0.9], dtype=torch.float64)) for row in by_distance])
    pairs = slice(None) if pair is None else slice(pair, pair + 1)
    freqs = model_frequencies(cap.config)[pairs]
    q, k = as_pairs(vectors.q[used])[:, pairs], as_pairs(vectors.k[used])[:, pairs]
    content = q.mean(0) * k.mean(0).conj()  # [pair]: the mean over all pairs factorises
    angles = distances.to(torch.float64).unsqueeze(-1) * freqs
    gain = model_temperature(cap.config) ** 2 / math.sqrt(cap.config.head_dim)
    expected = gain * (content * torch.polar(torch.ones_like(angles), angles)).real.sum(-1)
    return ScoreByDistance(
        layer,
        head,
        frozen(distances, np.int64),
        frozen(counts),
        frozen(torch.stack([row.mean() for row in by_distance])),
        frozen(bounds[:, 0]),
        frozen(bounds[:, 1]),
        frozen(expected),
        pair,
    )


@dataclass(frozen=True)
class WhatIf(Result):
    """One head's pattern before and after a change of rotation. Patterns are [query_pos, key_pos]."""

    AXES = {"before": ("query_pos", "key_pos"), "after": ("query_pos", "key_pos"), "moved": ("query_pos",)}
    FIGURE = "probes.rope.figures.what_if"
    UNITS = "total variation distance (share of the query's attention that goes to other keys), 0 to 1"

    layer: int
    head: int
    before: np.ndarray
    after: np.ndarray

    @property
    def moved(self) -> np.ndarray:
        """Total variation distance between the two rows (share of attention that goes to other keys), 0 to 1.

        Shapes: -> [query_pos]
        """
        return 0.5 * np.abs(self.after - self.before).sum(-1)

    def frame(self) -> pd.DataFrame:
        """One row per query: layer, head, query, moved."""
        moved = self.moved
        return pd.DataFrame({"layer": self.layer, "head": self.head, "query": np.arange(len(moved)), "moved": moved})


def what_if(
    cap: Capture, layer: int, head: int, freqs: Tensor, *, temperature: float | None = None, row: int = 0
) -> WhatIf:
    """Recompute one head's pattern from captured un-rotated q and k with other frequencies (`what_if_frequencies`).

    `temperature` multiplies q and k each (YaRN); default: the model's own, usually 1. Only this head's rotation
    changes: q and k are still the result of the model's own rotation in earlier layers. `workbench.RopeScaling` changes
    all layers of the running model.
    Shapes: hook_q, hook_k [batch, pos, head, head_dim], freqs [pair] -> patterns [query_pos, key_pos]
    Units:  probability; `moved` is a share of attention, between 0 and 1.
    Raises: MissingHookError as `band_contribution`; ConfigError if freqs is not one per pair.
    Source: arXiv 2306.15595, 2309.00071 for the other rotations.
    """
    pairs = cap.config.head_dim // 2
    if not isinstance(freqs, Tensor) or tuple(freqs.shape) != (pairs,):
        found = tuple(freqs.shape) if isinstance(freqs, Tensor) else type(freqs).__name__
        raise ConfigError(
            f"freqs needs one frequency per pair, shape ({pairs},) for a head of {cap.config.head_dim} dimensions; "
            f"found {found}."
        )
    capture_access.whole(cap, "A pattern under another rotation")
    vectors = head_vectors(cap, layer, head, row=row)
    future = vectors.distance < 0

    own = model_temperature(cap.config)

    def pattern(f: Tensor, scale: float) -> np.ndarray:
        positions = vectors.positions
        scores = rotated_scores(
            vectors.q, vectors.k, positions, positions, f, dtype=torch.float64, angles=torch.float64
        )
        return frozen((scale * scores).masked_fill(future, -torch.inf).softmax(-1).float())

    after = pattern(freqs.double(), (own if temperature is None else temperature) ** 2)
    return WhatIf(layer, head, pattern(model_frequencies(cap.config), own**2), after)
