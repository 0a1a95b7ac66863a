"""Plotly figures of what attention moves."""

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
    """What every query receives from every key, as shares of its row's norms. Shapes: labels [pos], unique, escaped"""
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
    """The first token's share of every head, by weight, by what is moved, or what the second takes from the first."""
    values = result.weighted - result.attention if show == "difference" else getattr(result, show)
    n_layers, n_heads = values.shape
    titles = {
        "attention": "Attention to the first token",
        "weighted": "The first token's share of what is moved",
        "difference": "The first token: share of what is moved less attention",
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
    """How much came from other positions, layer by layer and token by token. Shapes: labels [pos], unique, escaped"""
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
    return finish(fig, "context_mixing", "What attention brought from other positions", theme, stamp)
