"""Benchmarks page: a run's scores with intervals, paired differences, published scores, and links to the questions."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import streamlit as st

from dashboard.data import runs
from dashboard.data.samples import ALL, CONFIDENT, FIRST, NUMBER, WRONG
from dashboard.layout.figure_help import FIGURE_HELP
from dashboard.layout.page import Head, Help, card, draw_figure, empty, page, show_error
from dashboard.layout.tables import Column, plain_table
from dashboard.panels.compare_runs import p_text
from dashboard.session import url_state
from dashboard.session.settings import Settings
from dashboard.token_text import plain
from evals.compare.compare import Comparison
from evals.compare.published import compare_with_published, published, scores_of_model
from evals.report import forest_plots
from evals.report.terminal_table import other_differences
from evals.results import answer_counts
from evals.results.runs import Run, Score, question_counts
from workbench.errors import DataError

ABOUT = Help(
    "Finished evaluations in the results folder. Each score is shown with its number of questions and a 95% "
    "interval, because two scores cannot be compared without them. The links below open the questions.",
    [
        "Proportions have Wilson intervals; other scores have 1.96 standard errors on each side.",
        "**micro** averages over questions, **macro** over tasks.",
        "**Partial**: only some of the task's questions were asked, and the score covers those.",
        "**Paired difference** uses the questions that both runs answered. For right and wrong answers, p is from "
        "an exact test; it is adjusted for the number of comparisons with Holm's method.",
        "For code, an answer is right if all hidden tests pass in the sandbox.",
    ],
    {"lm-eval": "https://github.com/EleutherAI/lm-evaluation-harness", "Wilson": "https://doi.org/10.2307/2276774"},
)
# Links to the Samples page: label, and the URL parameters.
LINKS = {
    "Wrong answers, most confident first →": {"show": WRONG.capitalize(), "order": CONFIDENT},
    "All questions →": {"show": ALL, "order": NUMBER},
}


def show() -> None:
    with page("Benchmarks", "Benchmark scores with confidence intervals, and links to every question.", ABOUT) as head:
        finished, unreadable = runs.runs()
        if unreadable:
            with st.expander(f"{len(unreadable)} files could not be read"):
                st.code(plain("\n".join(unreadable)), language=None, wrap_lines=True)
        if not finished:
            empty("The results folder has no finished run yet. Start one on Runs; a quiz takes a few seconds.")
            st.page_link("dashboard/pages/runs.py", label="Start a benchmark on Runs →")
            return
        run, baseline = runs.select_runs(finished, _filter)
        table = run.frame()[[_matches_filter(score) for score in run.scores]]
        if table.empty and run.scores:
            st.info("No score of this run matches all words of the filter. Shorten the filter.")
        left, right = st.columns([1.35, 1])
        with left, card("Scores", key="scores", height="stretch"):
            _scores(run, table)
        with right, card("With 95% intervals", key="forest_card", height="stretch", help=FIGURE_HELP["forest"]):
            _forest(run, baseline)
        compared = None if baseline is None else _difference(run, baseline)
        known = _published(run)
        _samples(run)
        tables: dict[str, Callable[[], pd.DataFrame]] = {"scores": lambda: table}
        tables |= {} if compared is None else {"differences": compared.frame}
        tables |= {} if known is None else {"published": known.copy}
        _take_away(head, run, baseline, tables)


def _filter() -> None:
    url_state.url_widget(
        st.text_input, "Filter", "", key="only", placeholder="task or metric", max_chars=200, width=190,
        help="Shows scores whose task and metric contain all of these words, here and in the downloads.",
    )  # fmt: skip


def _matches_filter(score: Score) -> bool:
    """Whether a score matches the filter."""
    return all(word in f"{score.task} {score.label}".lower() for word in _words())


def _words() -> list[str]:
    return str(st.session_state["only"]).lower().split()


def _scores(run: Run, table: pd.DataFrame) -> None:
    shown = pd.DataFrame(
        {
            "task": table["task"],
            "metric": table["label"],
            "value": table["value"],
            "interval": [_interval(row) for _, row in table.iterrows()],
            "n": table["n"],
            "shots": table["shots"],
            "partial": [_partial(run, task) for task in table["task"]],
        }
    )
    if not shown["partial"].any():
        del shown["partial"]
    plain_table(
        shown,
        columns={
            "task": "Task",
            "metric": "Metric",
            "value": Column("Score", ".1%"),
            "interval": Column("95% interval", right=True),
            "n": "n",
            "shots": "Shots",
            "partial": Column("Partial", help="Only some of the task's questions were asked."),
        },
    )
    for task in run.not_finite:
        st.warning(plain(run.not_finite_note(task)))
    for note in answer_counts.notes(run):
        st.caption(plain(note))
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


def _partial(run: Run, task: str) -> str:
    answered, whole = question_counts(run, task)
    return f"{answered} of {whole}" if answered < whole else ""


def _interval(score: pd.Series) -> str:
    if pd.isna(score["low"]) or pd.isna(score["high"]):
        return "none"
    return f"{100 * score['low']:.1f} to {100 * score['high']:.1f}"


def _forest(run: Run, baseline: Run | None) -> None:
    tasks = {
        score.task for score in run.scores if score.proportion and score.low is not None and _matches_filter(score)
    }
    if not tasks:
        st.caption("None of these scores is a proportion with an interval.")
        return
    shown = [run]
    if baseline is not None:
        if tasks.isdisjoint(score.task for score in baseline.scores):
            st.caption("The other run shares no task with this one.")
        else:
            shown.append(baseline)
    keep = lambda score: score.task in tasks and _matches_filter(score)  # noqa: E731
    draw_figure(forest_plots.forest(shown, keep=keep, card=True, stamp={"run": run.name}), key="forest")


def _difference(run: Run, baseline: Run) -> Comparison | None:
    with card(
        "Paired difference",
        key="difference",
        help="This run (B) minus the other run (A), on the questions that both answered.",
    ):
        try:
            comparison = runs.comparison(run, baseline)
        except DataError as error:
            show_error("These runs cannot be compared. Choose another run.", str(error))
            return None
        for side, side_run in (("This (B)", run), ("Other (A)", baseline)):
            runs.run_badge(side, side_run)
        comparison = replace(
            comparison, differences=tuple(item for item in comparison.differences if _matches_filter(item.a))
        )
        both = {"compare": "Runs", "b_run": run.name, "a_run": baseline.name}
        st.page_link("dashboard/pages/compare.py", label="Side by side in Compare →", query_params=both)
        if not comparison.differences:
            st.caption("No score that both runs have matches the filter.")
            return None
        table = comparison.frame()
        scale = np.where(table["only_a"].isna(), 1.0, 100.0)  # right and wrong answers: percentage points
        plain_table(
            pd.DataFrame(
                {
                    "task": table["task"],
                    "metric": [plain(item.a.label) for item in comparison.differences],
                    "other": table["a"] * scale,
                    "this": table["b"] * scale,
                    "difference": table["difference"] * scale,
                    "low": table["low"] * scale,
                    "high": table["high"] * scale,
                    "holm": table["holm"].map(p_text),
                    "n": table["n"],
                    "only_b": table["only_b"],
                    "only_a": table["only_a"],
                }
            ),
            columns={
                "task": "Task",
                "metric": "Metric",
                "other": Column("Other (A)", ".1f"),
                "this": Column("This (B)", ".1f"),
                "difference": Column("Difference", "+.1f"),
                "low": Column("95% from", "+.1f"),
                "high": Column("to", "+.1f"),
                "holm": Column("p (Holm)", right=True),
                "n": "n",
                "only_b": "Only B right",
                "only_a": "Only A right",
            },
        )
        origins = [f"{name}: {a} in A, {b} in B" for name, a, b in other_differences(comparison)]
        for note in (*comparison.notes, *origins):
            st.text(plain(note))
    return comparison


def _published(run: Run) -> pd.DataFrame | None:
    names = list(dict.fromkeys(row.name for row in published()))
    with card("Published scores", key="published_card"):
        model = url_state.url_widget(
            st.selectbox, "Scores published for", [runs.NO_BASELINE, *names], key="published", width=300,
            help="The model is not guessed from the checkpoint; choose it.",
        )  # fmt: skip
        if model == runs.NO_BASELINE:
            return None
        rows = [
            {
                "task": row.score.task,
                "measured": row.score.value,
                "interval": _interval(pd.Series(vars(row.score))),
                "published": row.published.value,
                "within": row.within,
                "unlike": "; ".join(row.setup_differences),
                "source": row.published.source,
            }
            for row in compare_with_published(run, scores_of_model(model))
            if _matches_filter(row.score)
        ]
        if not rows:
            st.caption("There is no published score of that model for these tasks.")
            return None
        table = pd.DataFrame(rows)
        plain_table(
            table,
            columns={
                "task": "Task",
                "measured": Column("Measured", ".1%"),
                "interval": "95% interval",
                "published": Column("Published", ".1%"),
                "within": Column("Within", help="Whether the published score lies in the interval."),
                "unlike": "Setup differences",
                "source": "Source",
            },
        )
    return table


def _samples(run: Run) -> None:
    if not run.tasks:
        return
    with card("Samples", key="samples"), st.container(horizontal=True, vertical_alignment="bottom", gap="large"):
        task = url_state.url_selectbox("Task", run.tasks, key="task", follows="run", width=300)
        params = {"run": run.name, "baseline": st.query_params["baseline"], "task": task, "doc": FIRST}
        for label, more in LINKS.items():
            st.page_link("dashboard/pages/samples.py", label=label, query_params=params | more)


def _take_away(head: Head, run: Run, baseline: Run | None, tables: Mapping[str, Callable[[], pd.DataFrame]]) -> None:
    lines = [
        "from evals.results.runs import list_runs",
        "",
        f"runs = {{run.name: run for run in list_runs({str(Settings.from_env().results)!r})}}",
        f"run = runs[{run.name!r}]",
        "shown = run.frame()",
    ]
    if words := _words():
        lines += [
            'labels = (shown["task"] + " " + shown["label"]).str.lower()',
            f"shown = shown[[all(word in label for word in {words!r}) for label in labels]]",
        ]
    lines.append("shown")
    if "differences" in tables and baseline is not None:
        lines = ["from evals.compare.compare import compare", *lines, f"compare(runs[{baseline.name!r}], run).frame()"]
    head.code("\n".join(lines))
    head.data(tables)


show()
