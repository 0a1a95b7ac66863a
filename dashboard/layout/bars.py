"""Bars or lines over the tokens of a prompt; the labels must be unique and escaped."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from probes.base.drawing import Stamp, add_lines, finish, sign_colours


def over_tokens(
    labels: Sequence[str], series: Mapping[str, np.ndarray], *, kind: str, title: str, unit: str, stamp: Stamp
) -> go.Figure:
    """Bars for one series, red above 0 and blue below; lines for several series. Shapes: each [pos]"""
    fig = go.Figure()
    if len(series) == 1:
        ((name, values),) = series.items()
        values = values.astype(np.float32)
        colours = sign_colours(values)
        fig.add_bar(x=list(labels), y=values, marker={"color": colours})
        fig.update_traces(hovertemplate=f"%{{x}}<br>{name} %{{y:.4g}}<extra></extra>")
    else:
        add_lines(fig, list(labels), {name: values.astype(np.float32) for name, values in series.items()})
    fig.update_xaxes(title="token", type="category", tickangle=-60, nticks=32)
    fig.update_yaxes(title=unit, exponentformat="power")  # not "500µ"
    return finish(fig, kind, title, "light", stamp, height=340)
