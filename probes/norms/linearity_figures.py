"""Plotly figures of loss by position and of the norm lab."""

import numpy as np
import plotly.graph_objects as go

from probes.base.drawing import COLOURS, Stamp, Theme, add_medians, finish
from probes.norms.norm_linearity import LinearisedNorm, NormTimes, Recentring


def linearised_norm(result: LinearisedNorm, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """Both errors of every part, medians and quartiles over tokens: the frozen scale against the norm's derivative."""
    fig = go.Figure()
    order = sorted(range(len(result.parts)), key=lambda i: (result.parts[i][0], result.parts[i][1] != "attn"))
    names = ["embed" if result.parts[i][0] < 0 else f"L{result.parts[i][0]}.{result.parts[i][1]}" for i in order]
    add_medians(fig, names, {"frozen scale": result.frozen_scale[order], "derivative": result.derivative[order]})
    fig.update_xaxes(title="part taken away", type="category")
    fig.update_yaxes(title="error / true change", rangemode="tozero")
    reader = "the final norm" if len(set(result.norms)) == 1 else "the norm that reads it first"
    title = f"How wrong a linear {reader.removeprefix('the ')} is: median and quartiles over tokens"
    return finish(fig, "linearised_norm", title, theme, stamp)


def recentring(result: Recentring, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """The share of the mean in what each norm reads, and what re-centring would change: medians, quartiles."""
    fig = go.Figure()
    names = [name if name == "ln_final" else f"L{layer}.{name}" for layer, name in result.norms]
    add_medians(fig, names, {"|mean| / rms": result.share, "change by re-centring": result.change})
    fig.update_xaxes(title="norm", type="category")
    fig.update_yaxes(title="share", rangemode="tozero")
    return finish(
        fig, "recentring", "What LayerNorm would have changed: median and quartiles over tokens", theme, stamp
    )


def norm_times(result: NormTimes, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """Microseconds a call of each norm: the median, with quartiles."""
    low, middle, high = 1e6 * np.quantile(result.seconds, [0.25, 0.5, 0.75], axis=1)
    bars = {"type": "data", "symmetric": False, "array": high - middle, "arrayminus": middle - low}
    fig = go.Figure(go.Bar(x=list(result.norms), y=middle, error_y=bars, marker={"color": COLOURS[0]}))
    fig.update_xaxes(title="norm", type="category")
    fig.update_yaxes(title="microseconds a call", rangemode="tozero")
    title = (
        f"Time of a norm over {result.tokens:,} tokens of {result.dim:,} dimensions, {result.dtype} on {result.device}"
    )
    return finish(fig, "norm_times", title, theme, stamp)
