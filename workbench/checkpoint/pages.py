"""Giving the pages of a mapped file back to the system after they were copied.

Only a saving: pages that are read again are fetched again. Does nothing where it cannot be sure (not on Linux).
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from torch import Tensor


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

    def give_back(self, tensor: Tensor) -> None:
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
