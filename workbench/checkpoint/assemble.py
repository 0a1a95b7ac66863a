"""Weights out of mapped files: any part of a whole tensor, from any pieces, in any type, on any device.

A view of the file where nothing has to change; otherwise one copy, made block by block, with the file's pages released
as it goes, so that memory stays near the size of the result. Values are checked to be finite at the speed of reading
them once.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workbench.checkpoint.manifest import Piece, Weight
from workbench.errors import CheckpointError
from workbench.layers import rope

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
        pages.release_pages(piece.tensor[source])
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
        pages.release_pages(block)
    return True


class MappedPages:
    """The address ranges at which some files are mapped now; keep those tensors alive while this is in use."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._ranges: list[tuple[int, int]] = []
        if sys.platform != "linux":
            return
        wanted = {str(file.resolve()) for file in files}
        for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
            fields = line.split(maxsplit=5)  # addresses, permissions, offset, device, inode, path
            if len(fields) == 6 and fields[5] in wanted:
                low, high = fields[0].split("-")
                self._ranges.append((int(low, 16), int(high, 16)))

    def release_pages(self, tensor: Tensor) -> None:
        """Drop the pages that lie wholly inside a tensor (of any strides); they must not have been written to."""
        if not self._ranges or tensor.device.type != "cpu" or not tensor.numel():
            return
        low = tensor.data_ptr()
        span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        high = low + span * tensor.element_size()
        # Memory that is not of these files would be lost, not fetched again.
        if not any(begin <= low and high <= end for begin, end in self._ranges):
            return
        low = -(-low // mmap.PAGESIZE) * mmap.PAGESIZE
        high = high // mmap.PAGESIZE * mmap.PAGESIZE
        if low < high:
            _libc().madvise(ctypes.c_void_p(low), ctypes.c_size_t(high - low), mmap.MADV_DONTNEED)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


_CHUNK = 2 << 20  # bytes that stay in the cache between the two looks at them

# Per type: an integer of the same size, and the bits of infinity; whatever is not finite has no smaller bits.
_INFINITY = {
    torch.bfloat16: (torch.int16, np.uint16, 0x7F80),
    torch.float16: (torch.int16, np.uint16, 0x7C00),
    torch.float32: (torch.int32, np.uint32, 0x7F80_0000),
    torch.float64: (torch.int64, np.uint64, 0x7FF0_0000_0000_0000),
}


def is_finite(tensor: Tensor) -> bool:
    """Whether no value of a floating tensor is a NaN or an infinity; needs no memory of its size."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())
    integer, unsigned, infinity = _INFINITY[tensor.dtype]
    signed = tensor.detach().flatten().view(integer).numpy()
    negative_infinity = infinity + (1 << (tensor.element_size() * 8 - 1))
    step = _CHUNK // tensor.element_size()
    for start in range(0, len(signed), step):
        chunk = signed[start : start + step]
        # As signed integers the largest is the most positive float, as unsigned ones the most negative.
        if chunk.max() >= infinity or chunk.view(unsigned).max() >= negative_infinity:
            return False
    return True


def first_not_finite(tensors: Sequence[Tensor]) -> int | None:
    """The place of the first tensor that has a value that is not finite, or None."""
    if tensors and tensors[0].device.type != "cpu":
        # One answer for all of them, because a GPU is only waited for once.
        extremes = torch.stack([torch.stack(torch.aminmax(tensor)) for tensor in tensors])
        bad = (~extremes.isfinite().all(dim=1)).nonzero().flatten().tolist()
    else:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # numpy leaves Python's lock
            bad = [i for i, fine in enumerate(pool.map(is_finite, tensors)) if not fine]
    return bad[0] if bad else None
