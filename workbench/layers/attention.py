"""Attention of rotated queries over keys: fused kernels, explicit scores, and tiled statistics (`attention_stats`).

All take q, k, v with their own numbers of heads and never copy keys or values per query head. Scores and statistics
are computed in float32. This module knows nothing of layers, weights or hooks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.layers import attention_stats
from workbench.layers.attention_mask import Mask


def sdpa(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    """Attention output on PyTorch's fused kernels; `allowed` None means causal from the first key (or one query).

    Shapes: q [batch, head, query_pos, head_dim], k, v [batch, kv_head, key_pos, head_dim] -> as q
    """
    if q.shape[2] == 1:
        # One query sees every key, so its group's heads can be put in the query axis: half the time on a CPU.
        grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])  # [batch, kv_head, group, head_dim]
        z: Tensor = F.scaled_dot_product_attention(grouped, k, v, attn_mask=allowed)
        return z.flatten(1, 2).unsqueeze(2)
    gqa = q.shape[1] != k.shape[1]
    z = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=allowed is None, enable_gqa=gqa)
    return z


def shared_prefix_attention(
    shared: tuple[Tensor, Tensor], q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None
) -> Tensor:
    """As `sdpa` for one query per sequence, after keys and values that all sequences share; these are read once.

    Shapes: shared, each [1, kv_head, shared_pos, head_dim]; q [batch, head, 1, head_dim];
            k, v [batch, kv_head, suffix_pos, head_dim]; allowed [batch, 1, 1, key_pos], its last suffix_pos count
            -> as q
    """
    if q.device.type == "cpu" and q.dtype != torch.float64 and not torch.is_grad_enabled():
        return _shared_prefix_on_cpu(shared, q, k, v, allowed)
    batch, n_kv, suffix = k.shape[:3]
    prefix_k, prefix_v = shared[0][0], shared[1][0]  # [kv_head, shared_pos, head_dim]
    scaled = q.float() * q.shape[-1] ** -0.5
    grouped = scaled.unflatten(1, (n_kv, -1)).flatten(2, 3)  # [batch, kv_head, group, head_dim]
    together = grouped.transpose(0, 1).flatten(1, 2)  # [kv_head, batch * group, head_dim]
    prefix_scores = (together @ prefix_k.float().transpose(-1, -2)).unflatten(1, (batch, -1)).transpose(0, 1)
    suffix_scores = grouped @ k.float().transpose(-1, -2)  # [batch, kv_head, group, suffix_pos]
    if allowed is not None:
        suffix_scores = suffix_scores.masked_fill(~allowed[..., -suffix:], float("-inf"))
    weights = torch.cat([prefix_scores, suffix_scores], -1).softmax(-1).to(v.dtype)
    prefix_weights, suffix_weights = weights.split([prefix_k.shape[1], suffix], -1)
    prefix_z = (prefix_weights.transpose(0, 1).flatten(1, 2) @ prefix_v).unflatten(1, (batch, -1)).transpose(0, 1)
    z: Tensor = prefix_z + suffix_weights @ v
    return z.flatten(1, 2).unsqueeze(2)


def _shared_prefix_on_cpu(
    shared: tuple[Tensor, Tensor], q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None
) -> Tensor:
    """`shared_prefix_attention` as two calls of the CPU's fused kernel, weighted by their sums of exponentials."""
    flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    batch, n_kv, suffix = k.shape[:3]
    grouped = q.unflatten(1, (n_kv, -1)).flatten(2, 3)  # [batch, kv_head, group, head_dim]
    together = grouped.transpose(0, 1).flatten(1, 2).unsqueeze(0)  # [1, kv_head, batch * group, head_dim]
    prefix_z, prefix_lse = (
        part[0].unflatten(1, (batch, -1)).transpose(0, 1) for part in flash_attention(together, *shared)
    )
    mask = None
    if allowed is not None:
        hidden = torch.zeros((), dtype=q.dtype).masked_fill(~allowed[..., -suffix:], float("-inf"))
        mask = hidden.expand(-1, -1, grouped.shape[2], -1)
    suffix_z, suffix_lse = flash_attention(grouped, k, v, attn_mask=mask)  # and the logsumexp, [batch, kv_head, group]
    prefix_share = (prefix_lse - suffix_lse).sigmoid().unsqueeze(-1)
    z: Tensor = torch.lerp(suffix_z.float(), prefix_z.float(), prefix_share).to(v.dtype)
    return z.flatten(1, 2).unsqueeze(2)


def scores(q: Tensor, k: Tensor, allowed: Tensor) -> Tensor:
    """Scaled and masked scores; -inf where a query may not attend.

    Shapes: q [batch, head, query_pos, head_dim], k [batch, kv_head, key_pos, head_dim]
            -> float32 [batch, head, query_pos, key_pos]
    """
    raw: Tensor = _grouped(q.float(), k.float().transpose(-1, -2)) * q.shape[-1] ** -0.5
    return raw.masked_fill(~allowed, float("-inf"))


def weights(scores: Tensor) -> Tensor:
    """Softmax over the keys; a query whose every score is -inf has weight 0 on every key.

    Shapes: [batch, head, query_pos, key_pos] -> the same
    """
    sees_none = (scores == float("-inf")).all(-1, keepdim=True)
    return scores.masked_fill(sees_none, 0.0).softmax(-1).masked_fill(sees_none, 0.0)


def weighted_values(pattern: Tensor, v: Tensor) -> Tensor:
    """Values averaged by a pattern.

    Shapes: pattern [batch, head, query_pos, key_pos], v [batch, kv_head, key_pos, head_dim]
            -> [batch, head, query_pos, head_dim]
    """
    return _grouped(pattern.to(v.dtype), v)


def _grouped(per_head: Tensor, per_kv_head: Tensor) -> Tensor:
    """Matrix product in which a group of heads shares one right-hand matrix, without copying it."""
    n_kv, rows = per_kv_head.shape[1], per_head.shape[2]
    folded = per_head.unflatten(1, (n_kv, -1)).flatten(2, 3) @ per_kv_head  # [batch, kv_head, group * rows, ...]
    unfolded: Tensor = folded.unflatten(2, (-1, rows)).flatten(1, 2)
    return unfolded


@dataclass(frozen=True)
class AttentionInputs:
    """Inputs of one layer's attention pattern: stored instead of the pattern, in memory that grows linearly.

    Shapes: q [batch, head, query_pos, head_dim], k [batch, kv_head, key_pos, head_dim], both rotated.
            kv_of [head] int64: index of the stored key head of each stored query head.
    """

    q: Tensor
    k: Tensor
    mask: Mask
    kv_of: Tensor

    @classmethod
    def of(cls, q: Tensor, k: Tensor, mask: Mask) -> AttentionInputs:
        group = q.shape[1] // k.shape[1]
        return cls(q, k, mask, torch.arange(q.shape[1], device=q.device) // group)

    @property
    def n_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.q, self.k))

    def narrow(self, heads: Tensor | None = None, queries: Tensor | None = None) -> AttentionInputs:
        """The same for some heads and queries only; the rest is not narrowed in memory.

        Shapes: heads [n] and queries [n], int64 indices into the stored axes.
        """
        narrowed = self
        if heads is not None:
            kv_heads, kv_of = torch.unique(self.kv_of[heads], return_inverse=True)
            narrowed = replace(narrowed, q=narrowed.q[:, heads], k=narrowed.k[:, kv_heads], kv_of=kv_of)
        if queries is not None:
            mask = replace(narrowed.mask, positions=narrowed.mask.positions[queries])
            narrowed = replace(narrowed, q=narrowed.q[:, :, queries], mask=mask)
        return narrowed

    def _by_group(self) -> Tensor:
        """Keys with equal groups of query heads per key head. Copies only if the stored groups are unequal."""
        counts = torch.bincount(self.kv_of, minlength=self.k.shape[1])
        even = bool((counts == counts[0]).all()) and bool((self.kv_of.diff() >= 0).all())
        return self.k if even else self.k[:, self.kv_of]

    def scores(self) -> Tensor:
        """Shapes: -> float32 [batch, head, query_pos, key_pos], -inf where masked."""
        return scores(self.q, self._by_group(), self.mask.allowed(self.k.shape[2]))

    def pattern(self) -> Tensor:
        """Shapes: -> float32 [batch, head, query_pos, key_pos]; each row sums to 1."""
        return self.scores().softmax(-1)

    @property
    def _shape(self) -> torch.Size:
        return torch.Size((*self.q.shape[:3], self.k.shape[2]))

    def _tiles(self) -> Iterator[attention_stats.Tile]:
        return attention_stats.score_tiles(self.q, self._by_group(), self.mask)

    def stats(self) -> Tensor:
        """Statistics of every row of the pattern. Shapes: -> float32 [batch, head, query_pos, stat], see `STATS`"""
        return attention_stats.stats(self._tiles(), self._shape, self.mask)

    def pooled_map(self) -> Tensor:
        """`attention_stats.pooled_map` of the pattern. Shapes: -> float32 [batch, head, query_tile, key_tile]"""
        return attention_stats.pooled_map(attention_stats.weight_tiles(self._tiles()), self._shape, self.mask)

    def key_mass(self) -> Tensor:
        """Weight that every key receives from the stored queries. Shapes: -> float32 [batch, head, key_pos]"""
        return attention_stats.key_mass(attention_stats.weight_tiles(self._tiles()), self._shape, self.mask)


@dataclass(frozen=True)
class EditedPattern:
    """An explicit pattern that an intervention edited, with the same summaries as `AttentionInputs`.

    Its rows need not sum to 1. Statistics are those of each row divided by its sum (NaN where that is 0), with
    the sum's logarithm as logsumexp; map and key mass use the weights as they are.
    Shapes: weights [batch, head, query_pos, key_pos]
    """

    weights: Tensor
    mask: Mask

    def _as_tile(self, values: Tensor) -> list[attention_stats.Tile]:
        return [attention_stats.Tile(slice(None), slice(None), values)]

    def stats(self) -> Tensor:
        """Shapes: -> float32 [batch, head, query_pos, stat]"""
        weights = self.weights.float()
        attended = weights != 0  # the logarithm of 0 would make every gradient NaN
        logs = weights.where(attended, 1.0).log().masked_fill(~attended, torch.finfo(torch.float32).min)
        stats = attention_stats.stats(self._as_tile(logs), weights.shape, self.mask)
        return stats.masked_fill((weights.sum(-1) == 0).unsqueeze(-1), torch.nan)

    def pooled_map(self) -> Tensor:
        """Shapes: -> float32 [batch, head, query_tile, key_tile]"""
        return attention_stats.pooled_map(self._as_tile(self.weights.float()), self.weights.shape, self.mask)

    def key_mass(self) -> Tensor:
        """Shapes: -> float32 [batch, head, key_pos]"""
        return attention_stats.key_mass(self._as_tile(self.weights.float()), self.weights.shape, self.mask)
