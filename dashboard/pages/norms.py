"""Norms page: what each RMSNorm divides by and multiplies with, and how the residual stream grows."""

from dataclasses import replace

import numpy as np
import pandas as pd
import streamlit as st

from dashboard.layout.page import Head, Help, card, chart, page
from dashboard.layout.tables import Column, plain_table
from dashboard.panels import prompt_input
from dashboard.panels.prompt_input import Input
from dashboard.session import computed, url_state
from dashboard.session.computed import CaptureRef
from dashboard.token_text import plotly_labels, short
from probes.attention.head_map import MAX_CELLS
from probes.norms import rms_norms
from workbench.model import Transformer

ABOUT = Help(
    "RMSNorm divides a token's vector by its root mean square and multiplies each dimension by a learned gain. Each "
    "block has two, before attention (ln1) and before the MLP (ln2); one more comes before the output.",
    [
        "**Input RMS**: what each token's vector is divided by, for each layer; colours are logarithmic.",
        "**Gains**: the distribution of the learned gains over dimensions.",
        "**Activations**: the largest values in the residual stream. *Massive* means over 100 and over 1000 times "
        "the median; an *outlier* dimension reaches 6 standard deviations of its layer and position in a quarter of "
        "the layers and at 6% of the positions. The thresholds come from models with billions of parameters.",
        "**Contributions**: how much attention and MLP add, relative to the residual stream.",
    ],
    {
        "RMSNorm": "https://arxiv.org/abs/1910.07467",
        "massive activations": "https://arxiv.org/abs/2402.17762",
        "outlier dimensions": "https://arxiv.org/abs/2208.07339",
    },
)
RMS, GAINS, ACTIVATIONS, CONTRIBUTIONS = VIEWS = ("Input RMS", "Gains", "Activations", "Contributions")
NORMS = {"Before attention (ln1)": "ln1", "Before the MLP (ln2)": "ln2"}


def show() -> None:
    with page("Norms", "RMSNorm inputs and gains, and how the residual stream grows.", ABOUT) as head:
        model = computed.model()
        prompt = prompt_input.choose(model, rms_norms.HOOKS)
        with st.container(horizontal=True, vertical_alignment="bottom", key="controls"):
            view = url_state.url_widget(
                st.segmented_control, "View", list(VIEWS), key="look", default=RMS, required=True
            )
            norm = "ln1"
            if view in (RMS, GAINS):
                norm = NORMS[
                    url_state.url_widget(
                        st.segmented_control, "Norm", list(NORMS), key="norm", default=next(iter(NORMS)), required=True
                    )
                ]
            first = view in (RMS, CONTRIBUTIONS) and url_state.url_widget(
                st.toggle,
                "Leave out the first token",
                key="nofirst",
                help="It is often a sink, with far larger values than the rest.",
            )
        if view == GAINS:
            _gains(head, model, norm)
            return
        if prompt is None:
            return
        capture_ref = computed.capture(model, prompt.ids, rms_norms.HOOKS, prompt.changes)
        rms = computed.cached_probe(rms_norms.input_rms, capture=capture_ref)
        if rms.nonfinite:
            st.error(f"{rms.nonfinite} RMS values are NaN or infinite: the residual stream overflowed. Try float32.")
        skip = int(first and len(prompt) > 1)
        if view == RMS:
            _rms(head, rms, prompt, norm, skip)
        elif view == ACTIVATIONS:
            _activations(head, capture_ref, prompt)
        else:
            _contributions(head, capture_ref, prompt, skip)


def _rms(head: Head, rms: rms_norms.InputRms, prompt: Input, norm: str, skip: int) -> None:
    start, stop = _window(len(prompt), skip)
    shown = replace(rms, rms=rms.rms[:, :, start:stop], positions=rms.positions[start:stop])
    left, right = st.columns([1.7, 1])
    with left, st.container(border=True, height="stretch"):
        labels = plotly_labels(prompt.tokens[start:stop], start=start)
        fig = shown.figure(labels=labels, norm=norm)
        chart(fig, key="rms", height=470)
    with right, card("By layer", help="Over the shown tokens.", height="stretch"):
        rows = [i for i, (_, name) in enumerate(rms.norms) if name in (norm, rms_norms.FINAL)]
        values = shown.rms[rows, 0]
        largest = np.nanargmax(np.where(np.isfinite(values), values, -1.0), axis=1)
        plain_table(
            pd.DataFrame(
                {
                    "layer": ["final" if rms.norms[i][1] == rms_norms.FINAL else str(rms.norms[i][0]) for i in rows],
                    "median": pd.DataFrame(values).median(axis=1),
                    "largest": values[np.arange(len(rows)), largest],
                    "at": [short(prompt.tokens[start + i], 24) for i in largest],
                }
            ),
            columns={
                "layer": Column("Layer", right=True),
                "median": Column("Median", ".3g"),
                "largest": Column("Largest", ".3g"),
                "at": "At token",
            },
        )
    _code(head, prompt, "input_rms")
    head.data({"input_rms": rms.frame})


def _window(length: int, skip: int) -> tuple[int, int]:
    if length - skip <= MAX_CELLS:
        return skip, length
    start = url_state.url_widget(
        st.number_input, "From position", 0, length - 2, 0, key="from", step=128, width=190,
        help=f"{MAX_CELLS} tokens are shown at a time.",
    )  # fmt: skip
    start = max(start, skip)
    return start, min(start + MAX_CELLS, length)


def _gains(head: Head, model: Transformer, norm: str) -> None:
    gains = computed.cached_probe(rms_norms.gain_statistics, model=model)
    rows = [i for i, (_, name) in enumerate(gains.norms) if name in (norm, rms_norms.FINAL)]
    left, right = st.columns([1.2, 1])
    with left, st.container(border=True, height="stretch"):
        chart(gains.figure(norm=norm), key="gains", height=450)
    with right, card("By layer", help="Kurtosis is 3 for a normal distribution.", height="stretch"):
        plain_table(
            pd.DataFrame(
                {
                    "layer": [
                        "final" if gains.norms[i][1] == rms_norms.FINAL else str(gains.norms[i][0]) for i in rows
                    ],
                    "mean": gains.mean[rows],
                    "std": gains.std[rows],
                    "kurtosis": gains.kurtosis[rows],
                    "dims": [", ".join(str(dim) for dim in gains.top_dims[i][:3]) for i in rows],
                }
            ),
            columns={
                "layer": Column("Layer", right=True),
                "mean": Column("Mean", ".3f"),
                "std": Column("Std", ".3f"),
                "kurtosis": Column("Kurtosis", ".1f"),
                "dims": "Farthest dimensions",
            },
        )
    head.code(
        f"""
import workbench as wb
from probes.norms.rms_norms import gain_statistics

gain_statistics(wb.load_model({computed.model_path()!r})).frame()
"""
    )
    head.data({"gains": gains.frame})


def _activations(head: Head, capture_ref: CaptureRef, prompt: Input) -> None:
    massive = computed.cached_probe(rms_norms.massive_activations, capture=capture_ref)
    outliers = computed.cached_probe(rms_norms.outlier_dimensions, capture=capture_ref)
    with st.container(border=True):
        fig = massive.figure()
        fig.update_yaxes(dtick="D2")  # 1, 2, 5: a label at every digit is unreadable
        chart(fig, key="massive", height=400)
    table = massive.frame().head(200)
    if table.empty:
        _dimensions(outliers)
    else:
        left, right = st.columns(2)
        with right:
            _dimensions(outliers)
        with left, card("Massive activations", height="stretch"):
            table["token"] = [short(prompt.tokens[position], 24) for position in table["pos"]]
            plain_table(
                table[["layer", "pos", "token", "dim", "value", "ratio"]],
                max_height=340,
                columns={
                    "layer": "Layer",
                    "pos": "Position",
                    "token": "Token",
                    "dim": "Dimension",
                    "value": Column("Value", ".1f"),
                    "ratio": Column("x median", ".0f"),
                },
            )
    _code(head, prompt, "massive_activations", "outlier_dimensions")
    head.data({"massive_activations": massive.by_layer, "largest_dimensions": outliers.frame})


def _dimensions(outliers: rms_norms.OutlierDimensions) -> None:
    count = len(outliers.dims)
    with card(
        "Largest dimensions",
        help="Shares of layers and positions where the value is at least 6 standard deviations "
        "of that layer and position.",
        height="stretch",
    ):
        st.caption(f"{count} of {len(outliers.outlier)} are outlier dimensions.")
        plain_table(
            outliers.frame().head(50),
            max_height=305,
            columns={
                "dim": "Dimension",
                "layer_share": Column("Layers", ".1%"),
                "position_share": Column("Positions", ".1%"),
                "largest": Column("Largest", ".2f"),
                "outlier": "Outlier",
            },
        )


def _contributions(head: Head, capture_ref: CaptureRef, prompt: Input, skip: int) -> None:
    whole = computed.cached_probe(rms_norms.contribution_ratios, capture=capture_ref)
    shown = replace(
        whole, ratio=whole.ratio[..., skip:], cosine=whole.cosine[..., skip:], positions=whole.positions[skip:]
    )
    ratio, cosine = (np.nanmedian(values, axis=(2, 3)) for values in (shown.ratio, shown.cosine))  # [layer, sublayer]
    left, right = st.columns([1.2, 1])
    with left, st.container(border=True, height="stretch"):
        chart(shown.figure(), key="ratios", height=450)
    with (
        right,
        card(
            "By layer",
            help="Medians over tokens; cosines with the residual stream before the addition.",
            height="stretch",
        ),
    ):
        plain_table(
            pd.DataFrame(
                {
                    "layer": whole.layers,
                    "attn": ratio[:, 0],
                    "attn_cos": cosine[:, 0],
                    "mlp": ratio[:, 1],
                    "mlp_cos": cosine[:, 1],
                }
            ),
            columns={
                "layer": "Layer",
                "attn": Column("Attention", ".3f"),
                "attn_cos": Column("Cosine", ".2f"),
                "mlp": Column("MLP", ".3f"),
                "mlp_cos": Column("Cosine", ".2f"),
            },
        )
    _code(head, prompt, "contribution_ratios")
    head.data({"contribution_ratios": whole.frame})


def _code(head: Head, prompt: Input, *probes: str) -> None:
    calls = "\n".join(f"{probe}(cap).frame()" for probe in probes)
    head.code(
        f"""
import torch, workbench as wb
from probes.norms.rms_norms import HOOKS, {", ".join(probes)}

model = wb.load_model({computed.model_path()!r})
tokens = {prompt.code}
{prompt.running}
    _, cap = model.run_with_capture(tokens, HOOKS)
{calls}
"""
    )


show()
