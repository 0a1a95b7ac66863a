"""Plotly figures of the probes' results: the only importer of plotly here. Computes nothing, reads no model.

Every figure has a title, units on its axes, a colour bar that says what it shows, and `layout.meta`: a dict with the
figure's `kind` and whatever `stamp` adds, so that a page or a test knows which result it is looking at. Colour scales
are colour-blind safe: viridis for amounts, a blue-red scale centred on 0 for differences. Token labels come in
already escaped for plotly's pseudo-HTML. Budget: 1.5 MB a figure.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from probes.attention import METRICS, HeadMetrics
from probes.maps import HeadMap
from probes.norms import QUANTILES, ContributionRatios, GainStatistics, InputRms, MassiveActivations, OutlierDimensions

Theme = Literal["light", "dark"]
Stamp = Mapping[str, Any]

SEQUENTIAL, DIVERGING = "Viridis", "RdBu_r"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito
RING = "#E8384F"
HEIGHT = 440


def _finish(fig: go.Figure, kind: str, title: str, theme: Theme, stamp: Stamp | None, **layout: Any) -> go.Figure:
    """Title, neutral template and identity: the same for every figure."""
    fig.update_layout(
        title={"text": title, "x": 0, "xref": "container", "pad": {"l": 12}},
        template="plotly_dark" if theme == "dark" else "plotly_white",
        meta={"kind": kind, **(stamp or {})},
        margin={"l": 60, "r": 20, "t": 80, "b": 55},
        height=layout.pop("height", HEIGHT),
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        **layout,
    )
    return fig


def _bar(title: str) -> dict[str, Any]:
    return {"title": {"text": title, "side": "right"}, "thickness": 12}


def _colours(values: np.ndarray, difference: bool) -> dict[str, Any]:
    """Colour scale of amounts, or of differences: centred on 0 and symmetric."""
    if not difference:
        return {"colorscale": SEQUENTIAL}
    finite = values[np.isfinite(values)]
    most = float(np.abs(finite).max()) if finite.size else 1.0
    return {"colorscale": DIVERGING, "zmin": -(most or 1.0), "zmax": most or 1.0}


def _lines(
    fig: go.Figure, x: Sequence[Any] | np.ndarray, series: Mapping[str, np.ndarray], *, mode: str = "lines"
) -> None:
    for i, (name, y) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        fig.add_scatter(x=x, y=y, name=name, mode=mode, line={"color": colour, "width": 2}, marker={"size": 5})


def _medians(fig: go.Figure, x: Sequence[Any] | np.ndarray, series: Mapping[str, np.ndarray]) -> None:
    """Medians with quartiles of what varies along the last axes. Shapes: each series [x, ...]"""
    _lines(fig, x, {name: np.nanmedian(y.reshape(len(y), -1), -1) for name, y in series.items()}, mode="lines+markers")
    for line, y in zip(fig.data, series.values(), strict=True):
        low, high = np.nanquantile(y.reshape(len(y), -1), [0.25, 0.75], -1)
        bars = {"symmetric": False, "array": high - line.y, "arrayminus": line.y - low}
        line.error_y = {"type": "data", "thickness": 1, "color": line.line.color, **bars}


def _level(fig: go.Figure, x: Sequence[int] | np.ndarray, y: float, name: str) -> None:
    """A dashed line at one height, named in the legend."""
    line = {"dash": "dash", "color": RING, "width": 2}
    fig.add_scatter(x=[x[0], x[-1]], y=[y, y], name=name, mode="lines", line=line, hoverinfo="skip")


def _names(labels: Sequence[str] | None, count: int) -> list[str]:
    """One unique label for each of the first `count` positions: their numbers, where none are given."""
    names = [str(i) for i in range(count)] if labels is None else list(labels[:count])
    assert len(set(names)) == len(names) == count, "one unique label for every position"
    return names


# --- heads ----------------------------------------------------------------------------------------------------


def atlas(
    values: np.ndarray,
    *,
    title: str,
    unit: str,
    heads: Sequence[int],
    layers: Sequence[int],
    group_size: int = 1,
    difference: bool = False,
    selected: tuple[int, int] | None = None,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """One square per head, with brackets over the query heads that share a key/value head.

    A heatmap has no click events, so an invisible square stands over each cell with customdata [layer, head]; the
    browser draws the selected one as a ring by opacity alone, and the figure need not change when it moves.
    Shapes: values [layer, head]
    """
    z = np.asarray(values, dtype=np.float32)
    layer_of, head_of = np.meshgrid(layers, heads, indexing="ij")
    cells = np.stack([layer_of.ravel(), head_of.ravel()], 1)
    fig = go.Figure(
        go.Heatmap(
            x=list(heads), y=list(layers), z=z, xgap=1, ygap=1, hoverinfo="skip", colorbar=_bar(unit),
            **_colours(z, difference),
        )
    )  # fmt: skip
    chosen = None if selected is None else [i for i, cell in enumerate(cells) if tuple(cell) == selected]
    size = float(np.clip(300 / max(z.shape), 6, 44))
    fig.add_scatter(
        x=cells[:, 1],
        y=cells[:, 0],
        mode="markers",
        customdata=cells,
        text=[f"{value:.4g}" for value in z.ravel()],
        hovertemplate=f"layer %{{customdata[0]}} · head %{{customdata[1]}}<br>{unit}: %{{text}}<extra></extra>",
        marker={"symbol": "square-open", "size": size, "color": RING, "line": {"width": 3}},
        selected={"marker": {"opacity": 1}},
        unselected={"marker": {"opacity": 0}},
        selectedpoints=chosen or [],
        showlegend=False,
    )
    if group_size > 1:
        groups = sorted({head // group_size for head in heads})
        for kv in groups:
            mine = [head for head in heads if head // group_size == kv]
            label = {"text": f"kv {kv}", "textposition": "top center", "font": {"size": 10}} if len(groups) <= 8 else {}
            ends = {"x0": mine[0] - 0.4, "x1": mine[-1] + 0.4, "y0": 1.015, "y1": 1.015}
            fig.add_shape(type="line", yref="paper", line={"width": 2, "color": "#888888"}, label=label, **ends)
    fig.update_xaxes(title="head", showgrid=False, zeroline=False, dtick=max(1, len(heads) // 8))
    step = max(1, len(layers) // 8)
    fig.update_yaxes(title="layer", autorange="reversed", showgrid=False, zeroline=False, dtick=step)
    return _finish(fig, "atlas", title, theme, stamp, clickmode="event+select", hovermode="closest", dragmode=False)


def head_metric(found: HeadMetrics, name: str = "entropy", **options: Any) -> go.Figure:
    """The atlas of one column of `HeadMetrics.frame()`; `options` are `selected`, `theme` and `stamp`."""
    unit = METRICS[name]
    title = f"{unit[0].upper()}{unit[1:]}, mean over {found.n_queries} queries"
    places = {"heads": found.heads, "layers": found.layers, "group_size": found.group_size}
    return atlas(found.values[name], title=title, unit=unit, **places, **options)


def head_map(
    found: HeadMap,
    labels: Sequence[str] | None = None,
    *,
    log: bool = False,
    hide_first: int = 0,
    difference: bool = False,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """Where each query looks: the causal mask and the first `hide_first` keys are blank, never 0.

    Shapes: labels [pos], one for every position from 0, unique and escaped; the positions where there are none
    """
    z = np.array(found.weights, dtype=np.float32)
    names = found.labels(_names(labels, found.stop))
    if hide_first > found.start:
        z[:, : -(-(hide_first - found.start) // found.factor)] = np.nan
    unit = "difference in weight" if difference else "attention weight"
    if log and not difference:
        z, unit = np.log10(np.maximum(z, 1e-6)), "log10 of the weight"
    fig = go.Figure(
        go.Heatmap(
            x=names, y=names, z=z, colorbar=_bar(unit),
            hovertemplate=f"query %{{y}}<br>key %{{x}}<br>{unit} %{{z:.4f}}<extra></extra>",
            **_colours(z, difference),
        )
    )  # fmt: skip
    fig.update_xaxes(title="key", type="category", showgrid=False, tickangle=-60, nticks=24)
    fig.update_yaxes(title="query", type="category", showgrid=False, autorange="reversed", nticks=24)
    title = f"Layer {found.layer}, head {found.head}"
    notes = [found.pooling, f"first {hide_first} keys hidden" if hide_first else ""]
    title += "".join(f" · {note}" for note in notes if note)
    return _finish(fig, "head_map", title, theme, stamp, height=560, dragmode="zoom")


# --- norms and the stream -------------------------------------------------------------------------------------


def input_rms(
    found: InputRms,
    labels: Sequence[str] | None = None,
    *,
    norm: str = "ln1",
    row: int = 0,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """What one kind of norm divides every token by, layer by layer; colours are logarithmic.

    Shapes: labels [pos], unique and escaped; the positions where there are none
    """
    rows = [i for i, (_, name) in enumerate(found.norms) if name == norm]
    layers = [found.norms[i][0] for i in rows]
    values = found.rms[rows, row].astype(np.float32)  # [layer, pos]
    positive = np.where(values > 0, values, np.nan)
    fig = go.Figure(
        go.Heatmap(
            x=_names(labels, values.shape[1]), y=layers, z=np.log10(positive), customdata=values, colorscale=SEQUENTIAL,
            colorbar=_bar("log10 RMS"),
            hovertemplate="layer %{y}<br>%{x}<br>RMS %{customdata:.4g}<extra></extra>",
        )
    )  # fmt: skip
    fig.update_xaxes(title="token", type="category", showgrid=False, tickangle=-60, nticks=24)
    step = max(1, len(layers) // 8)
    fig.update_yaxes(title="layer", showgrid=False, dtick=step, autorange="reversed")
    return _finish(fig, "input_rms", f"Input RMS of {norm} by layer and token", theme, stamp)


def gain_quantiles(
    found: GainStatistics, *, norm: str = "ln1", theme: Theme = "light", stamp: Stamp | None = None
) -> go.Figure:
    """Quantiles of one kind of norm's gains, layer by layer."""
    rows = [i for i, (_, name) in enumerate(found.norms) if name == norm]
    layers = np.array([found.norms[i][0] for i in rows])
    wanted = [(q, QUANTILES.index(q)) for q in (0.0, 0.05, 0.5, 0.95, 1.0)]
    fig = go.Figure()
    _lines(fig, layers, {f"{q:.0%}": found.quantiles[rows, i] for q, i in wanted}, mode="lines+markers")
    fig.update_xaxes(title="layer", dtick=max(1, len(layers) // 8))
    fig.update_yaxes(title="gain (factor)")
    return _finish(fig, "gain_quantiles", f"Gains of {norm}: quantiles over dimensions", theme, stamp)


def massive_activations(found: MassiveActivations, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """The three largest magnitudes of the stream after every block, against the median and the threshold."""
    fig = go.Figure()
    series = {f"largest {i + 1}": found.top[:, i] for i in range(found.top.shape[1])}
    _lines(fig, np.array(found.layers), {**series, "median": found.median}, mode="lines+markers")
    _level(fig, found.layers, found.threshold, f"threshold {found.threshold:g}")
    fig.update_xaxes(title="layer", dtick=max(1, len(found.layers) // 8))
    fig.update_yaxes(title="|activation| in the stream", type="log")
    count = len(found.table)
    title = f"Largest activations by layer: {count} massive (over {found.threshold:g} and {found.ratio:g} x the median)"
    return _finish(fig, "massive_activations", title, theme, stamp)


def outlier_dimensions(found: OutlierDimensions, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """The largest magnitude of every dimension of the stream; the outlier dimensions stand out."""
    fig = go.Figure()
    shares = np.stack([found.layer_share, found.position_share], 1).astype(np.float32)
    for name, chosen, colour in (("others", ~found.outlier, "#BBBBBB"), ("outliers", found.outlier, COLOURS[1])):
        fig.add_scatter(
            x=np.flatnonzero(chosen), y=found.largest[chosen].astype(np.float32), name=name, mode="markers",
            marker={"color": colour, "size": 5}, customdata=shares[chosen],
            hovertemplate="dimension %{x}: up to %{y:.4g}<br>large in %{customdata[0]:.1%} of layers, "
            "at %{customdata[1]:.1%} of positions<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(title="dimension of the stream")
    fig.update_yaxes(title="largest |activation| in the stream", type="log")
    title = f"Outlier dimensions: {len(found.dims)} of {len(found.outlier)}"
    return _finish(fig, "outlier_dimensions", title, theme, stamp)


def contribution_ratios(found: ContributionRatios, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """How much attention and MLP add against the stream they are added to: medians and quartiles over tokens."""
    fig = go.Figure()
    _medians(fig, found.layers, dict(zip(found.sublayers, found.ratio.swapaxes(0, 1), strict=True)))
    fig.update_xaxes(title="layer", dtick=max(1, len(found.layers) // 8))
    fig.update_yaxes(title="norm added / norm of the stream", type="log")
    return _finish(
        fig, "contribution_ratios", "What each sublayer adds: median and quartiles over tokens", theme, stamp
    )
