"""Plotly figure of a sampling trace."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from probes.base.drawing import COLOURS, Stamp, Theme, finish, position_names
from probes.generation.token_choices import SamplingTrace


def surprise(
    trace: SamplingTrace, labels: Sequence[str] | None = None, *, theme: Theme = "light", stamp: Stamp | None = None
) -> go.Figure:
    """Surprise of each generated token, and the entropy, which is the surprise that the model expected.

    Shapes: labels [step], unique and escaped; default: the steps, from 1
    """
    count = len(trace.tokens)
    names = position_names([str(step + 1) for step in range(count)] if labels is None else labels, count)
    fig = go.Figure()
    fig.add_bar(
        x=names, y=-trace.logprobs.astype(np.float32), name="surprise, -log p", marker={"color": COLOURS[5]},
        customdata=np.stack([np.exp(trace.logprobs), trace.ranks], -1),
        hovertemplate="%{x}<br>%{y:.3f} nats, p %{customdata[0]:.4f}, rank %{customdata[1]}<extra></extra>",
    )  # fmt: skip
    fig.add_scatter(
        x=names, y=trace.entropy.astype(np.float32), name="entropy", mode="lines+markers" if count < 200 else "lines",
        line={"color": COLOURS[1], "width": 2}, marker={"size": 5},
        hovertemplate="%{x}<br>entropy %{y:.3f} nats<extra></extra>",
    )  # fmt: skip
    fig.update_xaxes(title="generated token", type="category", tickangle=-60, nticks=32, automargin=True)
    fig.update_yaxes(title="nats")
    return finish(fig, "surprise", "Surprise of every generated token, and the entropy before it", theme, stamp)
