"""The product of rows with a weight, on a CPU by the kernel that reads the weight fastest.

While a few rows decode, nearly all time goes into reading weights, and `F.linear` does that at the speed of memory
only in float32 and for up to three rows: `benchmarks/model.md` has what was measured.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 32  # rows, at most, for which another kernel than that of `F.linear` may be faster
MKL = 3  # rows, at most, for which MKL's product in float32 is the fastest
LARGE = 1 << 19  # numbers in a weight that no cache near a core holds


def matmul_few_rows(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear`, but for the order in which its sums are made.

    Shapes: x [..., in], weight [out, in] -> [..., out]
    """
    rows = x.numel() // x.shape[-1]
    if weight.device.type == "cpu" and x.dtype == weight.dtype:
        if weight.dtype == torch.bfloat16 and rows == 1:
            return torch.mv(weight, x.flatten()).view(*x.shape[:-1], -1)
        if weight.dtype == torch.bfloat16 and 1 < rows <= FEW:
            # The weight as the left factor is read in the order in which it lies in memory.
            return (weight @ x.flatten(0, -2).T).T.contiguous().view(*x.shape[:-1], -1)
        if weight.dtype == torch.float32 and MKL < rows <= FEW and weight.numel() >= LARGE and _one_dnn():
            found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
            return found
    return F.linear(x, weight)


def _one_dnn() -> bool:
    """Whether oneDNN's product can be had; it has no gradient."""
    return torch.backends.mkldnn.is_available() and not torch.is_grad_enabled()
