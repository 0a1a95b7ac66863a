"""Benchmarks: a run's scores with their uncertainty, and every question behind them."""

import pandas as pd
import streamlit as st

from dashboard import runs, state
from dashboard.components.forest import Scores, forest, proportions
from dashboard.frame import Head, Help, card, chart_untitled, empty, page, table_height
from dashboard.runs import Sample
from dashboard.settings import Settings
from dashboard.text import plain
from evals.results import Run

ABOUT = Help(
    "Finished evaluations of the results folder. Each score stands with the number of questions and a 95% interval, "
    "because without them two scores cannot be told apart. Below, the questions themselves; one of them can be "
    "opened in Attention, on exactly the tokens that the model saw.",
    [
        "Intervals of proportions are Wilson's; others are 1.96 standard errors to each side.",
        "**micro** averages over questions, **macro** over tasks.",
        "For code, right means that the hidden tests ran to their end in the sandbox.",
        "A multiple choice is answered by the choice with the highest log-probability (nats).",
    ],
    {"lm-eval": "https://github.com/EleutherAI/lm-evaluation-harness", "Wilson": "https://doi.org/10.2307/2276774"},
)
NO_BASELINE = "none"
ALL, RIGHT, WRONG = "All", "Right", "Wrong"
MOST_ROWS = 2000


def show() -> None:
    with page("Benchmarks", "What the model scores, how sure that is, and every question behind it.", ABOUT) as head:
        found, unreadable = runs.runs()
        if unreadable:
            with st.expander(f"{len(unreadable)} files could not be read"):
                st.code(plain("\n".join(unreadable)), language=None, wrap_lines=True)
        if not found:
            root = Settings.from_env().results
            empty(
                "No finished runs in the results folder. Run the embedded suites with this command, then reload.",
                f"workbench eval run --model demo --tasks demo_mmlu,demo_gsm8k,demo_humaneval --output {root / 'demo'}",
            )
            return
        run, baseline = _choose(found)
        left, right = st.columns([1.35, 1])
        with left, card("Scores", key="scores", height="stretch"):
            _scores(run)
        with right, card("With 95% intervals", key="forest_card", height="stretch"):
            _forest(run, baseline)
        shown = _samples(run)
        _take_away(head, run, shown)


def _choose(found: list[Run]) -> tuple[Run, Run | None]:
    names = [run.name for run in found]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = state.bound(st.selectbox, "Run", names, key="run", width=420)
        others = [NO_BASELINE, *(other for other in names if other != name)]
        against = (
            state.bound(st.selectbox, "Compare with", others, key="baseline", width=420) if len(names) > 1 else None
        )
    run = next((run for run in found if run.name == name), found[0])
    return run, next((run for run in found if run.name == against), None)


def _scores(run: Run) -> None:
    table = run.frame()
    shown = pd.DataFrame(
        {
            "task": table["task"],
            "metric": table["label"],
            "value": [round(100 * value, 1) for value in table["value"]],  # as the terminal's table rounds
            "interval": [_interval(row) for _, row in table.iterrows()],
            "n": table["n"],
            "shots": table["shots"],
        }
    )
    st.dataframe(
        shown,
        hide_index=True,
        column_config={
            "task": "Task",
            "metric": "Metric",
            "value": st.column_config.NumberColumn("Score", format="%.1f%%", width=65),
            "interval": st.column_config.TextColumn("95% interval", alignment="right"),
            "n": st.column_config.NumberColumn("n", width=50),
            "shots": st.column_config.NumberColumn("Shots", width=55),
        },
    )
    for task, reason in run.not_run.items():
        st.text(f"{plain(task)} was not run: {plain(reason)}")
    about = run.provenance
    facts = [run.model, *(str(about[key]) for key in ("dtype", "device") if about.get(key))]
    hashed = about.get("checkpoint_sha256")
    if hashed:
        facts.append(f"checkpoint {str(hashed)[:12]}")
    if run.date:
        facts.append(f"{run.date:%Y-%m-%d %H:%M}")
    st.text(plain(" · ".join(facts)))


def _interval(score: pd.Series) -> str:
    if pd.isna(score["low"]) or pd.isna(score["high"]):
        return "none"
    return f"{100 * score['low']:.1f} to {100 * score['high']:.1f}"


def _forest(run: Run, baseline: Run | None) -> None:
    shown = proportions(run.frame())
    if shown.empty:
        st.caption("This run has no score that is a proportion with an interval.")
        return
    other = None
    if baseline is not None:
        table = proportions(baseline.frame())
        table = table[table["task"].isin(shown["task"])]
        other = Scores(baseline.name, table)
        if table.empty:
            st.caption("The other run shares no task with this one.")
            other = None
    chart_untitled(forest(Scores(run.name, shown), other), key="forest")


def _samples(run: Run) -> pd.DataFrame | None:
    if not run.tasks:
        return None
    with card("Samples", key="samples"):
        with st.container(horizontal=True, vertical_alignment="bottom"):
            task = state.bound(st.selectbox, "Task", run.tasks, key="task", width=300)
            kept = state.bound(
                st.segmented_control, "Show", [ALL, RIGHT, WRONG], key="show", default=ALL, required=True
            )
            table = runs.samples(run, task)
            filters = [] if table.empty else table["filter"].unique().tolist()
            if len(filters) > 1:
                chosen = state.bound(
                    st.segmented_control, "Extraction", filters, key="filter", default=filters[0], required=True
                )
                table = table[table["filter"] == chosen]
        if kept != ALL:
            right = table["correct"] >= 1
            table = table[right if kept == RIGHT else ~right]
        if table.empty:
            st.caption("No sample of this kind." if kept != ALL else "This task has no samples.")
            return table
        left, right_side = st.columns([1, 1.15], gap="medium")
        with left:
            sample = _pick(run, task, table)
        with right_side:
            _open(sample)
    return table


def _pick(run: Run, task: str, table: pd.DataFrame) -> Sample:
    docs = table["doc_id"].tolist()[:MOST_ROWS]
    listed = [runs.as_sample(run, task, row) for _, row in table.head(MOST_ROWS).iterrows()]

    def chose() -> None:
        rows = st.session_state["sample_rows"]["selection"]["rows"]
        if rows:
            state.link("doc", docs[rows[0]])

    st.dataframe(
        pd.DataFrame(
            {
                "doc": docs,
                "right": [_verdict(sample) for sample in listed],
                "question": [plain(_gist(sample.prompt)) for sample in listed],
                "answer": [plain(_start(sample.verdict or sample.answer)) for sample in listed],
                "target": [plain(_start(sample.target.rpartition("####")[2])) for sample in listed],
            }
        ),
        hide_index=True,
        height=table_height(len(docs), most=470),
        key="sample_rows",
        on_select=chose,
        selection_mode="single-row",
        column_config={
            "doc": st.column_config.NumberColumn("No.", width=45),
            "right": st.column_config.TextColumn("", width=55),
            "question": st.column_config.TextColumn("Question", width=200),
            "answer": st.column_config.TextColumn("Answer", width=70),
            "target": st.column_config.TextColumn("Target", width=70),
        },
    )
    more = f", the first {MOST_ROWS} listed" if len(table) > MOST_ROWS else ""
    st.caption(f"{len(table)} questions{more}. Choose a row to open it.")
    named = state.linked("doc")
    position = docs.index(int(named)) if named is not None and named.isdecimal() and int(named) in docs else 0
    return listed[position]


def _open(sample: Sample) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**Sample {sample.doc_id}: {_verdict(sample)}**", width="stretch")
        st.page_link(
            "dashboard/pages/attention.py", label="Open in Attention →", query_params={"sample": sample.reference}
        )
    st.caption("Prompt")
    st.code(plain(sample.prompt), language=None, wrap_lines=True, height=190 if len(sample.prompt) > 300 else "content")
    if sample.choices:
        st.caption("Choices, by log-probability (nats)")
        st.dataframe(
            pd.DataFrame({"choice": [plain(c) for c in sample.choices], "logprob": sample.logprobs}).sort_values(
                "logprob", ascending=False
            ),
            hide_index=True,
            column_config={
                "choice": "Choice",
                "logprob": st.column_config.NumberColumn("Log-probability", format="%.3f"),
            },
        )
    else:
        st.caption("Output" + (f" (ended by: {sample.finish})" if sample.finish else ""))
        st.code(plain(sample.output) or " ", language=None, wrap_lines=True)
    answer, target = st.columns(2)
    with answer:
        st.caption("Extracted answer")
        st.code(plain(sample.answer) or " ", language=None, wrap_lines=True)
    with target:
        st.caption("Target")
        st.code(plain(sample.target) or " ", language=None, wrap_lines=True)
    if sample.verdict:
        st.caption("Sandbox")
        st.code(plain(": ".join(filter(None, [sample.verdict, sample.message]))), language=None, wrap_lines=True)


def _verdict(sample: Sample) -> str:
    if sample.correct is None:
        return "unscored"
    return "right" if sample.correct >= 1 else "wrong"


def _gist(text: str) -> str:
    """The last lines of a prompt tell questions apart; the first are the same few examples for all."""
    words = " ".join(text.split())
    return words if len(words) <= 160 else "… " + words[-160:]


def _start(text: str) -> str:
    return " ".join(text[:80].split())


def _take_away(head: Head, run: Run, shown: pd.DataFrame | None) -> None:
    head.code(
        f"""
from evals.results import list_runs

run = next(run for run in list_runs({str(Settings.from_env().results)!r}) if run.name == {run.name!r})
run.frame()
run.samples({run.tasks[0] if run.tasks else ""!r})
"""
    )
    tables = {"scores": run.frame}
    if shown is not None:
        tables["samples"] = shown.copy
    head.data(tables)


show()
