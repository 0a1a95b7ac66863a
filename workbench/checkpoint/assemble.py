"""Weights out of mapped files: any part of a whole tensor, from any pieces, in any type, on any device.

A view of the file where nothing has to change; otherwise one copy, made block by block, with the file's pages given
back as it goes, so that memory stays near the size of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench import rope
from workbench.checkpoint.contents import Piece, Weight
from workbench.checkpoint.finite import first_not_finite, is_finite
from workbench.checkpoint.pages import MappedPages
from workbench.errors import CheckpointError

_BLOCK = 8 << 20  # bytes copied before the file's pages are given back


@dataclass(frozen=True)
class Target:
    """What a weight is to become: a type, a device, and which of `size` equal parts."""

    dtype: torch.dtype
    device: torch.device
    rank: int = 0
    size: int = 1


def assemble(weight: Weight, pages: MappedPages, target: Target) -> Tensor:
    """One process's part of a weight, rows of wq and wk in Meta's order.

    Shapes: whole shape divided by `target.size` along the axis of `weight.spec.split`
    Exact:  a cast to `target.dtype` is all that happens to the values.
    Raises: CheckpointError if a value is not finite, where that is seen on the way (see `_seen_on_the_way`).
    """
    start, shape = [0] * len(weight.spec.shape), list(weight.spec.shape)
    if weight.spec.split is not None:
        shape[weight.spec.split] //= target.size
        start[weight.spec.split] = target.rank * shape[weight.spec.split]
    parts = [(piece, *overlap) for piece in weight.pieces if (overlap := _overlap(piece, start, shape))]
    first, inside, _ = parts[0]
    view = first.tensor[inside]
    unchanged = len(parts) == 1 and view.dtype == target.dtype and target.device.type == "cpu"
    if unchanged and view.is_contiguous() and not weight.half_split:
        return view
    out = torch.empty(shape, dtype=target.dtype, device=target.device)
    for piece, source, destination in parts:
        stored, into = piece.tensor[source], out[destination]
        if weight.half_split:
            # Whole heads only: a part never cuts one.
            heads = weight.spec.rotary_heads * stored.shape[0] // weight.spec.shape[0]
            stored = rope.to_adjacent(stored, heads)
        if not _copy(into, stored, pages, check=_seen_on_the_way(view.dtype, target)):
            raise CheckpointError(_describe(weight, out))
        pages.give_back(piece.tensor[source])
    return out


def verify(weights: Sequence[Weight], tensors: Sequence[Tensor], target: Target) -> None:
    """Look at every value that nobody has looked at yet.

    Raises: CheckpointError naming the first weight with a NaN or an infinity, and where it stands.
    """
    pairs = zip(weights, tensors, strict=True)
    unseen = [(w, t) for w, t in pairs if not _seen_on_the_way(w.pieces[0].tensor.dtype, target)]
    place = first_not_finite([tensor for _, tensor in unseen])
    if place is not None:
        raise CheckpointError(_describe(*unseen[place]))


def _seen_on_the_way(stored: torch.dtype, target: Target) -> bool:
    """Whether the values are looked at as they are copied: where the stored ones are fewer bytes than the result."""
    return target.device.type == "cpu" and stored.itemsize < target.dtype.itemsize


def _describe(weight: Weight, tensor: Tensor) -> str:
    for piece in weight.pieces:
        bad = (~piece.tensor.isfinite()).nonzero()
        if len(bad):
            at = bad[0].tolist()
            return (
                f"{piece.file}: tensor {weight.stored_name!r}: expected finite values, found "
                f"{piece.tensor[tuple(at)].item()} at {at} ({len(bad)} of {piece.tensor.numel()})."
            )
    return (
        f"{weight.pieces[0].file}: tensor {weight.stored_name!r} has values that are not finite as {tensor.dtype}, "
        f"though they are as {weight.pieces[0].tensor.dtype}; load it with a wider dtype."
    )


def _overlap(piece: Piece, start: list[int], shape: list[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """Where a piece meets the part that begins at `start`: slices of the piece, and of the part."""
    source, target = [], []
    for begin, size, offset, length in zip(start, shape, piece.offset, piece.tensor.shape, strict=True):
        low, high = max(begin, offset), min(begin + size, offset + length)
        if low >= high:
            return None
        source.append(slice(low - offset, high - offset))
        target.append(slice(low - begin, high - begin))
    return tuple(source), tuple(target)


def _copy(into: Tensor, source: Tensor, pages: MappedPages, *, check: bool) -> bool:
    """Copy block by block; False as soon as `check` finds a value that is not finite."""
    rows = max(1, _BLOCK // (source[0].numel() * source.element_size()))
    for low in range(0, len(source), rows):
        block = source[low : low + rows]
        if check and not is_finite(block):
            return False
        into[low : low + rows].copy_(block)
        pages.give_back(block)
    return True
