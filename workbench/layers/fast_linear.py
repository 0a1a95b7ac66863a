"""Linear layer for few rows: float32 on a CPU with oneDNN, where a large weight and its rows are slow with MKL.

`F.linear` otherwise. A kernel is chosen only by dtype and sizes, never by timing, so that all processes compute the
same bits; `benchmarks/model.md` has the measurements.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_ROWS = 32  # most rows for which oneDNN's float32 kernel is faster
MKL_ROWS = 3  # most rows for which MKL's float32 kernel reads the weight at memory speed
LARGE = 1 << 19  # elements of a weight that does not fit a core's cache


def matmul_few_rows(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear`, except for the order of its sums.

    Shapes: x [..., in], weight [out, in] -> [..., out]
    """
    if weight.dtype == torch.float32 and weight.numel() >= LARGE and weight.device.type == "cpu":
        few = MKL_ROWS < x.numel() // x.shape[-1] <= MAX_ROWS
        if few and x.dtype == weight.dtype and _one_dnn():
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
            return out
    return F.linear(x, weight)


def _one_dnn() -> bool:
    """Whether oneDNN's kernel can be used; it has no gradient."""
    return torch.backends.mkldnn.is_available() and not torch.is_grad_enabled()
