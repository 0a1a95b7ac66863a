"""Parts of the Generate page: the attention of one step, and the table of all steps."""

import io
from dataclasses import dataclass

import numpy as np
import pandas as pd
import streamlit as st

from dashboard.components.head_grid import head_grid
from dashboard.components.head_inputs import head_inputs
from dashboard.components.token_strip import Strip, token_strip
from dashboard.layout.figure_help import FIGURE_HELP
from dashboard.layout.page import card, table_height
from dashboard.layout.tables import Column, plain_table
from dashboard.panels import prompt_input
from dashboard.panels.target_tokens import token_bytes
from dashboard.session import computed, url_state, url_values
from dashboard.session.computed import NO_CHANGES, CaptureRef
from dashboard.token_text import short, visible
from probes.attention.head_map import MAX_CELLS, head_map, strongest_keys
from probes.attention.head_metrics import HOOKS, METRICS, SHARES, head_metrics
from probes.generation.token_choices import SamplingTrace
from workbench.model import Transformer

COLOURS = {
    "Entropy": "entropy",
    "Sink mass": "sink_1",
    "Previous": "previous",
    "Duplicate": "duplicate",
    "Distance": "distance",
}


@dataclass(frozen=True)
class View:
    """The open head, and the interventions of its run."""

    layer: int
    head: int
    changes: str = NO_CHANGES


def query(trace: SamplingTrace, step: int) -> int:
    """Position of the query that chose the token of a step (counted from 0)."""
    return len(trace.prompt) - 1 + step


def capture_of(model: Transformer, trace: SamplingTrace, changes: str = NO_CHANGES) -> CaptureRef:
    """A capture of one run over prompt and text, with a row for each step; the last token was never read.

    changes: the interventions under which the text was generated.
    """
    return computed.capture(model, (*trace.prompt, *trace.tokens[:-1]), HOOKS, changes)


def attention(model: Transformer, trace: SamplingTrace, step: int, changes: str) -> View:
    """Draw all heads for one query, and the weights of the open head; `changes` as in `capture_of`."""
    capture_ref, at = capture_of(model, trace, changes), query(trace, step)
    config = model.config
    with card(
        f"Attention of step {step + 1}", key="step_card", help="Attention of the query that chose this step's token."
    ):
        with st.container(horizontal=True, vertical_alignment="bottom", key="step_controls"):
            colour = url_state.url_widget(
                st.segmented_control, "Colour heads by", list(COLOURS), key="by", default="Entropy", required=True
            )
            layer, head = head_inputs(config, (config.n_layers - 1, 0))
        left, right = st.columns([0.41, 0.59], gap="medium")
        with left:
            name = COLOURS[colour]
            unit = METRICS[name]
            st.caption(f"{unit[0].upper()}{unit[1:]}, for this query only", help=FIGURE_HELP["atlas"])
            values = computed.cached_probe(head_metrics, capture=capture_ref, queries=(at,)).values[name]
            id = f"{capture_ref.id}/{name}/{at}"
            head_grid(
                values,
                id=id,
                unit=unit,
                config=config,
                selected=(layer, head),
                share=name in SHARES,
                on_choose=_choose_head,
            )
        with right:
            view = View(layer, head, changes)
            _row(model, capture_ref, trace, at, view)
            _links(model, trace, capture_ref.capture.tokens[0].tolist(), at, view)
    return view


def _choose_head(layer: int, head: int) -> None:
    st.session_state["layer"], st.session_state["head"] = layer, head


def _row(model: Transformer, capture_ref: CaptureRef, trace: SamplingTrace, at: int, view: View) -> None:
    st.subheader(f"Layer {view.layer} · Head {view.head}: where position {at} looks", anchor=False)
    ids = capture_ref.capture.tokens[0].tolist()
    names = [token_bytes(model, token) for token in ids]
    start = max(0, min(at + 1, len(ids)) - MAX_CELLS) if len(ids) > MAX_CELLS else 0
    stop = min(start + MAX_CELLS, len(ids))
    whole = computed.cached_probe(head_map, view.layer, view.head, capture=capture_ref, window=(start, stop))
    first = len(trace.prompt) - 1

    def choose(position: int) -> None:
        if position >= first:  # earlier tokens did not choose a token of this text
            st.session_state["step"] = position - first + 1

    strip = Strip(
        f"{capture_ref.id}/{view.layer}/{view.head}/{start}", names[start:stop], whole.weights, start, "looks"
    )
    token_strip(strip, chosen=at, on_choose=choose, key="step_strip")
    if (start, stop) != (0, len(ids)):
        st.caption(f"Tokens {start} to {stop - 1} of {len(ids)}; the table lists the strongest of all tokens.")
    table = computed.cached_probe(strongest_keys, view.layer, view.head, at, capture=capture_ref, k=6).frame()
    table.insert(4, "token", [short(names[key], 40) for key in table["key"]])
    plain_table(
        table[["key", "token", "weight", "distance"]],
        columns={
            "key": "Position",
            "token": "Token",
            "weight": Column("Weight", ".3f", bar=1),
            "distance": "Distance",
        },
    )


def _links(model: Transformer, trace: SamplingTrace, ids: list[int], at: int, view: View) -> None:
    """Draw links to other pages, if prompt plus text, typed as a prompt, gives exactly the same tokens."""
    text = st.session_state.get("prompt", "") + trace.text
    if model.tokenizer is None or len(text) > prompt_input.MAX_CHARS or not url_values.fits_in_url({"prompt": text}):
        return
    # The last token was never read; it is in the text unless it is the end-of-text token.
    if model.tokenizer.encode(text, bos=True) not in (ids, [*ids, trace.tokens[-1]]):
        return
    name = f"L{view.layer}H{view.head}"
    with st.container(horizontal=True):
        st.page_link(
            "dashboard/pages/attention.py",
            label=f"{name} in Attention →",
            query_params={"prompt": text, "layer": str(view.layer), "head": str(view.head), "token": str(at)}
            | prompt_input.changes_param(view.changes),
        )
        st.page_link(
            "dashboard/pages/intervene.py",
            label=f"Without {name} in Intervene →",
            query_params={"prompt": text, "position": str(at)} | prompt_input.ablation_params(name, view.changes),
        )


# --- all steps ------------------------------------------------------------------------------------------------


def table(model: Transformer, trace: SamplingTrace) -> None:
    """Draw the table of all steps, with downloads."""
    with card(
        "Every step", help="Probability, log-probability, rank and entropy are the model's own, at temperature 1."
    ):
        shown = steps(model, trace)
        st.dataframe(
            shown.drop(columns=["position", "drawn_entropy"]),
            hide_index=True,
            height=table_height(len(shown), max_height=330),
            column_config={
                "step": st.column_config.NumberColumn("Step", width=60),
                "text": st.column_config.TextColumn("Token", width=135),  # room for <|begin_of_text|>
                "token": st.column_config.NumberColumn("Id", format="%d", width=70),
                "probability": st.column_config.ProgressColumn("Probability", format="%.4f", min_value=0, max_value=1),
                "logprob": st.column_config.NumberColumn("Log-probability (nats)", format="%.4f"),
                "rank": st.column_config.NumberColumn("Rank", width=60),
                "entropy": st.column_config.NumberColumn("Entropy (nats)", format="%.4f"),
                "drawn_probability": st.column_config.NumberColumn("Sampling probability", format="%.4f"),
                "kept": st.column_config.NumberColumn("Candidate tokens", format="%d"),
            },
        )
        with st.container(horizontal=True):
            st.download_button(
                "CSV", lambda: shown.to_csv(index=False), "generated.csv", "text/csv", on_click="ignore", key="csv"
            )
            st.download_button(
                "Parquet", lambda: _parquet(shown), "generated.parquet", "application/vnd.apache.parquet",
                on_click="ignore", key="parquet",
            )  # fmt: skip


def steps(model: Transformer, trace: SamplingTrace) -> pd.DataFrame:
    """`SamplingTrace.frame` with each token's visible text."""
    shown = trace.frame()
    shown.insert(2, "text", [visible(token_bytes(model, token)) for token in trace.tokens])
    return shown


def alternatives(model: Transformer, trace: SamplingTrace) -> pd.DataFrame:
    """`SamplingTrace.alternatives` with each token's visible text."""
    shown = trace.alternatives()
    shown.insert(2, "text", [visible(token_bytes(model, token)) for token in np.asarray(shown["token"]).tolist()])
    return shown


def _parquet(shown: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    shown.to_parquet(buffer, index=False)
    return buffer.getvalue()
