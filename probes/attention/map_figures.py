"""Plotly figure of a head map."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from probes.attention.head_map import HeadMap
from probes.base.drawing import Stamp, Theme, colour_bar, colour_scale, finish, position_names


def head_map(
    result: HeadMap,
    labels: Sequence[str] | None = None,
    *,
    log: bool = False,
    hide_first: int = 0,
    difference: bool = False,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """Attention of each query to each key. The causal mask and the first `hide_first` keys are blank, not 0.

    Shapes: labels [pos], one for each position from 0, unique and escaped; default: the position numbers
    """
    z = np.array(result.weights, dtype=np.float32)
    names = result.labels(position_names(labels, result.stop))
    if hide_first > result.start:
        z[:, : -(-(hide_first - result.start) // result.factor)] = np.nan
    unit = "difference in weight" if difference else "attention weight"
    if log and not difference:
        z, unit = np.log10(np.maximum(z, 1e-6)), "log10 of the weight"
    fig = go.Figure(
        go.Heatmap(
            x=names, y=names, z=z, colorbar=colour_bar(unit),
            hovertemplate=f"query %{{y}}<br>key %{{x}}<br>{unit} %{{z:.4f}}<extra></extra>",
            **colour_scale(z, difference),
        )
    )  # fmt: skip
    fig.update_xaxes(title="key", type="category", showgrid=False, tickangle=-60, nticks=24)
    fig.update_yaxes(title="query", type="category", showgrid=False, autorange="reversed", nticks=24)
    title = f"Layer {result.layer}, head {result.head}"
    notes = [result.pooling, f"first {hide_first} keys hidden" if hide_first else ""]
    title += "".join(f" · {note}" for note in notes if note)
    return finish(fig, "head_map", title, theme, stamp, height=560, dragmode="zoom")
