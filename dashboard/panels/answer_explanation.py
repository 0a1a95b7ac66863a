"""Explanation of one answer on the Samples page: replay, head contributions with links, and the logit lens."""

import shlex
from typing import NamedTuple

import numpy as np
import pandas as pd
import streamlit as st

from dashboard.data import samples
from dashboard.data.runs import Sample
from dashboard.data.samples import RerunResult
from dashboard.layout.page import command_line, draw_figure, heading, show_error
from dashboard.panels.target_tokens import plotly_names
from dashboard.session import computed, url_state
from dashboard.session.settings import Settings
from dashboard.token_text import plain
from evals.explain import baseline_run
from evals.explain.explain import Explanation
from evals.explain.replay import interventions_of, stored_run
from evals.results.runs import Run
from probes.base import drawing
from probes.logits.explain import Explanation as Parts
from workbench.errors import DataError
from workbench.hooks.intervention_options import described
from workbench.hooks.interventions import Ablate, to_json
from workbench.model import Transformer

TOP = 6  # number of heads with links


class OpenSample(NamedTuple):
    """The open question, as shown and as stored."""

    run: Run
    sample: Sample
    row: pd.Series
    other: str | None  # the other run's result


def answer_explanation(opened: OpenSample, task: str) -> Explanation | None:
    """Draw the replay and the explanation; None if there is no explanation (the page says why)."""
    model = computed.model()
    if st.session_state.get("_opened") != opened.sample.reference and not st.session_state["_arrived"]:
        st.session_state["behind"] = None  # the position was for another sample
    st.session_state["_opened"] = opened.sample.reference
    position = url_state.url_widget(
        st.number_input, "Explain after position", 0, None, None, key="behind", width=260,
        placeholder="first difference",
        help="The position in prompt and output whose next token is explained. Empty: the first token where the "
        "right answer and the one given differ.",
    )  # fmt: skip
    key = samples.rerun_key(model, opened.run, task, opened.row, position)
    if sum(p.numel() for p in model.parameters()) > samples.SMALL and st.session_state.get("_explained") != key:
        st.caption(
            "Replays the sample on this server's model, and attributes its answer to the components of the model."
        )
        if not st.button("Explain this answer", type="primary"):
            return None
        st.session_state["_explained"] = key
    replay = samples.rerun(model, opened.run, task, opened.row, position)
    _replay(replay, opened.run)
    if replay.explanation is None:
        return None
    explanation = replay.explanation
    st.text(plain(f"Before position {explanation.decision.position + 1}: {explanation.decision.description}."))
    if not isinstance(explanation.attribution, Parts):
        st.caption("Another package made this explanation; its table is in the downloads.")
        return explanation
    _parts(model, opened, task, explanation, explanation.attribution)
    return explanation


def _replay(replay: RerunResult, run: Run) -> None:
    if replay.replayed is None:
        show_error("This sample cannot be explained here. Start the server with the run's own model.", replay.problem)
        command = _serve_command(run)
        if command:
            st.code(plain(command), language=None, wrap_lines=True)
        return
    if replay.replayed.agrees:
        st.success(f"Replay: {replay.replayed}.")
    else:
        st.warning(f"Replay: {replay.replayed}.")
    if replay.explanation is None:
        show_error("Could not find the deciding token. Choose a position to explain.", replay.problem)
    changes = interventions_of(run)
    if changes:
        st.text(
            plain(
                f"The run was made under {described(changes)}; this replay, and the pages that open it, use the same."
            )
        )


def _parts(model: Transformer, opened: OpenSample, task: str, explanation: Explanation, parts: Parts) -> None:
    heads = explanation.heads()
    first, second = _sides(opened.sample)
    names = plotly_names(model, parts.curves.tokens)
    left, right = st.columns([1, 1], gap="medium")
    with left:
        st.markdown(f"**Heads that most favour the {second}** (logits)")
        _ranked(opened, heads.head(TOP), explanation)
        side = "above" if parts.difference > 0 else "below"
        st.caption(
            f"The logit of the {first} is {abs(parts.difference):.3f} {side} that of the {second}; all components "
            f"sum to the difference within {abs(parts.residual):.1g}."
        )
        _command(opened.run, task, heads.head(TOP))
    with right:
        heading(f"What every head adds to the logit of the {first}, minus that of the {second}", "heads")
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
        heading("Largest contributions; the bars end at the model's own difference", "attribution")
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
    """Names of the two tokens of an explanation."""
    if st.session_state["behind"] is not None:
        return "most likely other token", "generated token"
    return "right answer", "best other answer" if sample.correct is not None and sample.correct >= 1 else "answer given"


def _ranked(opened: OpenSample, heads: pd.DataFrame, explanation: Explanation) -> None:
    place = _decision_params(explanation)
    for layer, head, value, removed in zip(
        heads["layer"], heads["head"], heads["contribution"], heads["removed"], strict=True
    ):
        name = f"L{layer}H{head}"
        with st.container(horizontal=True, vertical_alignment="center", key=f"head_{name}"):
            st.text(f"{name} adds {value:+.4f}; without it {-removed:+.4f}", width=260)
            st.page_link(
                "dashboard/pages/attention.py",
                label=f"{name} in Attention →",
                query_params=sample_params(opened.sample)
                | {"layer": str(layer), "head": str(head), "token": str(explanation.decision.position)},
            )
            st.page_link(
                "dashboard/pages/intervene.py",
                label=f"Without {name} →",
                query_params=sample_params(opened.sample) | place | {"changes": to_json([Ablate(name)])},
            )
    st.page_link(
        "dashboard/pages/lens.py", label="This decision in Lens →", query_params=sample_params(opened.sample) | place
    )


def _command(run: Run, task: str, heads: pd.DataFrame) -> None:
    """Draw the command that runs the benchmark without the top head."""
    names = [f"L{layer}H{head}" for layer, head in zip(heads["layer"], heads["head"], strict=True)]
    if not names:
        return
    st.caption("Attribution is not causation. To test the top head, re-run the benchmark without it:")
    command = None
    if run.provenance.get("run"):
        command = baseline_run.ablation_command(run, (int(heads["layer"].iloc[0]), int(heads["head"].iloc[0])))
    if command is None:
        options = ["--model", computed.model_path(), "--tasks", task, "--ablate", names[0]]
        command = shlex.join(["workbench", "eval", "run", *options, "--output", str(run.path.parent)])
    command_line(command)


def sample_params(sample: Sample) -> dict[str, str]:
    """URL parameters with which another page opens this sample's tokens."""
    return {"sample": sample.reference}


def _decision_params(explanation: Explanation) -> dict[str, str]:
    decision = explanation.decision
    tokens = " ".join(f"#{token}" for token in (decision.token, decision.contrast_token))
    return {"position": str(decision.position), "targets": tokens}


def _serve_command(run: Run) -> str | None:
    """The command that serves the model of a run; None if the run's store does not have its path."""
    try:
        path = stored_run(run).settings["model"]
    except (DataError, KeyError):
        return None
    results = Settings.from_env().results
    return path and shlex.join(["workbench", "app", "--model", str(path), "--results", str(results)])
