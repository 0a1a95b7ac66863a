"""RoPE: what each frequency pair does, in the model's configuration and in one head's own queries and keys."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import streamlit as st
import torch

from dashboard.layout.page import Head, Help, card, chart, page
from dashboard.layout.tables import Column, metric_row, plain_table
from dashboard.panels import prompt_input, tour
from dashboard.panels.prompt_input import Input
from dashboard.session import computed, url_state
from dashboard.session.computed import CaptureRef
from dashboard.token_text import plotly_labels, short
from probes.rope import head_scores
from probes.rope.formulas import decay, model_frequencies, wavelengths
from workbench.config import Llama3Scaling, ModelConfig
from workbench.hooks.capture import Capture
from workbench.model import Transformer

ABOUT = Help(
    "Rotary position embedding turns every pair of a query's and a key's dimensions by an angle that grows with "
    "position, each pair at its own speed. A score then depends on the distance between the two alone.",
    [
        "**Wavelengths**: tokens that a pair needs for a full turn. Pairs above the dashed line never complete one "
        "within the context. **Decay** says how like vectors would fade by position alone.",
        "**This head**: what each pair adds to the mean score of the head's own q and k on the prompt, and its scores "
        "by distance.",
        "**Shift**: query and key moved together must keep their score; what moves is rounding.",
        "**What if** re-scores the captured, un-rotated q and k under another theta or scaling. Only this head's "
        "rotation changes; earlier layers stay as they were.",
    ],
    {
        "RoPE": "https://arxiv.org/abs/2104.09864",
        "wavelengths": "https://arxiv.org/abs/2310.05209",
        "bands": "https://arxiv.org/abs/2410.06205",
        "bounds": "https://arxiv.org/abs/2405.14591",
    },
)
WAVES, OWN, SHIFT, WHAT_IF = VIEWS = ("Wavelengths", "This head", "Shift", "What if")
TRAINED, UNSCALED, LLAMA31, LLAMA32 = SCALINGS = ("As trained", "Unscaled", "Llama 3.1 (8x)", "Llama 3.2 (32x)")


@dataclass(frozen=True)
class View:
    """What the controls say; `config` is the model's own with the chosen theta and scaling."""

    name: str
    layer: int
    head: int
    config: ModelConfig
    pair: int | None = None
    distance: int | None = None


def show() -> None:
    with page("RoPE", "How position enters the scores, pair by pair.", ABOUT) as head:
        model = computed.model()
        tour.strip(model, "rope")
        given = prompt_input.choose(model, head_scores.HOOKS)
        view = _controls(model)
        if view.name == WAVES:
            _waves(head, view)
            return
        if given is None:
            return
        held = computed.capture(model, given.ids, head_scores.HOOKS, given.changes)
        turned = (held.capture[f"blocks.{view.layer}.attn.hook_rot_{side}"] for side in "qk")
        if not all(vectors.isfinite().all() for vectors in turned):
            st.error("This layer's queries or keys hold NaN or infinite numbers: overflow. Try float32.")
        {OWN: _own, SHIFT: _shift, WHAT_IF: _what_if}[view.name](head, held, given, view)


def _controls(model: Transformer) -> View:
    config = model.config
    with st.container(horizontal=True, vertical_alignment="bottom", key="controls"):
        name = url_state.url_widget(st.segmented_control, "View", list(VIEWS), key="view", default=WAVES, required=True)
        layer = head = 0
        if name != WAVES:
            layer = url_state.url_widget(st.number_input, "Layer", 0, config.n_layers - 1, 0, key="layer", width=150)
            head = url_state.url_widget(st.number_input, "Head", 0, config.n_heads - 1, 0, key="head", width=150)
        pair = distance = None
        if name == OWN:
            pair = _or_all("Pair", "pair", config.head_dim // 2 - 1, "What it alone adds, against distance.")
            distance = _or_all("Distance", "distance", None, "How far apart query and key stand, for the pairs.")
        if name in (WAVES, WHAT_IF):
            theta = url_state.url_widget(
                st.number_input, "Theta", 2.0, 1e9, float(config.rope_theta), key="theta", width=190, format="%.0f",
                help="The base of the frequencies. Larger turns slower.",
            )  # fmt: skip
            scaling = url_state.url_widget(st.selectbox, "Scaling", list(SCALINGS), key="scaling", width=190)
            config = _changed(config, theta, scaling)
    return View(name, layer, head, config, pair, distance)


def _or_all(label: str, key: str, most: int | None, what: str) -> int | None:
    number = url_state.url_widget(st.number_input, label, -1, most, -1, key=key, width=130, help=f"{what} -1 is all.")
    return None if number < 0 else number


def _changed(config: ModelConfig, theta: float, scaling: str) -> ModelConfig:
    own = config.rope_scaling
    # A model that was trained without scaling is stretched from the context that it knows.
    context = own.original_context if own else config.max_seq_len
    scalings = {
        TRAINED: own,
        UNSCALED: None,
        LLAMA31: Llama3Scaling(factor=8.0, original_context=context),
        LLAMA32: Llama3Scaling(factor=32.0, original_context=context),
    }
    return replace(config, rope_theta=theta, rope_scaling=scalings[scaling])


def _waves(head: Head, view: View) -> None:
    found, faded = wavelengths(view.config), decay(view.config)
    pairs = len(found.wavelength)
    cards = {
        "Pairs": str(pairs),
        "Beyond the context": f"{found.longer_than_context} of {pairs}",
        "Critical dimension": f"{found.critical_dimension} of {view.config.head_dim}",
        "Longest wavelength": f"{found.wavelength.max():,.0f} tokens",
        "Cosines turn negative at": "never" if faded.first_negative is None else f"{faded.first_negative:,} tokens",
    }
    _numbers(cards)
    left, right = st.columns(2)
    with left, st.container(border=True):
        chart(found.figure(), key="wavelengths", height=400)
    with right, st.container(border=True):
        chart(faded.figure(), key="decay", height=400)
    with card("Pairs"):
        plain_table(
            found.frame(),
            max_height=340,
            columns={
                "pair": "Pair",
                "frequency": Column("Frequency (radians a token)", ".3g"),
                "wavelength": Column("Wavelength (tokens)", ".1f"),
                "unscaled": Column("Before scaling (tokens)", ".1f"),
                "turns": Column("Turns in the context", ".3g"),
                "band": "Scaling band",
                "longer": "Beyond the context",
            },
        )
    head.code(
        f"""
from dataclasses import replace
import workbench as wb
from probes.rope.formulas import decay, wavelengths

config = replace(wb.load_model({computed.model_path()!r}).config,
                 rope_theta={view.config.rope_theta!r}, rope_scaling={_scaling_code(view.config)})
wavelengths(config).frame()
"""
    )
    head.data({"wavelengths": found.frame, "decay": faded.frame})


def _own(head: Head, held: CaptureRef, given: Input, view: View) -> None:
    distance = None if view.distance is None else min(view.distance, len(given) - 1)
    url_state.note_shown("distance", view.distance, distance)
    bands = computed.cached_probe(head_scores.band_contribution, view.layer, view.head, capture=held, distance=distance)
    scores = computed.cached_probe(head_scores.score_by_distance, view.layer, view.head, capture=held, pair=view.pair)
    slow = bands.wavelength > len(given)
    _numbers(
        {
            "Mean score": f"{bands.score:.3f}",
            "Strongest pair": f"{int(bands.share.argmax())} ({bands.share.max():.0%} of the size)",
            "Share of pairs slower than the prompt": f"{bands.share[slow].sum():.0%}",
            "Sum of pairs against the model's scores": f"{bands.error:.1e}",
        }
    )
    left, right = st.columns(2)
    with left, st.container(border=True):
        chart(bands.figure(), key="bands", height=420)
    with right, st.container(border=True):
        chart(scores.figure(), key="scores", height=420)
    _code(head, given, view, band_contribution=f"distance={distance}", score_by_distance=f"pair={view.pair}")
    head.data({"bands": bands.frame, "score_by_distance": scores.frame})


def _shift(head: Head, held: CaptureRef, given: Input, view: View) -> None:
    found = computed.cached_probe(head_scores.relative_invariance, view.layer, view.head, capture=held)
    left, right = st.columns([1.35, 1])
    with left, st.container(border=True, height="stretch"):
        chart(found.figure(), key="invariance", height=430)
    with right, card("Largest change of a score", help="Over all shifts up to the context.", height="stretch"):
        table = pd.DataFrame(
            {"arithmetic": found.arithmetic, "largest": found.largest.max(1), "mean": found.mean.max(1)}
        )
        plain_table(
            table,
            columns={
                "arithmetic": "Arithmetic",
                "largest": Column("Largest", ".2e"),
                "mean": Column("Mean at the worst shift", ".2e"),
            },
        )
        st.caption(
            f"Scores of this head reach {found.score_size:.3g}. The last row takes the angles themselves in bfloat16, "
            "which this model does not: it shows why they are computed in float32."
        )
    _code(head, given, view, relative_invariance="")
    head.data({"relative_invariance": found.frame})


def _what_if(head: Head, held: CaptureRef, given: Input, view: View) -> None:
    changed = model_frequencies(view.config, dtype=torch.float64)
    about = (view.config.rope_theta, view.config.rope_scaling)
    found = computed.cached_probe(_rescored, view.layer, view.head, *about, capture=held)
    moved = found.moved
    if np.array_equal(changed.numpy(), model_frequencies(held.capture.config).numpy()):
        st.info("These are the frequencies that the model was trained with. Change theta or scaling to see what moves.")
    _numbers({"Attention that moves": f"{moved.mean():.1%}", "In the row that moves most": f"{moved.max():.1%}"})
    left, right = st.columns([1.35, 1])
    with left, st.container(border=True, height="stretch"):
        fig = found.figure(labels=plotly_labels(given.tokens))
        chart(fig, key="what_if", height=540)
    with right, card("Rows that move most", height="stretch"):
        order = np.argsort(-moved, kind="stable")[:14]
        plain_table(
            pd.DataFrame(
                {"position": order, "token": [short(given.tokens[i], 40) for i in order], "moved": moved[order]}
            ),
            max_height=530,
            columns={
                "position": "Position",
                "token": "Token",
                "moved": Column("Moved", ".3f", bar=1),
            },
        )
    _code(head, given, view, what_if="model_frequencies(config)")
    head.data({"what_if": found.frame})


def _rescored(cap: Capture, layer: int, head: int, theta: float, scaling: Llama3Scaling | None) -> head_scores.WhatIf:
    config = replace(cap.config, rope_theta=theta, rope_scaling=scaling)
    return head_scores.what_if(cap, layer, head, model_frequencies(config))


def _numbers(values: dict[str, str]) -> None:
    with st.container(border=True):
        metric_row(values)


def _scaling_code(config: ModelConfig) -> str:
    return f"wb.{config.rope_scaling!r}" if config.rope_scaling else "None"


def _code(head: Head, given: Input, view: View, **probes: str) -> None:
    """The probes' names, and what each is given besides the layer and the head."""
    calls = "\n".join(
        f"{probe}(cap, {view.layer}, {view.head}{', ' * bool(more)}{more}).frame()" for probe, more in probes.items()
    )
    config = ""
    if "what_if" in probes:
        config = (
            "from dataclasses import replace\nfrom probes.rope.formulas import model_frequencies\n"
            f"config = replace(model.config, rope_theta={view.config.rope_theta!r}, "
            f"rope_scaling={_scaling_code(view.config)})\n"
        )
    head.code(
        f"""
import torch, workbench as wb
from probes.rope.head_scores import HOOKS, {", ".join(probes)}

model = wb.load_model({computed.model_path()!r})
tokens = {given.code}
{given.running}
    _, cap = model.run_with_capture(tokens, HOOKS)
{config}{calls}
"""
    )


show()
