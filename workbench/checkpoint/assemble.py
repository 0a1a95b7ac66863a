"""Assembles weights from memory-mapped files: any shard of a tensor, from any pieces, in any dtype, on any device.

If nothing has to change, the result is a view of the file. Otherwise it is copied once, block by block, and the file's
pages are released on the way, so that memory stays near the size of the result. Values are checked to be finite, at
the speed of reading them once.
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

from workbench.checkpoint.encoded_tensor import EncodedTensor, StoredTensor, all_values
from workbench.checkpoint.pieces import Piece, Weight
from workbench.errors import CheckpointError
from workbench.layers import rope

_BLOCK = 8 << 20  # bytes copied before the file's pages are released


@dataclass(frozen=True)
class Target:
    """Target of a weight: dtype, device, and which of `size` equal shards."""

    dtype: torch.dtype
    device: torch.device
    rank: int = 0
    size: int = 1


def assemble(weight: Weight, pages: MappedPages, target: Target) -> Tensor:
    """One process's shard of a weight, with the rows of wq and wk in Meta's order.

    Shapes: complete shape, divided by `target.size` along the axis of `weight.spec.split`
    Exact:  values are only cast to `target.dtype`.
    Raises: CheckpointError if a value is not finite, if values are checked while copied (see `_checked_in_copy`).
    """
    start, shape = [0] * len(weight.spec.shape), list(weight.spec.shape)
    if weight.spec.split is not None:
        shape[weight.spec.split] //= target.size
        start[weight.spec.split] = target.rank * shape[weight.spec.split]
    parts = [(piece, *overlap) for piece in weight.pieces if (overlap := _overlap(piece, start, shape))]
    first, source, _ = parts[0]
    if len(parts) == 1 and not weight.half_split and target.device.type == "cpu" and isinstance(first.tensor, Tensor):
        view = first.tensor[source]
        if view.dtype == target.dtype and view.is_contiguous():
            return view
    out = torch.empty(shape, dtype=target.dtype, device=target.device)
    for piece, source, destination in parts:
        check = _checked_in_copy(piece.tensor, target)
        if weight.half_split:
            # A shard has complete heads.
            stored = piece.tensor[source]
            heads = weight.spec.rotary_heads * stored.shape[0] // weight.spec.shape[0]
            finite = _copy(out[destination], rope.to_adjacent(stored, heads), pages, check=check)
        else:
            finite = _copy(out[destination], piece.tensor, pages, source, check=check)
        if not finite:
            raise CheckpointError(_describe(weight, out))
        if isinstance(piece.tensor, Tensor):
            pages.release_pages(piece.tensor[source])
    return out


def assemble_half_split(weight: Weight, pages: MappedPages, dtype: torch.dtype) -> Tensor:
    """The complete weight on the CPU, with the rows of wq and wk in Hugging Face's order. Raises: as `assemble`."""
    values = assemble(weight, pages, Target(dtype, torch.device("cpu")))
    return rope.to_half_split(values, weight.spec.rotary_heads) if weight.spec.rotary_heads else values


def verify(weights: Sequence[Weight], tensors: Sequence[Tensor], target: Target) -> None:
    """Check that all values are finite, for weights not checked while they were copied.

    Raises: CheckpointError naming the first weight with a NaN or an infinity, and its index.
    """
    pairs = zip(weights, tensors, strict=True)
    unchecked = [(w, t) for w, t in pairs if not _checked_in_copy(w.pieces[0].tensor, target)]
    place = first_not_finite([tensor for _, tensor in unchecked])
    if place is not None:
        raise CheckpointError(_describe(*unchecked[place]))


def _checked_in_copy(stored: StoredTensor, target: Target) -> bool:
    """Whether values are checked while copied: if the stored ones have fewer bytes than the result, or are computed."""
    if isinstance(stored, EncodedTensor):
        return True
    return target.device.type == "cpu" and stored.dtype.itemsize < target.dtype.itemsize


def _describe(weight: Weight, tensor: Tensor) -> str:
    for piece in weight.pieces:
        values = all_values(piece.tensor)
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            index = bad[0].tolist()
            return (
                f"{piece.file}: tensor {weight.stored_name!r}: expected finite values, found "
                f"{values[tuple(index)].item()} at {index} ({len(bad)} of {values.numel()})."
            )
    return (
        f"{weight.pieces[0].file}: tensor {weight.stored_name!r} has values that are not finite as {tensor.dtype}, "
        f"but are finite as {weight.pieces[0].tensor.dtype}; load it with a wider dtype."
    )


def _overlap(piece: Piece, start: list[int], shape: list[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """Overlap of a piece and the shard that begins at `start`: slices of the piece, and of the shard."""
    source, target = [], []
    for begin, size, offset, length in zip(start, shape, piece.offset, piece.tensor.shape, strict=True):
        low, high = max(begin, offset), min(begin + size, offset + length)
        if low >= high:
            return None
        source.append(slice(low - offset, high - offset))
        target.append(slice(low - begin, high - begin))
    return tuple(source), tuple(target)


def _copy(
    target: Tensor, source: StoredTensor, pages: MappedPages, index: tuple[slice, ...] = (), *, check: bool
) -> bool:
    """Copy the values at `index` (all, by default) block by block; False at the first value not finite, with `check`.

    Encoded values are checked after the cast to the target's dtype, which may be narrower.
    """
    is_cast = isinstance(source, EncodedTensor) or source.dtype.itemsize > target.dtype.itemsize
    rows = max(1, _BLOCK // (target[0].numel() * source.dtype.itemsize))
    first, *others = index or tuple(slice(0, size) for size in source.shape)
    for low in range(0, len(target), rows):
        high = min(low + rows, len(target))
        block = source[(slice(first.start + low, first.start + high), *others)]
        target[low:high].copy_(block)
        if check and not is_finite(target[low:high] if is_cast else block):
            return False
        if isinstance(source, Tensor):
            pages.release_pages(block)
    return True


class MappedPages:
    """Address ranges at which some files are mapped; their tensors must stay alive while this is in use."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._ranges: list[tuple[int, int]] = []
        if sys.platform != "linux":
            return
        paths = {str(file.resolve()) for file in files}
        for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
            fields = line.split(maxsplit=5)  # addresses, permissions, offset, device, inode, path
            if len(fields) == 6 and fields[5] in paths:
                low, high = fields[0].split("-")
                self._ranges.append((int(low, 16), int(high, 16)))

    def release_pages(self, tensor: Tensor) -> None:
        """Drop the pages that are completely inside a tensor (of any strides); they must not have been written to."""
        if not self._ranges or tensor.device.type != "cpu" or not tensor.numel():
            return
        low = tensor.data_ptr()
        span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        high = low + span * tensor.element_size()
        # Other memory would be lost, because it cannot be read again from a file.
        if not any(begin <= low and high <= end for begin, end in self._ranges):
            return
        low = -(-low // mmap.PAGESIZE) * mmap.PAGESIZE
        high = high // mmap.PAGESIZE * mmap.PAGESIZE
        if low < high:
            _libc().madvise(ctypes.c_void_p(low), ctypes.c_size_t(high - low), mmap.MADV_DONTNEED)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


_CHUNK = 2 << 20  # bytes that stay in the CPU cache between the two passes over them

# Per dtype: signed and unsigned integers of the same size, and the bits of infinity; non-finite values have these bits
# or larger ones.
_INFINITY = {
    torch.bfloat16: (torch.int16, np.uint16, 0x7F80),
    torch.float16: (torch.int16, np.uint16, 0x7C00),
    torch.float32: (torch.int32, np.uint32, 0x7F80_0000),
    torch.float64: (torch.int64, np.uint64, 0x7FF0_0000_0000_0000),
}


def is_finite(tensor: Tensor) -> bool:
    """Whether a floating-point tensor has no NaN and no infinity; needs little extra memory."""
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
    """Index of the first tensor with a value that is not finite, or None."""
    if tensors and tensors[0].device.type != "cpu":
        # One result for all tensors, so that there is one synchronisation with the GPU.
        extremes = torch.stack([torch.stack(torch.aminmax(tensor)) for tensor in tensors])
        bad = (~extremes.isfinite().all(dim=1)).nonzero().flatten().tolist()
    else:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # numpy releases Python's lock
            bad = [i for i, finite in enumerate(pool.map(is_finite, tensors)) if not finite]
    return bad[0] if bad else None
