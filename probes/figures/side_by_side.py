"""One head's pattern in two captures, and their difference, beside each other. Computes nothing, reads no model."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from probes.figures.drawing import DIVERGING, SEQUENTIAL, Stamp, Theme, colour_bar, colour_scale, finish, position_names
from probes.maps import HeadMap

SIDE = 256
"""Largest side of a map here: three of 256 x 256 float32 weights stay under 1.5 MB."""


def difference(a: HeadMap, b: HeadMap, shared: int) -> np.ndarray:
    """B's weights less A's, where both hold the same position below `shared`; the causal part stays NaN.

    Shapes: -> [query, key] of unpooled maps that begin at the same position
    """
    assert a.factor == b.factor == 1 and a.start == b.start, "two unpooled maps from the same position"
    side = max(0, min(a.stop, b.stop, shared) - a.start)
    return np.asarray(b.weights[:side, :side] - a.weights[:side, :side], dtype=np.float32)


def side_by_side(
    a: HeadMap,
    b: HeadMap,
    labels_a: Sequence[str] | None = None,
    labels_b: Sequence[str] | None = None,
    *,
    shared: int,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """A and B on one scale from 0, and B less A on a symmetric one; blank after the query, and where nothing is shared.

    shared: how many of the tokens both begin with; where it is 0, no difference is drawn.
    Shapes: labels [pos], one for every position from 0, unique and escaped
    """
    apart = difference(a, b, shared)
    titles = ["A", "B", *(["B − A"] if apart.size else [])]
    fig = make_subplots(1, len(titles), subplot_titles=titles, horizontal_spacing=0.07)
    names = [side.labels(position_names(labels, side.stop)) for side, labels in ((a, labels_a), (b, labels_b))]
    for column, (side, name) in enumerate(zip((a, b), names, strict=True), 1):
        z = np.asarray(side.weights, dtype=np.float32)
        _add(fig, z, name, column, "coloraxis", "weight %{z:.4f}")
    most = float(max(np.nanmax(side.weights) for side in (a, b)))
    bar = colour_bar("attention weight")
    fig.update_layout(coloraxis={"colorscale": SEQUENTIAL, "cmin": 0.0, "cmax": most, "colorbar": {**bar, "x": 1.0}})
    if apart.size:
        _add(fig, apart, names[0][: len(apart)], 3, "coloraxis2", "B − A %{z:+.4f}")
        scale = colour_scale(apart, True)
        bar = colour_bar("difference in weight")
        ends = {"cmin": scale["zmin"], "cmax": scale["zmax"]}
        fig.update_layout(coloraxis2={"colorscale": DIVERGING, **ends, "colorbar": {**bar, "x": 1.09}})
    fig.update_xaxes(title="key", type="category", showgrid=False, tickangle=-60, nticks=12)
    fig.update_yaxes(type="category", showgrid=False, autorange="reversed", nticks=12)
    fig.update_yaxes(title="query", col=1)
    title = f"Layer {a.layer}, head {a.head}: attention in A, in B, and the difference"
    return finish(fig, "side_by_side", title, theme, stamp, height=470, dragmode="zoom")


def _add(fig: go.Figure, z: np.ndarray, names: Sequence[str], column: int, axis: str, said: str) -> None:
    hover = f"query %{{y}}<br>key %{{x}}<br>{said}<extra></extra>"
    fig.add_trace(go.Heatmap(x=names, y=names, z=z, coloraxis=axis, hovertemplate=hover), row=1, col=column)
