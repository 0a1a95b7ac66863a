"""Plotly figures of MLP neurons."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.base.drawing import COLOURS, Stamp, Theme, add_lines, finish, sign_colours
from probes.mlp.neurons import EntropyNeurons, NeuronStatistics, NeuronTokens

MAX_POINTS = 20_000  # markers, to stay within the size budget of a figure


def neuron_statistics(result: NeuronStatistics, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """Share of open gates and sparsity of the activations, by layer."""
    layers = np.array(result.layers)
    series = {
        "open gates, median neuron": _median(result.open_share),
        "sparsity over tokens, median neuron": _median(result.sparsity),
        "sparsity over neurons, mean token": result.token_sparsity,
    }
    fig = go.Figure()
    add_lines(fig, layers, series, mode="lines+markers")
    fig.update_xaxes(title="layer", dtick=max(1, len(layers) // 8))
    fig.update_yaxes(title="share, or sparsity (0 to 1)", range=[0, 1])
    return finish(fig, "neuron_statistics", "Neurons: open gates and sparsity by layer", theme, stamp)


def _median(values: np.ndarray) -> np.ndarray:
    """Median over neurons without NaN; NaN, without a warning, if all are. Shapes: [layer, neuron] -> [layer]"""
    return pd.DataFrame(values).median(axis=1).to_numpy()


def neuron_tokens(result: NeuronTokens, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """Tokens that the first of the neurons promotes and suppresses."""
    table = result.frame()
    table = table[table["neuron"] == result.neurons[0]].sort_values("effect", kind="stable")
    escaped = table["text"].str.replace("&", "&amp;").str.replace("<", "&lt;")
    labels = [f"{token} {text}" for token, text in zip(table["token"], escaped, strict=True)]
    fig = go.Figure()
    colours = sign_colours(table["effect"])
    fig.add_bar(x=table["effect"].to_numpy(), y=labels, orientation="h", marker={"color": colours}, showlegend=False)
    fig.update_xaxes(title="logit for an activation of 1, times the final norm's scale")
    fig.update_yaxes(title="token", type="category", automargin=True, dtick=1)
    title = f"Layer {result.layer}, neuron {result.neurons[0]}: promoted and suppressed tokens"
    height = max(440, 120 + 20 * len(labels))
    return finish(fig, "neuron_tokens", title, theme, stamp, height=height)


def entropy_neurons(result: EntropyNeurons, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """Norm against logit variance, one point per neuron; all candidates are drawn, and at most `MAX_POINTS` others."""
    table = result.frame()  # candidates come first
    fig = go.Figure()
    for name, chosen, colour in (("other neurons", False, "#BBBBBB"), ("candidates", True, COLOURS[1])):
        rows = table[table["chosen"] == chosen]
        if not chosen and len(rows) > MAX_POINTS:
            rows = rows.iloc[:: -(-len(rows) // MAX_POINTS)]
            name = f"one in {-(-int((~result.chosen).sum()) // MAX_POINTS)} other neurons"
        fig.add_scattergl(
            x=rows["norm"].to_numpy(np.float32), y=rows["logit_variance"].to_numpy(np.float32), mode="markers",
            name=name, marker={"color": colour, "size": 5},
            customdata=rows[["layer", "neuron"]].to_numpy(np.int32),
            hovertemplate="layer %{customdata[0]} · neuron %{customdata[1]}<br>"
            "norm %{x:.4g}<br>variance %{y:.4g}<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(title="norm of w2's column", type="log")
    fig.update_yaxes(title="variance of the cosine with W_U's rows", type="log", exponentformat="e")
    title = f"Entropy neurons: {int(result.chosen.sum())} candidates of {result.chosen.size}"
    return finish(fig, "entropy_neurons", title, theme, stamp)
