"""Plotly helpers for all figures: titles, colours, lines, and the atlas (a grid of heads). Knows nothing about results.

Every figure has a title, units on its axes, a title on its colour bar, and `layout.meta`: a dict with the figure's
`kind` and the entries of `stamp`, so that a page or a test can identify the result. Colour scales are colour-blind
safe: viridis for amounts, a blue-red scale centred on 0 for differences. The caller escapes token labels for plotly's
pseudo-HTML. Budget: 1.5 MB per figure.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio

Theme = Literal["light", "dark"]
Stamp = Mapping[str, Any]

SEQUENTIAL, DIVERGING = "Viridis", "RdBu_r"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito
PLUS, MINUS = "#B2182B", "#2166AC"  # the ends of the scale for differences
RING = "#E8384F"
HEIGHT = 440
MOST_BARS = 40  # the largest number of labelled bars in one column

# plotly.js has a button that uploads the figure, with the prompt's tokens, to a service; it is on by default.
HTML_CONFIG = {"displaylogo": False, "showSendToCloud": False}

# Plotly copies a template at each update. The most expensive parts are the defaults of forty trace types and of maps,
# which no figure here uses, and the colour scales, which each figure sets itself.
_UNUSED = {"polar", "ternary", "scene", "geo", "colorscale"}


def _template(name: str) -> go.layout.Template:
    layout = pio.templates[name].layout.to_plotly_json()
    return go.layout.Template(layout={key: value for key, value in layout.items() if key not in _UNUSED})


_TEMPLATES = {theme: _template(name) for theme, name in {"light": "plotly_white", "dark": "plotly_dark"}.items()}


def finish(fig: go.Figure, kind: str, title: str, theme: Theme, stamp: Stamp | None, **layout: Any) -> go.Figure:
    """Set the title, template, metadata and layout that every figure has."""
    parts = {
        "title": {"text": title, "x": 0, "xref": "container", "pad": {"l": 12}},
        "template": _TEMPLATES[theme],
        "meta": {"kind": kind, **(stamp or {})},
        "margin": {"l": 76, "r": 20, "t": 80, "b": 55},
        "height": HEIGHT,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        **layout,
    }
    for name, value in parts.items():  # three times as fast as `update_layout`
        fig.layout[name] = value
    return fig


def html_page(fig: go.Figure) -> str:
    """The figure as an HTML page that works without a network and uploads nothing."""
    return str(fig.to_html(include_plotlyjs=True, config=HTML_CONFIG))


def colour_bar(title: str) -> dict[str, Any]:
    return {"title": {"text": title, "side": "right"}, "thickness": 12, "exponentformat": "power"}  # not "500µ"


def sign_colours(values: Iterable[float]) -> list[str]:
    """The colour of each bar: red above 0, blue below, as on the colour scale for differences."""
    return [MINUS if value < 0 else PLUS for value in values]


def colour_scale(values: np.ndarray, difference: bool, *, share: bool = False) -> dict[str, Any]:
    """Colour scale for amounts, for shares (always 0 to 1), or for differences: symmetric around 0."""
    finite = values[np.isfinite(values)]
    if share:
        return {"colorscale": SEQUENTIAL, "zmin": 0, "zmax": 1}
    if not difference:
        scale: dict[str, Any] = {"colorscale": SEQUENTIAL}
        if finite.size and finite.min() == finite.max():  # plotly would show one value as the middle of a range
            value = float(finite[0])
            scale |= {"zmin": min(value, 0.0), "zmax": max(value, 0.0) if value else 1.0}
        return scale
    limit = float(np.abs(finite).max()) if finite.size else 1.0
    return {"colorscale": DIVERGING, "zmin": -(limit or 1.0), "zmax": limit or 1.0}


def add_lines(
    fig: go.Figure, x: Sequence[Any] | np.ndarray, series: Mapping[str, np.ndarray], *, mode: str = "lines"
) -> None:
    for i, (name, y) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        fig.add_scatter(x=x, y=y, name=name, mode=mode, line={"color": colour, "width": 2}, marker={"size": 5})


def add_medians(fig: go.Figure, x: Sequence[Any] | np.ndarray, series: Mapping[str, np.ndarray]) -> None:
    """Medians and quartiles over all axes after the first. Shapes: each series [x, ...]"""
    add_lines(
        fig, x, {name: np.nanmedian(y.reshape(len(y), -1), -1) for name, y in series.items()}, mode="lines+markers"
    )
    for line, y in zip(fig.data, series.values(), strict=True):
        low, high = np.nanquantile(y.reshape(len(y), -1), [0.25, 0.75], -1)
        bars = {"symmetric": False, "array": high - line.y, "arrayminus": line.y - low}
        line.error_y = {"type": "data", "thickness": 1, "color": line.line.color, **bars}


def add_level(fig: go.Figure, x: Sequence[int] | np.ndarray, y: float, name: str) -> None:
    """A dashed horizontal line with an entry in the legend."""
    line = {"dash": "dash", "color": RING, "width": 2}
    fig.add_scatter(x=[x[0], x[-1]], y=[y, y], name=name, mode="lines", line=line, hoverinfo="skip")


def position_names(labels: Sequence[str] | None, count: int) -> list[str]:
    """One unique label for each of the first `count` positions; position numbers if no labels are given."""
    names = [str(i) for i in range(count)] if labels is None else list(labels[:count])
    assert len(set(names)) == len(names) == count, "one unique label for every position"
    return names


def atlas(
    values: np.ndarray,
    *,
    title: str,
    unit: str,
    heads: Sequence[int],
    layers: Sequence[int],
    group_size: int = 1,
    difference: bool = False,
    share: bool = False,
    selected: tuple[int, int] | None = None,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """A grid of layers and heads, with brackets over the query heads that share a key/value head.

    share: the values are shares, which have one scale on every prompt: 0 to 1.
    The last trace is the ring around the `selected` (layer, head), at x = head and y = layer.
    Shapes: values [layer, head]
    """
    z = np.asarray(values, dtype=np.float32)
    layer, head = selected or (None, None)
    size = float(np.clip(300 / max(z.shape), 6, 44))
    squares = go.Heatmap(
        x=list(heads), y=list(layers), z=z, xgap=1, ygap=1, colorbar=colour_bar(unit),
        hovertemplate=f"layer %{{y}} · head %{{x}}<br>{unit}: %{{z:.4~g}}<extra></extra>",
        **colour_scale(z, difference, share=share),
    )  # fmt: skip
    ring = go.Scatter(
        x=[head], y=[layer], mode="markers", hoverinfo="skip", showlegend=False,
        marker={"symbol": "square-open", "size": size, "color": RING, "line": {"width": 3}},
    )  # fmt: skip
    # Without fixed ranges, plotly would add half a row for the ring.
    x_range, y_range = [min(heads) - 0.5, max(heads) + 0.5], [max(layers) + 0.5, min(layers) - 0.5]
    grid = {"showgrid": False, "zeroline": False}
    layout = {
        "xaxis": {"title": "head", "dtick": max(1, len(heads) // 8), "range": x_range, **grid},
        "yaxis": {"title": "layer", "dtick": max(1, len(layers) // 8), "range": y_range, **grid},
        "shapes": _brackets(heads, group_size) if group_size > 1 else [],
    }
    fig = go.Figure([squares, ring], layout)
    return finish(fig, "atlas", title, theme, stamp, hovermode="closest", dragmode=False)


def _brackets(heads: Sequence[int], group_size: int) -> list[dict[str, Any]]:
    """A line over the query heads of each key/value head, with its name if there are at most 8."""
    groups = sorted({head // group_size for head in heads})
    lines = []
    for kv in groups:
        members = [head for head in heads if head // group_size == kv]
        label = {"text": f"kv {kv}", "textposition": "top center", "font": {"size": 10}} if len(groups) <= 8 else {}
        ends = {"x0": members[0] - 0.4, "x1": members[-1] + 0.4, "y0": 1.015, "y1": 1.015}
        line = {"width": 2, "color": "#888888"}
        lines.append({"type": "line", "yref": "paper", "line": line, "label": label, **ends})
    return lines


def interval_dots(names: Sequence[str], middle: np.ndarray, low: np.ndarray, high: np.ndarray) -> go.Figure:
    """One dot per name, the first at the top, with its interval; no interval if its ends are NaN."""
    bars = {"type": "data", "symmetric": False, "array": high - middle, "arrayminus": middle - low, "thickness": 1}
    fig = go.Figure(
        go.Scatter(
            x=middle, y=list(names), mode="markers", marker={"color": COLOURS[0], "size": 8},
            error_x=bars if np.isfinite(low).any() else None, customdata=np.stack([low, high], 1),
            hovertemplate="%{y}: %{x:.4g} (%{customdata[0]:.4g} to %{customdata[1]:.4g})<extra></extra>",
        )
    )  # fmt: skip
    fig.update_yaxes(type="category", autorange="reversed", automargin=True, dtick=1)
    return fig
