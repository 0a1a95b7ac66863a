"""Weights out of mapped files: any part of a whole tensor, from any pieces, in any type, on any device.

A view of the file where nothing has to change; otherwise one copy, made block by block, with the file's pages given
back as it goes, so that memory stays near the size of the result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench import rope
from workbench.checkpoint.contents import Piece, Weight
from workbench.checkpoint.pages import MappedPages
from workbench.errors import CheckpointError

_BLOCK = 8 << 20  # bytes copied before the file's pages are given back


def assemble(
    weight: Weight,
    pages: MappedPages,
    *,
    dtype: torch.dtype,
    device: torch.device,
    rank: int = 0,
    size: int = 1,
) -> Tensor:
    """One process's part of a weight, rows of wq and wk in Meta's order.

    Shapes: whole shape divided by `size` along the axis of `weight.spec.split`
    Exact:  a cast to `dtype` is all that happens to the values.
    """
    start, shape = [0] * len(weight.spec.shape), list(weight.spec.shape)
    if weight.spec.split is not None:
        shape[weight.spec.split] //= size
        start[weight.spec.split] = rank * shape[weight.spec.split]
    parts = [(piece, *overlap) for piece in weight.pieces if (overlap := _overlap(piece, start, shape))]
    first, inside, _ = parts[0]
    view = first.tensor[inside]
    alone = len(parts) == 1 and view.dtype == dtype and device.type == "cpu"
    if alone and view.is_contiguous() and not weight.half_split:
        return view
    # Not allocated before it is needed: a permuted part may be the result itself.
    out = torch.empty(0 if alone and weight.half_split else shape, dtype=dtype, device=device)
    for piece, source, target in parts:
        stored = piece.tensor[source]
        if weight.half_split:
            # Whole heads only: a part never cuts one.
            heads = weight.spec.rotary_heads * stored.shape[0] // weight.spec.shape[0]
            ordered = rope.to_adjacent(stored, heads)
            pages.give_back(stored)
            if alone:
                return ordered
            stored = ordered
        _copy(out[target], stored, pages)
    return out


def check_finite(tensors: dict[str, Tensor], weights: tuple[Weight, ...]) -> None:
    """Look at every value once.

    Raises: CheckpointError naming the first weight with a NaN or an infinity, and where it stands.
    """
    extremes = {name: torch.stack(torch.aminmax(tensor)) for name, tensor in tensors.items()}
    # One answer for all of them, because a GPU is only waited for once.
    if bool(torch.stack([e.float() for e in extremes.values()]).isfinite().all()):
        return
    for weight in weights:
        name = weight.spec.name
        if not bool(extremes[name].isfinite().all()):
            raise CheckpointError(_describe(weight, tensors[name]))


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


def _copy(target: Tensor, source: Tensor, pages: MappedPages) -> None:
    rows = max(1, _BLOCK // (source[0].numel() * source.element_size()))
    for low in range(0, len(source), rows):
        block = source[low : low + rows]
        target[low : low + rows].copy_(block)
        pages.give_back(block)
