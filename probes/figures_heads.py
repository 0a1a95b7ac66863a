"""Plotly figures of head types and of ablations, in the manner of `probes.figures`. Computes nothing."""

import numpy as np
import plotly.graph_objects as go

from probes.ablation import InductionAblation
from probes.figures import COLOURS, Stamp, Theme, _finish
from probes.heads import Catalogue


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
    return _finish(fig, "catalogue", f"Heads by type: {counts}", theme, stamp)


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
    fig.update_yaxes(title="rise of the loss on the second copy (nats / token)", zeroline=True)
    said = f"{found.ratio:.3g} times random heads (95%: {found.low:.3g} to {found.high:.3g})"
    title = f"Without the chosen heads: {said}; loss {found.base.mean():.2f} before"
    return _finish(fig, "induction_ablation", title, theme, stamp)
