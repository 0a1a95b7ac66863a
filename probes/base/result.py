"""Base class of all probe results: read-only arrays, a tidy DataFrame and a figure. Knows nothing about models."""

import html
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch

from workbench.errors import MissingExtraError

if TYPE_CHECKING:
    import plotly.graph_objects as go

PREVIEW_ROWS = 8


class Result:
    """Result of a probe: a frozen dataclass of arrays with named axes, with a table and a figure.

    `AXES` names the axes of every array, in order. `FIGURE` is the dotted path of the function that draws the result,
    for example `probes.attention.map_figures.head_map`. `UNITS` are the units of the table's numbers. An array is a
    field, a property, or a dict of arrays with the same axes.
    """

    AXES: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    FIGURE: ClassVar[str]
    UNITS: ClassVar[str]

    def frame(self) -> pd.DataFrame:
        raise NotImplementedError

    def figure(self, **options: Any) -> "go.Figure":
        """The result as a plotly figure; `options` are passed to the function that `FIGURE` names.

        Raises: MissingExtraError if plotly is not installed.
        """
        if importlib.util.find_spec("plotly") is None:
            raise MissingExtraError("plotly", "probe")
        module, _, function = self.FIGURE.rpartition(".")
        drawn: go.Figure = getattr(importlib.import_module(module), function)(self, **options)
        return drawn

    def non_finite_indices(self) -> dict[str, np.ndarray]:
        """Indices of the NaN and infinite numbers of each array: they are undefined, or an activation was not finite.

        `probes.base.non_finite` tells where a run's activations become NaN or infinite.
        Shapes: name of an array of `AXES` (`values.entropy` for one of a dict) -> int64 [entry, axis], indices along
                its axes; arrays that are finite are left out.
        """
        indices = {}
        for name in self.AXES:
            array = getattr(self, name)
            parts = {f"{name}.{key}": x for key, x in array.items()} if isinstance(array, Mapping) else {name: array}
            for part, values in parts.items():
                values = np.asarray(values)
                if values.dtype.kind in "fc" and not np.isfinite(values).all():
                    indices[part] = np.argwhere(~np.isfinite(values))
        return indices

    def _repr_html_(self) -> str:
        """HTML for notebooks: the arrays with their axes, and the first rows of the table. Static; loads nothing."""
        arrays = ", ".join(f"{name} [{', '.join(axes)}]" for name, axes in self.AXES.items())
        table = self.frame()
        more = len(table) - PREVIEW_ROWS
        rest = f"<p>{more:,} more rows in <code>.frame()</code></p>" if more > 0 else ""
        title = f"<p><b>{type(self).__name__}</b> {html.escape(arrays)}</p><p>{html.escape(self.UNITS)}</p>"
        counts = ", ".join(f"{len(at):,} of {html.escape(name)}" for name, at in self.non_finite_indices().items())
        title += (
            f"<p>not finite (NaN where undefined): {counts}; <code>.non_finite_indices()</code></p>" if counts else ""
        )
        return title + table.head(PREVIEW_ROWS).to_html(index=False, border=0, escape=True) + rest


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
    """A table with one row per cell: first the labels of the axes, then one column per quantity.

    Shapes: every column has the shape of the axes, in their order: [len(axis) for axis in axes].
    """
    shape = tuple(len(labels) for labels in axes.values())
    index = np.indices(shape).reshape(len(shape), -1)  # [axis, cell]
    data: dict[str, Any] = {name: np.asarray(labels)[index[axis]] for axis, (name, labels) in enumerate(axes.items())}
    for name, values in columns.items():
        assert values.shape == shape, f"{name}: {values.shape} is not {shape}"
        data[name] = values.reshape(-1)
    return pd.DataFrame(data)
