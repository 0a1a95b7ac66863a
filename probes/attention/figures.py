"""Plotly figures of head metrics, scores and types."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from probes.attention.head_map import StrongestKeys
from probes.attention.head_metrics import METRICS, SHARES, HeadMetrics, InductionScores, QueryMetrics
from probes.attention.head_types import Catalogue, HeadScores
from probes.attention.kv_groups import GroupSimilarity
from probes.base.drawing import (
    COLOURS,
    MOST_BARS,
    SEQUENTIAL,
    Stamp,
    Theme,
    atlas,
    colour_bar,
    finish,
    interval_dots,
    position_names,
)


def query_metrics(
    result: QueryMetrics, name: str = "entropy", *, row: int = 0, theme: Theme = "light", stamp: Stamp | None = None
) -> go.Figure:
    """One metric of one layer, by head and query."""
    unit = METRICS[name]
    fig = go.Figure(
        go.Heatmap(
            x=result.queries, y=list(result.heads), z=result.values[name][row].astype(np.float32),
            colorscale=SEQUENTIAL, colorbar=colour_bar(unit),
            hovertemplate="head %{y} · query %{x}<br>%{z:.4g}<extra></extra>",
        )
    )  # fmt: skip
    fig.update_xaxes(title="query (position)", showgrid=False)
    fig.update_yaxes(title="head", autorange="reversed", showgrid=False, dtick=max(1, len(result.heads) // 8))
    title = f"Layer {result.layer}: {unit} by head and query"
    return finish(fig, "query_metrics", title, theme, stamp)


def induction_scores(result: InductionScores, **options: Any) -> go.Figure:
    """Head grid of induction on random blocks; `options` are `selected`, `theme` and `stamp`."""
    n_layers, n_heads = result.induction.shape
    axes = {"heads": range(n_heads), "layers": range(n_layers), "group_size": result.group_size}
    title = f"Induction on blocks of {result.block}: uniform attention scores {result.chance:.3f}"
    return atlas(result.induction, title=title, unit="probability", share=True, **axes, **options)


def strongest_keys(
    result: StrongestKeys, labels: Sequence[str] | None = None, *, theme: Theme = "light", stamp: Stamp | None = None
) -> go.Figure:
    """Attention weights of one query's strongest keys.

    Shapes: labels [pos], one for each position from 0, unique and escaped; default: the position numbers
    """
    token_names = position_names(labels, result.query + 1)
    names = [token_names[key] for key in result.keys]
    hover = "key %{x}: %{y:.4f}<extra></extra>"
    fig = go.Figure(go.Bar(x=names, y=result.weights, marker={"color": COLOURS[0]}, hovertemplate=hover))
    fig.update_xaxes(title="key, strongest first", type="category")
    fig.update_yaxes(title="attention weight", rangemode="tozero")
    title = f"Layer {result.layer}, head {result.head}: the keys of query {result.query}"
    return finish(fig, "strongest_keys", title, theme, stamp)


def head_scores(result: HeadScores, name: str = "", *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """Heads with the highest mean of one score, with intervals. Default: the first score."""
    name = name or next(iter(result.values))
    mean, (low, high) = result.mean(name), result.interval(name)
    order = np.argsort(-np.nan_to_num(mean, nan=-np.inf), axis=None, kind="stable")[:MOST_BARS]
    layers, heads = np.unravel_index(order, mean.shape)
    names = [f"L{layer}H{head}" for layer, head in zip(layers, heads, strict=True)]
    fig = interval_dots(names, *(values.ravel()[order] for values in (mean, low, high)))
    fig.update_xaxes(title=f"{name}, mean over prompts")
    fig.update_yaxes(title="head")
    has_interval = result.n_prompts > 1
    sample = f"{result.n_prompts} prompts, {result.level:.0%} intervals" if has_interval else "one prompt, no interval"
    shown = f"the {len(names)} highest" if len(names) < mean.size else "every head"
    title = f"Score {name!r}, {shown}: {sample}"
    return finish(fig, "head_scores", title, theme, stamp, height=max(320, 130 + 18 * len(names)))


def group_similarity(result: GroupSimilarity, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """Pattern distance by layer, for heads that share a key/value head and for heads that do not."""
    fig = go.Figure()
    pairs = {"heads of one group": result.within, "heads of different groups": result.across}
    for i, (name, values) in enumerate(pairs.items()):
        hover = f"layer %{{x}}, {name}: %{{y:.4f}}<extra></extra>"
        fig.add_bar(x=list(result.layers), y=values, name=name, marker={"color": COLOURS[i]}, hovertemplate=hover)
    fig.update_xaxes(title="layer", dtick=max(1, len(result.layers) // 8))
    fig.update_yaxes(title="Jensen-Shannon distance (0 to 1)", rangemode="tozero")
    return finish(fig, "group_similarity", "Distance between heads: mean over pairs and queries", theme, stamp)


def catalogue(result: Catalogue, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """A square per head with its types, coloured by the first one; grey if it has none."""
    kinds = list(result.rules)
    of_type = np.stack([result.is_type(kind) for kind in kinds])  # [type, layer, head]
    n_layers, n_heads = of_type.shape[1:]
    first = np.where(of_type.any(0), of_type.argmax(0), len(kinds))
    fig = go.Figure()
    size = float(np.clip(300 / max(n_layers, n_heads), 6, 40))
    for i, kind in enumerate([*kinds, "none of these"]):
        layers, heads = np.nonzero(first == i)
        if not len(layers):
            continue
        texts = []
        for cell in zip(layers, heads, strict=True):
            head_kinds = [kind for j, kind in enumerate(kinds) if of_type[(j, *cell)]]
            texts.append("<br>".join(f"{kind}: {result.mean[kind][cell]:.3f}" for kind in head_kinds))
        colour = "#BBBBBB" if i == len(kinds) else COLOURS[i % len(COLOURS)]
        fig.add_scatter(
            x=heads, y=layers, name=kind, text=texts, mode="markers",
            marker={"symbol": "square", "size": size, "color": colour},
            hovertemplate="layer %{y} · head %{x}<br>%{text}<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(title="head", showgrid=False, zeroline=False, dtick=max(1, n_heads // 8))
    step = max(1, n_layers // 8)
    fig.update_yaxes(title="layer", autorange="reversed", showgrid=False, zeroline=False, dtick=step)
    counts = ", ".join(f"{int(members.sum())} {kind}" for kind, members in zip(kinds, of_type, strict=True))
    return finish(fig, "catalogue", f"Heads by type: {counts}", theme, stamp)


def head_metric(result: HeadMetrics, name: str = "entropy", **options: Any) -> go.Figure:
    """Head grid of one column of `HeadMetrics.frame()`; `options` are `selected`, `theme` and `stamp`."""
    unit = METRICS[name]
    title = f"{unit[0].upper()}{unit[1:]}, mean over {result.n_queries} queries"
    axes = {"heads": result.heads, "layers": result.layers, "group_size": result.group_size}
    return atlas(result.values[name], title=title, unit=unit, share=name in SHARES, **axes, **options)
