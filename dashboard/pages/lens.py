"""Lens page: logit-lens predictions of each layer, and direct logit attribution."""

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from dashboard.layout.page import Head, Help, card, chart, page, show_error
from dashboard.layout.tables import Column, plain_table
from dashboard.panels import prompt_input, target_tokens
from dashboard.panels.prompt_input import Input
from dashboard.panels.target_tokens import TargetTokens, plotly_names, token_bytes
from dashboard.session import computed, url_state
from dashboard.session.computed import CaptureRef
from dashboard.token_text import plotly_labels, short
from probes.logits import logit_attribution, logit_lens
from probes.logits.figures import MAX_CELL_TEXTS
from probes.logits.logit_attribution import LogitAttribution, Target
from probes.logits.logit_lens import LogitLens
from probes.logits.tuned_lens import FILE, TunedLens, tuned_lens
from workbench.hooks.capture import Capture
from workbench.layers import tensor_parallel
from workbench.model import Transformer

ABOUT = Help(
    "What the residual stream would predict if the model stopped after the embedding or after any block, and what "
    "every component of the model adds to a logit.",
    [
        "**Predictions**: each cell is the most likely next token at that position, from that layer's residual "
        "stream through the final norm and the unembedding. The unembedding was not trained to read early layers.",
        "**Curves**: log-probability or rank of the target tokens after each layer, at the chosen position.",
        "**Attribution**: the model has no biases, so with the final norm's scale fixed, the contributions of the "
        "embedding, every head and every MLP sum to the logit, or to the difference of two. Diamonds show the "
        "effect of removing a component if the norm's scale is computed again; later layers would react too.",
        "**Tuned lens**: if one is saved next to the model, it corrects for the directions that early layers use; "
        "workbench probe tuned-lens with --train and --save FOLDER creates it.",
        "For a multiple-choice sample, the targets are the gold and the predicted choice; if the answer was right, "
        "the gold and the next most likely choice.",
    ],
    {
        "logit lens": "https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens",
        "tuned lens": "https://arxiv.org/abs/2303.08112",
        "direct attribution": "https://arxiv.org/abs/2211.00593",
        "error of the frozen norm": "https://arxiv.org/abs/2507.02559",
    },
)
HOOKS = tuple(dict.fromkeys((*logit_lens.HOOKS, *logit_attribution.HOOKS)))
TOP_K = 10  # decoded once; the control sets how many are shown
MOST_HEADS = 64  # in the list
CELLS = {"Probability": "probability", "KL to the output": "kl", "Rank": "rank"}
CURVES = {"Log-probability": "logprob", "Rank": "rank"}
PLAIN, TUNED = "Logit", "Tuned"
ORDINALS = ("First", "Second", "Third", "Fourth", "Fifth", "Sixth")
DIFFERENCE = "First less second"


def show() -> None:
    with page("Lens", "What each layer would predict, and which components add up to a logit.", ABOUT) as head:
        model = computed.model()
        if tensor_parallel.size() > 1:
            show_error(
                "The lens needs the whole unembedding.",
                f"This model is split over {tensor_parallel.size()} processes, and each holds a part of the "
                "unembedding weights. Serve it from one process.",
            )
            return
        prompt = prompt_input.choose(model, HOOKS)
        if prompt is None:
            return
        capture_ref = computed.capture(model, prompt.ids, HOOKS, prompt.changes)
        targets = target_tokens.choose(model, prompt, capture_ref, lambda: _more(model))
        if targets is None:
            return
        through = _stamp(model) if st.session_state.get("lens") == TUNED else 0
        lens = computed.cached_probe(read, model=model, capture=capture_ref, through=through, k=TOP_K)
        if not np.isfinite(lens.logprobs).all():
            st.error("The predictions contain NaN or infinite values: the residual stream overflowed. Try float32.")
        with st.container(border=True, key="grid_card"):
            start = _window(len(prompt))
            fig = lens.figure(
                start=start,
                labels=plotly_labels(prompt.tokens),
                by=CELLS[st.session_state["cells"]],
                names=plotly_names(model, {*prompt.ids, *lens.ids[..., 0].ravel().tolist()}),
            )  # the same for every position, so that the browser keeps it
            chart(fig, key="grid")
        options = {"through": through, "k": TOP_K, "targets": targets.tokens}
        here = computed.cached_probe(read, model=model, capture=capture_ref, position=targets.position, **options)
        _tokens(model, here, targets)
        made, row = _attribution(model, capture_ref, targets)
        _take_away(head, prompt, targets, made, row, tuned=through > 0)

        def curves() -> pd.DataFrame:  # for every position; computed when downloaded
            return computed.cached_probe(read, model=model, capture=capture_ref, **options).curves.frame()

        head.data({"predictions": lens.frame, "target_curves": curves, "attribution": made.frame})


def _window(count: int) -> int | None:
    """Draw the controls of the first chart's window; its first position, or None for the whole prompt."""
    if count <= MAX_CELL_TEXTS:
        return None
    last = count - MAX_CELL_TEXTS
    with st.container(horizontal=True, vertical_alignment="bottom", key="window_controls"):
        start = url_state.url_widget(
            st.slider, "Words from position", 0, last, last, key="words", width=420,
            help=f"{MAX_CELL_TEXTS} positions have room for their words.",
        )  # fmt: skip
        whole = url_state.url_widget(st.toggle, "Whole prompt", key="whole", help="Colours alone, without words.")
    return None if whole else int(start)


def read(model: Transformer, cap: Capture, *, through: int, **options: Any) -> LogitLens:
    """The logit lens, or the tuned lens if `through` is the modification time of its file."""
    if not through:
        return logit_lens.logit_lens(model, cap, **options)
    origin = computed.model_source(model)
    assert origin is not None
    return tuned_lens(model, cap, TunedLens.load(origin.path, model), **options)


def _stamp(model: Transformer) -> int:
    """Modification time of the tuned lens next to the model; 0 if there is none."""
    origin = computed.model_source(model)
    file = None if origin is None else origin.path / FILE
    return file.stat().st_mtime_ns if file is not None and file.is_file() else 0


def _more(model: Transformer) -> None:
    if _stamp(model):
        url_state.url_widget(st.segmented_control, "Lens", [PLAIN, TUNED], key="lens", default=PLAIN, required=True)
    url_state.url_widget(st.number_input, "Top-k", 1, TOP_K, 5, key="k", width=120)
    url_state.url_widget(
        st.segmented_control, "Cells", list(CELLS), key="cells", default=next(iter(CELLS)), required=True
    )


def _tokens(model: Transformer, lens: LogitLens, targets: TargetTokens) -> None:
    left, right = st.columns([1, 1.6])
    with left, st.container(border=True, height="stretch", key="curves_card"):
        by = url_state.url_widget(
            st.segmented_control, "Curves", list(CURVES), key="curves", default=next(iter(CURVES)), required=True
        )
        chart(
            lens.curves.figure(
                position=targets.position,
                by=CURVES[by],
                names=plotly_names(model, targets.tokens),
                stamp={"position": targets.position},
            ),
            key="token_curves",
            height=340,
        )
    with (
        right,
        card(
            f"After position {targets.position}", help="The last row is the model's own prediction.", height="stretch"
        ),
    ):
        plain_table(
            target_table(model, lens, targets),
            columns={
                "target": "Target",
                "token": "Token",
                "id": "Id",
                "probability": Column("Probability", ".4f"),
                "rank": "Rank",
            },
        )
        table = top_table(model, lens, targets.position, st.session_state["k"])
        plain_table(table, columns={name: name for name in table}, max_height=300)


def target_table(model: Transformer, lens: LogitLens, targets: TargetTokens) -> pd.DataFrame:
    """The targets in the model's own output: target, token, id, probability, rank (1 is the most likely)."""
    at = lens.positions.index(targets.position)
    return pd.DataFrame(
        {
            "target": ORDINALS[: len(targets.tokens)],
            "token": [short(token_bytes(model, token)) for token in targets.tokens],
            "id": targets.tokens,
            "probability": np.exp(lens.curves.logprobs[-1, at]),
            "rank": lens.curves.ranks[-1, at] + 1,
        }
    )


def top_table(model: Transformer, lens: LogitLens, position: int, k: int) -> pd.DataFrame:
    """One row per layer: the most likely tokens with their probabilities."""
    at = lens.positions.index(position)
    rows = []
    for layer, ids, logprobs in zip(lens.layers, lens.ids[:, at, :k], lens.logprobs[:, at, :k], strict=True):
        cells = [
            f"{short(token_bytes(model, token), 9)} {np.exp(logprob):.3f}"
            for token, logprob in zip(ids.tolist(), logprobs, strict=True)
        ]
        rows.append(["embed" if layer == logit_lens.EMBED else str(layer), *cells])
    return pd.DataFrame(rows, columns=["Layer", *(str(rank + 1) for rank in range(len(rows[0]) - 1))])


def _attribution(model: Transformer, capture_ref: CaptureRef, targets: TargetTokens) -> tuple[LogitAttribution, int]:
    pairs: list[Target] = [targets.tokens[:2]] if len(targets.tokens) > 1 else []  # type: ignore[list-item]
    wanted: list[Target] = [*pairs, *targets.tokens]
    names = [*([DIFFERENCE] if pairs else []), *ORDINALS[: len(targets.tokens)]]
    made = computed.cached_probe(
        logit_attribution.logit_attribution, tuple(wanted), model=model, capture=capture_ref, position=targets.position
    )
    left, right = st.columns([1.7, 1])
    with left, st.container(border=True, height="stretch", key="attribution_card"):
        if st.session_state.get("logit") not in (None, *names):
            st.session_state["logit"] = names[0]  # there are fewer targets now
        which = url_state.url_widget(
            st.segmented_control, "Logit of the target", names, key="logit", default=names[0], required=True
        )
        row = names.index(which)
        fig = made.figure(
            token=row, names=plotly_names(model, targets.tokens), stamp={"position": targets.position, "row": row}
        )
        # The figure's own title names the tokens, and a chart's title is read as Markdown.
        fig.update_layout(title=f"{which} after position {made.position}: parts sum to it within {made.error:.1g}")
        chart(fig, key="attribution", height=430)
    with right, card("Heads", help="Sorted by the size of their contribution.", height="stretch"):
        _heads(made, row)
    return made, row


def _heads(made: LogitAttribution, row: int) -> None:
    table = ranked_heads(made, row)
    names = [f"L{layer}H{number}" for layer, number in zip(table["layer"], table["head"], strict=True)]

    plain_table(
        table.head(MOST_HEADS),
        max_height=330,
        columns={
            "layer": "Layer",
            "head": "Head",
            "contribution": Column("Adds", ".4f"),
            "removed": Column("Lost if removed", ".4f"),
        },
    )
    if len(table) > MOST_HEADS:
        st.caption(f"The first {MOST_HEADS} of {len(table)}; all are in the download.")
    at = names.index(url_state.url_widget(st.selectbox, "Open head", names, key="chosen"))
    layer, number = int(table["layer"].iloc[at]), int(table["head"].iloc[at])
    along = prompt_input.current_params("sample", "position", "targets")
    st.page_link(
        "dashboard/pages/attention.py",
        label=f"{names[at]} in Attention →",
        query_params={"layer": str(layer), "head": str(number)}
        | prompt_input.changes_param(prompt_input.url_changes())
        | along,
    )
    st.page_link(
        "dashboard/pages/intervene.py",
        label=f"Without {names[at]} in Intervene →",
        query_params=prompt_input.ablation_params(names[at], prompt_input.url_changes()) | along,
    )


def ranked_heads(made: LogitAttribution, row: int) -> pd.DataFrame:
    """Heads by the size of what they add to one logit: layer, head, contribution, removed."""
    heads = [i for i, (kind, _, _) in enumerate(made.parts) if kind == "head"]
    table = pd.DataFrame(
        {
            "layer": [made.parts[i][1] for i in heads],
            "head": [made.parts[i][2] for i in heads],
            "contribution": made.values[row, heads],
            "removed": made.removed[row, heads],
        }
    )
    return table.sort_values("contribution", key=np.abs, ascending=False, ignore_index=True, kind="stable")


def _take_away(
    head: Head, prompt: Input, targets: TargetTokens, made: LogitAttribution, row: int, *, tuned: bool
) -> None:
    options = f"k={TOP_K}, targets={list(targets.tokens)}"
    plain = f"logit_lens(model, cap, {options})"
    through = f"tuned_lens(model, cap, TunedLens.load(model.source.path, model), {options})" if tuned else plain
    head.code(
        f"""
import torch, workbench as wb
from probes.logits.logit_attribution import HOOKS as PARTS, logit_attribution
from probes.logits.logit_lens import HOOKS, logit_lens
from probes.logits.tuned_lens import TunedLens, tuned_lens

model = wb.load_model({computed.model_path()!r})
tokens = {prompt.code}
{prompt.running}
    _, cap = model.run_with_capture(tokens, {{*HOOKS, *PARTS}})
lens = {through}
lens.frame()
lens.curves.frame()
logit_attribution(model, cap, [{made.tokens[row]}], position={targets.position}).frame()
"""
    )


show()
