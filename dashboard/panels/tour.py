"""Guided tour: worked examples that set up the pages one after another, and say what to look at there.

A step is a page with values for its controls. They are stored where the page looks for its user's last values, so the
URL is the page's own. The heads are found in the model by the catalogue; no head is fixed here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st

from dashboard.data import runs, samples
from dashboard.jobs import jobs
from dashboard.jobs.eval_request import EvalRequest
from dashboard.layout.page import card, show_error
from dashboard.panels.prompt_input import default_ids
from dashboard.session import computed, url_state
from dashboard.session.settings import Settings
from evals.results.runs import Run
from probes.attention.head_types import RULES, catalogue, repeat_scores, text_scores
from probes.base.head_names import Head
from workbench.errors import DataError, WorkbenchError
from workbench.hooks.interventions import Ablate, to_json
from workbench.model import Transformer

# An unusual sentence, twice: in the second copy, only the first copy can tell which word follows.
REPEATED = " ".join(["seven lemons drift under nine old bells while marten folds a quiet map."] * 2)
TASK = "demo_mmlu"
SLOWER = 20  # theta is divided by this

Values = dict[str, Any]  # of a page's controls and links, by their names in the URL
# Values that an example must not inherit from earlier visits.
RESET_PARAMS = (
    *("sample", "token", "doc", "chosen", "position", "targets", "changes", "extent", "log", "nosink", "theta"),
    *("scaling", "baseline", "filter", "behind", "perhead", "capture", "pair", "distance", "start"),
)
URL_ONLY = {"sample", "token", "doc", "guide"}  # these have no widget
PAGE_TITLES = {"attention": "Attention", "rope": "RoPE", "samples": "Samples", "intervene": "Intervene"}


@dataclass(frozen=True)
class Step:
    """A page, what to look at there, and the values of its controls."""

    page: str
    look: str
    values: Callable[[Transformer], Values]


@dataclass(frozen=True)
class Example:
    """One worked example: its name on the button, what it shows, and its steps."""

    name: str
    shows: str
    steps: tuple[Step, ...]


# --- values of the steps --------------------------------------------------------------------------------------


def _prompt(model: Transformer) -> str:
    return default_ids(model.config.vocab_size, 12) if model.tokenizer is None else REPEATED


def _ids(model: Transformer) -> list[int]:
    text = _prompt(model)
    return [int(word) for word in text.split()] if model.tokenizer is None else model.tokenizer.encode(text, bos=True)


def heads_of(model: Transformer, kind: str) -> list[Head]:
    """The heads of the catalogue's type `induction` or `previous`, strongest first; if it has none, the highest score.

    Measured once for each model: induction on repeated random blocks, previous on the prompt of the examples.
    """

    def measured(model: Transformer, *, kind: str) -> list[Head]:
        most = (model.config.max_seq_len - 1) // 2
        blocks = sorted({min(most, block) for block in (16, 24)})
        scores = repeat_scores(model, blocks=blocks) if kind == "induction" else text_scores(model, [_ids(model)])
        types = catalogue(scores, rules={kind: RULES[kind]})
        layer, head = np.unravel_index(int(np.nanargmax(types.mean[kind])), types.mean[kind].shape)
        return types.of(kind) or [(int(layer), int(head))]

    return computed.cached_probe(measured, model=model, kind=kind)


def _head(model: Transformer, kind: str) -> Values:
    layer, head = heads_of(model, kind)[0]
    return {"prompt": _prompt(model), "layer": layer, "head": head}


def _induction(model: Transformer) -> Values:
    return _head(model, "induction") | {"colour": "Induction", "strip": "Where it looks"}


def _previous(model: Transformer) -> Values:
    return _head(model, "previous") | {"colour": "Previous", "strip": "Where it looks"}


def _without_induction(model: Transformer) -> Values:
    taken = [Ablate(f"L{layer}H{head}") for layer, head in heads_of(model, "induction")]
    return {"prompt": _prompt(model), "changes": to_json(taken)}


def _rope(view: str) -> Callable[[Transformer], Values]:
    return lambda model: _head(model, "previous") | {"view": view}


def _slower(model: Transformer) -> Values:
    return _rope("What if")(model) | {"theta": max(2.0, float(model.config.rope_theta) / SLOWER)}


def _wrong_answer(model: Transformer) -> Values:
    run, doc = wrong_answer(model)
    return {"run": run.name, "task": TASK, "doc": doc, "show": "Wrong", "order": samples.CONFIDENT}


def wrong_answer(model: Transformer) -> tuple[Run, int]:
    """A run of exactly this checkpoint on the embedded quiz, and its most confident wrong answer.

    Raises: DataError if there is no such run, or it has no wrong answer.
    """
    run = run_of(model)
    if run is None:
        raise DataError(f"The results folder has no run of this checkpoint on {TASK}.")
    table = samples.ordered(samples.listing(run, TASK), samples.CONFIDENT, {})
    wrong = table[table["state"] == samples.WRONG]
    if wrong.empty:
        raise DataError(f"The run {run.name} has no wrong answer on {TASK}.")
    return run, int(wrong["doc_id"].iloc[0])


def run_of(model: Transformer) -> Run | None:
    """The newest run of this checkpoint, without interventions, on the embedded quiz."""
    own = computed.fingerprint(model)
    plain = (run for run in runs.runs()[0] if TASK in run.tasks and not runs.change(run))
    return next((run for run in plain if run.provenance.get("checkpoint_sha256") == own), None)


def _top_head_of_answer(model: Transformer) -> tuple[runs.Sample, Head, int]:
    """The sample of the example, the head that most favoured its wrong answer, and the deciding position."""
    run, doc = wrong_answer(model)
    stored = runs.samples(run, TASK)
    row = stored[stored["doc_id"] == doc].iloc[-1]
    replay = samples.rerun(model, run, TASK, row, None)
    if replay.explanation is None:
        raise DataError(f"Question {doc} of run {run.name} cannot be explained: {replay.problem}")
    first = replay.explanation.heads().iloc[0]
    position = replay.explanation.decision.position
    return runs.as_sample(run, TASK, row), (int(first["layer"]), int(first["head"])), position


def _head_of_answer(model: Transformer) -> Values:
    sample, (layer, head), position = _top_head_of_answer(model)
    return {"sample": sample.reference, "layer": layer, "head": head, "token": position, "strip": "Where it looks"}


def _without_head(model: Transformer) -> Values:
    sample, (layer, head), _ = _top_head_of_answer(model)
    return {"sample": sample.reference, "changes": to_json([Ablate(f"L{layer}H{head}")])}


EXAMPLES: Mapping[str, Example] = {
    "induction": Example(
        "An induction head",
        "A repeated sentence, and the heads that continue it the second time.",
        (
            Step("attention", "The prompt repeats a sentence. The ring marks the strongest induction head. Its map "
                 "has a stripe in the lower left: each token of the second copy looks at the token that followed its "
                 "first copy.", _induction),
            Step("attention", "An induction head needs an earlier head that passes on the previous token. This is "
                 "the strongest previous-token head: its stripe is just below the diagonal.", _previous),
            Step("intervene", "Now all induction heads are ablated. Look at the orange line under Change along the "
                 "prompt: in the second copy, each next token becomes unlikely again.", _without_induction),
        ),
    ),
    "rope": Example(
        "The RoPE invariance",
        "Scores depend on distance, not on position: if query and key move together, only rounding changes.",
        (
            Step("rope", "Queries and keys of the strongest previous-token head, moved together through the "
                 "context. The score must not change: the curves are rounding errors, which are smaller at higher "
                 "precision.", _rope("Shift")),
            Step("rope", "The same head's scores by distance, and the frequency pairs that add up to them: this is "
                 "what a head can learn from the rotation.", _rope("This head")),
            Step("rope", f"Now theta is divided by {SLOWER}: the pairs rotate faster than in training. The map "
                 f"shows where the attention of the head changes.", _slower),
        ),
    ),
    "quiz": Example(
        "A wrong quiz answer",
        "From a wrong answer to the head that favoured it, and to the model without that head.",
        (
            Step("samples", "The most confident wrong answer of the model. Below it, What decided the answer ranks "
                 "the heads by how much they favoured the answer given.", _wrong_answer),
            Step("attention", "The head that most favoured the wrong answer, on the sample's own tokens. The token "
                 "selected below is the one after which the answer was decided: see where it looks.", _head_of_answer),
            Step("intervene", "The model without that head. The sample's answer is shown before and after: one head "
                 "rarely decides alone.", _without_head),
        ),
    ),
}  # fmt: skip


# --- on the pages ---------------------------------------------------------------------------------------------


def show_examples(model: Transformer) -> None:
    """Draw the examples that work with this model, with a button each; without a quiz run, a button starts one."""
    quiz = run_of(model) is not None
    with card("Guided tour", key="guide", help="Three steps each; open any page to leave the tour."):
        offered = [name for name in EXAMPLES if name != "quiz" or quiz]
        columns = st.columns(len(EXAMPLES))
        for column, name in zip(columns, offered, strict=False):
            with column:
                if st.button(EXAMPLES[name].name, key=f"guide_{name}", width="stretch"):
                    _go(model, name, 0)
                st.caption(EXAMPLES[name].shows)
        if not quiz and computed.model_path() == "demo":
            with columns[-1]:
                if st.button("Run the embedded quiz", key="guide_run", width="stretch"):
                    _run_quiz()
                st.caption(f"{EXAMPLES['quiz'].shows} This needs a run of the quiz; the Runs page shows its progress.")


def show_step(model: Transformer, page: str) -> None:
    """Draw what to look at, if this page is the current step of an example; call it before the page's controls."""
    name, at = _current_step()
    if name is None or EXAMPLES[name].steps[at].page != page:
        return
    url_state.url_param("guide")
    example = EXAMPLES[name]
    steps = example.steps
    with st.container(border=True, horizontal=True, vertical_alignment="center", key="guide_strip"):
        st.markdown(f"**{example.name}, step {at + 1} of {len(steps)}:** {steps[at].look}", width="stretch")
        last = at + 1 == len(steps)
        if not last and st.button(f"Next: {PAGE_TITLES[steps[at + 1].page]}", key="guide_next", type="primary"):
            _go(model, name, at + 1)
        if st.button("Done" if last else "Leave", key="guide_leave"):
            url_state.clear_url_param("guide")
            _restore_prompt()
            st.rerun()


def _keep_prompt(model: Transformer) -> None:
    """Remember what the user had typed before an example."""
    session = st.session_state
    text = session.get("prompt", session.get("_last_prompt"))
    if text != _prompt(model):
        session["_before_guide"] = text


def _restore_prompt() -> None:
    """Put back what the user had typed before the example."""
    text = st.session_state.pop("_before_guide", None)
    if text is not None:
        url_state.preset_widget("prompt", text)


def _run_quiz() -> None:
    """Start the quiz of the third example unless it is running, and open the Runs page."""
    results, request = Settings.from_env().results, EvalRequest("", computed.model_path(), (TASK,))
    try:
        running = [job for job in jobs.jobs(results)[0] if job.active and TASK in job.settings["tasks"]]
        mine = [job for job in running if job.settings["model"] == request.model]
        job = mine[0] if mine else jobs.start(results, request.checked()[0])
    except WorkbenchError as error:
        show_error("The quiz was not started.", str(error))
        return
    url_state.forget_widget("job")
    st.switch_page("dashboard/pages/runs.py", query_params={"job": job.id})


def _current_step() -> tuple[str | None, int]:
    """The example and step in the URL, or else the current ones of the session."""
    named = st.query_params.get("guide") or st.session_state.get("_last_guide") or ""
    name, _, number = named.partition(".")
    if name not in EXAMPLES or number not in {str(at + 1) for at in range(len(EXAMPLES[name].steps))}:
        return None, 0
    return name, int(number) - 1


def _go(model: Transformer, name: str, at: int) -> None:
    """Go to a step, with its page set up."""
    step = EXAMPLES[name].steps[at]
    try:
        values = step.values(model)
    except WorkbenchError as error:
        show_error("This example cannot be shown with this model and its results.", str(error))
        return
    if at == 0:
        _keep_prompt(model)
    values = values | {"guide": f"{name}.{at + 1}"}
    # A control that is drawn now writes its own part of the URL; Streamlit does not let other code do it.
    params = {key: str(value) for key, value in values.items() if key not in st.session_state}
    for key in RESET_PARAMS:
        url_state.forget_widget(key)
    for key in values.keys() - URL_ONLY:
        url_state.preset_widget(key, values[key])
    st.switch_page(f"dashboard/pages/{step.page}.py", query_params=params)
