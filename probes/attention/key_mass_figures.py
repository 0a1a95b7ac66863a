"""Plotly figures of the attention that keys receive, and of mean maps."""

import numpy as np
import plotly.graph_objects as go

from probes.attention.key_mass import KeyMass, MeanMap
from probes.base.drawing import SEQUENTIAL, Stamp, Theme, colour_bar, finish

MAX_CELLS = 100_000  # of a heat map, within the size limit of a figure


def key_mass(result: KeyMass, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """Mean attention of each head to each key; for a long prompt, the maximum of each tile of keys."""
    rows = result.mean.reshape(-1, result.mean.shape[-1])
    n_keys = rows.shape[-1]
    factor = max(1, -(-rows.size // MAX_CELLS))
    starts = np.arange(0, n_keys, factor)
    z = np.fmax.reduceat(rows, starts, axis=-1).astype(np.float32)
    names = [f"L{layer}H{head}" for layer in result.layers for head in result.heads]
    shown = np.log10(np.maximum(z, 1e-6))
    fig = go.Figure(
        go.Heatmap(
            x=starts, y=names, z=shown, colorscale=SEQUENTIAL, colorbar=colour_bar("log10 of the mean weight received"),
            hovertemplate="%{y}, key %{x}<br>log10 of the mean weight %{z:.3f}<extra></extra>",
        )
    )  # fmt: skip
    fig.update_xaxes(title="key" if factor == 1 else f"key (largest of {factor})", showgrid=False)
    fig.update_yaxes(title="head", type="category", autorange="reversed", showgrid=False, nticks=24)
    return finish(fig, "key_mass", "Attention received, by head and key", theme, stamp, height=560)


def mean_map(result: MeanMap, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """Mean map of one head; blank after the query. The colours are logarithmic; otherwise a sink hides all else."""
    starts = np.arange(len(result.weights)) * result.factor
    fig = go.Figure(
        go.Heatmap(
            x=starts, y=starts, z=np.log10(np.maximum(result.weights, 1e-6)).astype(np.float32), colorscale=SEQUENTIAL,
            colorbar=colour_bar("log10 of the mass"),
            hovertemplate="query %{y}<br>key %{x}<br>log10 of the mass %{z:.3f}<extra></extra>",
        )
    )  # fmt: skip
    fig.update_xaxes(title="key", showgrid=False)
    fig.update_yaxes(title="query", autorange="reversed", showgrid=False)
    tile = f" · mean of {result.factor} queries, sum of {result.factor} keys" if result.factor > 1 else ""
    title = f"Layer {result.layer}, head {result.head}{tile}"
    return finish(fig, "mean_map", title, theme, stamp, height=560, dragmode="zoom")
