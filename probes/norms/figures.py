"""Plotly figures of the norms and of the residual stream."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from probes.base.drawing import (
    COLOURS,
    SEQUENTIAL,
    Stamp,
    Theme,
    add_level,
    add_lines,
    add_medians,
    colour_bar,
    finish,
    position_names,
)
from probes.norms.rms_norms import (
    QUANTILES,
    ContributionRatios,
    GainStatistics,
    InputRms,
    MassiveActivations,
    OutlierDimensions,
)


def input_rms(
    result: InputRms,
    labels: Sequence[str] | None = None,
    *,
    norm: str = "ln1",
    row: int = 0,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """Input RMS of one kind of norm by layer and token; colours are logarithmic.

    Shapes: labels [pos], one for each of the result's positions, unique and escaped; default: the positions
    """
    rows = [i for i, (_, name) in enumerate(result.norms) if name == norm]
    layers = [result.norms[i][0] for i in rows]
    values = result.rms[rows, row].astype(np.float32)  # [layer, pos]
    positive = np.where(values > 0, values, np.nan)
    names = [str(position) for position in result.positions] if labels is None else labels
    fig = go.Figure(
        go.Heatmap(
            x=position_names(names, values.shape[1]), y=layers, z=np.log10(positive), customdata=values,
            colorscale=SEQUENTIAL, colorbar=colour_bar("log10 RMS"),
            hovertemplate="layer %{y}<br>%{x}<br>RMS %{customdata:.4g}<extra></extra>",
        )
    )  # fmt: skip
    fig.update_xaxes(title="token", type="category", showgrid=False, tickangle=-60, nticks=24)
    step = max(1, len(layers) // 8)
    fig.update_yaxes(title="layer", showgrid=False, dtick=step, autorange="reversed")
    return finish(fig, "input_rms", f"Input RMS of {norm} by layer and token", theme, stamp)


def gain_quantiles(
    result: GainStatistics, *, norm: str = "ln1", theme: Theme = "light", stamp: Stamp | None = None
) -> go.Figure:
    """Quantiles of the gains of one kind of norm, by layer."""
    rows = [i for i, (_, name) in enumerate(result.norms) if name == norm]
    layers = np.array([result.norms[i][0] for i in rows])
    shown = [(q, QUANTILES.index(q)) for q in (0.0, 0.05, 0.5, 0.95, 1.0)]
    fig = go.Figure()
    add_lines(fig, layers, {f"{q:.0%}": result.quantiles[rows, i] for q, i in shown}, mode="lines+markers")
    fig.update_xaxes(title="layer", dtick=max(1, len(layers) // 8))
    fig.update_yaxes(title="gain (factor)")
    return finish(fig, "gain_quantiles", f"Gains of {norm}: quantiles over dimensions", theme, stamp)


def massive_activations(result: MassiveActivations, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """The three largest magnitudes of the stream after every block, with the median and the threshold."""
    fig = go.Figure()
    series = {f"largest {i + 1}": result.top[:, i] for i in range(result.top.shape[1])}
    add_lines(fig, np.array(result.layers), {**series, "median": result.median}, mode="lines+markers")
    add_level(fig, result.layers, result.threshold, f"threshold {result.threshold:g}")
    fig.update_xaxes(title="layer", dtick=max(1, len(result.layers) // 8))
    fig.update_yaxes(title="|activation| in the stream", type="log")
    count = len(result.table)
    title = (
        f"Largest activations by layer: {count} massive (over {result.threshold:g} and {result.ratio:g} x the median)"
    )
    return finish(fig, "massive_activations", title, theme, stamp)


def outlier_dimensions(result: OutlierDimensions, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """The largest magnitude of every dimension of the stream; outlier dimensions have their own colour."""
    fig = go.Figure()
    shares = np.stack([result.layer_share, result.position_share], 1).astype(np.float32)
    for name, chosen, colour in (("others", ~result.outlier, "#BBBBBB"), ("outliers", result.outlier, COLOURS[1])):
        fig.add_scatter(
            x=np.flatnonzero(chosen), y=result.largest[chosen].astype(np.float32), name=name, mode="markers",
            marker={"color": colour, "size": 5}, customdata=shares[chosen],
            hovertemplate="dimension %{x}: up to %{y:.4g}<br>large in %{customdata[0]:.1%} of layers, "
            "at %{customdata[1]:.1%} of positions<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(title="dimension of the stream")
    fig.update_yaxes(title="largest |activation| in the stream", type="log")
    title = f"Outlier dimensions: {len(result.dims)} of {len(result.outlier)}"
    return finish(fig, "outlier_dimensions", title, theme, stamp)


def contribution_ratios(result: ContributionRatios, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """Norm of attention and MLP outputs relative to the stream: medians and quartiles over tokens."""
    fig = go.Figure()
    add_medians(fig, result.layers, dict(zip(result.sublayers, result.ratio.swapaxes(0, 1), strict=True)))
    fig.update_xaxes(title="layer", dtick=max(1, len(result.layers) // 8))
    fig.update_yaxes(title="norm added / norm of the stream", type="log")
    title = "Contribution of each sublayer: median and quartiles over tokens"
    return finish(fig, "contribution_ratios", title, theme, stamp)
