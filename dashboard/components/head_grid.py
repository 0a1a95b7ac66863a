"""Head grid: one square for each head of the model, a ring around the selected one; a click selects another.

If only the selection changes, the figure is not drawn again.
"""

from collections.abc import Callable

import numpy as np
import plotly.graph_objects as go

from dashboard.layout.downloads import file_name
from dashboard.layout.figure import figure
from dashboard.layout.page import add_download
from probes.base import drawing
from workbench.config import ModelConfig

Cell = tuple[int, int]

_MAX_SIDE = 360  # pixels of the longer side of the grid


def head_grid(
    values: np.ndarray,
    *,
    id: str,
    unit: str,
    config: ModelConfig,
    selected: Cell,
    share: bool = False,
    on_choose: Callable[[int, int], None],
) -> None:
    """Draw the grid.

    id: identifies the values. share: they are shares, with a scale from 0 to 1.
    on_choose: called with the layer and head of a clicked square.
    Shapes: values [layer, head] of every layer and head of the model
    """
    fig = _figure(values, unit, config, id, share)
    title = f"{unit[0].upper()}{unit[1:]} of every head"
    figure(
        fig,
        key="atlas",
        title=title,
        file=file_name("atlas", {}),
        is_grid=True,
        chosen=selected[::-1],
        on_choose=lambda head, layer: on_choose(layer, head),
    )
    add_download("atlas", title, lambda: _ringed(fig, *selected))


def _ringed(fig: go.Figure, layer: int, head: int) -> go.Figure:
    return go.Figure(fig).update_traces(x=[head], y=[layer], selector={"type": "scatter"})


def _figure(values: np.ndarray, unit: str, config: ModelConfig, id: str, share: bool) -> go.Figure:
    fig = drawing.atlas(
        values,
        title="",
        unit=unit,
        heads=range(config.n_heads),
        layers=range(config.n_layers),
        group_size=config.group_size,
        share=share,
        stamp={"id": id},
    )
    side = max(6.0, min(52.0, _MAX_SIDE / max(values.shape)))
    height = round(side * values.shape[0]) + 125
    margin = {"t": 30, "l": 50, "r": 10, "b": 95}
    fig.update_layout(height=height, margin=margin)
    fig.update_xaxes(constrain="domain", title={"standoff": 8})
    fig.update_yaxes(constrain="domain", scaleanchor="x")
    bar = {"orientation": "h", "yref": "container", "y": 0.0, "yanchor": "bottom", "thickness": 10, "len": 0.85}
    fig.update_traces(selector={"type": "heatmap"}, colorbar={**bar, "title": None})
    return fig
