"""Plotly figures of the lenses and of attribution. Computes only sums to draw.

Token labels may come from outside, already escaped; without them they are the result's own text, escaped here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from probes.base.drawing import COLOURS, HEIGHT, SEQUENTIAL, Stamp, Theme, add_lines, colour_bar, finish
from probes.logits.component_attribution import NeuronAttribution, SourceAttribution
from probes.logits.logit_attribution import LogitAttribution, Target
from probes.logits.logit_lens import EMBED, LogitLens, TokenCurves
from probes.logits.tuned_lens import LensDivergence

MAX_CELLS = 20_000  # of a grid, so that it keeps within a figure's budget; the last positions are drawn
MAX_WRITTEN = 24  # positions whose cells have room for a token; beyond, hovering tells


# --- lenses ---------------------------------------------------------------------------------------------------


def lens_grid(
    found: LogitLens,
    labels: Sequence[str] | None = None,
    *,
    by: Literal["probability", "kl", "rank"] = "probability",
    names: Mapping[int, str] | None = None,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """The token that each layer would predict at each position; colours are its probability, or the layer's KL or rank.

    Shapes: labels [pos], unique and escaped; names: escaped text by token
    """
    names = position_names(found.text) if names is None else names
    if labels is None:
        labels = [f"{at} {_name(names, token)}" for at, token in zip(found.positions, found.tokens, strict=True)]
    assert len(set(labels)) == len(labels) == len(found.positions), "one unique label for every position"
    first = max(0, len(labels) - MAX_CELLS // len(found.layers))
    columns = (np.exp(found.logprobs[..., 0]), found.kl, found.rank)
    seen = np.stack(columns, -1)[:, first:].astype(np.float32)  # [layer, pos, 3]
    z, unit, scale = {
        "probability": (seen[..., 0], "probability", {"zmin": 0, "zmax": 1}),
        "kl": (seen[..., 1], "KL to the output (nats)", {}),
        "rank": (np.log10(1 + seen[..., 2]), "log10(1 + rank of the output's token)", {}),
    }[by]
    text = [[_name(names, token) for token in row] for row in found.ids[:, first:, 0].tolist()]
    layers = _layer_names(found.layers)
    fig = go.Figure(
        go.Heatmap(
            x=list(labels[first:]), y=layers, z=z, text=text, customdata=seen, colorbar=colour_bar(unit),
            colorscale=SEQUENTIAL if by == "probability" else f"{SEQUENTIAL}_r", **scale,
            texttemplate="%{text}" if len(labels) - first <= MAX_WRITTEN else None, textfont={"size": 11},
            hovertemplate="layer %{y}<br>after %{x}<br>predicts %{text}, probability %{customdata[0]:.3f}<br>"
            "KL %{customdata[1]:.3f} nats<br>rank of the output's token %{customdata[2]:.0f}<extra></extra>",
        )
    )  # fmt: skip
    fig.update_xaxes(title="token", type="category", showgrid=False, tickangle=-60, nticks=24)
    fig.update_yaxes(title="layer", type="category", showgrid=False)
    title = "What the stream would predict, layer by layer"
    title += f" · the last {len(labels) - first} of {len(labels)} positions" if first else ""
    return finish(fig, "lens_grid", title, theme, stamp, height=max(HEIGHT, 160 + 24 * len(layers)))


def token_curves(
    found: TokenCurves,
    *,
    position: int = -1,
    by: Literal["logprob", "rank"] = "logprob",
    names: Mapping[int, str] | None = None,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """How the tokens rise through the layers at one position: absolute, or negative from the last captured one."""
    names = position_names(found.text) if names is None else names
    at = len(found.positions) + position if position < 0 else found.positions.index(position)
    values = found.logprobs if by == "logprob" else found.ranks + 1
    fig = go.Figure()
    for i, token in enumerate(found.tokens):
        fig.add_scatter(
            x=_layer_names(found.layers), y=values[:, at, i], name=_name(names, token), mode="lines+markers",
            line={"color": COLOURS[i % len(COLOURS)], "width": 2, "dash": "solid" if i < len(COLOURS) else "dash"},
        )  # fmt: skip
    fig.update_xaxes(title="layer", type="category")
    if by == "logprob":
        fig.update_yaxes(title="log-probability (nats)")
    else:
        fig.update_yaxes(title="place in the order (1 is the likeliest)", type="log", autorange="reversed")
    title = f"Tokens through the layers, after position {found.positions[at]}"
    return finish(fig, "token_curves", title, theme, stamp, showlegend=True)


def lens_divergence(found: LensDivergence, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """How far each layer's prediction is from the output, by the logit lens and by the tuned one."""
    fig = go.Figure()
    series = {"logit lens": found.logit.mean(1), "tuned lens": found.tuned.mean(1)}
    add_lines(fig, np.array(_layer_names(found.layers)), series, mode="lines+markers")
    fig.update_xaxes(title="layer", type="category")
    fig.update_yaxes(title="KL to the output (nats per token)", rangemode="tozero")
    title = f"Both lenses on {found.logit.shape[1]} windows"
    return finish(fig, "lens_divergence", title, theme, stamp)


# --- attribution ----------------------------------------------------------------------------------------------


def attribution(
    found: LogitAttribution,
    *,
    token: int = 0,
    top: int = 20,
    names: Mapping[int, str] | None = None,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """The largest parts in the order of the model, then the others together; the bars end at the model's own logit.

    Diamonds show the error of the frozen scale. `token` is the row of the result.
    """
    values, logit = found.values[token].astype(float), float(found.logits[token])
    chosen = np.sort(np.argsort(-np.abs(values), kind="stable")[:top])
    rest = logit - values[chosen].sum()  # the other parts, and what the sum misses by rounding
    labels = [_part(*found.parts[i]) for i in chosen]
    steps = np.append(values[chosen], rest)
    sums = np.cumsum(steps)
    # Bars from where the last one ended: plotly's build for figures with axes has no waterfall.
    fig = go.Figure(
        go.Bar(
            x=[*labels, f"{len(values) - len(chosen)} others", "logit"], y=[*steps, logit], base=[*(sums - steps), 0.0],
            customdata=[*sums, logit], text=[f"{step:.4f}" for step in (*steps, logit)], textposition="none",
            showlegend=False,
            hovertemplate="%{x}<br>%{text}, sum %{customdata:.4f}<extra></extra>",
            marker={"color": [*(COLOURS[0] if step >= 0 else COLOURS[1] for step in steps), "#888888"]},
        )
    )  # fmt: skip
    removed = found.removed[token, chosen]
    fig.add_scatter(
        x=labels, y=np.cumsum(values[chosen]) - values[chosen] + removed, mode="markers", customdata=removed,
        name="where the bar would end if the norm were scaled anew without the part",
        marker={"symbol": "diamond-open", "size": 8, "color": COLOURS[4], "line": {"width": 2}},
        hovertemplate="%{x}<br>without it the logit would lose %{customdata:.4f}<extra></extra>",
    )  # fmt: skip
    fig.update_xaxes(title="part of the model", type="category", tickangle=-60)
    fig.update_yaxes(title="logit")
    title = f"{_target(found, token, names)} after position {found.position}: parts sum to the logit within "
    return finish(fig, "attribution", f"{title}{found.error:.1g}", theme, stamp, showlegend=True)


def neuron_attribution(
    found: NeuronAttribution,
    *,
    token: int = 0,
    top: int = 20,
    names: Mapping[int, str] | None = None,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """The neurons that add most to one logit, over all layers. `token` is the row of the result."""
    values = found.values[token]  # [layer, k]
    order = np.argsort(-np.abs(values), axis=None, kind="stable")[:top][::-1]
    layer, rank = np.unravel_index(order, values.shape)
    labels = [f"L{found.layers[i]} N{found.neurons[token, i, j]}" for i, j in zip(layer, rank, strict=True)]
    fig = go.Figure()
    _signed(fig, values[layer, rank], labels, found.removed[token, layer, rank])
    fig.update_xaxes(title="logit")
    fig.update_yaxes(title="neuron", type="category", automargin=True, dtick=1)
    title = f"{_target(found, token, names)} after position {found.position}: neurons that add most"
    return finish(fig, "neuron_attribution", title, theme, stamp, height=max(HEIGHT, 120 + 20 * len(labels)))


def source_attribution(
    found: SourceAttribution,
    labels: Sequence[str] | None = None,
    *,
    token: int = 0,
    names: Mapping[int, str] | None = None,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """What one head carries to one logit from each token, with its attention beside it.

    Shapes: labels [key_pos], unique and escaped
    """
    own = position_names(found.text) if names is None else names
    if labels is None:
        labels = [f"{at} {_name(own, key)}" for at, key in enumerate(found.prompt)]
    seen = slice(0, found.position + 1)
    values, keys = found.values[token, seen].astype(np.float32), list(labels[seen])
    fig = go.Figure()
    colours = [COLOURS[0] if value >= 0 else COLOURS[1] for value in values]
    fig.add_bar(x=keys, y=values, name="contribution", marker={"color": colours})
    fig.add_bar(x=keys, y=found.weights[seen], name="attention", marker={"color": COLOURS[2]}, yaxis="y2")
    fig.update_xaxes(title="token looked at", type="category", tickangle=-60, nticks=24, anchor="y2")
    fig.update_yaxes(title="logit", domain=[0.4, 1])
    second = {"title": "attention", "domain": [0, 0.3], "range": [0, 1]}
    title = f"Layer {found.layer}, head {found.head}: {found.head_value[token]:.3f} to {_target(found, token, names)}"
    return finish(fig, "source_attribution", title, theme, stamp, yaxis2=second, showlegend=False)


def _signed(fig: go.Figure, values: np.ndarray, labels: Sequence[str], removed: np.ndarray) -> None:
    colours = [COLOURS[0] if value >= 0 else COLOURS[1] for value in values]
    fig.add_bar(
        x=values, y=list(labels), orientation="h", marker={"color": colours}, showlegend=False, customdata=removed,
        hovertemplate="%{y}<br>%{x:.4f}<br>without it the logit would lose %{customdata:.4f}<extra></extra>",
    )  # fmt: skip


def _part(kind: str, layer: int, head: int) -> str:
    return {"embed": "embed", "head": f"L{layer}H{head}", "mlp": f"L{layer} MLP"}[kind]


def _layer_names(layers: Sequence[int]) -> list[str]:
    return ["embed" if layer == EMBED else str(layer) for layer in layers]


def _target(found: Any, row: int, names: Mapping[int, str] | None) -> str:
    names = position_names(found.text) if names is None else names
    target: Target = found.tokens[row]
    pair = (target,) if isinstance(target, int) else target
    return " less ".join(f"“{_name(names, token)}”" for token in pair)


def position_names(text: Mapping[int, str]) -> dict[int, str]:
    """Nothing in a token may be taken for markup."""
    return {token: name.replace("&", "&amp;").replace("<", "&lt;") for token, name in text.items()}


def _name(names: Mapping[int, str], token: int) -> str:
    return names.get(token, str(token))
