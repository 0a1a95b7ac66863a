"""Plotly figures of rotary position embedding."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from probes.attention.head_map import MAX_CELLS, HeadMap, pool
from probes.attention.map_figures import head_map
from probes.base.drawing import COLOURS, Stamp, Theme, add_level, add_lines, atlas, finish, sign_colours
from probes.rope.formulas import Decay, Wavelengths
from probes.rope.head_scores import BandContribution, RelativeInvariance, ScoreByDistance, WhatIf
from probes.rope.what_if_heads import RotationSensitivity


def wavelengths(result: Wavelengths, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """The wavelength of each pair and the context length; with scaling, before and after it."""
    pairs = np.arange(len(result.wavelength))
    fig = go.Figure()
    series = {"wavelength": result.wavelength}
    if not np.allclose(result.unscaled, result.wavelength):
        series = {"as scaled": result.wavelength, "before scaling": result.unscaled}
    add_lines(fig, pairs, series, mode="lines+markers")
    add_level(fig, pairs, result.context, f"context: {result.context:,} tokens")
    fig.update_xaxes(title="frequency pair")
    fig.update_yaxes(title="wavelength (tokens)", type="log")
    title = f"Wavelengths: {result.longer_than_context} of {len(pairs)} pairs are longer than the context"
    return finish(fig, "wavelengths", title, theme, stamp)


def decay(result: Decay, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """How the score of an identical key decreases with distance, by position alone."""
    fig = go.Figure()
    add_lines(fig, result.distance, {"mean |partial sum|": result.bound, "sum of cosines": result.cosine})
    fig.add_hline(y=0, line={"color": "#888888", "width": 1})
    fig.update_xaxes(title="distance (tokens)", type="log")
    fig.update_yaxes(title="sum over pairs")
    first = result.first_negative
    title = "Decay with distance" + (
        "" if first is None else f": the sum of cosines is first below 0 at {first:,} tokens"
    )
    return finish(fig, "decay", title, theme, stamp)


def band_contribution(result: BandContribution, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """Contribution of each frequency pair to one head's scores: signed bars, red above 0 and blue below. The lower
    panel has each pair's share of the absolute contribution."""
    pairs = np.arange(len(result.signed))
    shade = sign_colours(result.signed)
    fig = go.Figure()
    fig.add_bar(
        x=pairs, y=result.signed, marker={"color": shade}, customdata=result.wavelength,
        hovertemplate="pair %{x}, wavelength %{customdata:,.0f} tokens<br>%{y:.4f}<extra></extra>",
    )  # fmt: skip
    fig.add_bar(
        x=pairs, y=result.share, yaxis="y2", marker={"color": COLOURS[2]},
        hovertemplate="pair %{x}: %{y:.1%} of the absolute contribution<extra></extra>",
    )  # fmt: skip
    fig.update_xaxes(title="frequency pair (fast to slow)", anchor="y2")
    fig.update_yaxes(title="contribution to the score", domain=[0.4, 1])
    share_axis = {
        "title": "share of size",
        "domain": [0, 0.3],
        "rangemode": "tozero",
        "tickformat": ".2~%",
        "nticks": 4,
    }
    where = "" if result.distance is None else f" at distance {result.distance}"
    title = f"Layer {result.layer}, head {result.head}: pairs sum to the mean score {result.score:.3f}{where}"
    return finish(fig, "band_contribution", title, theme, stamp, yaxis2=share_axis, showlegend=False)


def score_by_distance(result: ScoreByDistance, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """One head's scores by distance, with their spread, and the score expected from position alone."""
    fig = go.Figure()
    line = {"width": 0}
    fig.add_scatter(x=result.distance, y=result.high, line=line, showlegend=False, hoverinfo="skip")
    fig.add_scatter(
        x=result.distance, y=result.low, line=line, fill="tonexty", fillcolor="rgba(0,114,178,0.2)",
        name="10% to 90%", hoverinfo="skip",
    )  # fmt: skip
    add_lines(fig, result.distance, {"mean score": result.mean, "expected from position alone": result.expected})
    fig.update_xaxes(title="distance (tokens)")
    fig.update_yaxes(title="score (before softmax)")
    quantity = "score" if result.pair is None else f"what pair {result.pair} adds to the score,"
    title = f"Layer {result.layer}, head {result.head}: {quantity} against distance"
    return finish(fig, "score_by_distance", title, theme, stamp)


def relative_invariance(result: RelativeInvariance, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """How much rounding changes the scores when query and key shift together, for each number format."""
    fig = go.Figure()
    floor = np.finfo(np.float64).tiny  # a log axis cannot show an error of exactly 0
    errors = {
        name: np.where(result.largest[i] > floor, result.largest[i], np.nan) for i, name in enumerate(result.arithmetic)
    }
    add_lines(fig, result.shift, errors, mode="lines+markers")
    fig.update_xaxes(title="common shift (tokens)", type="log")
    fig.update_yaxes(title="largest change of a score", type="log", exponentformat="e")
    title = f"Layer {result.layer}, head {result.head}: scores up to {result.score_size:.3g} should not move"
    return finish(fig, "relative_invariance", title, theme, stamp)


def what_if(
    result: WhatIf, labels: Sequence[str] | None = None, *, theme: Theme = "light", stamp: Stamp | None = None
) -> go.Figure:
    """Change of one head's pattern: the pattern under the other rotation minus its own.

    Shapes: labels [pos], one for each position from 0, unique and escaped; default: the position numbers
    """
    size = len(result.before)
    factor = -(-size // MAX_CELLS)
    future = np.triu(np.ones((size, size), bool), 1)
    difference = np.where(future, np.nan, result.after - result.before)
    cells = HeadMap(result.layer, result.head, 0, size, factor, pool(difference, factor, magnitude=True))
    fig = head_map(cells, labels, difference=True)
    where = f"Layer {result.layer}, head {result.head}"
    title = f"{where}: {result.moved.mean():.1%} of its attention would move" + (" · pooled" if factor > 1 else "")
    return finish(fig, "what_if", title, theme, stamp, height=560)


def rotation_sensitivity(result: RotationSensitivity, *, other: str = "another rotation", **options: Any) -> go.Figure:
    """Head grid of the attention that another rotation would move; `options` are `selected`, `theme` and `stamp`."""
    axes = {"heads": result.heads, "layers": result.layers, "group_size": result.group_size}
    title = f"Attention that {other} would move, mean over queries"
    return atlas(result.moved, title=title, unit="share of attention", share=True, **axes, **options)
