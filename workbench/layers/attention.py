"""Attention of rotated queries over keys, three ways: fused, dense, and summaries that stream (`streaming`).

All three take q, k, v with their own numbers of heads and never copy keys or values per query head. Scores and
summaries are computed in float32. They know nothing of layers, weights or hooks.
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
        # One query sees every key, so its group's heads can stand in the query axis: half the time on a CPU.
        grouped = q.unflatten(1, (k.shape[1], -1)).flatten(2, 3)  # [batch, kv_head, group, head_dim]
        z: Tensor = F.scaled_dot_product_attention(grouped, k, v, attn_mask=allowed)
        return z.flatten(1, 2).unsqueeze(2)
    gqa = q.shape[1] != k.shape[1]
    z = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=allowed is None, enable_gqa=gqa)
    return z


def shared_prefix_attention(
    shared: tuple[Tensor, Tensor], q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None
) -> Tensor:
    """As `fused` for one query a row, behind keys and values that all rows share: they are read once for all of them.

    Shapes: shared, each [1, kv_head, shared_pos, head_dim]; q [batch, head, 1, head_dim];
            k, v [batch, kv_head, own_pos, head_dim]; allowed [batch, 1, 1, key_pos], its last own_pos count -> as q
    """
    if q.device.type == "cpu" and q.dtype != torch.float64 and not torch.is_grad_enabled():
        return _shared_prefix_on_cpu(shared, q, k, v, allowed)
    batch, n_kv, own = k.shape[:3]
    before_k, before_v = shared[0][0], shared[1][0]  # [kv_head, shared_pos, head_dim]
    wide = q.float() * q.shape[-1] ** -0.5
    grouped = wide.unflatten(1, (n_kv, -1)).flatten(2, 3)  # [batch, kv_head, group, head_dim]
    together = grouped.transpose(0, 1).flatten(1, 2)  # [kv_head, batch * group, head_dim]
    before = (together @ before_k.float().transpose(-1, -2)).unflatten(1, (batch, -1)).transpose(0, 1)
    after = grouped @ k.float().transpose(-1, -2)  # [batch, kv_head, group, own_pos]
    if allowed is not None:
        after = after.masked_fill(~allowed[..., -own:], float("-inf"))
    weights = torch.cat([before, after], -1).softmax(-1).to(v.dtype)
    early, late = weights.split([before_k.shape[1], own], -1)
    z: Tensor = (early.transpose(0, 1).flatten(1, 2) @ before_v).unflatten(1, (batch, -1)).transpose(0, 1) + late @ v
    return z.flatten(1, 2).unsqueeze(2)


def _shared_prefix_on_cpu(
    shared: tuple[Tensor, Tensor], q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None
) -> Tensor:
    """`behind` as two runs of the CPU's fused kernel, each weighed by its sum of exponentials; nothing is copied."""
    fused_parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    batch, n_kv, own = k.shape[:3]
    grouped = q.unflatten(1, (n_kv, -1)).flatten(2, 3)  # [batch, kv_head, group, head_dim]
    together = grouped.transpose(0, 1).flatten(1, 2).unsqueeze(0)  # [1, kv_head, batch * group, head_dim]
    early, before = (part[0].unflatten(1, (batch, -1)).transpose(0, 1) for part in fused_parts(together, *shared))
    mask = None
    if allowed is not None:
        hidden = torch.zeros((), dtype=q.dtype).masked_fill(~allowed[..., -own:], float("-inf"))
        mask = hidden.expand(-1, -1, grouped.shape[2], -1)
    late, after = fused_parts(grouped, k, v, attn_mask=mask)  # and the logsumexp, [batch, kv_head, group]
    share = (before - after).sigmoid().unsqueeze(-1)
    z: Tensor = torch.lerp(late.float(), early.float(), share).to(v.dtype)
    return z.flatten(1, 2).unsqueeze(2)


def scores(q: Tensor, k: Tensor, allowed: Tensor) -> Tensor:
    """Scaled and masked scores, -inf where a query may not look.

    Shapes: q [batch, head, query_pos, head_dim], k [batch, kv_head, key_pos, head_dim]
            -> float32 [batch, head, query_pos, key_pos]
    """
    raw: Tensor = _grouped(q.float(), k.float().transpose(-1, -2)) * q.shape[-1] ** -0.5
    return raw.masked_fill(~allowed, float("-inf"))


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
    """What one layer's pattern is made from: kept instead of the pattern, in memory that grows linearly.

    Shapes: q [batch, head, query_pos, head_dim], k [batch, kv_head, key_pos, head_dim], both rotated.
            kv_of [head] int64: which kept key head serves each kept query head.
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
        """The same for some heads and some rows only; what is left out is not kept alive.

        Shapes: heads [n] and queries [n], int64 indices into the kept axes.
        """
        kept = self
        if heads is not None:
            kv_heads, kv_of = torch.unique(self.kv_of[heads], return_inverse=True)
            kept = replace(kept, q=kept.q[:, heads], k=kept.k[:, kv_heads], kv_of=kv_of)
        if queries is not None:
            mask = replace(kept.mask, positions=kept.mask.positions[queries])
            kept = replace(kept, q=kept.q[:, :, queries], mask=mask)
        return kept

    def _by_group(self) -> Tensor:
        """Keys laid out so that equal groups of heads share one. Copies only when the kept heads are uneven."""
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
        """`streaming.pooled_map` of the pattern. Shapes: -> float32 [batch, head, query_tile, key_tile]"""
        return attention_stats.pooled_map(attention_stats.weight_tiles(self._tiles()), self._shape, self.mask)

    def key_mass(self) -> Tensor:
        """Weight that every key receives from the kept queries. Shapes: -> float32 [batch, head, key_pos]"""
        return attention_stats.key_mass(attention_stats.weight_tiles(self._tiles()), self._shape, self.mask)


@dataclass(frozen=True)
class OpenPattern:
    """A pattern that is there as a whole, because an intervention changed it, and what `AttentionInputs` says of one.

    Its rows need not sum to 1: statistics are those of each row divided by its sum (NaN where that is 0), with
    the sum's logarithm as logsumexp; map and key mass are of the weights as they are.
    Shapes: weights [batch, head, query_pos, key_pos]
    """

    weights: Tensor
    mask: Mask

    def _whole(self, values: Tensor) -> list[attention_stats.Tile]:
        return [attention_stats.Tile(slice(None), slice(None), values)]

    def stats(self) -> Tensor:
        """Shapes: -> float32 [batch, head, query_pos, stat]"""
        weights = self.weights.float()
        logs = weights.log().clamp(min=torch.finfo(torch.float32).min)
        found = attention_stats.stats(self._whole(logs), weights.shape, self.mask)
        return found.masked_fill((weights.sum(-1) == 0).unsqueeze(-1), torch.nan)

    def pooled_map(self) -> Tensor:
        """Shapes: -> float32 [batch, head, query_tile, key_tile]"""
        return attention_stats.pooled_map(self._whole(self.weights.float()), self.weights.shape, self.mask)

    def key_mass(self) -> Tensor:
        """Shapes: -> float32 [batch, head, key_pos]"""
        return attention_stats.key_mass(self._whole(self.weights.float()), self.weights.shape, self.mask)
