"""Plotly figures of attention rollout, attention flow and retrieval scores."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from probes.attention.retrieval_heads import THRESHOLD, RetrievalScores
from probes.base.drawing import COLOURS, SEQUENTIAL, Stamp, Theme, atlas, colour_bar, finish, position_names
from probes.flow.rollout import AttentionFlow, Rollout


def rollout(
    result: Rollout,
    labels: Sequence[str] | None = None,
    *,
    layer: int = -1,
    row: int = 0,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """Share of each input token in each position's stream, after one layer.

    Shapes: labels [pos], unique and escaped; default: the position numbers
    """
    n_layers = len(result.shares)
    fig = token_map(result.shares[layer, row], labels, "share of the stream")
    return finish(fig, "rollout", f"Attention rollout to layer {layer % n_layers}", theme, stamp, height=560)


def attention_flow(
    result: AttentionFlow, labels: Sequence[str] | None = None, *, theme: Theme = "light", stamp: Stamp | None = None
) -> go.Figure:
    """The maximum flow to each input token, next to the rollout. Shapes: labels as for `rollout`"""
    names = position_names(labels, len(result.flow))
    fig = go.Figure()
    for name, values, colour in (("maximum flow", result.flow, COLOURS[0]), ("rollout", result.rollout, COLOURS[1])):
        fig.add_bar(x=names, y=values, name=name, marker={"color": colour}, hovertemplate="%{x}<br>%{y:.4f}")
    fig.update_xaxes(title="input token", type="category", tickangle=-60, nticks=40)
    fig.update_yaxes(title="share of the position's stream", rangemode="tozero")
    title = f"Attention flow from position {result.position} to each input token"
    return finish(fig, "attention_flow", title, theme, stamp, barmode="group")


def retrieval_scores(result: RetrievalScores, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """Mean retrieval score of each head, over the prompts with a retrieved needle."""
    mean = result.mean
    n_layers, n_heads = mean.shape
    retrieved = int((~np.isnan(result.scores).all((1, 2))).sum())
    summary = f"{int((mean >= THRESHOLD).sum())} of {mean.size} heads reach {THRESHOLD:g}, on {retrieved} prompts"
    if not retrieved:
        summary = f"nothing was retrieved (at most {result.recall.max():.0%} of a needle)"
    return atlas(
        mean, title=f"Retrieval: {summary}", unit="share of the needle", heads=range(n_heads), layers=range(n_layers),
        group_size=result.group_size, theme=theme, stamp=stamp,
    )  # fmt: skip


def token_map(values: np.ndarray, labels: Sequence[str] | None, unit: str) -> go.Figure:
    """Heat map of queries and keys, blank after the query. Shapes: values [query_pos, key_pos]"""
    names = position_names(labels, len(values))
    z = np.where(np.tri(len(values), dtype=bool), values, np.nan).astype(np.float32)
    fig = go.Figure(
        go.Heatmap(
            x=names, y=names, z=z, colorscale=SEQUENTIAL, colorbar=colour_bar(unit),
            hovertemplate=f"query %{{y}}<br>key %{{x}}<br>{unit} %{{z:.4f}}<extra></extra>",
        )
    )  # fmt: skip
    fig.update_xaxes(title="key", type="category", showgrid=False, tickangle=-60, nticks=24)
    fig.update_yaxes(title="query", type="category", showgrid=False, autorange="reversed", nticks=24)
    return fig
