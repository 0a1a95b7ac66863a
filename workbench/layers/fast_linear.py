"""Linear layer for few rows: on a CPU it uses the kernel that reads the weight fastest.

When a few sequences decode, nearly all time is spent on reading weights. `F.linear` reads at memory speed only in
float32 and for up to three rows; `benchmarks/model.md` has the measurements.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_ROWS = 32  # most rows for which another kernel than that of `F.linear` may be faster
MKL_ROWS = 3  # most rows for which MKL's float32 kernel is the fastest
LARGE = 1 << 19  # elements of a weight that does not fit a core's cache


def matmul_few_rows(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear`, except for the order of its sums.

    Shapes: x [..., in], weight [out, in] -> [..., out]
    """
    rows = x.numel() // x.shape[-1]
    if weight.device.type == "cpu" and x.dtype == weight.dtype:
        if weight.dtype == torch.bfloat16 and rows == 1:
            return torch.mv(weight, x.flatten()).view(*x.shape[:-1], -1)
        if weight.dtype == torch.bfloat16 and 1 < rows <= MAX_ROWS:
            # As the left factor, the weight is read in its memory order.
            return (weight @ x.flatten(0, -2).T).T.contiguous().view(*x.shape[:-1], -1)
        if weight.dtype == torch.float32 and MKL_ROWS < rows <= MAX_ROWS and weight.numel() >= LARGE and _one_dnn():
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
            return out
    return F.linear(x, weight)


def _one_dnn() -> bool:
    """Whether oneDNN's kernel can be used; it has no gradient."""
    return torch.backends.mkldnn.is_available() and not torch.is_grad_enabled()
