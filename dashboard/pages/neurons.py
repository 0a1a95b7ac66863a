"""Neurons page: the activations of one MLP neuron on the prompt, what it writes, and how sparse its layer is."""

from dataclasses import replace

import numpy as np
import pandas as pd
import streamlit as st

from dashboard.components.row_picker import row_picker
from dashboard.layout.bars import over_tokens
from dashboard.layout.page import Head, Help, card, chart, page
from dashboard.layout.tables import Column, metric_row, plain_table
from dashboard.panels import prompt_input
from dashboard.panels.prompt_input import Input
from dashboard.panels.target_tokens import token_bytes
from dashboard.session import computed, url_state
from dashboard.session.computed import CaptureRef
from dashboard.token_text import plotly_labels, short
from probes.mlp.neurons import HOOKS, NeuronStatistics, NeuronTokens, neuron_statistics, neuron_tokens
from workbench.hooks.capture import Capture
from workbench.model import Transformer

ABOUT = Help(
    "Neurons of the MLPs; the activation is silu(gate) times up. If the gate is open and up is negative, the "
    "activation is negative, and the neuron writes the opposite of its direction.",
    [
        "**Activations**: the factor on the neuron's output weights at each token of the prompt.",
        "**Promoted and suppressed**: the direct effect of its output weights on the logits, for an activation of "
        "1, before the final norm. A negative activation swaps the two. Later layers may also read the direction.",
        "**Open gates**: the share of tokens whose gate is positive.",
        "**Sparsity** is Hoyer's measure: 0 if all values are equally large, 1 if only one is not zero.",
    ],
    {
        "gated MLPs": "https://arxiv.org/abs/2002.05202",
        "what neurons promote": "https://arxiv.org/abs/2203.14680",
        "sparsity": "https://arxiv.org/abs/cs/0408058",
    },
)
STRONGEST = -1


def show() -> None:
    with page("Neurons", "How a neuron fires, and what it writes.", ABOUT) as head:
        model = computed.model()
        prompt = prompt_input.choose(model, HOOKS)
        if prompt is None:
            return
        capture_ref = computed.capture(model, prompt.ids, HOOKS, prompt.changes)
        statistics = computed.cached_probe(neuron_statistics, capture=capture_ref, top=min(8, len(prompt)))
        layer, neuron = _controls(model, statistics)
        if statistics.nonfinite.any():
            st.error(f"{int(statistics.nonfinite.sum())} activations are NaN or infinite (overflow). Try float32.")
        written = computed.cached_probe(neuron_tokens, model=model, layer=layer, neurons=(neuron,), k=10)
        _numbers(statistics, layer, neuron)
        _activations(capture_ref, prompt, statistics, layer, neuron)
        left, right = st.columns([1, 1])
        with left, st.container(border=True, height="stretch", key="written_card"):
            _written(model, written)
        with right, st.container(border=True, height="stretch", key="layers_card"):
            chart(statistics.figure(stamp={"layer": layer}), key="sparsity", height=300)
            _layer(statistics, layer, neuron)
        _take_away(head, prompt, statistics, written, layer, neuron)


def _controls(model: Transformer, statistics: NeuronStatistics) -> tuple[int, int]:
    config = model.config
    with st.container(horizontal=True, vertical_alignment="bottom", key="controls"):
        layer = url_state.url_widget(st.number_input, "Layer", 0, config.n_layers - 1, 0, key="layer", width=140)
        neuron = url_state.url_widget(
            st.number_input, "Neuron", STRONGEST, config.ffn_dim - 1, STRONGEST, key="neuron", width=160,
            help="-1 is the layer's strongest neuron on this prompt.",
        )  # fmt: skip
    if neuron == STRONGEST:
        neuron = int(np.nan_to_num(statistics.rms[layer], nan=-1.0).argmax())
    return layer, neuron


def _numbers(statistics: NeuronStatistics, layer: int, neuron: int) -> None:
    st.subheader(f"Layer {layer} · Neuron {neuron}", anchor=False)
    values = {
        "Open gate": f"{statistics.open_share[layer, neuron]:.0%}",
        "RMS": f"{statistics.rms[layer, neuron]:.3g}",
        "Mean": f"{statistics.mean[layer, neuron]:.3g}",
        "Kurtosis": f"{statistics.kurtosis[layer, neuron]:.1f}",
        "Sparsity over tokens": f"{statistics.sparsity[layer, neuron]:.2f}",
        "Layer: open gates": f"{statistics.open_share[layer].mean():.0%}",
        "Layer: sparsity": f"{statistics.token_sparsity[layer]:.2f}",
    }
    with st.container(border=True, key="numbers"):
        metric_row(values)


def _activations(capture_ref: CaptureRef, prompt: Input, statistics: NeuronStatistics, layer: int, neuron: int) -> None:
    left, right = st.columns([1.9, 1])
    with left, st.container(border=True, height="stretch", key="activations_card"):
        chart(
            over_tokens(
                plotly_labels(prompt.tokens),
                {"activation": activations(capture_ref.capture, layer, neuron)[0]},
                kind="activations",
                title="Activation at each token",
                unit="silu(gate) · up",
                stamp={"layer": layer, "neuron": neuron},
            ),
            key="activations",
        )
    with (
        right,
        card(
            "Strongest tokens",
            help="Where the activation of this neuron is largest, with either sign.",
            height="stretch",
        ),
    ):
        top = statistics.tops(layer, neuron)
        gates = activations(capture_ref.capture, layer, neuron)[1]
        top.insert(2, "token", [short(prompt.tokens[position], 24) for position in top["pos"]])
        top["gate"] = gates[top["pos"]]
        plain_table(
            top[["pos", "token", "value", "gate"]],
            columns={
                "pos": "Position",
                "token": "Token",
                "value": Column("Activation", ".3f"),
                "gate": Column("Gate", ".3f", help="Before silu; open above 0."),
            },
        )


def activations(cap: Capture, layer: int, neuron: int) -> np.ndarray:
    """One neuron's activation and gate. Shapes: -> [2, pos] float32"""
    names = [f"blocks.{layer}.mlp.hook_post", f"blocks.{layer}.mlp.hook_pre"]
    return np.stack([cap[name][0, :, neuron].float().cpu().numpy() for name in names])


def _written(model: Transformer, written: NeuronTokens) -> None:
    # The figure escapes its text itself; here it gets the same token texts as the rest of the page.
    shown = {*written.promoted.ravel().tolist(), *written.suppressed.ravel().tolist()}
    named = replace(written, text={token: short(token_bytes(model, token)) for token in shown})
    chart(named.figure(stamp={"layer": written.layer, "neuron": written.neurons[0]}), key="written", height=520)


def _layer(statistics: NeuronStatistics, layer: int, neuron: int) -> None:
    table = pd.DataFrame(
        {
            "neuron": np.arange(statistics.rms.shape[1]),
            "rms": statistics.rms[layer],
            "open": statistics.open_share[layer],
            "sparsity": statistics.sparsity[layer],
        }
    )
    table = table.sort_values("rms", ascending=False, ignore_index=True, kind="stable")
    strongest = table["neuron"].tolist()
    st.caption(f"Neurons of layer {layer}, strongest first.")
    row_picker(
        table,
        {
            "neuron": "Neuron",
            "rms": Column("RMS", ".3g"),
            "open": Column("Open gate", ".1%"),
            "sparsity": Column("Sparsity", ".2f"),
        },
        card="layers_card",
        rows=strongest,
        chosen=strongest.index(neuron),
        on_choose=lambda at: st.session_state.update(neuron=strongest[at]),
        max_height=210,
    )


def _take_away(
    head: Head, prompt: Input, statistics: NeuronStatistics, written: NeuronTokens, layer: int, neuron: int
) -> None:
    head.code(
        f"""
import torch, workbench as wb
from probes.mlp.neurons import HOOKS, neuron_statistics, neuron_tokens

model = wb.load_model({computed.model_path()!r})
tokens = {prompt.code}
{prompt.running}
    _, cap = model.run_with_capture(tokens, HOOKS)
cap["blocks.{layer}.mlp.hook_post"][0, :, {neuron}]
neuron_statistics(cap).frame()
neuron_tokens(model, {layer}, [{neuron}]).frame()
"""
    )
    head.data({"neurons": statistics.frame, "written_tokens": written.frame})


show()
