"""Which keys a query may see."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TreeMask:
    """Branches side by side in one row: where each token stands in its own branch, and what it sees of the row.

    Shapes: depth [batch, query_pos] int64, absolute; sees [batch, query_pos, query_pos] bool.
    """

    depth: Tensor
    sees: Tensor


@dataclass(frozen=True)
class Mask:
    """Which keys a query may see: those not after it, and not left padding; of a forked row only its own branch.

    `positions` are the queries' absolute positions; key j of the tensor stands at absolute position j. In a forked row
    they are the columns, and all queries see every key before the row. Where rows stand at different positions, as when
    they decode together, `depth` says which: nobody may watch such a run.
    Shapes: positions [query_pos] int64; pad [batch] int64 or None; depth [batch, query_pos] int64 or None.
    """

    positions: Tensor
    pad: Tensor | None = None
    tree: TreeMask | None = None
    depth: Tensor | None = None

    def allowed(self, n_keys: int, queries: slice | Tensor = slice(None)) -> Tensor:
        """Shapes: -> bool [1 or batch, 1, query_pos, key_pos]"""
        if self.tree is not None:
            sees = self.tree.sees
            before = sees.new_ones(()).expand(*sees.shape[:2], n_keys - sees.shape[2])
            return torch.cat([before, sees], -1)[:, None, queries]
        if self.depth is not None:
            return torch.arange(n_keys, device=self.depth.device) <= self.depth[:, None, queries, None]
        positions = self.positions[queries]
        keys = torch.arange(n_keys, device=positions.device)
        causal = keys <= positions.unsqueeze(-1)  # [query_pos, key_pos]
        if self.pad is None:
            return causal[None, None]
        # A padding query would see nothing and give NaN, so it sees itself; nobody reads what it computes.
        own = keys == positions.unsqueeze(-1)
        real = keys >= self.pad[:, None, None]  # [batch, 1, key_pos]
        return (causal & real | own).unsqueeze(1)

    def first_key(self, batch: int) -> Tensor:
        """Absolute position of each row's first real token. Shapes: -> [batch]"""
        if self.pad is not None:
            return self.pad
        return torch.zeros(batch, dtype=torch.int64, device=self.positions.device)
