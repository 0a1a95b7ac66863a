"""Key/value cache for sequences of unequal length that decode together; sequences join and leave the batch.

The prefix that all sequences share is stored once, in a cache of batch size 1. This module knows nothing of tokens or
of when a sequence ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workbench.errors import GenerationError
from workbench.layers.kv_cache import KVCache, SharedPrefixCache

MIN_GROWTH = 64  # columns that are added at least when the sequences outgrow the capacity


@dataclass
class BatchKVCache(KVCache):
    """Sequences that follow the first `shared_length` positions of `prefix`; each has one slot, filled from the left.

    `length` is where the longest sequence ends. Slots are in the order in which the sequences joined, except that the
    last one moves into the slot of a sequence that leaves.
    Shapes: keys, values [layer, slots, kv_head, capacity, head_dim]; the first `shared_length` positions are only in
            `prefix`.
            suffix_lengths [batch] int64: filled positions of each slot, on the device; `filled` is the same in Python.
    """

    prefix: KVCache = field(kw_only=True)
    shared_length: int = field(kw_only=True)
    suffix_lengths: Tensor = field(kw_only=True)
    filled: list[int] = field(default_factory=list)
    uneven: bool = False

    @classmethod
    def after_prefix(cls, prefix: KVCache, shared_length: int) -> BatchKVCache:
        """An empty batch after the first `shared_length` positions of a cache of batch size 1."""
        empty = prefix.keys[:, :0, :, :0]
        lengths = torch.zeros(0, dtype=torch.int64, device=prefix.keys.device)
        return cls(empty, empty, shared_length, prefix=prefix, shared_length=shared_length, suffix_lengths=lengths)

    @property
    def batch(self) -> int:
        return len(self.filled)

    @property
    def depth(self) -> Tensor | None:
        return (self.shared_length + self.suffix_lengths).unsqueeze(-1) if self.uneven else None

    def shared(self, layer: int) -> tuple[Tensor, Tensor] | None:
        if not self.shared_length:
            return None
        columns = slice(self.shared_length)
        return self.prefix.keys[layer, :, :, columns], self.prefix.values[layer, :, :, columns]

    def room_for(self, batch: int, seqlen: int) -> None:
        """Make room for one more position of every sequence. Raises: GenerationError for any other shape of tokens."""
        if batch != self.batch or seqlen != 1:
            raise GenerationError(
                f"a decode step takes one token for each of {self.batch} sequences; found {batch} of {seqlen} tokens."
            )
        self.reserve(batch, self.length - self.shared_length + 1)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append each sequence's new key and value; returns the sequences' own positions so far, as views.

        Shapes: keys, values [batch, kv_head, 1, head_dim] -> each [batch, kv_head, suffix_pos, head_dim]
        """
        end = self.length - self.shared_length + 1
        views = []
        for stored, new in ((self.keys, keys), (self.values, values)):
            slots = stored[layer, : self.batch]
            if self.uneven:
                columns = self.suffix_lengths[:, None, None, None].expand_as(new)
                slots.scatter_(2, columns, new)
            else:
                slots[:, :, end - 1 : end] = new
            views.append(slots[:, :, :end])
        return views[0], views[1]

    def advance(self, seqlen: int) -> None:
        self.suffix_lengths += seqlen
        self.filled = [n + seqlen for n in self.filled]
        self.length += seqlen

    def reserve(self, batch: int, columns: int) -> None:
        """Grow to `batch` slots of at least `columns` own positions."""
        n_layers, slots, heads, capacity, head_dim = self.keys.shape
        if batch <= slots and columns <= capacity:
            return
        if columns > capacity:
            columns = max(columns + MIN_GROWTH, capacity + capacity // 2)
        shape = (n_layers, max(batch, slots), heads, max(columns, capacity), head_dim)
        used = self.length - self.shared_length
        # Zeros, because a masked position has weight 0, and 0 times uninitialised memory may be NaN.
        larger = self.keys.new_zeros(shape), self.values.new_zeros(shape)
        for old, new in zip((self.keys, self.values), larger, strict=True):
            new[:, : self.batch, :, :used] = old[:, : self.batch, :, :used]
        self.keys, self.values = larger

    def prefill(self, n: int, seqlen: int) -> PrefillCache:
        """The cache for the prefill of `n` new sequences that follow all that `prefix` holds; call `add` after it.

        Raises: GenerationError if `prefix` holds fewer positions than the shared ones.
        """
        if self.prefix.length < self.shared_length:
            raise GenerationError(
                f"the prefix cache holds {self.prefix.length} positions; this batch shares {self.shared_length}."
            )
        begin, first = self.prefix.length - self.shared_length, self.batch
        self.reserve(first + n, begin + seqlen + 1)
        if begin:
            for stored, prefix in ((self.keys, self.prefix.keys), (self.values, self.prefix.values)):
                stored[:, first : first + n, :, :begin] = prefix[:, :, :, self.shared_length : self.prefix.length]
        return PrefillCache(
            self.prefix.keys, self.prefix.values, self.prefix.length, None, None, n, batch_cache=self
        )  # fmt: skip

    def add(self, lengths: Sequence[int]) -> None:
        """Add the prefilled sequences to the batch; `lengths` are their token counts without padding."""
        begin = self.prefix.length - self.shared_length
        for slot, length in enumerate(lengths, start=self.batch):
            end = begin + max(lengths)
            self._clear(slot, begin + length, end)  # keys and values of the padding
        self._set_lengths([*self.filled, *(begin + n for n in lengths)])

    def remove(self, slot: int) -> None:
        """Remove a sequence; the last one takes its slot."""
        last = self.batch - 1
        n = self.filled[last]
        if slot != last:
            self._clear(slot, n, self.filled[slot])
            for stored in (self.keys, self.values):
                stored[:, slot, :, :n] = stored[:, last, :, :n]
        self._clear(last, 0, n)
        filled = self.filled[:-1]
        if slot != last:
            filled[slot] = n
        self._set_lengths(filled)

    def _set_lengths(self, filled: list[int]) -> None:
        self.filled, self.uneven = filled, len(set(filled)) > 1
        self.suffix_lengths = torch.tensor(filled, dtype=torch.int64, device=self.keys.device)
        self.length = self.shared_length + max(filled, default=0)

    def _clear(self, slot: int, begin: int, end: int) -> None:
        if begin < end:
            self.keys[:, slot, :, begin:end] = 0
            self.values[:, slot, :, begin:end] = 0


@dataclass
class PrefillCache(SharedPrefixCache):
    """New sequences of a `BatchKVCache` in their prefill: they read the prefix; what they write goes to the batch."""

    batch_cache: BatchKVCache = field(kw_only=True)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """As in `SharedPrefixCache`; the new keys and values are also written to the sequences' slots."""
        first, begin = self.batch_cache.batch, self.length - self.batch_cache.shared_length
        slots, columns = slice(first, first + self.n_sequences), slice(begin, begin + keys.shape[2])
        self.batch_cache.keys[layer, slots, :, columns] = keys
        self.batch_cache.values[layer, slots, :, columns] = values
        return super().write(layer, keys, values)
