"""Attention head metrics: entropy, sinks, previous token, duplicates, induction, distance.

The first half has formulas for rows of a pattern and does not use models. The second half reads a capture layer by
layer, in blocks of queries, so that no layer's full pattern is in memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.base import arguments, capture_access
from probes.base.result import Result, frozen, tidy
from workbench.errors import HookError
from workbench.hooks.capture import Capture
from workbench.layers.attention_stats import STATS
from workbench.model import Transformer
from workbench.text.tokenizer import Tokenizer

PATTERN = "attn.hook_pattern"
HOOKS = (f"blocks.*.{PATTERN}",)
"""Hooks to capture for `head_metrics` and `query_metrics`."""

STATS_HOOK = "attn.hook_stats"
LONG_HOOKS = (f"blocks.*.{STATS_HOOK}",)
"""Hooks to capture instead for long prompts, where patterns take too long: `duplicate` is NaN, all else the same."""

SINK_THRESHOLD = 0.3
"""A head is a sink head when its mean attention to the first token exceeds this (arXiv 2410.10781)."""

_BLOCK_BYTES = 1 << 25  # of pattern in memory: large enough to be fast, small compared with any model

METRICS = {
    "entropy": "entropy (nats)",
    "entropy_norm": "entropy / ln(i + 1)",
    "sink_1": "mass on the first token",
    "sink_4": "mass on the first 4 tokens",
    "previous": "mass on the previous token",
    "duplicate": "mass on earlier copies of the token",
    "distance": "expected distance (tokens)",
}
"""Columns of `HeadMetrics.frame()` with the label and unit for figures."""

SHARES = ("entropy_norm", "sink_1", "sink_4", "previous", "duplicate")
"""The metrics between 0 and 1."""


# --- formulas for rows of a pattern ---------------------------------------------------------------------------


def entropy(pattern: Tensor) -> Tensor:
    """Shannon entropy of each row.

    Shapes: [..., query_pos, key_pos] -> [..., query_pos]
    Units:  nats; 0 for a row on one key, ln(i + 1) for a uniform row at position i.
    Source: arXiv 1906.04341, 2303.06296.
    """
    return torch.special.entr(pattern).sum(-1)


def normalised_entropy(nats: Tensor, queries: Tensor) -> Tensor:
    """Entropy divided by its maximum, ln(i + 1); NaN at i = 0, which has only one key.

    Shapes: nats [..., query_pos] from `entropy`, queries [query_pos] absolute positions -> [..., query_pos]
    """
    return torch.where(queries > 0, nats / torch.log(queries.to(nats.dtype) + 1), torch.nan)


def sink_mass(pattern: Tensor, k: int = 1) -> Tensor:
    """Attention on the first k tokens.

    Shapes: [..., query_pos, key_pos] -> [..., query_pos]
    Units:  probability; 1 for the first k rows, by causality.
    Source: arXiv 2309.17453.
    """
    return pattern[..., :k].sum(-1)


def offset_mass(pattern: Tensor, queries: Tensor, offset: int) -> Tensor:
    """A[i, i - offset]: attention on the key `offset` tokens back; NaN if there is no such key.

    Offset 1 is the previous-token score; offset L - 1 on a repeated block of L tokens is the induction score.
    Shapes: pattern [..., query_pos, key_pos], queries [query_pos] absolute positions -> [..., query_pos]
    Source: arXiv 2211.00593 (previous token), 2209.11895 (induction).
    """
    keys = queries - offset  # [query_pos]
    inside = (keys >= 0) & (keys < pattern.shape[-1])
    at = keys.clamp(0, pattern.shape[-1] - 1).unsqueeze(-1).expand(*pattern.shape[:-1], 1)
    return torch.where(inside, pattern.gather(-1, at).squeeze(-1), torch.nan)


def duplicate_mass(pattern: Tensor, tokens: Tensor, queries: Tensor) -> Tensor:
    """Attention on earlier copies of the query's own token; NaN if there is no earlier copy.

    Shapes: pattern [batch, head, query_pos, key_pos], tokens [batch, key_pos], queries [query_pos]
            -> [batch, head, query_pos]
    Source: arXiv 2211.00593.
    """
    keys = torch.arange(tokens.shape[-1], device=tokens.device)
    same = tokens[:, queries].unsqueeze(-1) == tokens.unsqueeze(-2)  # [batch, query_pos, key_pos]
    earlier = same & (keys < queries.unsqueeze(-1))
    mass = torch.einsum("bhqk,bqk->bhq", pattern, earlier.to(pattern.dtype))
    return torch.where(earlier.any(-1).unsqueeze(1), mass, torch.nan)


def expected_distance(pattern: Tensor, queries: Tensor) -> Tensor:
    """Mean distance of a row's attention: sum_j (i - j) A[i, j].

    Shapes: pattern [..., query_pos, key_pos], queries [query_pos] absolute positions -> [..., query_pos]
    Units:  tokens.
    Source: arXiv 1906.04284.
    """
    keys = torch.arange(pattern.shape[-1], device=pattern.device, dtype=pattern.dtype)
    return queries.to(pattern.dtype) * pattern.sum(-1) - pattern @ keys


# --- metrics of a capture -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QueryMetrics(Result):
    """All metrics of one layer, by query. Arrays are [batch, head, query_pos], NaN where undefined."""

    AXES = {"queries": ("query_pos",), "values": ("batch", "head", "query_pos")}
    FIGURE = "probes.attention.figures.query_metrics"
    UNITS = "entropy in nats, distance in tokens, all else shares from 0 to 1"

    layer: int
    heads: tuple[int, ...]
    queries: np.ndarray  # [query_pos] absolute positions
    values: dict[str, np.ndarray]

    def frame(self) -> pd.DataFrame:
        """One row per batch row, head and query: layer, batch, head, query, then a column per metric."""
        batch = range(self.values["entropy"].shape[0])
        table = tidy({"batch": batch, "head": self.heads, "query": self.queries}, self.values)
        table.insert(0, "layer", self.layer)
        return table


@dataclass(frozen=True)
class HeadMetrics(Result):
    """One number per head and metric: means over batch rows and queries, without undefined values.

    Arrays are [layer, head]; `layers` and `heads` name the rows and columns.
    """

    AXES = {"values": ("layer", "head")}
    FIGURE = "probes.attention.figures.head_metric"
    UNITS = "entropy in nats, distance in tokens, all else shares from 0 to 1; means over queries"

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    values: dict[str, np.ndarray]
    n_queries: int
    group_size: int = 1  # query heads that share a key/value head

    @property
    def sink_heads(self) -> np.ndarray:
        """[layer, head] bool: mean attention to the first token above 0.3."""
        return self.values["sink_1"] > SINK_THRESHOLD

    @property
    def sink_rate(self) -> float:
        """Share of heads that are sink heads, between 0 and 1."""
        return float(self.sink_heads.mean())

    def frame(self) -> pd.DataFrame:
        """One row per head: layer, head, a column per metric (see `METRICS`), and `sink_head`."""
        return tidy({"layer": self.layers, "head": self.heads}, {**self.values, "sink_head": self.sink_heads})


def head_metrics(cap: Capture, *, queries: Sequence[int] | None = None) -> HeadMetrics:
    """Metrics of each captured head, averaged over all positions, or only over those in `queries`.

    Shapes: hook_pattern [layer, batch, head, query_pos, key_pos] or hook_stats [layer, batch, head, query_pos, stat]
            -> [layer, head] per metric
    Units:  entropy in nats, distance in tokens, all others probabilities; computed in float32.
    Raises: MissingHookError if neither was captured for any layer, or a query was not; HookError for left-padded rows.
    Source: arXiv 1906.04341 (entropy), 2309.17453 and 2410.10781 (sinks), 2211.00593 (previous and duplicate token),
            1906.04284 (distance).
    """
    layers = tuple(sorted({*cap.layers(PATTERN), *cap.layers(STATS_HOOK)})) or capture_access.layers(cap, PATTERN)
    means: list[dict[str, np.ndarray]] = []
    for layer in layers:
        rows = query_metrics(cap, layer, queries=queries).values
        means.append({name: _defined_mean(values) for name, values in rows.items()})
    values = {name: frozen(np.stack([mean[name] for mean in means])) for name in METRICS}
    n_queries = cap.tokens.shape[0] * len(capture_access.positions(cap) if queries is None else queries)
    return HeadMetrics(layers, capture_access.heads(cap), values, n_queries, cap.config.group_size)


def query_metrics(cap: Capture, layer: int, *, queries: Sequence[int] | None = None) -> QueryMetrics:
    """Metrics of one layer for each query, or only for those at the positions in `queries`.

    Shapes: hook_pattern [batch, head, query_pos, key_pos] or hook_stats [batch, head, query_pos, stat]
            -> [batch, head, query_pos] per metric
    Units:  as `head_metrics`.
    Raises: MissingHookError if neither of this layer was captured, or a query was not.
    Source: as `head_metrics`.
    """
    if queries is not None and not len(queries):
        raise HookError("queries is empty; give at least one position, or None for all.")
    capture_access.unpadded(cap)
    if layer not in cap.layers(PATTERN) and layer in cap.layers(STATS_HOOK):
        return _metrics_from_stats(cap, layer, queries)
    parts: list[dict[str, Tensor]] = []
    for block, pattern in pattern_blocks(cap, layer, queries=queries):
        visible = int(block.max()) + 1  # later keys have no weight in any of these rows
        pattern, nats = pattern[..., :visible], entropy(pattern[..., :visible])
        # After a cache the earlier tokens are not in the capture, so copies cannot be found.
        unknown = torch.full_like(nats, torch.nan)
        parts.append(
            {
                "entropy": nats,
                "entropy_norm": normalised_entropy(nats, block),
                "sink_1": sink_mass(pattern, 1),
                "sink_4": sink_mass(pattern, 4),
                "previous": offset_mass(pattern, block, 1),
                "duplicate": unknown if cap.start else duplicate_mass(pattern, cap.tokens[:, :visible], block),
                "distance": expected_distance(pattern, block),
            }
        )
    values = {name: frozen(torch.cat([part[name] for part in parts], -1)) for name in parts[0]}
    chosen = capture_access.positions(cap) if queries is None else torch.tensor(list(queries))
    return QueryMetrics(layer, capture_access.heads(cap), frozen(chosen), values)


def _metrics_from_stats(cap: Capture, layer: int, chosen: Sequence[int] | None) -> QueryMetrics:
    """Metrics from hook_stats, which has no information about copies of the query's token."""
    values_by_stat = cap[f"blocks.{layer}.{STATS_HOOK}"].detach()  # [batch, head, query_pos, stat]
    queries = capture_access.positions(cap).to(values_by_stat.device)
    if chosen is not None:
        at = [capture_access.place(cap, position) for position in chosen]
        values_by_stat, queries = values_by_stat[:, :, at], queries[at]
    stats = dict(zip(STATS, values_by_stat.unbind(-1), strict=True))
    rows = {name: stats[name] for name in ("entropy", "sink_1", "sink_4", "distance")}
    rows["entropy_norm"] = normalised_entropy(stats["entropy"], queries)
    rows["previous"] = torch.where(queries > 0, stats["previous"], torch.nan)
    rows["duplicate"] = torch.full_like(stats["entropy"], torch.nan)
    values = {name: frozen(rows[name]) for name in METRICS}
    return QueryMetrics(layer, capture_access.heads(cap), frozen(queries), values)


def pattern_blocks(
    cap: Capture, layer: int, *, heads: Sequence[int] | None = None, queries: Sequence[int] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """One layer's pattern in blocks of queries, so that a long prompt's full pattern is never in memory.

    Shapes: -> pairs of queries [query_pos] (absolute positions) and pattern [batch, head, query_pos, key_pos]
    """
    chosen = capture_access.positions(cap).tolist() if queries is None else list(queries)
    n_heads = len(capture_access.heads(cap) if heads is None else heads)
    batch, seqlen = cap.tokens.shape
    step = max(1, _BLOCK_BYTES // (4 * batch * n_heads * (cap.start + seqlen)))
    for start in range(0, len(chosen), step):
        block = chosen[start : start + step]
        pattern = cap.pattern(layer, heads=heads, queries=block).detach().float()
        yield torch.tensor(block, device=pattern.device), pattern


def _defined_mean(rows: np.ndarray) -> np.ndarray:
    """Mean without NaN; NaN if there are no other values. Shapes: [batch, head, query_pos] -> [head]"""
    defined = ~np.isnan(rows)
    counts = defined.sum((0, 2))
    sums = np.where(defined, rows, 0).sum((0, 2), dtype=np.float64)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


@dataclass(frozen=True)
class InductionScores(Result):
    """Scores of each head on repeated blocks of random tokens. Arrays are [layer, head].

    `induction` is the mean of A[i, i - L + 1] and `duplicate` the mean of A[i, i - L] over the second copy, where
    L is `block`. `chance` is the score of uniform attention. Each `_stderr` is the standard error of the mean over
    prompts, NaN for a single prompt.
    """

    AXES = dict.fromkeys(("induction", "duplicate", "induction_stderr", "duplicate_stderr"), ("layer", "head"))
    FIGURE = "probes.attention.figures.induction_scores"
    UNITS = "attention, 0 to 1, mean over the second copy; stderr over prompts"

    induction: np.ndarray
    duplicate: np.ndarray
    induction_stderr: np.ndarray
    duplicate_stderr: np.ndarray
    block: int
    batch: int
    seed: int
    chance: float
    group_size: int = 1  # query heads that share a key/value head

    def frame(self) -> pd.DataFrame:
        """One row per head: layer, head, induction, duplicate, and the standard error of each."""
        n_layers, n_heads = self.induction.shape
        axes = {"layer": range(n_layers), "head": range(n_heads)}
        return tidy(axes, {name: getattr(self, name) for name in self.AXES})


@torch.no_grad()
def induction_scores(model: Transformer, *, block: int = 32, batch: int = 4, seed: int = 0) -> InductionScores:
    """Attention of each head to the token that followed the previous occurrence of the current token.

    The prompt is the begin token (if a text starts with it), then `block` random ordinary tokens, then the same
    tokens again. Tokens do not repeat within a block if the vocabulary is large enough, so the target is unique.
    Shapes: -> [layer, head]
    Units:  attention, between 0 and 1: the mean over the second copy and over prompts.
    Raises: HookError if two blocks do not fit the model's context.
    Source: arXiv 2209.11895.
    """
    arguments.at_least(1, batch=batch)
    tokens = repeated_blocks(model, block=block, batch=batch, seed=seed)
    _, cap = model.run_with_capture(tokens, HOOKS, logits=None)
    start = tokens.shape[1] - block  # first position of the second copy
    scores = []
    for layer in capture_access.layers(cap, PATTERN):
        rows = [
            torch.stack([offset_mass(pattern, queries, block - 1), offset_mass(pattern, queries, block)])
            for queries, pattern in pattern_blocks(cap, layer)
        ]
        scores.append(torch.cat(rows, -1)[..., start:].mean(-1))  # [score, batch, head]
    by_prompt = torch.stack(scores, 1)  # [score, layer, batch, head]
    error = by_prompt.std(2) / batch**0.5 if batch > 1 else torch.full_like(by_prompt[:, :, 0], torch.nan)
    positions = torch.arange(start, tokens.shape[1], dtype=torch.float64)
    chance = float((1 / (positions + 1)).mean())
    means_and_errors = (frozen(part) for part in (*by_prompt.mean(2), *error))
    return InductionScores(*means_and_errors, block, batch, seed, chance, model.config.group_size)


def repeated_blocks(model: Transformer, *, block: int, batch: int, seed: int) -> Tensor:
    """Prompts with a repeated random block of ordinary tokens, after the begin token if a text starts with it.

    Shapes: -> [batch, 2 * block (+ 1)] int64, on the model's device
    Raises: HookError if they do not fit the model's context.
    """
    tokenizer, config = model.tokenizer, model.config
    begin = tokenizer.encode("", bos=True) if tokenizer else []
    length = 2 * block + len(begin)
    if block < 1 or length > config.max_seq_len:
        raise HookError(
            f"two blocks of {block} tokens make a prompt of {length} tokens, but the model's context is "
            f"{config.max_seq_len}; choose a block between 1 and {(config.max_seq_len - 1) // 2}."
        )
    generator = torch.Generator().manual_seed(seed)
    ordinary = torch.tensor(ordinary_ids(tokenizer, config.vocab_size))
    if len(ordinary) >= block:
        rows = [torch.randperm(len(ordinary), generator=generator)[:block] for _ in range(batch)]
        random = torch.stack(rows)
    else:
        random = torch.randint(len(ordinary), (batch, block), generator=generator)
    tokens = torch.cat(
        [torch.tensor(begin, dtype=torch.int64).expand(batch, -1), ordinary[random], ordinary[random]], 1
    )
    return tokens.to(model.device)


def ordinary_ids(tokenizer: Tokenizer | None, vocab_size: int) -> list[int]:
    """Ids that have a token which is not special; all ids without a tokenizer."""
    special = set(tokenizer.special_tokens.values()) if tokenizer else set()
    return [i for i in range(vocab_size) if tokenizer is None or (tokenizer.has_token(i) and i not in special)]
