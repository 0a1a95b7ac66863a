"""Plotly figures of activation patching, path patching, logit paths and composition."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from probes.base.drawing import (
    COLOURS,
    RING,
    SEQUENTIAL,
    Stamp,
    Theme,
    atlas,
    colour_bar,
    colour_scale,
    finish,
    position_names,
)
from probes.base.head_names import label
from probes.patching.activation_patching import Patching, of_key_value_heads
from probes.patching.attribution_patching import GradientError
from probes.patching.path_patching import Composition, LogitPaths, PathPatching, Through

NAMES = {
    "resid_pre": "the stream before a layer",
    "resid_mid": "the stream after a layer's attention",
    "resid_post": "the stream after a layer",
    "attn_out": "attention's output",
    "mlp_out": "the MLP's output",
    "heads": "a head's output",
    "q": "a head's queries",
    "k": "a key/value head's keys",
    "v": "a key/value head's values",
    "pattern": "a head's attention pattern",
    "heads_by_position": "a head's output at one position",
    "q_by_position": "a head's query at one position",
    "k_by_position": "a key/value head's key at one position",
    "v_by_position": "a key/value head's value at one position",
    "pattern_by_position": "a head's attention from one position",
}
UNIT = "share of the difference"
MOST_ROWS = 40  # heads shown by position: those with the largest values


def patching(
    result: Patching,
    *,
    labels: Sequence[str] | None = None,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """Share of the target's difference that each patch moves: layer by position, or a square per head.

    Heads by position are rows, at most 40: those with the largest share at any position. White is no effect.
    Shapes: labels [pos], unique and escaped; default: the position numbers
    """
    title = _title(result)
    kv = of_key_value_heads(result.what)
    if result.positions == (-1,):
        fig = _head_grid(result, title, theme, stamp)
        return fig.update_xaxes(title="key/value head") if kv else fig
    z = result.moved.reshape(-1, len(result.positions)).astype(np.float32)  # [layer * head, pos]
    rows: list[str] | list[int] = list(result.layers)
    if result.heads != (-1,):
        z, rows = _strongest(
            z, [f"L{layer}{'KV' if kv else 'H'}{head}" for layer in result.layers for head in result.heads]
        )
    columns = position_names(labels, z.shape[1])
    fig = go.Figure(
        go.Heatmap(
            x=columns, y=rows, z=z, colorbar=colour_bar(UNIT), **colour_scale(z, True),
            hovertemplate="%{y}<br>%{x}<br>share %{z:.3f}<extra></extra>",
        )
    )  # fmt: skip
    fig.update_xaxes(title="token", type="category", showgrid=False, tickangle=-60, nticks=40)
    by_head = result.heads != (-1,)
    side = ("key/value head" if kv else "head") if by_head else "layer"
    fig.update_yaxes(title=side, showgrid=False, autorange="reversed")
    fig.update_yaxes({"type": "category", "dtick": 1} if by_head else {"dtick": max(1, len(rows) // 8)})
    return finish(fig, "patching", title, theme, stamp, height=max(440, 160 + 16 * len(rows)))


def _strongest(z: np.ndarray, rows: list[str]) -> tuple[np.ndarray, list[str]]:
    """The rows with the largest magnitudes, in their original order. Shapes: z [row, pos]"""
    chosen = np.sort(np.argsort(-np.nan_to_num(np.abs(z)).max(1), kind="stable")[:MOST_ROWS])
    return z[chosen], [rows[i] for i in chosen]


def logit_paths(
    result: LogitPaths, *, labels: Sequence[str] | None = None, theme: Theme = "light", stamp: Stamp | None = None
) -> go.Figure:
    """Contribution of heads to the logit from each token: a row per head, at most the 40 with the largest values.

    Shapes: labels [pos], unique and escaped; default: the position numbers
    """
    n_layers, n_heads, n_keys = result.values.shape
    all_heads = [f"L{layer}H{head}" for layer in range(n_layers) for head in range(n_heads)]
    z, rows = _strongest(result.values.reshape(-1, n_keys).astype(np.float32), all_heads)
    fig = go.Figure(
        go.Heatmap(
            x=position_names(labels, n_keys), y=rows, z=z, colorbar=colour_bar("logits"), **colour_scale(z, True),
            hovertemplate="%{y} from %{x}<br>%{z:.4f} logits<extra></extra>",
        )
    )  # fmt: skip
    fig.update_xaxes(title="attended token", type="category", showgrid=False, tickangle=-60, nticks=40)
    fig.update_yaxes(title="head", type="category", dtick=1, showgrid=False, autorange="reversed")
    what = (
        f"token {result.target}" if isinstance(result.target, int) else "token {} minus token {}".format(*result.target)
    )
    title = f"Contribution of heads to the logit of {what}, at position {result.position}"
    return finish(fig, "logit_paths", title, theme, stamp, height=max(440, 160 + 16 * len(rows)))


def path_patching(result: PathPatching, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """Share of the target's difference that each sender moves through the receivers: a square per head."""
    where = "the logits" if not result.receivers else f"{label(result.receivers)} ({result.through})"
    verb = "restored" if result.direction == "denoise" else "lost"
    return _head_grid(result, f"Target {verb} by the path from each head to {where}", theme, stamp)


def _head_grid(result: Patching, title: str, theme: Theme, stamp: Stamp | None) -> go.Figure:
    axes = {"heads": result.heads, "layers": result.layers, "group_size": result.group_size}
    return atlas(result.moved[..., 0], title=title, unit=UNIT, difference=True, theme=theme, stamp=stamp, **axes)


def composition(
    result: Composition, *, through: Through = "k", theme: Theme = "light", stamp: Stamp | None = None
) -> go.Figure:
    """One kind of composition: writers across, readers down; blank if the reader's layer is not later."""
    score = getattr(result, through)
    n_layers, n_heads = score.shape[:2]
    names = [f"L{layer}H{head}" for layer in range(n_layers) for head in range(n_heads)]
    z = score.reshape(len(names), len(names)).T.astype(np.float32)  # [reader, writer]
    fig = go.Figure(
        go.Heatmap(
            x=names, y=names, z=z, colorscale=SEQUENTIAL, colorbar=colour_bar("score"),
            hovertemplate="%{x} writes, %{y} reads<br>score %{z:.4f}<extra></extra>",
        )
    )  # fmt: skip
    fig.update_xaxes(title="head that writes", type="category", showgrid=False, tickangle=-60, nticks=24)
    fig.update_yaxes(title="head that reads", type="category", showgrid=False, autorange="reversed", nticks=24)
    title = f"{through.upper()}-composition: a random direction scores {result.chance:.3f}"
    return finish(fig, "composition", title, theme, stamp, height=560)


def _title(result: Patching) -> str:
    verb = "restored by" if result.direction == "denoise" else "lost to"
    how = "" if result.how == "exact" else ", estimated from a gradient"
    clean, corrupted = result.clean.mean(), result.corrupted.mean()
    return f"Target {verb} {NAMES[result.what]}{how}: {clean:.3g} clean, {corrupted:.3g} corrupted"


def gradient_error(result: GradientError, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """The gradient's estimate of each patch, and the exact patch; on the line they are equal."""
    exact, estimate = result.exact.ravel(), result.estimate.ravel()
    table = result.frame()
    places = [
        f"layer {layer}" + (f" · head {head}" if head >= 0 else "") + (f" · position {pos}" if pos >= 0 else "")
        for layer, head, pos in zip(table["layer"], table["head"], table["pos"], strict=True)
    ]
    fig = go.Figure()
    fig.add_scattergl(
        x=exact, y=estimate, mode="markers", text=places, marker={"color": COLOURS[0], "size": 6}, showlegend=False,
        hovertemplate="%{text}<br>exact %{x:.3f}<br>estimated %{y:.3f}<extra></extra>",
    )  # fmt: skip
    both = np.concatenate([exact, estimate])
    ends = [float(np.nanmin(both)), float(np.nanmax(both))] if np.isfinite(both).any() else [0.0, 1.0]
    line = {"dash": "dash", "color": RING}
    fig.add_scatter(x=ends, y=ends, mode="lines", line=line, name="equal", hoverinfo="skip")
    fig.update_xaxes(title="share restored, exact")
    fig.update_yaxes(title="share restored, estimated from a gradient")
    summary = f"largest error {result.largest:.3g}, mean {result.mean:.3g}, correlation {result.correlation:.3f}"
    return finish(fig, "gradient_error", f"Attribution patching of {NAMES[result.what]}: {summary}", theme, stamp)
