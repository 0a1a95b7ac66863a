"""What every probe's result is made of: read-only arrays and tidy DataFrames. Knows nothing of models."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch


def frozen(values: torch.Tensor | np.ndarray, dtype: type[np.generic] | None = None) -> np.ndarray:
    """A read-only copy in CPU memory.

    Shapes: any, unchanged. bfloat16 and float16 become float32, as numpy has no bfloat16.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach()
        if values.dtype in (torch.bfloat16, torch.float16):
            values = values.float()
        values = values.cpu().numpy()
    array = np.array(values, dtype=dtype)
    array.setflags(write=False)
    return array


def tidy(axes: Mapping[str, Sequence[Any] | np.ndarray], columns: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """One row per cell: the axes' labels first, then one column per quantity.

    Shapes: every column has the shape of the axes, in their order: [len(axis) for axis in axes].
    """
    shape = tuple(len(labels) for labels in axes.values())
    index = np.indices(shape).reshape(len(shape), -1)  # [axis, cell]
    data: dict[str, Any] = {name: np.asarray(labels)[index[axis]] for axis, (name, labels) in enumerate(axes.items())}
    for name, values in columns.items():
        assert values.shape == shape, f"{name}: {values.shape} is not {shape}"
        data[name] = values.reshape(-1)
    return pd.DataFrame(data)
