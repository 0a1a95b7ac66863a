"""Attention mask: which keys a query may attend to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TreeMask:
    """Tree attention: branches packed into one sequence; each token's position in its branch, and which tokens it sees.

    Shapes: depth [batch, query_pos] int64, absolute; sees [batch, query_pos, query_pos] bool.
    """

    depth: Tensor
    sees: Tensor


@dataclass(frozen=True)
class Mask:
    """Which keys a query may see: those not after it, without left padding; in a packed tree, only its own branch.

    `positions` are the queries' absolute positions; key j of the tensor has absolute position j. In a packed tree they
    are the columns, and all queries see every key before the tree. If the sequences of a batch are at different
    positions, as in continuous batching, `depth` gives them; such a run may not have observers.
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
        # A padding query would see no key and give NaN, so it sees itself; its output is not used.
        itself = keys == positions.unsqueeze(-1)
        real = keys >= self.pad[:, None, None]  # [batch, 1, key_pos]
        return (causal & real | itself).unsqueeze(1)

    def first_key(self, batch: int) -> Tensor:
        """Absolute position of each sequence's first real token. Shapes: -> [batch]"""
        if self.pad is not None:
            return self.pad
        return torch.zeros(batch, dtype=torch.int64, device=self.positions.device)
