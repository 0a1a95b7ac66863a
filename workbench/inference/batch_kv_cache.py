"""A key/value cache of rows of unequal length that decode together, and into which rows come and from which they go.

What all rows begin with stands once, in a cache of one row. Knows nothing of tokens and of when a row ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workbench.errors import GenerationError
from workbench.layers.kv_cache import KVCache, SharedPrefixCache

SPARE = 64  # columns that are added at least when rows outgrow the room


@dataclass
class BatchKVCache(KVCache):
    """Rows behind the first `base` positions of `stem`; each fills its own positions from the left.

    `length` is where the longest row ends. Rows are in the order in which they came, but for the last, which moves
    into the place of one that leaves.
    Shapes: keys, values [layer, room, kv_head, capacity, head_dim]; the first `base` positions are in `stem` alone.
            at [batch] int64: own positions that each row has filled, on the device; `filled` is the same in Python.
    """

    stem: KVCache = field(kw_only=True)
    base: int = field(kw_only=True)
    at: Tensor = field(kw_only=True)
    filled: list[int] = field(default_factory=list)
    uneven: bool = False

    @classmethod
    def after_prefix(cls, stem: KVCache, base: int) -> BatchKVCache:
        """No rows yet, behind the first `base` positions of a cache of one row."""
        none = stem.keys[:, :0, :, :0]
        at = torch.zeros(0, dtype=torch.int64, device=stem.keys.device)
        return cls(none, none, base, stem=stem, base=base, at=at)

    @property
    def batch(self) -> int:
        return len(self.filled)

    @property
    def depth(self) -> Tensor | None:
        return (self.base + self.at).unsqueeze(-1) if self.uneven else None

    def shared(self, layer: int) -> tuple[Tensor, Tensor] | None:
        if not self.base:
            return None
        return self.stem.keys[layer, :, :, : self.base], self.stem.values[layer, :, :, : self.base]

    def room_for(self, batch: int, seqlen: int) -> None:
        """Raises: GenerationError unless every row gets one position more; makes room for it where there is none."""
        if batch != self.batch or seqlen != 1:
            raise GenerationError(f"{self.batch} rows decode together, one token each: found {batch} of {seqlen}.")
        self.reserve(batch, self.length - self.base + 1)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put each row's new key and value behind its own old ones; the rows' own positions so far, as views.

        Shapes: keys, values [batch, kv_head, 1, head_dim] -> each [batch, kv_head, own, head_dim]
        """
        end = self.length - self.base + 1
        found = []
        for kept, new in ((self.keys, keys), (self.values, values)):
            mine = kept[layer, : self.batch]
            if self.uneven:
                where = self.at[:, None, None, None].expand_as(new)
                mine.scatter_(2, where, new)
            else:
                mine[:, :, end - 1 : end] = new
            found.append(mine[:, :, :end])
        return found[0], found[1]

    def advance(self, seqlen: int) -> None:
        self.at += seqlen
        self.filled = [n + seqlen for n in self.filled]
        self.length += seqlen

    def reserve(self, rows: int, columns: int) -> None:
        """Make room for so many rows of so many own positions, with some to spare."""
        n_layers, room, heads, capacity, head_dim = self.keys.shape
        if rows <= room and columns <= capacity:
            return
        if columns > capacity:
            columns = max(columns + SPARE, capacity + capacity // 2)
        shape = (n_layers, max(rows, room), heads, max(columns, capacity), head_dim)
        used = self.length - self.base
        # Zeros: what is masked counts nothing, but nothing times what memory happens to hold may be NaN.
        larger = self.keys.new_zeros(shape), self.values.new_zeros(shape)
        for old, new in zip((self.keys, self.values), larger, strict=True):
            new[:, : self.batch, :, :used] = old[:, : self.batch, :, :used]
        self.keys, self.values = larger

    def enter(self, n: int, seqlen: int) -> PrefillCache:
        """The cache of a run of `n` new rows that go on from all that the stem holds; then `admit` them.

        Raises: GenerationError if the stem does not hold the base.
        """
        if self.stem.length < self.base:
            raise GenerationError(f"rows behind {self.base} positions cannot enter from {self.stem.length}.")
        begin, first = self.stem.length - self.base, self.batch
        self.reserve(first + n, begin + seqlen + 1)
        if begin:
            for mine, theirs in ((self.keys, self.stem.keys), (self.values, self.stem.values)):
                mine[:, first : first + n, :, :begin] = theirs[:, :, :, self.base : self.stem.length]
        return PrefillCache(self.stem.keys, self.stem.values, self.stem.length, None, None, n, into=self)

    def admit(self, lengths: Sequence[int]) -> None:
        """Count the rows that have entered, each with so many positions of those that were run."""
        begin = self.stem.length - self.base
        for row, length in enumerate(lengths, start=self.batch):
            end = begin + max(lengths)
            self._clear(row, begin + length, end)  # what stood in the padding is no part of the row
        self._are([*self.filled, *(begin + n for n in lengths)])

    def leave(self, row: int) -> None:
        """Forget a row; the last one takes its place."""
        last = self.batch - 1
        n = self.filled[last]
        if row != last:
            self._clear(row, n, self.filled[row])
            for kept in (self.keys, self.values):
                kept[:, row, :, :n] = kept[:, last, :, :n]
        self._clear(last, 0, n)
        filled = self.filled[:-1]
        if row != last:
            filled[row] = n
        self._are(filled)

    def _are(self, filled: list[int]) -> None:
        self.filled, self.uneven = filled, len(set(filled)) > 1
        self.at = torch.tensor(filled, dtype=torch.int64, device=self.keys.device)
        self.length = self.base + max(filled, default=0)

    def _clear(self, row: int, begin: int, end: int) -> None:
        if begin < end:
            self.keys[:, row, :, begin:end] = 0
            self.values[:, row, :, begin:end] = 0


@dataclass
class PrefillCache(SharedPrefixCache):
    """New rows of `Rows` in their first run: they read the stem, and what they write is kept."""

    into: BatchKVCache = field(kw_only=True)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """As in `Continued`; the new keys and values go where the rows will find them."""
        first, begin = self.into.batch, self.length - self.into.base
        rows, columns = slice(first, first + self.rows), slice(begin, begin + keys.shape[2])
        self.into.keys[layer, rows, :, columns] = keys
        self.into.values[layer, rows, :, columns] = values
        return super().write(layer, keys, values)
