"""Plotly figures of where heads look, of their types and of ablations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from probes.attention.head_map import StrongestKeys
from probes.attention.head_metrics import METRICS, HeadMetrics, InductionScores, QueryMetrics
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
    found: QueryMetrics, name: str = "entropy", *, row: int = 0, theme: Theme = "light", stamp: Stamp | None = None
) -> go.Figure:
    """One metric of one layer, head by head and query by query."""
    unit = METRICS[name]
    fig = go.Figure(
        go.Heatmap(
            x=found.queries, y=list(found.heads), z=found.values[name][row].astype(np.float32), colorscale=SEQUENTIAL,
            colorbar=colour_bar(unit), hovertemplate="head %{y} · query %{x}<br>%{z:.4g}<extra></extra>",
        )
    )  # fmt: skip
    fig.update_xaxes(title="query (position)", showgrid=False)
    fig.update_yaxes(title="head", autorange="reversed", showgrid=False, dtick=max(1, len(found.heads) // 8))
    title = f"Layer {found.layer}: {unit} by head and query"
    return finish(fig, "query_metrics", title, theme, stamp)


def induction_scores(found: InductionScores, **options: Any) -> go.Figure:
    """The atlas of induction on random blocks; `options` are `selected`, `theme` and `stamp`."""
    n_layers, n_heads = found.induction.shape
    places = {"heads": range(n_heads), "layers": range(n_layers), "group_size": found.group_size}
    title = f"Induction on blocks of {found.block}: even attention would give {found.chance:.3f}"
    return atlas(found.induction, title=title, unit="probability", **places, **options)


def strongest_keys(
    found: StrongestKeys, labels: Sequence[str] | None = None, *, theme: Theme = "light", stamp: Stamp | None = None
) -> go.Figure:
    """The weights of the keys that one query looks at most.

    Shapes: labels [pos], one for every position from 0, unique and escaped; the positions where there are none
    """
    words = position_names(labels, found.query + 1)
    names = [words[key] for key in found.keys]
    hover = "key %{x}: %{y:.4f}<extra></extra>"
    fig = go.Figure(go.Bar(x=names, y=found.weights, marker={"color": COLOURS[0]}, hovertemplate=hover))
    fig.update_xaxes(title="key, the strongest first", type="category")
    fig.update_yaxes(title="attention weight", rangemode="tozero")
    title = f"Layer {found.layer}, head {found.head}: the keys of query {found.query}"
    return finish(fig, "strongest_keys", title, theme, stamp)


def head_scores(found: HeadScores, name: str = "", *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """The heads with the highest mean of one score (the first, where none is named), with their intervals."""
    name = name or next(iter(found.values))
    mean, (low, high) = found.mean(name), found.interval(name)
    order = np.argsort(-np.nan_to_num(mean, nan=-np.inf), axis=None, kind="stable")[:MOST_BARS]
    layers, heads = np.unravel_index(order, mean.shape)
    names = [f"L{layer}H{head}" for layer, head in zip(layers, heads, strict=True)]
    fig = interval_dots(names, *(values.ravel()[order] for values in (mean, low, high)))
    fig.update_xaxes(title=f"{name}, mean over prompts")
    fig.update_yaxes(title="head")
    many = found.n_prompts > 1
    how = f"{found.n_prompts} prompts, {found.level:.0%} intervals" if many else "one prompt, no interval"
    shown = f"the {len(names)} highest" if len(names) < mean.size else "every head"
    title = f"Score {name!r}, {shown}: {how}"
    return finish(fig, "head_scores", title, theme, stamp, height=max(320, 130 + 18 * len(names)))


def group_similarity(found: GroupSimilarity, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """Layer by layer: how far apart heads look that share a key/value head, and heads that do not."""
    fig = go.Figure()
    pairs = {"heads of one group": found.within, "heads of different groups": found.across}
    for i, (name, values) in enumerate(pairs.items()):
        hover = f"layer %{{x}}, {name}: %{{y:.4f}}<extra></extra>"
        fig.add_bar(x=list(found.layers), y=values, name=name, marker={"color": COLOURS[i]}, hovertemplate=hover)
    fig.update_xaxes(title="layer", dtick=max(1, len(found.layers) // 8))
    fig.update_yaxes(title="Jensen-Shannon distance (0 to 1)", rangemode="tozero")
    return finish(fig, "group_similarity", "How differently heads look: mean over pairs and queries", theme, stamp)


def catalogue(found: Catalogue, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """A square per head: its types, coloured by the first of them; grey where there is none."""
    kinds = list(found.rules)
    of_type = np.stack([found.is_type(kind) for kind in kinds])  # [type, layer, head]
    n_layers, n_heads = of_type.shape[1:]
    first = np.where(of_type.any(0), of_type.argmax(0), len(kinds))
    fig = go.Figure()
    size = float(np.clip(300 / max(n_layers, n_heads), 6, 40))
    for i, kind in enumerate([*kinds, "none of these"]):
        layers, heads = np.nonzero(first == i)
        if not len(layers):
            continue
        texts = []
        for at in zip(layers, heads, strict=True):
            mine = [kind for j, kind in enumerate(kinds) if of_type[(j, *at)]]
            texts.append("<br>".join(f"{kind}: {found.mean[kind][at]:.3f}" for kind in mine))
        colour = "#BBBBBB" if i == len(kinds) else COLOURS[i % len(COLOURS)]
        fig.add_scatter(
            x=heads, y=layers, name=kind, text=texts, mode="markers",
            marker={"symbol": "square", "size": size, "color": colour},
            hovertemplate="layer %{y} · head %{x}<br>%{text}<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(title="head", showgrid=False, zeroline=False, dtick=max(1, n_heads // 8))
    step = max(1, n_layers // 8)
    fig.update_yaxes(title="layer", autorange="reversed", showgrid=False, zeroline=False, dtick=step)
    counts = ", ".join(f"{int(held.sum())} {kind}" for kind, held in zip(kinds, of_type, strict=True))
    return finish(fig, "catalogue", f"Heads by type: {counts}", theme, stamp)


def head_metric(found: HeadMetrics, name: str = "entropy", **options: Any) -> go.Figure:
    """The atlas of one column of `HeadMetrics.frame()`; `options` are `selected`, `theme` and `stamp`."""
    unit = METRICS[name]
    title = f"{unit[0].upper()}{unit[1:]}, mean over {found.n_queries} queries"
    places = {"heads": found.heads, "layers": found.layers, "group_size": found.group_size}
    return atlas(found.values[name], title=title, unit=unit, **places, **options)
