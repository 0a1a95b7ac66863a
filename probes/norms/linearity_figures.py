"""Plotly figures of the linearity of norms, of re-centring and of run times."""

import numpy as np
import plotly.graph_objects as go

from probes.base.drawing import COLOURS, Stamp, Theme, add_medians, finish
from probes.norms.norm_linearity import LinearisedNorm, NormTimes, Recentring


def linearised_norm(result: LinearisedNorm, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """Errors of the frozen scale and of the norm's derivative for every part: medians and quartiles over tokens."""
    fig = go.Figure()
    order = sorted(range(len(result.parts)), key=lambda i: (result.parts[i][0], result.parts[i][1] != "attn"))
    names = ["embed" if result.parts[i][0] < 0 else f"L{result.parts[i][0]}.{result.parts[i][1]}" for i in order]
    add_medians(fig, names, {"frozen scale": result.frozen_scale[order], "derivative": result.derivative[order]})
    fig.update_xaxes(title="removed part", type="category")
    fig.update_yaxes(title="error / true change", rangemode="tozero")
    norm = "the final norm" if len(set(result.norms)) == 1 else "the next norm"
    title = f"Error of a linear approximation of {norm}: median and quartiles over tokens"
    return finish(fig, "linearised_norm", title, theme, stamp)


def recentring(result: Recentring, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """Share of the mean in each norm's input, and relative change by re-centring: medians and quartiles."""
    fig = go.Figure()
    names = [name if name == "ln_final" else f"L{layer}.{name}" for layer, name in result.norms]
    add_medians(fig, names, {"|mean| / rms": result.share, "change by re-centring": result.change})
    fig.update_xaxes(title="norm", type="category")
    fig.update_yaxes(title="share", rangemode="tozero")
    return finish(
        fig, "recentring", "Difference between LayerNorm and RMSNorm: median and quartiles over tokens", theme, stamp
    )


def norm_times(result: NormTimes, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """Microseconds per call of each norm: median and quartiles."""
    low, middle, high = 1e6 * np.quantile(result.seconds, [0.25, 0.5, 0.75], axis=1)
    bars = {"type": "data", "symmetric": False, "array": high - middle, "arrayminus": middle - low}
    fig = go.Figure(go.Bar(x=list(result.norms), y=middle, error_y=bars, marker={"color": COLOURS[0]}))
    fig.update_xaxes(title="norm", type="category")
    fig.update_yaxes(title="microseconds per call", rangemode="tozero")
    title = (
        f"Time of a norm over {result.tokens:,} tokens of {result.dim:,} dimensions, {result.dtype} on {result.device}"
    )
    return finish(fig, "norm_times", title, theme, stamp)
