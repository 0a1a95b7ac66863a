"""Whether every value is finite, at the speed of reading it once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

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
