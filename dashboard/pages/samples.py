"""Samples page: the questions of a run, and an explanation of one answer."""

import pandas as pd
import streamlit as st

from dashboard.components.row_picker import row_picker
from dashboard.data import runs, samples
from dashboard.data.samples import ALL, FIRST, ORDERS, RIGHT, UNPARSED, WRONG
from dashboard.layout.page import Head, Help, card, empty, page, show_error
from dashboard.layout.tables import Column, plain_table, text_columns
from dashboard.panels import tour
from dashboard.panels.answer_explanation import OpenSample, answer_explanation, sample_params
from dashboard.session import computed, url_state, url_values
from dashboard.session.settings import Settings
from dashboard.token_text import plain
from evals.explain.explain import Explanation
from evals.results.runs import Run
from workbench.errors import DataError

ABOUT = Help(
    "Every question of a finished run: the prompt, the model's output, the extracted answer and the target. Below, "
    "one sample is run again on exactly its tokens, and its answer is attributed to the components of the model.",
    [
        "**Unparsed** answers count as wrong: the filter found no answer in the output.",
        "**Margin** is the log-probability of the right choice minus that of the best other choice, in nats; sorted "
        "by margin, the closest decisions come first. **Sure** is the probability of the answer given: among the "
        "choices, or for a generated answer the geometric mean over its tokens.",
        "If another run is chosen too, the questions that only one of the two has right come first.",
        "**Attribution**: what every component adds to the logit of the right answer minus that of the answer "
        "given; below zero, it favours the answer given. These are direct contributions, not proof of a cause; a "
        "run without the head tests that.",
        "The explanation applies to the stored answer only if the replay reproduces the stored log-probabilities.",
    ],
    {
        "direct attribution": "https://arxiv.org/abs/2211.00593",
        "logit lens": "https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens",
        "lm-eval": "https://github.com/EleutherAI/lm-evaluation-harness",
    },
)
KINDS = (ALL, *(kind.capitalize() for kind in (RIGHT, WRONG, UNPARSED)))


def show() -> None:
    with page("Samples", "Every question of a run, and what decided its answer.", ABOUT) as head:
        finished, _ = runs.runs()
        if not finished:
            empty("The results folder has no finished run yet. Start one on Runs; a quiz takes a few seconds.")
            st.page_link("dashboard/pages/runs.py", label="Start a benchmark on Runs →")
            return
        tour.show_step(computed.model(), "samples")
        run, baseline = runs.select_runs(finished)
        if not run.tasks:
            empty("This run has no samples. Choose another run.")
            return
        if baseline is not None:
            both = {"compare": "Runs", "b_run": run.name, "a_run": baseline.name}
            st.page_link("dashboard/pages/compare.py", label="Both runs in Compare →", query_params=both)
        listed = _listed(run, baseline)
        if listed is None:
            return
        task, table = listed
        if table.empty:
            st.info("No sample matches. Choose another kind under Show, or another text under Search.")
            _take_away(head, run, task, table, None, None)
            return
        left, right = st.columns([1.4, 1], gap="medium")
        with left, card("Questions", key="questions"):
            opened = _pick(run, task, table)
        with right, card(f"Sample {opened.sample.doc_id}: {samples.verdict(opened.row.to_dict())}", key="sample"):
            _open(opened)
        with card("What decided the answer", key="why"):
            explained = answer_explanation(opened, task)
        _take_away(head, run, task, table, opened, explained)


# --- the list -------------------------------------------------------------------------------------------------


def _listed(run: Run, baseline: Run | None) -> tuple[str, pd.DataFrame] | None:
    """The task, and the rows of its listing after filter and sorting; None if they cannot be read."""
    with st.container(horizontal=True, vertical_alignment="bottom", key="list_controls"):
        task = url_state.url_selectbox("Task", run.tasks, key="task", follows="run", width=260)
        kind = url_state.url_widget(st.segmented_control, "Show", KINDS, key="show", default=ALL, required=True)
        order = url_state.url_widget(
            st.segmented_control, "Order", ORDERS, key="order", default=ORDERS[0], required=True,
            help="Margin: the closest decisions first. Confident wrong: the most confident wrong answers first.",
        )  # fmt: skip
        text = url_state.url_widget(
            st.text_input, "Search", "", key="find", width=220, max_chars=200, placeholder="text, or /expression/",
            help="Shows the questions whose text, output, answer or target contains this; between slashes, a regular "
            "expression.",
        )  # fmt: skip
        try:
            table = samples.listing(run, task)
        except DataError as error:
            show_error(
                "This task's samples cannot be read. Choose another task, or run the benchmark again.", str(error)
            )
            return None
        filters = table["filter"].unique().tolist()
        if len(filters) > 1:
            chosen = url_state.url_widget(
                st.segmented_control, "Extraction", filters, key="filter", default=filters[0], required=True
            )
            table = table[table["filter"] == chosen]
    other: dict[tuple[int, str], str] = {}
    if baseline is not None:
        try:
            other = samples.other_verdicts(run, baseline, task)
        except DataError as error:
            show_error("The other run cannot be compared on this task. Choose another run.", str(error))
    if kind != ALL:
        states = (WRONG, UNPARSED) if kind.lower() == WRONG else (kind.lower(),)
        table = table[table["state"].isin(states)]
    try:
        table = samples.matching_text(table, runs.samples(run, task), str(text or ""))
    except DataError as error:
        show_error("The search cannot be read. Correct it, or leave the slashes out.", str(error))
        return None
    return task, samples.ordered(table, order, other)


def _pick(run: Run, task: str, table: pd.DataFrame) -> OpenSample:
    stored = runs.samples(run, task)
    docs = table["doc_id"].tolist()
    position = _position(docs, stored)
    empty_ones = [name for name in ("other", "margin", "confidence") if table[name].isna().all()]
    row_picker(
        table.drop(columns=empty_ones),
        {
            "doc_id": "No.",
            "state": "Result",
            "other": Column("Other", help="The other run's answer."),
            "margin": Column("Margin", ".2f"),
            "confidence": Column("Sure", ".0%"),
            "question": "Question",
            "answer": "Answer",
            "target": "Target",
        },
        card="questions",
        rows=docs,
        chosen=position,
        on_choose=lambda at: url_state.set_url_param("doc", docs[at]),
        max_height=470,
    )
    row = stored.loc[table.index[position]]
    return OpenSample(run, runs.as_sample(run, task, row), row, table["other"].iloc[position])


def _position(docs: list[int], stored: pd.DataFrame) -> int:
    """The open row: that of the question in the URL if it is listed, otherwise the first."""
    named = url_state.url_param("doc")
    if named in (None, FIRST):
        return 0
    number = url_values.parse_count(named)
    if number in docs:
        return docs.index(number)
    if number not in set(stored["doc_id"]):
        what = f"There is no question {named}; this task has {stored['doc_id'].min()} to {stored['doc_id'].max()}."
        show_error("The question in the URL is not in this task. Choose one from the list.", what)
    return 0


def _open(opened: OpenSample) -> None:
    sample = opened.sample
    if opened.other is not None:
        st.caption(f"The other run's answer is {opened.other}.")
    with st.container(horizontal=True):
        st.page_link("dashboard/pages/attention.py", label="Open in Attention →", query_params=sample_params(sample))
        st.page_link("dashboard/pages/lens.py", label="Open in Lens →", query_params=sample_params(sample))
    text_columns({"Prompt": sample.prompt}, max_height=320)
    if sample.choices:
        st.caption("Choices, by log-probability (nats)")
        gold = [number == sample.gold for number in range(len(sample.choices))]
        picked = [number == sample.picked for number in range(len(sample.choices))]
        texts = samples.choice_texts(sample)
        choices = {"choice": [plain(c) for c in sample.choices], "logprob": sample.logprobs}
        choices |= {"text": [plain(text) for text in texts]} if texts else {}
        plain_table(
            pd.DataFrame({**choices, "gold": gold, "picked": picked}).sort_values("logprob", ascending=False),
            columns={
                "choice": "Choice",
                "text": "Text",
                "logprob": Column("Log-probability", ".3f"),
                "gold": "Right",
                "picked": "Chosen",
            },
        )
    else:
        text_columns({f"Output (ended by: {sample.finish})" if sample.finish else "Output": sample.output})
    text_columns({"Extracted answer": sample.answer, "Target": sample.target})
    if sample.verdict:
        text_columns({"Sandbox": ": ".join(filter(None, [sample.verdict, sample.message]))})
    if sample.stderr:
        text_columns({"Standard error": sample.stderr}, max_height=150)


# --- downloads ------------------------------------------------------------------------------------------------


def _take_away(
    head: Head, run: Run, task: str, table: pd.DataFrame, opened: OpenSample | None, explained: Explanation | None
) -> None:
    settings = Settings.from_env()
    lines = [
        "from evals.results.runs import list_runs",
        "",
        f"run = next(run for run in list_runs({str(settings.results)!r}) if run.name == {run.name!r})",
        f"questions = run.samples({task!r})",
    ]
    tables = {"questions": lambda: runs.samples(run, task).loc[table.index]}
    if opened is not None:
        wanted = f"run, {task!r}, {opened.sample.doc_id}"
        named = f"filter={opened.row['filter']!r}"
        if explained is None:
            lines = ["from evals.explain.replay import sample", *lines, f"row = sample({wanted}, {named})"]
        else:
            position_arg = f", position={at}" if (at := st.session_state["behind"]) is not None else ""
            lines = ["import workbench as wb", "from evals.explain.explain import explain", *lines]
            lines += [
                f"model = wb.load_model({computed.model_path()!r})",
                f"explanation = explain(model, {wanted}, {named}{position_arg})",
                "print(explanation.replayed)",
                "explanation.heads()",
                "explanation.attribution.lens()",
            ]
            tables |= {
                "parts": explained.attribution.frame,
                "heads": explained.heads,
                "lens": explained.attribution.lens,
            }
    head.code("\n".join(lines))
    head.data(tables)


show()
