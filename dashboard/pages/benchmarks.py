"""Benchmarks: a run's scores with their uncertainty, and the way to the questions behind them."""

import pandas as pd
import streamlit as st

from dashboard import runs, state
from dashboard.components.forest import Scores, forest, proportions
from dashboard.frame import Head, Help, card, chart_untitled, empty, page
from dashboard.samples import ALL, CONFIDENT, FIRST, NUMBER, WRONG
from dashboard.settings import Settings
from dashboard.text import plain
from evals.results import Run

ABOUT = Help(
    "Finished evaluations of the results folder. Each score stands with the number of questions and a 95% interval, "
    "because without them two scores cannot be told apart. The links below open the questions themselves.",
    [
        "Intervals of proportions are Wilson's; others are 1.96 standard errors to each side.",
        "**micro** averages over questions, **macro** over tasks.",
        "For code, right means that the hidden tests ran to their end in the sandbox.",
    ],
    {"lm-eval": "https://github.com/EleutherAI/lm-evaluation-harness", "Wilson": "https://doi.org/10.2307/2276774"},
)
# How the Samples page is opened, by what the link says.
LINKS = {
    "Wrong answers, the surest first →": {"show": WRONG.capitalize(), "order": CONFIDENT},
    "All questions →": {"show": ALL, "order": NUMBER},
}


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
        run, baseline = runs.choose(found)
        left, right = st.columns([1.35, 1])
        with left, card("Scores", key="scores", height="stretch"):
            _scores(run)
        with right, card("With 95% intervals", key="forest_card", height="stretch"):
            _forest(run, baseline)
        _samples(run)
        _take_away(head, run)


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


def _samples(run: Run) -> None:
    if not run.tasks:
        return
    with card("Samples", key="samples"), st.container(horizontal=True, vertical_alignment="bottom", gap="large"):
        task = state.bound(st.selectbox, "Task", run.tasks, key="task", width=300)
        kept = {name: st.query_params[name] for name in ("run", "baseline") if name in st.query_params}
        address = {**kept, "run": run.name, "task": task, "doc": FIRST}
        for label, more in LINKS.items():
            st.page_link("dashboard/pages/samples.py", label=label, query_params=address | more)


def _take_away(head: Head, run: Run) -> None:
    head.code(
        f"""
from evals.results import list_runs

run = next(run for run in list_runs({str(Settings.from_env().results)!r}) if run.name == {run.name!r})
run.frame()
"""
    )
    head.data({"scores": run.frame})


show()
