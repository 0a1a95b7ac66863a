"""Plotly figures of head ablation."""

import plotly.graph_objects as go

from probes.base.drawing import COLOURS, MOST_BARS, Stamp, Theme, finish, interval_dots
from probes.patching.ablation import AblationEffect, InductionAblation


def induction_ablation(result: InductionAblation, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """Increase of the second copy's loss without the chosen heads, by prompt, and without each random set."""
    fig = go.Figure()
    n_heads = f"{len(result.heads)} head{'s' if len(result.heads) > 1 else ''}"
    random = result.random.mean(1)
    for name, values, colour in (("chosen", result.effect, COLOURS[1]), ("random", random, COLOURS[0])):
        label = (
            f"the chosen {n_heads}, by prompt" if name == "chosen" else f"{len(random)} random draws of {n_heads}, mean"
        )
        fig.add_box(
            y=values, name=label, boxpoints="all", jitter=0.4, pointpos=0, marker={"color": colour}, showlegend=False,
            hovertemplate="%{y:.4f} nats<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(title="ablated heads")
    fig.update_yaxes(title="increase of the loss on the second copy (nats per token)", zeroline=True)
    summary = f"{result.ratio:.3g} times random heads (95%: {result.low:.3g} to {result.high:.3g})"
    title = f"Without the chosen heads: {summary}; loss {result.base.mean():.2f} before"
    return finish(fig, "induction_ablation", title, theme, stamp)


def ablation_effect(result: AblationEffect, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """Increase of the target without each set of heads, with the interval over prompts."""
    table = result.frame().head(MOST_BARS)
    short = [text if len(text) <= 32 else f"{text[:28]} ..." for text in table["heads"]]
    names = [f"{i}: {text}" for i, text in enumerate(short)]  # two sets can have the same beginning
    fig = interval_dots(names, *(table[name].to_numpy() for name in ("effect", "low", "high")))
    fig.add_vline(x=0, line={"color": "#888888", "width": 1})
    fig.update_xaxes(title="increase of the target (in its unit)")
    fig.update_yaxes(title="ablated heads")
    sample = f"{len(result.base)} prompts, 95% intervals" if len(result.base) > 1 else "one prompt, no interval"
    title = f"{result.replacement.capitalize()} ablation of heads, baseline {result.base.mean():.4g}: {sample}"
    return finish(fig, "ablation_effect", title, theme, stamp, height=max(320, 130 + 24 * len(names)))
