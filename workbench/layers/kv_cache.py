"""Key/value cache: preallocated, passed to the model as an argument, never stored in the model.

It knows only the model's shape. Under tensor parallelism it holds this process's key/value heads.
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
        """An empty cache for `batch` sequences of up to `capacity` positions."""
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
        """Absolute position of each sequence's next token, or None if all are equal. Shapes: -> [batch, 1] int64"""
        return None

    def shared(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values that all sequences share, if any. Shapes: -> each [1, kv_head, pos, head_dim], or None"""
        return None

    def room_for(self, batch: int, seqlen: int) -> None:
        """Raises: GenerationError if `batch` sequences of `seqlen` more positions do not fit."""
        if batch != self.batch:
            raise GenerationError(f"the cache has batch size {self.batch}, found tokens with batch size {batch}.")
        if self.length + seqlen > self.capacity:
            raise GenerationError(
                f"the cache holds {self.capacity} positions: {self.length} are used, and {seqlen} more do not fit."
            )

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values of one layer; returns all of that layer so far, as views.

        Shapes: keys, values [batch, kv_head, seqlen, head_dim] -> each [batch, kv_head, length + seqlen, head_dim]
        """
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, seqlen: int) -> None:
        """Add `seqlen` to the length; the model calls this once, after its last layer."""
        self.length += seqlen

    def truncate(self, length: int) -> None:
        """Drop the positions from `length` on."""
        self.length = min(self.length, length)

    def select(self, rows: Tensor, *, capacity: int | None = None) -> KVCache:
        """A new cache of the given batch rows (repeats allowed), for instance to continue one prefix several times.

        Shapes: rows [new batch] int64
        """
        capacity = self.capacity if capacity is None else capacity
        if capacity < self.length:
            raise GenerationError(f"capacity {capacity} is too small for the {self.length} positions in the cache.")
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
    """Many sequences that continue the prefix in a cache of batch size 1, for one forward; they write nothing to it.

    The shared keys and values are expanded per sequence for the current layer only, never for all layers.
    """

    n_sequences: int = 1

    @classmethod
    def of(cls, cache: KVCache, n_sequences: int, tree: TreeMask | None = None) -> SharedPrefixCache:
        """Sequences after a cache of batch size 1; `tree` if they are packed with several branches."""
        return cls(cache.keys, cache.values, cache.length, None, tree, n_sequences)

    @property
    def batch(self) -> int:
        return self.n_sequences

    def room_for(self, batch: int, seqlen: int) -> None:
        """Any length fits: nothing is stored."""

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The shared positions and the new ones of each sequence; nothing is stored.

        Shapes: keys, values [batch, kv_head, seqlen, head_dim] -> each [batch, kv_head, length + seqlen, head_dim]
        """
        return self._after_shared(self.keys[layer], keys), self._after_shared(self.values[layer], values)

    def advance(self, seqlen: int) -> None:
        """Nothing was written."""

    def _after_shared(self, shared: Tensor, new: Tensor) -> Tensor:
        return torch.cat([shared[:, :, : self.length].expand(self.n_sequences, -1, -1, -1), new], 2)
