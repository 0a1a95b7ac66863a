"""Plotly figures of value-weighted attention."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import plotly.graph_objects as go

from probes.base.drawing import SEQUENTIAL, Stamp, Theme, atlas, colour_bar, finish, position_names
from probes.flow.figures import token_map
from probes.flow.value_weighted import ContextMixing, FirstToken, WeightedPattern


def weighted_pattern(
    result: WeightedPattern, labels: Sequence[str] | None = None, *, theme: Theme = "light", stamp: Stamp | None = None
) -> go.Figure:
    """Share of each key in the norms of each query's row. Shapes: labels [pos], unique, escaped"""
    fig = token_map(result.share, labels, "share of the norms")
    who = "all heads and the residual" if result.head is None else f"head {result.head}"
    title = f"Norms of what is moved: layer {result.layer}, {who}"
    return finish(fig, "weighted_pattern", title, theme, stamp, height=560)


def first_token(
    result: FirstToken,
    *,
    show: Literal["attention", "weighted", "difference"] = "difference",
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """The first token's share by attention weight, by norm of what is moved, or norm minus attention, for each head."""
    values = result.weighted - result.attention if show == "difference" else getattr(result, show)
    n_layers, n_heads = values.shape
    titles = {
        "attention": "Attention to the first token",
        "weighted": "The first token's share of what is moved",
        "difference": "The first token: share of what is moved minus attention",
    }
    return atlas(
        values, title=titles[show], unit="share", heads=range(n_heads), layers=range(n_layers),
        group_size=result.group_size, difference=show == "difference", theme=theme, stamp=stamp,
    )  # fmt: skip


def context_mixing(
    result: ContextMixing,
    labels: Sequence[str] | None = None,
    *,
    row: int = 0,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """Share from other positions, by layer and token. Shapes: labels [pos], unique, escaped"""
    z = result.ratio[:, row].astype(np.float32)  # [layer, pos]
    names = position_names(labels, z.shape[1])
    fig = go.Figure(
        go.Heatmap(
            x=names, y=np.arange(len(z)), z=z, zmin=0, zmax=1, colorscale=SEQUENTIAL, colorbar=colour_bar("share"),
            hovertemplate="layer %{y}<br>%{x}<br>%{z:.4f}<extra></extra>",
        )
    )  # fmt: skip
    fig.update_xaxes(title="token", type="category", showgrid=False, tickangle=-60, nticks=24)
    fig.update_yaxes(title="layer", showgrid=False, dtick=max(1, len(z) // 8), autorange="reversed")
    return finish(fig, "context_mixing", "Share that attention brings from other positions", theme, stamp)
