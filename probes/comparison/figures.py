"""Plotly figures of the comparison of two runs, and of NaN and infinity."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from probes.base.drawing import COLOURS, SEQUENTIAL, Stamp, Theme, atlas, colour_bar, finish
from probes.base.non_finite import NonFinite
from probes.comparison.compare_runs import Comparison, HeadDifferences, LogitDifferences
from workbench.hooks.hook_points import HOOKS, PATTERN, layer_of, point_of

KEY_HOOKS = ("hook_k", "hook_rot_k", "hook_v")
SMALLEST = 1e-9  # smallest relative difference on the colour scale; float32 rounds at 1e-7
MAX_LINES = 6  # the largest number of batch rows, each drawn as a line


def comparison(
    result: Comparison, *, threshold: float = 1e-3, theme: Theme = "light", stamp: Stamp | None = None
) -> go.Figure:
    """Relative difference of every hook by layer, on a logarithmic scale; hooks without a layer are in the last column.

    Equal hooks have the lowest colour of the scale; hooks that are not compared are blank.
    """
    values = dict(zip(result.hooks, result.relative, strict=True))
    with np.errstate(divide="ignore"):
        logs = {hook: np.log10(np.maximum(value, SMALLEST)) for hook, value in values.items()}
    fig = _hook_grid(logs, {hook: f"{value:.3g}" for hook, value in values.items()}, "log10 of |a - b| / |a|")
    at = result.part(threshold)
    summary = (
        f"no hook differs by more than {threshold:g}"
        if at is None
        else f"the runs differ from {at} on (above {threshold:g})"
    )
    return finish(fig, "comparison", f"Relative difference by hook: {summary}", theme, stamp, height=560)


def heads(
    result: HeadDifferences,
    *,
    measure: str = "kl",
    point: str = PATTERN,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """Grid of heads: `kl` or `moved` of patterns, or `largest`, `relative`, `cosine` of a hook that has heads.

    If no pattern was compared, it shows the relative difference of the last hook that has heads.
    """
    if measure in ("kl", "moved") and not len(result.layers):
        measure, point = "relative", result.hooks[-1].split(".", 2)[-1]
    of_patterns = measure in ("kl", "moved")
    point = PATTERN if of_patterns else point
    rows = [i for i, hook in enumerate(result.hooks) if hook.endswith(f".{point}")]
    layers = [layer for i in rows if (layer := layer_of(result.hooks[i])) is not None]
    values = getattr(result, measure) if of_patterns else getattr(result, measure)[rows]
    of = "of attention patterns, mean over queries" if of_patterns else f"of {point}"
    names = {
        "kl": ("KL(A || B)", "nats"),
        "moved": ("Total variation", "share of attention"),
        "largest": ("Largest difference", "largest |a - b|"),
        "relative": ("Relative difference", "|a - b| / |a|"),
        "cosine": ("Mean cosine", "cosine"),
    }
    name, unit = names[measure]
    columns = [head for head in range(values.shape[1]) if result.held[rows, head].any()]
    shape = {"group_size": 1 if point.endswith(KEY_HOOKS) else result.group_size, "heads": columns, "layers": layers}
    share = measure == "moved"
    return atlas(values[:, columns], title=f"{name} {of}", unit=unit, share=share, theme=theme, stamp=stamp, **shape)


def logits(result: LogitDifferences, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """KL between the predictions at every position, with markers where the first choice differs."""
    fig = go.Figure()
    rows = range(min(len(result.kl), MAX_LINES))
    for row in rows:
        name = "KL" if len(result.kl) == 1 else f"batch row {row}"
        colour = COLOURS[row % len(COLOURS)]
        fig.add_scatter(
            x=result.positions, y=result.kl[row], name=name, mode="lines", line={"color": colour, "width": 2},
            customdata=result.rank[row],
            hovertemplate="position %{x}: %{y:.3g} nats<br>A's first choice has rank %{customdata} in B",
        )  # fmt: skip
        disagree = ~result.agree[row]
        fig.add_scatter(
            x=result.positions[disagree], y=result.kl[row][disagree], mode="markers",
            name="different first choice" if len(result.kl) == 1 else f"{name}: different first choice",
            marker={"color": colour, "symbol": "x", "size": 8}, hoverinfo="skip",
        )  # fmt: skip
    fig.update_xaxes(title="position (tokens)")
    fig.update_yaxes(title="KL(A || B) (nats)", rangemode="tozero", exponentformat="power")
    title = f"Predictions: same first choice at {result.agreement:.1%} of {result.agree.size:,} positions"
    if len(result.kl) > len(rows):
        title += f"; the first {len(rows)} of {len(result.kl)} batch rows"
    return finish(fig, "logit_differences", title, theme, stamp)


def non_finite(result: NonFinite, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """Share of tokens with NaN or infinity, by hook and layer."""
    values = {hook: float(result.spoilt[i].mean()) for i, hook in enumerate(result.hooks)}
    texts = {hook: f"{value:.1%}" for hook, value in values.items()}
    fig = _hook_grid(values, texts, "share of tokens")
    first = result.first
    title = (
        f"No NaN or infinity at {result.n_checked:,} hooks" if first is None else f"NaN or infinity begins at {first}"
    )
    return finish(fig, "non_finite", title, theme, stamp, height=560)


def _hook_grid(values: Mapping[str, float], texts: Mapping[str, str], unit: str) -> go.Figure:
    """Heatmap of hooks by layer; hooks without a layer are in a separate column."""
    points = [point for point in HOOKS if any(point_of(hook) == point for hook in values)]
    layers = sorted({layer for hook in values if (layer := layer_of(hook)) is not None})
    columns: Sequence[str] = [*map(str, layers), *(["model"] if any(layer_of(hook) is None for hook in values) else [])]
    z = np.full((len(points), len(columns)), np.nan, dtype=np.float32)
    hover_texts = np.full(z.shape, "not compared", dtype=object)
    for hook, value in values.items():
        layer = layer_of(hook)
        at = points.index(point_of(hook)), columns.index("model" if layer is None else str(layer))
        z[at], hover_texts[at] = value, texts[hook]
    fig = go.Figure(
        go.Heatmap(
            x=list(columns), y=[point.name.removeprefix("blocks.{l}.") for point in points], z=z,
            customdata=hover_texts, colorscale=SEQUENTIAL, colorbar=colour_bar(unit), xgap=1, ygap=1, hoverongaps=False,
            hovertemplate="%{y}, layer %{x}<br>%{customdata}<extra></extra>",
        )
    )  # fmt: skip
    fig.update_xaxes(title="layer", type="category", showgrid=False)
    fig.update_yaxes(title="hook, in the order of a run", type="category", autorange="reversed", showgrid=False)
    return fig
