"""Plotly figures of where heads look, of their types and of ablations, in the manner of `probes.figures`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from probes.ablation import AblationEffect, InductionAblation
from probes.attention import METRICS, HeadMetrics, InductionScores, QueryMetrics
from probes.figures.drawing import COLOURS, SEQUENTIAL, Stamp, Theme, atlas, colour_bar, finish, position_names
from probes.groups import GroupSimilarity
from probes.heads import Catalogue, HeadScores
from probes.maps import StrongestKeys

MOST_BARS = 40  # bars with a label of their own, one below the other


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
    fig = _dots(names, *(values.ravel()[order] for values in (mean, low, high)))
    fig.update_xaxes(title=f"{name}, mean over prompts")
    fig.update_yaxes(title="head")
    many = found.n_prompts > 1
    how = f"{found.n_prompts} prompts, {found.level:.0%} intervals" if many else "one prompt, no interval"
    shown = f"the {len(names)} highest" if len(names) < mean.size else "every head"
    title = f"Score {name!r}, {shown}: {how}"
    return finish(fig, "head_scores", title, theme, stamp, height=max(320, 130 + 18 * len(names)))


def _dots(names: Sequence[str], middle: np.ndarray, low: np.ndarray, high: np.ndarray) -> go.Figure:
    """A dot for each name, the first on top, with its interval; without where the ends are NaN."""
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


def induction_ablation(found: InductionAblation, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """The rise of the second copy's loss, prompt by prompt: without the chosen heads, and without each random set."""
    fig = go.Figure()
    many = f"{len(found.heads)} head{'s' if len(found.heads) > 1 else ''}"
    random = found.random.mean(1)
    for name, values, colour in (("chosen", found.effect, COLOURS[1]), ("random", random, COLOURS[0])):
        what = f"the chosen {many}, by prompt" if name == "chosen" else f"{len(random)} random draws of {many}, mean"
        fig.add_box(
            y=values, name=what, boxpoints="all", jitter=0.4, pointpos=0, marker={"color": colour}, showlegend=False,
            hovertemplate="%{y:.4f} nats<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(title="heads taken away")
    fig.update_yaxes(title="rise of the loss on the second copy (nats / token)", zeroline=True)
    said = f"{found.ratio:.3g} times random heads (95%: {found.low:.3g} to {found.high:.3g})"
    title = f"Without the chosen heads: {said}; loss {found.base.mean():.2f} before"
    return finish(fig, "induction_ablation", title, theme, stamp)


def ablation_effect(found: AblationEffect, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """How much the target rises without each set of heads, with the interval over prompts."""
    table = found.frame().head(MOST_BARS)
    short = [text if len(text) <= 32 else f"{text[:28]} ..." for text in table["heads"]]
    names = [f"{i}: {text}" for i, text in enumerate(short)]  # two sets may begin alike
    fig = _dots(names, *(table[name].to_numpy() for name in ("effect", "low", "high")))
    fig.add_vline(x=0, line={"color": "#888888", "width": 1})
    fig.update_xaxes(title="rise of the target (its own unit)")
    fig.update_yaxes(title="heads taken away")
    how = f"{len(found.base)} prompts, 95% intervals" if len(found.base) > 1 else "one prompt, no interval"
    title = f"Without some heads ({found.replacement} instead), against {found.base.mean():.4g}: {how}"
    return finish(fig, "ablation_effect", title, theme, stamp, height=max(320, 130 + 24 * len(names)))


def head_metric(found: HeadMetrics, name: str = "entropy", **options: Any) -> go.Figure:
    """The atlas of one column of `HeadMetrics.frame()`; `options` are `selected`, `theme` and `stamp`."""
    unit = METRICS[name]
    title = f"{unit[0].upper()}{unit[1:]}, mean over {found.n_queries} queries"
    places = {"heads": found.heads, "layers": found.layers, "group_size": found.group_size}
    return atlas(found.values[name], title=title, unit=unit, **places, **options)
