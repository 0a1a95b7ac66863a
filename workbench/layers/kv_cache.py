"""The key/value cache: preallocated, passed in as a value, never kept by the model.

Knows nothing of the model but its shape. Under tensor parallelism it holds this process's key/value heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.config import ModelConfig
from workbench.errors import GenerationError
from workbench.layers import tensor_parallel
from workbench.layers.attention_mask import TreeMask


@dataclass
class KVCache:
    """Keys (rotated) and values of the positions seen so far.

    Shapes: keys, values [layer, batch, kv_head, capacity, head_dim]; the first `length` positions are filled.
            pad [batch] int64 or None: how many positions at the left of each row are padding.
    """

    keys: Tensor
    values: Tensor
    length: int = 0
    pad: Tensor | None = None
    tree: TreeMask | None = None

    @classmethod
    def empty(
        cls,
        config: ModelConfig,
        batch: int,
        capacity: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        pad: Tensor | None = None,
    ) -> KVCache:
        """An empty cache for `batch` rows of up to `capacity` positions."""
        heads = tensor_parallel.shard_size(config.n_kv_heads, "n_kv_heads")
        shape = (config.n_layers, batch, heads, capacity, config.head_dim)
        return cls(
            torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device), 0, pad
        )

    @property
    def batch(self) -> int:
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    @property
    def n_bytes(self) -> int:
        return 2 * self.keys.numel() * self.keys.element_size()

    @property
    def depth(self) -> Tensor | None:
        """Absolute positions of the next tokens where rows differ in them. Shapes: -> [batch, 1] int64, or None"""
        return None

    def shared(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values before those of all rows, kept once. Shapes: -> each [1, kv_head, pos, head_dim], or None"""
        return None

    def room_for(self, batch: int, seqlen: int) -> None:
        """Raises: GenerationError if `batch` rows of `seqlen` more positions do not fit."""
        if batch != self.batch:
            raise GenerationError(f"the cache was made for {self.batch} rows, but {batch} rows of tokens came.")
        if self.length + seqlen > self.capacity:
            raise GenerationError(
                f"the cache holds {self.capacity} positions: {self.length} are used and {seqlen} more do not fit."
            )

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put new keys and values of one layer behind the old ones; the whole so far, as views.

        Shapes: keys, values [batch, kv_head, seqlen, head_dim] -> each [batch, kv_head, length + seqlen, head_dim]
        """
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, seqlen: int) -> None:
        """Count `seqlen` written positions: the model calls it once, after its last layer."""
        self.length += seqlen

    def truncate(self, length: int) -> None:
        """Forget the positions from `length` on."""
        self.length = min(self.length, length)

    def select(self, rows: Tensor, *, capacity: int | None = None) -> KVCache:
        """A new cache of the given rows (repeats allowed), for instance a shared prefix for several continuations.

        Shapes: rows [new batch] int64
        """
        capacity = self.capacity if capacity is None else capacity
        if capacity < self.length:
            raise GenerationError(f"a cache of {capacity} positions cannot hold the {self.length} that are filled.")
        n_layers, _, heads, _, head_dim = self.keys.shape
        fresh = KVCache(
            self.keys.new_zeros((n_layers, len(rows), heads, capacity, head_dim)),
            self.values.new_zeros((n_layers, len(rows), heads, capacity, head_dim)),
            self.length,
            None if self.pad is None else self.pad[rows],
        )
        fresh.keys[:, :, :, : self.length] = self.keys[:, rows, :, : self.length]
        fresh.values[:, :, :, : self.length] = self.values[:, rows, :, : self.length]
        return fresh


@dataclass
class SharedPrefixCache(KVCache):
    """Many rows that go on from what one row's cache holds, for one run: they read it, and write nothing.

    The shared keys and values are laid out per row for the one layer that is at work, never for all.
    """

    rows: int = 1

    @classmethod
    def of(cls, cache: KVCache, rows: int, forks: TreeMask | None = None) -> SharedPrefixCache:
        """Rows behind a cache of one row; `forks` where they hold branches side by side."""
        return cls(cache.keys, cache.values, cache.length, None, forks, rows)

    @property
    def batch(self) -> int:
        return self.rows

    def room_for(self, batch: int, seqlen: int) -> None:
        """Any length fits: nothing is kept."""

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The shared positions and the new ones of each row; nothing is kept.

        Shapes: keys, values [batch, kv_head, seqlen, head_dim] -> each [batch, kv_head, length + seqlen, head_dim]
        """
        return self._after_shared(self.keys[layer], keys), self._after_shared(self.values[layer], values)

    def advance(self, seqlen: int) -> None:
        """Nothing was written."""

    def _after_shared(self, shared: Tensor, new: Tensor) -> Tensor:
        return torch.cat([shared[:, :, : self.length].expand(self.rows, -1, -1, -1), new], 2)
