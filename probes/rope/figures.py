"""Plotly figures of rotary position embedding."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from probes.attention.head_map import MAX_CELLS, HeadMap, pool
from probes.attention.map_figures import head_map
from probes.base.drawing import COLOURS, Stamp, Theme, add_level, add_lines, atlas, finish
from probes.rope.formulas import Decay, Wavelengths
from probes.rope.head_scores import BandContribution, RelativeInvariance, ScoreByDistance, WhatIf
from probes.rope.what_if_heads import RotationSensitivity


def wavelengths(found: Wavelengths, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """The wavelength of every pair against the context; with scaling, before and after."""
    pairs = np.arange(len(found.wavelength))
    fig = go.Figure()
    series = {"wavelength": found.wavelength}
    if not np.allclose(found.unscaled, found.wavelength):
        series = {"as scaled": found.wavelength, "before scaling": found.unscaled}
    add_lines(fig, pairs, series, mode="lines+markers")
    add_level(fig, pairs, found.context, f"context: {found.context:,} tokens")
    fig.update_xaxes(title="frequency pair")
    fig.update_yaxes(title="wavelength (tokens)", type="log")
    title = f"Wavelengths: {found.longer_than_context} of {len(pairs)} pairs are longer than the context"
    return finish(fig, "wavelengths", title, theme, stamp)


def decay(found: Decay, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """How the weight of a like key fades by position alone."""
    fig = go.Figure()
    add_lines(fig, found.distance, {"mean size of the partial sums": found.bound, "sum of cosines": found.cosine})
    fig.add_hline(y=0, line={"color": "#888888", "width": 1})
    fig.update_xaxes(title="distance (tokens)", type="log")
    fig.update_yaxes(title="sum over pairs")
    at = found.first_negative
    title = "Decay with distance" + ("" if at is None else f": the sum of cosines is below 0 at {at:,} tokens")
    return finish(fig, "decay", title, theme, stamp)


def band_contribution(found: BandContribution, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """What every frequency pair adds to one head's scores: signed bars, blue above 0 and orange below, and under them
    each pair's share of the absolute size."""
    pairs = np.arange(len(found.signed))
    shade = np.where(found.signed < 0, COLOURS[1], COLOURS[0])
    fig = go.Figure()
    fig.add_bar(
        x=pairs, y=found.signed, marker={"color": shade}, customdata=found.wavelength,
        hovertemplate="pair %{x}, wavelength %{customdata:,.0f} tokens<br>%{y:.4f}<extra></extra>",
    )  # fmt: skip
    fig.add_bar(
        x=pairs, y=found.share, yaxis="y2", marker={"color": COLOURS[2]},
        hovertemplate="pair %{x}: %{y:.1%} of the absolute size<extra></extra>",
    )  # fmt: skip
    fig.update_xaxes(title="frequency pair (fast to slow)", anchor="y2")
    fig.update_yaxes(title="contribution to the score", domain=[0.4, 1])
    second = {"title": "share of size", "domain": [0, 0.3], "rangemode": "tozero", "tickformat": ".2~%", "nticks": 4}
    where = "" if found.distance is None else f" at distance {found.distance}"
    title = f"Layer {found.layer}, head {found.head}: pairs sum to the mean score {found.score:.3f}{where}"
    return finish(fig, "band_contribution", title, theme, stamp, yaxis2=second, showlegend=False)


def score_by_distance(found: ScoreByDistance, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """One head's scores against distance, with the spread, and what position alone would give."""
    fig = go.Figure()
    line = {"width": 0}
    fig.add_scatter(x=found.distance, y=found.high, line=line, showlegend=False, hoverinfo="skip")
    fig.add_scatter(
        x=found.distance, y=found.low, line=line, fill="tonexty", fillcolor="rgba(0,114,178,0.2)",
        name="10% to 90%", hoverinfo="skip",
    )  # fmt: skip
    add_lines(fig, found.distance, {"mean score": found.mean, "by position alone": found.expected})
    fig.update_xaxes(title="distance (tokens)")
    fig.update_yaxes(title="score (before softmax)")
    of = "score" if found.pair is None else f"what pair {found.pair} adds to the score,"
    title = f"Layer {found.layer}, head {found.head}: {of} against distance"
    return finish(fig, "score_by_distance", title, theme, stamp)


def relative_invariance(found: RelativeInvariance, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """How far rounding moves the scores when query and key shift together, by arithmetic."""
    fig = go.Figure()
    floor = np.finfo(np.float64).tiny  # an error of exactly 0 has no place on a log axis
    errors = {
        name: np.where(found.largest[i] > floor, found.largest[i], np.nan) for i, name in enumerate(found.arithmetic)
    }
    add_lines(fig, found.shift, errors, mode="lines+markers")
    fig.update_xaxes(title="common shift (tokens)", type="log")
    fig.update_yaxes(title="largest change of a score", type="log", exponentformat="e")
    title = f"Layer {found.layer}, head {found.head}: scores up to {found.score_size:.3g} should not move"
    return finish(fig, "relative_invariance", title, theme, stamp)


def what_if(
    found: WhatIf, labels: Sequence[str] | None = None, *, theme: Theme = "light", stamp: Stamp | None = None
) -> go.Figure:
    """Where one head's attention would go and come from: the pattern under the other rotation less its own.

    Shapes: labels [pos], one for every position from 0, unique and escaped; the positions where there are none
    """
    size = len(found.before)
    factor = -(-size // MAX_CELLS)
    future = np.triu(np.ones((size, size), bool), 1)
    difference = np.where(future, np.nan, found.after - found.before)
    cells = HeadMap(found.layer, found.head, 0, size, factor, pool(difference, factor, magnitude=True))
    fig = head_map(cells, labels, difference=True)
    where = f"Layer {found.layer}, head {found.head}"
    title = f"{where}: {found.moved.mean():.1%} of its attention would move" + (" · pooled" if factor > 1 else "")
    return finish(fig, "what_if", title, theme, stamp, height=560)


def turned(found: RotationSensitivity, *, other: str = "another rotation", **options: Any) -> go.Figure:
    """The atlas of what another rotation would move; `options` are `selected`, `theme` and `stamp`."""
    places = {"heads": found.heads, "layers": found.layers, "group_size": found.group_size}
    title = f"Attention that {other} would move, mean over queries"
    return atlas(found.moved, title=title, unit="share of attention", **places, **options)
