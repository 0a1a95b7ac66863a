"""Plotly figure of loss by position."""

import numpy as np
import plotly.graph_objects as go

from probes.base.drawing import COLOURS, RING, Stamp, Theme, finish
from probes.rope.loss_by_position import LossByPosition


def loss_by_position(
    result: LossByPosition, *, change: bool = False, theme: Theme = "light", stamp: Stamp | None = None
) -> go.Figure:
    """Each run's loss along the text with its interval; `change` draws the difference from the plain run instead."""
    fig = go.Figure()
    middle = (result.start + result.end - 1) / 2
    values = (
        (result.change, result.change_low, result.change_high) if change else (result.loss, result.low, result.high)
    )
    for i, name in enumerate(result.runs):
        if change and i == 0:
            continue  # 0 by definition
        colour = COLOURS[i % len(COLOURS)]
        y, low, high = (part[i] for part in values)
        bars = {"type": "data", "symmetric": False, "array": high - y, "arrayminus": y - low, "thickness": 1}
        fig.add_scatter(
            x=middle, y=y, name=name, mode="lines+markers", line={"color": colour, "width": 2}, marker={"size": 5},
            error_y=bars if result.n_windows > 1 else None,
            customdata=np.stack([result.start, result.end - 1], 1),
            hovertemplate="positions %{customdata[0]:,} to %{customdata[1]:,}<br>%{y:.4f} nats",
        )  # fmt: skip
    if result.start[0] <= result.context < result.end[-1]:
        note = {"text": f"context: {result.context:,}", "font": {"color": RING}}
        fig.add_vline(x=result.context, line={"dash": "dash", "color": RING, "width": 2}, annotation=note)
    if change:
        fig.add_hline(y=0, line={"color": "#888888", "width": 1})
    fig.update_xaxes(title="position (tokens)")
    fig.update_yaxes(title="change in loss (nats per token)" if change else "loss (nats per token)")
    n_windows = result.n_windows
    title = "Change in loss by position" if change else "Loss by position"
    title += f": {n_windows} window{'s' if n_windows != 1 else ''}" + (
        ", 95% intervals" if n_windows > 1 else ", no interval"
    )
    return finish(fig, "loss_by_position", title, theme, stamp)
