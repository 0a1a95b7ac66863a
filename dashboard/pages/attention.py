"""Attention page: a grid of all heads, the pattern of one head, and the strongest keys of one token."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import streamlit as st

from dashboard.components.head_grid import head_grid
from dashboard.components.head_inputs import head_inputs
from dashboard.components.token_strip import Strip, token_strip
from dashboard.layout.figure_help import FIGURE_HELP
from dashboard.layout.page import Head, Help, card, draw_figure, page
from dashboard.layout.tables import Column, metric_row, plain_table
from dashboard.panels import prompt_input, tour
from dashboard.panels.prompt_input import Input
from dashboard.session import computed, url_state, url_values
from dashboard.session.computed import CaptureRef
from dashboard.token_text import plotly_labels, short
from probes.attention.head_map import MAX_CELLS, HeadMap, head_map
from probes.attention.head_metrics import (
    HOOKS,
    METRICS,
    SHARES,
    HeadMetrics,
    InductionScores,
    head_metrics,
    induction_scores,
)
from workbench.hooks.interventions import from_json
from workbench.model import Transformer

ABOUT = Help(
    "Attention weights of every head on one prompt. The grid shows one number for each head; click a head to open "
    "it. In the map, rows are queries and columns are keys: a row shows where that token looks, and sums to 1. Keys "
    "after the query are blank, not 0.",
    [
        "**Entropy** of a row, in nats: 0 means that one token has all the weight, ln(i + 1) that all keys have the "
        "same weight. The grid shows the mean over rows.",
        "**Sink mass** is the weight on the first token; a head above 0.3 is called a sink head.",
        "**Previous token** and **duplicate** are the weights on the token before, and on earlier copies of the token.",
        "**Induction** is measured on repeated random tokens, not on the prompt: the weight on the token that "
        "followed the same token in the first copy.",
        "**Brackets** above the grid join query heads that share a key/value head.",
        f"With more than {MAX_CELLS} tokens, each cell of the map is the largest weight of a tile; choose a window "
        f"to see single tokens.",
    ],
    {
        "entropy, distance": "https://arxiv.org/abs/1906.04284",
        "sinks": "https://arxiv.org/abs/2309.17453",
        "previous, duplicate": "https://arxiv.org/abs/2211.00593",
        "induction": "https://arxiv.org/abs/2209.11895",
    },
)

# Statistics that heads can be coloured by. The labels are also the values in the URL.
COLOURS = {
    "Entropy": "entropy",
    "Sink mass": "sink_1",
    "Previous": "previous",
    "Duplicate": "duplicate",
    "Distance": "distance",
    "Induction": "induction",
}
WHOLE, WINDOW = "Whole prompt", "Window"
LOOKS, SEEN = "Where it looks", "Who looks at it"
# Up to this many parameters, the page opens on the strongest induction head. Finding it needs a run of the model.
SMALL = 300_000_000


@dataclass(frozen=True)
class View:
    """Values of the controls."""

    colour: str
    layer: int
    head: int
    log: bool
    hide_first: bool


def show() -> None:
    with page("Attention", "One square for each head. Click a square to open that head.", ABOUT) as head:
        model = computed.model()
        tour.show_step(model, "attention")
        prompt = prompt_input.choose(model, HOOKS)
        if prompt is None:
            return
        capture_ref = computed.capture(model, prompt.ids, HOOKS, prompt.changes)
        metrics = computed.cached_probe(head_metrics, capture=capture_ref)
        broken = ~np.isfinite(metrics.values["entropy"])
        if broken.any():
            st.error(f"The patterns of {broken.sum()} heads contain NaN or infinite values (overflow). Try float32.")
        view = _controls(model)
        left, right = st.columns([0.41, 0.59])
        with left, card("All heads", key="atlas_card", height="stretch", help=FIGURE_HELP["atlas"]):
            _atlas(model, capture_ref, metrics, prompt, view)
        with right, st.container(border=True, key="map_card", height="stretch"):
            shown_map = _head(model, capture_ref, metrics, prompt, view)
        with st.container(border=True, key="strip_card"):
            _tokens(capture_ref, prompt, view, shown_map)
        _take_away(head, prompt, metrics, shown_map, view)


def _controls(model: Transformer) -> View:
    config = model.config
    layer, head = _first_head(model)
    with st.container(horizontal=True, vertical_alignment="bottom", key="controls"):
        colour = url_state.url_widget(
            st.segmented_control, "Colour heads by", list(COLOURS), key="colour", default="Entropy", required=True
        )
        layer, head = head_inputs(config, (layer, head))
        log = url_state.url_widget(st.toggle, "Log scale", key="log")
        hide = url_state.url_widget(
            st.toggle, "Hide first", key="nosink", help="Leaves the first token blank; it is often a sink."
        )
    return View(COLOURS[colour], layer, head, log, hide)


def _first_head(model: Transformer) -> tuple[int, int]:
    if sum(p.numel() for p in model.parameters()) > SMALL:
        return 0, 0
    scores = _induction(model, computed.NO_CHANGES).induction
    layer, head = np.unravel_index(int(scores.argmax()), scores.shape)
    return int(layer), int(head)


def _induction(model: Transformer, changes: str) -> InductionScores:
    block = min(32, (model.config.max_seq_len - 1) // 2)
    return computed.cached_probe(_induction_under, model=model, block=block, changes=changes)


def _induction_under(model: Transformer, *, block: int, changes: str) -> InductionScores:
    with model.intervene(*from_json(changes)):
        return induction_scores(model, block=block)


def _atlas(model: Transformer, capture_ref: CaptureRef, metrics: HeadMetrics, prompt: Input, view: View) -> None:
    config = model.config
    if view.colour == "induction":
        scores = _induction(model, prompt.changes)
        values = scores.induction
        unit, over = "induction weight", f"{scores.batch} random blocks of {scores.block} tokens, repeated"
    else:
        values = metrics.values[view.colour]
        tokens = "only token" if metrics.n_queries == 1 else f"{metrics.n_queries} tokens"
        unit, over = METRICS[view.colour], f"the prompt's {tokens}"
    st.caption(f"{unit[0].upper()}{unit[1:]}, mean over {over}")
    head_grid(
        values,
        id=f"{capture_ref.id}/{view.colour}",
        unit=unit,
        config=config,
        selected=(view.layer, view.head),
        share=view.colour == "induction" or view.colour in SHARES,
        on_choose=_choose_head,
    )
    _highest(values, unit)
    name = f"L{view.layer}H{view.head}"
    st.page_link(
        "dashboard/pages/intervene.py",
        label=f"Without {name} in Intervene →",
        query_params=prompt_input.current_params("sample")
        | prompt_input.ablation_params(name, prompt_input.url_changes()),
    )


def _highest(values: np.ndarray, unit: str) -> None:
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), axis=None, kind="stable")[:5]
    layers, heads = np.unravel_index(order, values.shape)
    plain_table(
        pd.DataFrame({"layer": layers, "head": heads, "value": values[layers, heads]}),
        columns={
            "layer": "Layer",
            "head": "Head",
            "value": Column(f"Highest {unit}", ".3f"),
        },
    )


def _choose_head(layer: int, head: int) -> None:
    st.session_state["layer"], st.session_state["head"] = layer, head


def _head(model: Transformer, capture_ref: CaptureRef, metrics: HeadMetrics, prompt: Input, view: View) -> HeadMap:
    st.subheader(f"Layer {view.layer} · Head {view.head}", anchor=False, help=FIGURE_HELP["head_map"])
    at = metrics.layers.index(view.layer), metrics.heads.index(view.head)
    shown = {
        "Entropy (nats)": ("entropy", ".2f"),
        "Sink mass": ("sink_1", ".0%"),
        "Previous token": ("previous", ".0%"),
        "Distance (tokens)": ("distance", ".1f"),
    }
    values = {label: (metrics.values[name][at], form) for label, (name, form) in shown.items()}
    if view.colour == "induction" or sum(p.numel() for p in model.parameters()) <= SMALL:
        values["Induction"] = _induction(model, prompt.changes).induction[at], ".0%"
    metric_row(
        {label: format(value, form) if np.isfinite(value) else "none" for label, (value, form) in values.items()}
    )
    window = _window(len(prompt))
    pattern = computed.cached_probe(head_map, view.layer, view.head, capture=capture_ref, window=window)
    labels = plotly_labels(prompt.tokens)
    stamp = {"layer": view.layer, "head": view.head, "start": pattern.start, "factor": pattern.factor}
    fig = pattern.figure(labels=labels, log=view.log, hide_first=int(view.hide_first), stamp=stamp)
    fig.update_layout(title=None, margin={"t": 10, "r": 10}, height=520)
    if pattern.pooling:
        st.caption(f"Each cell is the {pattern.pooling}. Choose a window to see single tokens.")
    draw_figure(fig, key="head_map", stretch=True)
    return pattern


def _window(length: int) -> tuple[int, int] | None:
    """Positions to map: None for all, or the chosen window if there are too many for single cells."""
    if length <= MAX_CELLS:
        return None
    with st.container(horizontal=True, vertical_alignment="bottom"):
        extent = url_state.url_widget(
            st.segmented_control, "Show", [WHOLE, WINDOW], key="extent", default=WHOLE, required=True
        )
        if extent == WHOLE:
            return None
        last = length - 2
        start = url_state.url_widget(st.number_input, "From position", 0, last, 0, step=64, key="start", width=150)
    return start, min(start + MAX_CELLS // 2, length)


def _tokens(capture_ref: CaptureRef, prompt: Input, view: View, head_map_shown: HeadMap) -> None:
    start, stop = head_map_shown.start, head_map_shown.stop
    if head_map_shown.factor > 1:
        stop = min(start + MAX_CELLS, len(prompt))
    pattern = (
        head_map_shown
        if head_map_shown.factor == 1
        else computed.cached_probe(head_map, view.layer, view.head, capture=capture_ref, window=(start, stop))
    )
    chosen = _chosen(start, stop)
    left, right = st.columns([0.59, 0.41], gap="medium")
    with left:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.subheader(
                "Tokens", anchor=False, help="Hover to preview a token, click or use the arrow keys to choose it."
            )
            mode = url_state.url_widget(
                st.segmented_control, "Show", [LOOKS, SEEN], key="strip", default=LOOKS, required=True,
                label_visibility="collapsed",
            )  # fmt: skip
        strip = Strip(
            f"{capture_ref.id}/{view.layer}/{view.head}/{start}",
            prompt.tokens[start:stop],
            pattern.weights,
            start,
            "looks" if mode == LOOKS else "seen",
        )
        token_strip(strip, chosen=chosen, on_choose=lambda position: url_state.set_url_param("token", position))
        if (start, stop) != (0, len(prompt)):
            st.caption(f"Tokens {start} to {stop - 1} of {len(prompt)}.")
    with right:
        what = "keys for" if mode == LOOKS else "queries on"
        st.subheader(f"Strongest {what} token {chosen}", anchor=False)
        _strongest(strongest(pattern, chosen, by_query=mode == LOOKS), prompt)


def _chosen(start: int, stop: int) -> int:
    """The token in the URL, limited to the shown range; by default the last one."""
    named = url_state.url_param("token")
    requested = url_values.parse_count(named)
    position = stop - 1 if requested is None else requested
    shown = min(max(position, start), stop - 1)
    url_state.note_shown("token", named, shown)
    return shown


def strongest(pattern: HeadMap, position: int, *, by_query: bool, k: int = 6) -> pd.DataFrame:
    """The k largest weights of one row (`by_query`) or one column of an unpooled map: position, weight, distance."""
    line = pattern.weights[position - pattern.start] if by_query else pattern.weights[:, position - pattern.start]
    line = np.nan_to_num(line, nan=-1.0)
    order = np.argsort(-line, kind="stable")[:k]
    order = order[line[order] >= 0]
    others = order + pattern.start
    return pd.DataFrame({"position": others, "weight": line[order], "distance": np.abs(position - others)})


def _strongest(table: pd.DataFrame, prompt: Input) -> None:
    table.insert(1, "token", [short(prompt.tokens[position], 40) for position in table["position"]])
    plain_table(
        table,
        columns={
            "position": "Position",
            "token": "Token",
            "weight": Column("Weight", ".3f", bar=1),
            "distance": "Distance",
        },
    )


def _take_away(head: Head, prompt: Input, metrics: HeadMetrics, shown_map: HeadMap, view: View) -> None:
    window = (
        "" if shown_map.stop - shown_map.start == len(prompt) else f", window=({shown_map.start}, {shown_map.stop})"
    )
    head.code(
        f"""
import torch, workbench as wb
from probes.attention.head_metrics import HOOKS, head_metrics
from probes.attention.head_map import head_map

model = wb.load_model({computed.model_path()!r})
tokens = {prompt.code}
{prompt.running}
    _, cap = model.run_with_capture(tokens, HOOKS)
head_metrics(cap).frame()
pattern = head_map(cap, {view.layer}, {view.head}{window})
pattern.weights
"""
    )
    head.data({"heads": metrics.frame, f"layer_{view.layer}_head_{view.head}": shown_map.frame})


show()
