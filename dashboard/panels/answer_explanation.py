"""The part of the Samples page that says what decided an answer: replay, heads with their links, and the lens."""

import shlex
from typing import NamedTuple

import numpy as np
import pandas as pd
import streamlit as st

from dashboard.data import samples
from dashboard.data.runs import Sample
from dashboard.data.samples import Again
from dashboard.layout.page import command_line, draw_figure, heading, show_error
from dashboard.panels.target_tokens import plotly_names
from dashboard.session import computed, url_state
from dashboard.session.settings import Settings
from dashboard.token_text import plain
from evals.explain import baseline_run
from evals.explain.explain import Explanation
from evals.explain.replay import interventions_of, stored_run
from evals.interventions import described
from evals.results.runs import Run
from probes.base import drawing
from probes.logits.explain import Explanation as Parts
from workbench.errors import DataError
from workbench.hooks.interventions import Ablate, to_json
from workbench.model import Transformer

TOP = 6  # heads that have links


class Opened(NamedTuple):
    """A question that was chosen, as shown and as stored."""

    run: Run
    sample: Sample
    row: pd.Series
    other: str | None  # what the other run made of it


def answer_explanation(opened: Opened, task: str) -> Explanation | None:
    """Draw the replay and the explanation; None where nothing was explained (the page says why)."""
    model = computed.model()
    if st.session_state.get("_opened") != opened.sample.reference and not st.session_state["_arrived"]:
        st.session_state["behind"] = None  # it was a position of another sample
    st.session_state["_opened"] = opened.sample.reference
    behind = url_state.url_widget(
        st.number_input, "Explain behind position", 0, None, None, key="behind", width=260,
        placeholder="where the answers part",
        help="The position in prompt and output whose next token is explained. Empty: the first token at which the "
        "right answer and the one given part.",
    )  # fmt: skip
    key = samples.again_key(model, opened.run, task, opened.row, behind)
    if sum(p.numel() for p in model.parameters()) > samples.SMALL and st.session_state.get("_explained") != key:
        st.caption("Replays the sample on this server's model, and splits its answer by the parts of the model.")
        if not st.button("Explain this answer", type="primary"):
            return None
        st.session_state["_explained"] = key
    again = samples.run_again(model, opened.run, task, opened.row, behind)
    _replay(again, opened.run)
    if again.explanation is None:
        return None
    found = again.explanation
    st.text(plain(f"Before position {found.decision.position + 1}: {found.decision.description}."))
    if not isinstance(found.attribution, Parts):
        st.caption("Another package explains here; its table is among the downloads.")
        return found
    _parts(model, opened, task, found, found.attribution)
    return found


def _replay(again: Again, run: Run) -> None:
    if again.replayed is None:
        show_error("This sample cannot be explained here. Start the server with the run's own model.", again.problem)
        command = _serve(run)
        if command:
            st.code(plain(command), language=None, wrap_lines=True)
        return
    if again.replayed.agrees:
        st.success(f"Replay: {again.replayed}.")
    else:
        st.warning(f"Replay: {again.replayed}.")
    if again.explanation is None:
        show_error(
            "Where this answer was decided is not known. Name a position behind which to explain.", again.problem
        )
    changes = interventions_of(run)
    if changes:
        st.text(plain(f"The run was made under {described(changes)}; so are this replay, and the pages that open it."))


def _parts(model: Transformer, opened: Opened, task: str, found: Explanation, parts: Parts) -> None:
    heads = found.heads()
    first, second = _sides(opened.sample)
    names = plotly_names(model, parts.curves.tokens)
    left, right = st.columns([1, 1], gap="medium")
    with left:
        st.markdown(f"**Heads, those first that spoke most for the {second}** (logits)")
        _ranked(opened, heads.head(TOP), found)
        side = "above" if parts.difference > 0 else "below"
        st.caption(
            f"The logit of the {first} is {abs(parts.difference):.3f} {side} that of the {second}; all parts of the "
            f"model sum to the difference within {abs(parts.residual):.1g}."
        )
        _command(opened.run, task, heads.head(TOP))
    with right:
        heading(f"What every head adds to the logit of the {first}, less that of the {second}", "heads")
        values = np.full((model.config.n_layers, model.config.n_heads), np.nan)
        values[heads["layer"], heads["head"]] = heads["contribution"]
        fig = drawing.atlas(
            values, title="", unit="logits", heads=range(model.config.n_heads), layers=range(model.config.n_layers),
            group_size=model.config.group_size, difference=True, stamp={"sample": opened.sample.doc_id},
        )  # fmt: skip
        fig.update_layout(
            height=360, margin={"t": 30, "l": 50, "r": 10, "b": 40}, meta={**fig.layout.meta, "kind": "heads"}
        )
        draw_figure(fig, key="head_parts")
    left, right = st.columns([1, 1], gap="medium")
    with left:
        heading("The largest parts; the bars end at the model's own difference", "attribution")
        fig = parts.figure(names=names, stamp={"sample": opened.sample.doc_id})
        fig.update_layout(title=None, height=380, margin={"t": 36})
        draw_figure(fig, key="all_parts")
    with right:
        what = "choices" if opened.sample.choices and st.session_state["behind"] is None else "two tokens"
        heading(f"The {what} through the layers", "token_curves")
        fig = parts.curves.figure(names=names, stamp={"sample": opened.sample.doc_id})
        fig.update_layout(title=None, height=380, margin={"t": 36})
        draw_figure(fig, key="choices_lens")


def _sides(sample: Sample) -> tuple[str, str]:
    """What the two tokens of an explanation are called."""
    if st.session_state["behind"] is not None:
        return "likeliest other token", "token that was written"
    return "right answer", "likeliest rival" if sample.correct is not None and sample.correct >= 1 else "answer given"


def _ranked(opened: Opened, heads: pd.DataFrame, found: Explanation) -> None:
    place = _at(found)
    for layer, head, value, removed in zip(
        heads["layer"], heads["head"], heads["contribution"], heads["removed"], strict=True
    ):
        name = f"L{layer}H{head}"
        with st.container(horizontal=True, vertical_alignment="center", key=f"head_{name}"):
            st.text(f"{name} adds {value:+.4f}; without it {-removed:+.4f}", width=260)
            st.page_link(
                "dashboard/pages/attention.py",
                label=f"{name} in Attention →",
                query_params=on(opened.sample)
                | {"layer": str(layer), "head": str(head), "token": str(found.decision.position)},
            )
            st.page_link(
                "dashboard/pages/intervene.py",
                label=f"Without {name} →",
                query_params=on(opened.sample) | place | {"changes": to_json([Ablate(name)])},
            )
    st.page_link("dashboard/pages/lens.py", label="This decision in Lens →", query_params=on(opened.sample) | place)


def _command(run: Run, task: str, heads: pd.DataFrame) -> None:
    """The benchmark again without a head: what tells whether it is to blame."""
    names = [f"L{layer}H{head}" for layer, head in zip(heads["layer"], heads["head"], strict=True)]
    if not names:
        return
    st.caption("Whether a head is to blame, a run without it says: the command for the first one.")
    command = None
    if run.provenance.get("run"):
        command = baseline_run.ablation_command(run, (int(heads["layer"].iloc[0]), int(heads["head"].iloc[0])))
    if command is None:
        given = ["--model", computed.model_path(), "--tasks", task, "--ablate", names[0]]
        command = shlex.join(["workbench", "eval", "run", *given, "--output", str(run.path.parent)])
    command_line(command)


def on(sample: Sample) -> dict[str, str]:
    """What a link to another page carries, so that it looks at this sample's tokens."""
    return {"sample": sample.reference}


def _at(found: Explanation) -> dict[str, str]:
    where = found.decision
    tokens = " ".join(f"#{token}" for token in (where.token, where.contrast_token))
    return {"position": str(where.position), "targets": tokens}


def _serve(run: Run) -> str | None:
    """The command that serves the model a run was made on; None where the run's store does not say."""
    try:
        path = stored_run(run).settings["model"]
    except (DataError, KeyError):
        return None
    results = Settings.from_env().results
    return path and shlex.join(["workbench", "app", "--model", str(path), "--results", str(results)])
