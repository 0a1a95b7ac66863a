"""RoPE page: the frequency pairs of the model's configuration, and what they add to the scores of one head."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import streamlit as st
import torch

from dashboard.components.head_inputs import head_inputs
from dashboard.layout.page import Head, Help, card, chart, page
from dashboard.layout.tables import Column, metric_row, plain_table
from dashboard.panels import prompt_input, tour
from dashboard.panels.prompt_input import Input
from dashboard.session import computed, url_state
from dashboard.session.computed import CaptureRef
from dashboard.token_text import plotly_labels, short
from probes.rope import head_scores
from probes.rope.formulas import decay, model_frequencies, model_temperature, wavelengths
from workbench.config import Llama3Scaling, ModelConfig, Scaling
from workbench.hooks.capture import Capture
from workbench.model import Transformer

ABOUT = Help(
    "Rotary position embedding rotates each pair of query and key dimensions by an angle that grows with position, "
    "each pair at its own speed. Position then enters a score only as the distance between query and key.",
    [
        "**Wavelengths**: the number of tokens that a pair needs for a full turn. Pairs above the dashed line do "
        "not complete one within the context. **Decay** shows how the score of two equal vectors falls with distance.",
        "**This head**: what each pair adds to the head's mean score on the prompt, and the head's scores by distance.",
        "**Shift**: if query and key move together, their score must not change; the differences are rounding errors.",
        "**What if** computes the scores of the captured q and k again, with another theta or scaling. Only this "
        "head's rotation changes; earlier layers stay as they were.",
    ],
    {
        "RoPE": "https://arxiv.org/abs/2104.09864",
        "wavelengths": "https://arxiv.org/abs/2310.05209",
        "bands": "https://arxiv.org/abs/2410.06205",
        "bounds": "https://arxiv.org/abs/2405.14591",
    },
)
WAVES, OWN, SHIFT, WHAT_IF = VIEWS = ("Wavelengths", "This head", "Shift", "What if")
EXAMPLE = 10  # times theta, where What if opens
TRAINED, UNSCALED, LLAMA31, LLAMA32 = SCALINGS = ("As trained", "Unscaled", "Llama 3.1 (8x)", "Llama 3.2 (32x)")


@dataclass(frozen=True)
class View:
    """Values of the controls; `config` is the model's own with the chosen theta and scaling."""

    name: str
    layer: int
    head: int
    config: ModelConfig
    pair: int | None = None
    distance: int | None = None


def show() -> None:
    with page("RoPE", "How position enters the scores, pair by pair.", ABOUT) as head:
        model = computed.model()
        tour.show_step(model, "rope")
        prompt = prompt_input.choose(model, head_scores.HOOKS)
        view = _controls(model)
        if view.name == WAVES:
            _waves(head, view)
            return
        if prompt is None:
            return
        capture_ref = computed.capture(model, prompt.ids, head_scores.HOOKS, prompt.changes)
        turned = (capture_ref.capture[f"blocks.{view.layer}.attn.hook_rot_{side}"] for side in "qk")
        if not all(vectors.isfinite().all() for vectors in turned):
            st.error("This layer's queries or keys contain NaN or infinite values (overflow). Try float32.")
        {OWN: _own, SHIFT: _shift, WHAT_IF: _what_if}[view.name](head, capture_ref, prompt, view)


def _controls(model: Transformer) -> View:
    config = model.config
    with st.container(horizontal=True, vertical_alignment="bottom", key="controls"):
        name = url_state.url_widget(st.segmented_control, "View", list(VIEWS), key="view", default=WAVES, required=True)
        layer = head = 0
        if name != WAVES:
            layer, head = head_inputs(config, width=150)
        pair = distance = None
        if name == OWN:
            pair = _or_all("Pair", "pair", config.head_dim // 2 - 1, "Shows what this pair adds, by distance.")
            distance = _or_all("Distance", "distance", None, "Shows the pairs at this distance between query and key.")
        if name in (WAVES, WHAT_IF):
            # What if opens on an example: its own theta would change nothing.
            first = float(config.rope_theta) * (EXAMPLE if name == WHAT_IF else 1)
            theta = url_state.url_widget(
                st.number_input, "Theta", 2.0, 1e9, min(first, 1e9), key="theta", width=190, format="%.0f",
                step=max(1.0, float(round(config.rope_theta / 10))),
                help="The base of the frequencies. With a larger base, pairs rotate more slowly.",
            )  # fmt: skip
            scaling = url_state.url_widget(st.selectbox, "Scaling", list(SCALINGS), key="scaling", width=190)
            config = _changed(config, theta, scaling)
    return View(name, layer, head, config, pair, distance)


def _or_all(label: str, key: str, most: int | None, what: str) -> int | None:
    number = url_state.url_widget(st.number_input, label, -1, most, -1, key=key, width=130, help=f"{what} -1 is all.")
    return None if number < 0 else number


def _changed(config: ModelConfig, theta: float, scaling: str) -> ModelConfig:
    own = config.rope_scaling
    # A model that was trained without scaling is scaled from its own context length.
    context = config.original_context
    scalings = {
        TRAINED: own,
        UNSCALED: None,
        LLAMA31: Llama3Scaling(factor=8.0, original_context=context),
        LLAMA32: Llama3Scaling(factor=32.0, original_context=context),
    }
    return replace(config, rope_theta=theta, rope_scaling=scalings[scaling])


def _waves(head: Head, view: View) -> None:
    waves, faded = wavelengths(view.config), decay(view.config)
    pairs = len(waves.wavelength)
    cards = {
        "Pairs": str(pairs),
        "Beyond the context": f"{waves.longer_than_context} of {pairs}",
        "Critical dimension": f"{waves.critical_dimension} of {view.config.head_dim}",
        "Longest wavelength": f"{waves.wavelength.max():,.0f} tokens",
        "Cosines turn negative at": "never" if faded.first_negative is None else f"{faded.first_negative:,} tokens",
    }
    _numbers(cards)
    left, right = st.columns(2)
    with left, st.container(border=True):
        chart(waves.figure(), key="wavelengths", height=400)
    with right, st.container(border=True):
        chart(faded.figure(), key="decay", height=400)
    with card("Pairs"):
        plain_table(
            waves.frame(),
            max_height=340,
            columns={
                "pair": "Pair",
                "frequency": Column("Frequency (radians per token)", ".3g"),
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
    head.data({"wavelengths": waves.frame, "decay": faded.frame})


def _own(head: Head, capture_ref: CaptureRef, prompt: Input, view: View) -> None:
    distance = None if view.distance is None else min(view.distance, len(prompt) - 1)
    url_state.note_shown("distance", view.distance, distance)
    bands = computed.cached_probe(
        head_scores.band_contribution, view.layer, view.head, capture=capture_ref, distance=distance
    )
    scores = computed.cached_probe(
        head_scores.score_by_distance, view.layer, view.head, capture=capture_ref, pair=view.pair
    )
    slow = bands.wavelength > len(prompt)
    _numbers(
        {
            "Mean score": f"{bands.score:.3f}",
            "Strongest pair": f"{int(bands.share.argmax())} ({bands.share.max():.0%} of the size)",
            "Share of pairs slower than the prompt": f"{bands.share[slow].sum():.0%}",
            "Error of the sum of pairs": f"{bands.error:.1e}",
        }
    )
    left, right = st.columns(2)
    with left, st.container(border=True):
        chart(bands.figure(), key="bands", height=420)
    with right, st.container(border=True):
        chart(scores.figure(), key="scores", height=420)
    _code(head, prompt, view, band_contribution=f"distance={distance}", score_by_distance=f"pair={view.pair}")
    head.data({"bands": bands.frame, "score_by_distance": scores.frame})


def _shift(head: Head, capture_ref: CaptureRef, prompt: Input, view: View) -> None:
    invariance = computed.cached_probe(head_scores.relative_invariance, view.layer, view.head, capture=capture_ref)
    left, right = st.columns([1.35, 1])
    with left, st.container(border=True, height="stretch"):
        chart(invariance.figure(), key="invariance", height=430)
    with right, card("Largest change of a score", help="Over all shifts within the context.", height="stretch"):
        table = pd.DataFrame(
            {"arithmetic": invariance.arithmetic, "largest": invariance.largest.max(1), "mean": invariance.mean.max(1)}
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
            f"Scores of this head reach {invariance.score_size:.3g}. The last row computes the angles in bfloat16. "
            "This model computes them in float32; the row shows why."
        )
    _code(head, prompt, view, relative_invariance="")
    head.data({"relative_invariance": invariance.frame})


def _what_if(head: Head, capture_ref: CaptureRef, prompt: Input, view: View) -> None:
    changed = model_frequencies(view.config, dtype=torch.float64)
    about = (view.config.rope_theta, view.config.rope_scaling)
    rescored = computed.cached_probe(_rescored, view.layer, view.head, *about, capture=capture_ref)
    moved = rescored.moved
    if np.array_equal(changed.numpy(), model_frequencies(capture_ref.capture.config).numpy()):
        st.info(
            "These are the frequencies that the model was trained with. Change theta or scaling to see what changes."
        )
    _numbers({"Attention that changes": f"{moved.mean():.1%}", "In the row that changes most": f"{moved.max():.1%}"})
    left, right = st.columns([1.35, 1])
    with left, st.container(border=True, height="stretch"):
        fig = rescored.figure(labels=plotly_labels(prompt.tokens))
        chart(fig, key="what_if", height=540)
    with right, card("Rows that change most", height="stretch"):
        order = np.argsort(-moved, kind="stable")[:14]
        plain_table(
            pd.DataFrame(
                {"position": order, "token": [short(prompt.tokens[i], 40) for i in order], "moved": moved[order]}
            ),
            max_height=530,
            columns={
                "position": "Position",
                "token": "Token",
                "moved": Column("Change", ".3f", bar=1),
            },
        )
    _code(head, prompt, view, what_if="model_frequencies(config)")
    head.data({"what_if": rescored.frame})


def _rescored(cap: Capture, layer: int, head: int, theta: float, scaling: Scaling | None) -> head_scores.WhatIf:
    config = replace(cap.config, rope_theta=theta, rope_scaling=scaling)
    return head_scores.what_if(cap, layer, head, model_frequencies(config), temperature=model_temperature(config))


def _numbers(values: dict[str, str]) -> None:
    with st.container(border=True):
        metric_row(values)


def _scaling_code(config: ModelConfig) -> str:
    return f"wb.{config.rope_scaling!r}" if config.rope_scaling else "None"


def _code(head: Head, prompt: Input, view: View, **probes: str) -> None:
    """Notebook code for the probes; a value is the arguments after the layer and the head."""
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
tokens = {prompt.code}
{prompt.running}
    _, cap = model.run_with_capture(tokens, HOOKS)
{config}{calls}
"""
    )


show()
