"""What every probe's result is made of: read-only arrays, tidy DataFrames, a figure. Knows nothing of models."""

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

SHOWN_ROWS = 8


class Result:
    """A probe's result: a frozen dataclass of arrays with named axes, that gives a table and a figure.

    `AXES` names every array's axes, in their order; `FIGURE` the whole path of the function that draws the result, as
    `probes.attention.map_figures.head_map`; `UNITS` says what the table's numbers are in. An array is a field, a
    property, or a dict of arrays with the same axes.
    """

    AXES: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    FIGURE: ClassVar[str]
    UNITS: ClassVar[str]

    def frame(self) -> pd.DataFrame:
        raise NotImplementedError

    def figure(self, **options: Any) -> "go.Figure":
        """The result drawn with plotly; `options` are those of the function that `FIGURE` names.

        Raises: MissingExtraError if plotly is not installed.
        """
        if importlib.util.find_spec("plotly") is None:
            raise MissingExtraError("plotly", "probe")
        module, _, function = self.FIGURE.rpartition(".")
        drawn: go.Figure = getattr(importlib.import_module(module), function)(self, **options)
        return drawn

    def touched(self) -> dict[str, np.ndarray]:
        """Which numbers are NaN or infinite: undefined, or reached by such an activation (`probes.base.non_finite`).

        Shapes: name of an array of `AXES` (`values.entropy` for one of a dict) -> int64 [found, axis], indices along
                its axes; arrays that are finite are left out.
        """
        found = {}
        for name in self.AXES:
            held = getattr(self, name)
            parts = {f"{name}.{key}": x for key, x in held.items()} if isinstance(held, Mapping) else {name: held}
            for part, values in parts.items():
                values = np.asarray(values)
                if values.dtype.kind in "fc" and not np.isfinite(values).all():
                    found[part] = np.argwhere(~np.isfinite(values))
        return found

    def _repr_html_(self) -> str:
        """What a notebook shows: the arrays with their axes, and the table's first rows. Static; loads nothing."""
        arrays = ", ".join(f"{name} [{', '.join(axes)}]" for name, axes in self.AXES.items())
        table = self.frame()
        more = len(table) - SHOWN_ROWS
        rest = f"<p>{more:,} more rows in <code>.frame()</code></p>" if more > 0 else ""
        title = f"<p><b>{type(self).__name__}</b> {html.escape(arrays)}</p><p>{html.escape(self.UNITS)}</p>"
        touched = ", ".join(f"{len(at):,} of {html.escape(name)}" for name, at in self.touched().items())
        title += f"<p>not finite, if only because undefined: {touched}; <code>.touched()</code></p>" if touched else ""
        return title + table.head(SHOWN_ROWS).to_html(index=False, border=0, escape=True) + rest


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
