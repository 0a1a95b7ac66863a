"""Plotly figures of norms and stream during generation."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import plotly.graph_objects as go

from probes.base.drawing import SEQUENTIAL, Stamp, Theme, colour_bar, finish, position_names
from probes.norms.during_generation import GeneratedNorms, GeneratedStream
from probes.norms.figures import input_rms

SHOWN = {
    "largest": "Largest magnitude in the stream",
    "median": "Median magnitude in the stream",
    "massive": "Massive activations",
    "large": "Large entries of the stream",
    "attn": "Contribution of attention relative to the stream",
    "mlp": "Contribution of the MLP relative to the stream",
}
COUNTS = ("massive", "large")


def generated_norms(
    result: GeneratedNorms,
    labels: Sequence[str] | None = None,
    *,
    norm: str = "ln1",
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """Input RMS of one kind of norm over prompt and generated tokens. Shapes: labels as for `input_rms`"""
    return input_rms(result.rms, labels, norm=norm, theme=theme, stamp=stamp)


def generated_stream(
    result: GeneratedStream,
    labels: Sequence[str] | None = None,
    *,
    show: Literal["largest", "median", "massive", "large", "attn", "mlp"] = "largest",
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """One quantity by layer and token; a line marks the start of generation. Magnitudes and ratios are logarithmic.

    Shapes: labels [pos], unique and escaped; default: the positions
    """
    values = getattr(result, show).astype(np.float32)  # [layer, pos]
    names = position_names(labels, values.shape[1])
    unit = "entries" if show in COUNTS else f"log10 of the {SHOWN[show][0].lower() + SHOWN[show][1:]}"
    z = values if show in COUNTS else np.log10(np.where(values > 0, values, np.nan))
    fig = go.Figure(
        go.Heatmap(
            x=names, y=list(range(len(z))), z=z, customdata=values, colorscale=SEQUENTIAL, colorbar=colour_bar(unit),
            hovertemplate="layer %{y}<br>%{x}<br>%{customdata:.4g}<extra></extra>",
        )
    )  # fmt: skip
    if result.n_prompt < len(names):
        fig.add_vline(x=result.n_prompt - 0.5, line={"width": 2, "color": "#888888"})
    fig.update_xaxes(title="token", type="category", showgrid=False, tickangle=-60, nticks=24)
    fig.update_yaxes(title="layer", showgrid=False, dtick=max(1, len(z) // 8), autorange="reversed")
    title = f"{SHOWN[show]}: {result.n_prompt} prompt tokens, {len(names) - result.n_prompt} generated tokens"
    return finish(fig, "generated_stream", f"{title}; {result.outliers[-1]} outlier dimensions", theme, stamp)
