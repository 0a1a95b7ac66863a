"""Plotly figures of contributions to the stream and of information flow routes."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from probes.base.drawing import COLOURS, SEQUENTIAL, Stamp, Theme, colour_bar, finish, position_names
from probes.flow.information_flow_routes import AttentionContributions, Routes, StreamContributions

KINDS = {
    "head": "through a head",
    "past_attn": "bypassing attention",
    "mlp": "through the MLP",
    "past_mlp": "bypassing the MLP",
}


def attention_contributions(
    result: AttentionContributions,
    labels: Sequence[str] | None = None,
    *,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """Share of each token in each query's stream, through all heads. Shapes: labels [pos], unique, escaped"""
    keys = position_names(labels, result.heads.shape[2])
    future = np.arange(len(keys)) > np.array(result.queries)[:, None]
    z = np.where(future, np.nan, result.tokens).astype(np.float32)
    fig = go.Figure(
        go.Heatmap(
            x=keys, y=[keys[query] for query in result.queries], z=z, colorscale=SEQUENTIAL,
            colorbar=colour_bar("share"),
            customdata=np.broadcast_to(result.residual[:, None], z.shape),
            hovertemplate="query %{y}<br>key %{x}<br>share %{z:.4f}, residual %{customdata:.4f}<extra></extra>",
        )
    )  # fmt: skip
    fig.update_xaxes(title="key", type="category", showgrid=False, tickangle=-60, nticks=24)
    fig.update_yaxes(title="query", type="category", showgrid=False, autorange="reversed", nticks=24)
    title = f"Contributions of tokens through attention, layer {result.layer}: residual {result.residual.mean():.1%}"
    return finish(fig, "attention_contributions", title, theme, stamp, height=560)


def stream_contributions(
    result: StreamContributions, *, theme: Theme = "light", stamp: Stamp | None = None
) -> go.Figure:
    """Shares of each head, the residual and the MLP, layer by layer: means over positions."""
    n_layers, n_heads, _ = result.heads.shape
    z = np.concatenate([result.heads, result.mlp[:, None]], 1).mean(-1).astype(np.float32)
    names = [*(f"h{head}" for head in range(n_heads)), "mlp"]
    fig = go.Figure(
        go.Heatmap(
            x=names, y=list(range(n_layers)), z=z, xgap=1, ygap=1, colorscale=SEQUENTIAL, colorbar=colour_bar("share"),
            hovertemplate="layer %{y} · %{x}<br>share %{z:.4f}<extra></extra>",
        )
    )  # fmt: skip
    fig.update_xaxes(title="part", type="category", showgrid=False, nticks=24)
    step = max(1, n_layers // 8)
    fig.update_yaxes(title="layer", autorange="reversed", showgrid=False, zeroline=False, dtick=step)
    title = f"Contribution shares of heads and MLPs: bypassing attention {result.past_attn.mean():.1%} on average"
    return finish(fig, "stream_contributions", title, theme, stamp)


def routes(
    result: Routes, labels: Sequence[str] | None = None, *, theme: Theme = "light", stamp: Stamp | None = None
) -> go.Figure:
    """The edges as a graph: tokens from left to right, layers from bottom to top, half a layer per edge.

    Shapes: labels [pos], unique and escaped
    """
    n_layers, seqlen = len(result.reached) - 1, result.reached.shape[1]
    names = position_names(labels, seqlen)
    fig = go.Figure()
    for i, (kind, legend) in enumerate(KINDS.items()):
        edges = result.edges[result.edges["kind"] == kind]
        source, target, share = (edges[name].to_numpy() for name in ("source", "target", "share"))
        foot = edges["layer"].to_numpy() + (0.5 if kind in ("mlp", "past_mlp") else 0.0)
        bend = 0.18 if kind == "mlp" else 0.0  # next to the edge that bypasses the MLP
        gap = np.full(len(edges), np.nan)
        x = np.stack([source, (source + target) / 2 + bend, target, gap], 1).ravel()
        y = np.stack([foot, foot + 0.25, foot + 0.5, gap], 1).ravel()
        colour = COLOURS[i]
        fig.add_scatter(
            x=x, y=y, name=legend, legendgroup=kind, mode="lines", line={"color": colour, "width": 1.5},
            hoverinfo="skip",
        )  # fmt: skip
        fig.add_scatter(
            x=(source + target) / 2 + bend, y=foot + 0.25, mode="markers", legendgroup=kind, showlegend=False,
            marker={"color": colour, "size": 5 + 9 * share}, customdata=edges.to_numpy(dtype=object),
            hovertemplate="layer %{customdata[0]} · %{customdata[1]} %{customdata[2]}<br>"
            "from %{customdata[3]} to %{customdata[4]}: %{customdata[5]:.3f}<extra></extra>",
        )  # fmt: skip
    shown = np.flatnonzero(result.reached.any(0))
    fig.update_xaxes(title="token", tickvals=shown, ticktext=[names[pos] for pos in shown], tickangle=-60)
    fig.update_yaxes(title="stream before layer", dtick=max(1, n_layers // 8))
    title = f"Routes to position {result.position}: {len(result.edges)} edges of at least {result.threshold:.1%}"
    return finish(fig, "routes", title, theme, stamp, height=560)
