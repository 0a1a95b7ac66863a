"""Plotly figures of the lenses and of logit attribution. Computes only the sums that are drawn.

A caller can pass token labels, already escaped; otherwise the result's own text is escaped here.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from probes.base.drawing import (
    COLOURS,
    HEIGHT,
    SEQUENTIAL,
    Stamp,
    Theme,
    add_lines,
    colour_bar,
    finish,
    position_names,
    sign_colours,
)
from probes.logits.component_attribution import NeuronAttribution, SourceAttribution
from probes.logits.input_salience import InputSalience
from probes.logits.logit_attribution import LogitAttribution, Target
from probes.logits.logit_lens import EMBED, LogitLens, TokenCurves
from probes.logits.tuned_lens import LensDivergence

MAX_CELLS = 20_000  # of a grid, to stay within the size budget of a figure; the last positions are drawn
CELL_CHARACTERS = 7  # of a token in a cell of a grid on a page
MAX_CELL_TEXTS = 24  # with more positions than this, the token's text is shown only on hover


# --- lenses ---------------------------------------------------------------------------------------------------


def lens_grid(
    lens: LogitLens,
    labels: Sequence[str] | None = None,
    *,
    by: Literal["probability", "kl", "rank"] = "probability",
    names: Mapping[int, str] | None = None,
    start: int | None = None,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """The top token of each layer at each position; colours are its probability, or the layer's KL or rank.

    start: index of the first of the MAX_CELL_TEXTS positions that are shown, with their words; None for as many
    positions as one figure can hold, without words if they are more.
    Shapes: labels [pos], unique and escaped; names: escaped text by token
    """
    names = escaped_text(lens.text) if names is None else names
    if labels is None:
        labels = [f"{at} {_token_name(names, token)}" for at, token in zip(lens.positions, lens.tokens, strict=True)]
    assert len(set(labels)) == len(labels) == len(lens.positions), "one unique label for every position"
    first, count = max(0, len(labels) - MAX_CELLS // len(lens.layers)), len(labels)
    if start is not None:
        first, count = start, min(start + MAX_CELL_TEXTS, len(labels))
    columns = (np.exp(lens.logprobs[..., 0]), lens.kl, lens.rank)
    measures = np.stack(columns, -1)[:, first:count].astype(np.float32)  # [layer, pos, 3]
    z, unit, scale = {
        "probability": (measures[..., 0], "probability", {"zmin": 0, "zmax": 1}),
        "kl": (measures[..., 1], "KL to the output (nats)", {}),
        "rank": (np.log10(1 + measures[..., 2]), "log10(1 + rank of the model's top token)", {}),
    }[by]
    words = [[_token_name(names, token) for token in row] for row in lens.ids[:, first:count, 0].tolist()]
    layers = _layer_names(lens.layers)
    fig = go.Figure(
        go.Heatmap(
            x=list(labels[first:count]), y=layers, z=z,
            text=[[_short(word) for word in row] for row in words], hovertext=words,
            customdata=measures, colorbar=colour_bar(unit),
            colorscale=SEQUENTIAL if by == "probability" else f"{SEQUENTIAL}_r", **scale,
            texttemplate="%{text}" if count - first <= MAX_CELL_TEXTS else None, textfont={"size": 11},
            hovertemplate="layer %{y}<br>after %{x}<br>predicts %{hovertext}, probability %{customdata[0]:.3f}<br>"
            "KL %{customdata[1]:.3f} nats<br>rank of the model's top token: %{customdata[2]:.0f}<extra></extra>",
        )
    )  # fmt: skip
    fig.update_xaxes(title="token", type="category", showgrid=False, tickangle=-60, nticks=24)
    fig.update_yaxes(title="layer", type="category", showgrid=False)
    title = "What the stream would predict, layer by layer"
    if start is not None and count - first < len(labels):
        title += f" · positions {lens.positions[first]} to {lens.positions[count - 1]} of {len(labels)}"
    elif first:
        title += f" · the last {len(labels) - first} of {len(labels)} positions"
    return finish(fig, "lens_grid", title, theme, stamp, height=max(HEIGHT, 160 + 24 * len(layers)))


def _short(word: str) -> str:
    """An escaped token as short as a cell is wide."""
    plain = html.unescape(word)
    return word if len(plain) <= CELL_CHARACTERS else f"{html.escape(plain[: CELL_CHARACTERS - 1], quote=False)}…"


def token_curves(
    curves: TokenCurves,
    *,
    position: int = -1,
    by: Literal["logprob", "rank"] = "logprob",
    names: Mapping[int, str] | None = None,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """Log-probability or rank of tokens by layer at one position: absolute, or negative from the last captured one."""
    names = escaped_text(curves.text) if names is None else names
    at = len(curves.positions) + position if position < 0 else curves.positions.index(position)
    values = curves.logprobs if by == "logprob" else curves.ranks + 1
    fig = go.Figure()
    for i, token in enumerate(curves.tokens):
        fig.add_scatter(
            x=_layer_names(curves.layers), y=values[:, at, i], name=_token_name(names, token), mode="lines+markers",
            line={"color": COLOURS[i % len(COLOURS)], "width": 2, "dash": "solid" if i < len(COLOURS) else "dash"},
        )  # fmt: skip
    fig.update_xaxes(title="layer", type="category")
    if by == "logprob":
        fig.update_yaxes(title="log-probability (nats)")
    else:
        fig.update_yaxes(title="rank (1 is the most likely)", type="log", autorange="reversed")
    title = f"Tokens through the layers, after position {curves.positions[at]}"
    return finish(fig, "token_curves", title, theme, stamp, showlegend=True)


def lens_divergence(result: LensDivergence, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """KL from each layer's prediction to the model's output, for the logit lens and the tuned lens."""
    fig = go.Figure()
    series = {"logit lens": result.logit.mean(1), "tuned lens": result.tuned.mean(1)}
    add_lines(fig, np.array(_layer_names(result.layers)), series, mode="lines+markers")
    fig.update_xaxes(title="layer", type="category")
    fig.update_yaxes(title="KL to the output (nats per token)", rangemode="tozero")
    title = f"Both lenses on {result.logit.shape[1]} windows"
    return finish(fig, "lens_divergence", title, theme, stamp)


# --- attribution ----------------------------------------------------------------------------------------------


def attribution(
    result: LogitAttribution,
    *,
    token: int = 0,
    top: int = 20,
    names: Mapping[int, str] | None = None,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """Waterfall of the largest parts in the order of the model, then all others; it ends at the model's own logit.

    Diamonds show the error of the frozen scale. `token` is the row of the result.
    """
    values, logit = result.values[token].astype(float), float(result.logits[token])
    chosen = np.sort(np.argsort(-np.abs(values), kind="stable")[:top])
    other_parts = logit - values[chosen].sum()  # the other parts, and the rounding error of the sum
    labels = [_part_name(*result.parts[i]) for i in chosen]
    steps = np.append(values[chosen], other_parts)
    sums = np.cumsum(steps)
    # Each bar starts where the last one ended: plotly's cartesian bundle has no waterfall trace.
    fig = go.Figure(
        go.Bar(
            x=[*labels, f"{len(values) - len(chosen)} others", "logit"], y=[*steps, logit], base=[*(sums - steps), 0.0],
            customdata=[*sums, logit], text=[f"{step:.4f}" for step in (*steps, logit)], textposition="none",
            showlegend=False,
            hovertemplate="%{x}<br>%{text}, sum %{customdata:.4f}<extra></extra>",
            marker={"color": [*sign_colours(steps), "#888888"]},
        )
    )  # fmt: skip
    removed = result.removed[token, chosen]
    fig.add_scatter(
        x=labels, y=np.cumsum(values[chosen]) - values[chosen] + removed, mode="markers", customdata=removed,
        name="end of the bar if the part is removed and the norm's scale is computed again",
        marker={"symbol": "diamond-open", "size": 8, "color": COLOURS[4], "line": {"width": 2}},
        hovertemplate="%{x}<br>without it, the logit loses %{customdata:.4f}<extra></extra>",
    )  # fmt: skip
    fig.update_xaxes(title="part of the model", type="category", tickangle=-60)
    fig.update_yaxes(title="logit")
    title = f"{_target_name(result, token, names)} after position {result.position}: parts sum to the logit within "
    return finish(fig, "attribution", f"{title}{result.error:.1g}", theme, stamp, showlegend=True)


def neuron_attribution(
    result: NeuronAttribution,
    *,
    token: int = 0,
    top: int = 20,
    names: Mapping[int, str] | None = None,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """The neurons of all layers with the largest contributions to one logit. `token` is the row of the result."""
    values = result.values[token]  # [layer, k]
    order = np.argsort(-np.abs(values), axis=None, kind="stable")[:top][::-1]
    layer, rank = np.unravel_index(order, values.shape)
    labels = [f"L{result.layers[i]} N{result.neurons[token, i, j]}" for i, j in zip(layer, rank, strict=True)]
    fig = go.Figure()
    _add_signed_bars(fig, values[layer, rank], labels, result.removed[token, layer, rank])
    fig.update_xaxes(title="logit")
    fig.update_yaxes(title="neuron", type="category", automargin=True, dtick=1)
    title = f"{_target_name(result, token, names)} after position {result.position}: largest contributions of neurons"
    return finish(fig, "neuron_attribution", title, theme, stamp, height=max(HEIGHT, 120 + 20 * len(labels)))


def source_attribution(
    result: SourceAttribution,
    labels: Sequence[str] | None = None,
    *,
    token: int = 0,
    names: Mapping[int, str] | None = None,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """One head's contribution to one logit from each token, with its attention below.

    Shapes: labels [key_pos], unique and escaped
    """
    key_names = escaped_text(result.text) if names is None else names
    if labels is None:
        labels = [f"{at} {_token_name(key_names, key)}" for at, key in enumerate(result.prompt)]
    visible = slice(0, result.position + 1)
    values, keys = result.values[token, visible].astype(np.float32), list(labels[visible])
    fig = go.Figure()
    colours = sign_colours(values)
    fig.add_bar(x=keys, y=values, name="contribution", marker={"color": colours})
    fig.add_bar(x=keys, y=result.weights[visible], name="attention", marker={"color": COLOURS[2]}, yaxis="y2")
    fig.update_xaxes(title="token attended to", type="category", tickangle=-60, nticks=24, anchor="y2")
    fig.update_yaxes(title="logit", domain=[0.4, 1])
    second = {"title": "attention", "domain": [0, 0.3], "range": [0, 1]}
    target = _target_name(result, token, names)
    title = f"Layer {result.layer}, head {result.head}: {result.head_value[token]:.3f} to {target}"
    return finish(fig, "source_attribution", title, theme, stamp, yaxis2=second, showlegend=False)


def input_salience(
    result: InputSalience,
    labels: Sequence[str] | None = None,
    *,
    names: Mapping[int, str] | None = None,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """Contribution of each input token to the logits; the title has the error of the sum.

    Shapes: labels [pos], unique and escaped; names: escaped text by token
    """
    names = escaped_text(result.text) if names is None else names
    if labels is None:
        labels = [f"{at} {_token_name(names, token)}" for at, token in enumerate(result.prompt)]
    columns, fig = position_names(labels, len(result.prompt)), go.Figure()
    for row, values in enumerate(result.values[: len(COLOURS)]):
        fig.add_bar(
            x=columns, y=values.astype(np.float32), name=_target_name(result, row, names),
            marker={"color": COLOURS[row]}, hovertemplate="%{x}<br>%{y:.4f} logits<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(title="input token", type="category", showgrid=False, tickangle=-60, nticks=40)
    fig.update_yaxes(title="contribution (logits)")
    method = {"gradient_x_input": "Gradient x input", "integrated_gradients": "Integrated gradients"}[result.method]
    title = f"{method} of the logit at position {result.position}: the sum is off by {result.error:.2g}"
    title += "" if result.converged else ", more than was asked for"
    return finish(fig, "input_salience", title, theme, stamp, showlegend=True)


def _add_signed_bars(fig: go.Figure, values: np.ndarray, labels: Sequence[str], removed: np.ndarray) -> None:
    colours = sign_colours(values)
    fig.add_bar(
        x=values, y=list(labels), orientation="h", marker={"color": colours}, showlegend=False, customdata=removed,
        hovertemplate="%{y}<br>%{x:.4f}<br>without it, the logit loses %{customdata:.4f}<extra></extra>",
    )  # fmt: skip


def _part_name(kind: str, layer: int, head: int) -> str:
    return {"embed": "embed", "head": f"L{layer}H{head}", "mlp": f"L{layer} MLP"}[kind]


def _layer_names(layers: Sequence[int]) -> list[str]:
    return ["embed" if layer == EMBED else str(layer) for layer in layers]


def _target_name(result: Any, row: int, names: Mapping[int, str] | None) -> str:
    names = escaped_text(result.text) if names is None else names
    target: Target = result.tokens[row]
    pair = (target,) if isinstance(target, int) else target
    return " minus ".join(f"“{_token_name(names, token)}”" for token in pair)


def escaped_text(text: Mapping[int, str]) -> dict[int, str]:
    """Token texts with plotly's markup characters escaped."""
    return {token: name.replace("&", "&amp;").replace("<", "&lt;") for token, name in text.items()}


def _token_name(names: Mapping[int, str], token: int) -> str:
    return names.get(token, str(token))
