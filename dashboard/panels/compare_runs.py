"""Two benchmark runs side by side: scores, paired differences, and the questions answered differently."""

from collections.abc import Sequence
from urllib.parse import urlencode

import numpy as np
import pandas as pd
import streamlit as st

from dashboard.data import runs
from dashboard.layout.figure_help import FIGURE_HELP
from dashboard.layout.page import Head, card, draw_figure, empty, show_error, table_height
from dashboard.layout.tables import Column, plain_table
from dashboard.session import url_state
from dashboard.session.settings import Settings
from dashboard.token_text import plain
from evals.compare.compare import Comparison, Sample
from evals.report import forest_plots
from evals.report.terminal_table import other_differences
from evals.results.runs import Run
from workbench.errors import DataError

MOST_ROWS = 1000
COMMAND = "workbench eval run --model demo --tasks demo_mmlu --output {folder}"


def show(head: Head) -> None:
    """Draw the comparison of two runs."""
    finished, _ = runs.runs()
    if len(finished) < 2:
        folder = Settings.from_env().results / "second"
        empty(f"A comparison needs two finished runs; the results folder has {len(finished)}. "
              "Run another, then reload.",
              COMMAND.format(folder=folder))  # fmt: skip
        return
    b, a = _choose(finished)
    if a is None:
        st.info("Choose run A. Differences are B minus A.")
        return
    for side, run in (("A", a), ("B", b)):
        runs.run_badge(side, run)
    try:
        comparison = runs.comparison(b, a)
    except DataError as error:
        show_error("These runs cannot be compared. Choose another run.", str(error))
        return
    with card("Scores and paired differences", key="pairs", help="B minus A, on the questions that both answered."):
        _table(comparison)
    if any(difference.a.proportion for difference in comparison.differences):
        with card("Differences with 95% intervals", key="differences_card", help=FIGURE_HELP["differences"]):
            draw_figure(forest_plots.differences(comparison, stamp={"a": a.name, "b": b.name}), key="differences")
    _differing_questions(comparison)
    head.code(
        f"""
from evals.compare.compare import compare
from evals.results.runs import list_runs

runs = {{run.name: run for run in list_runs({str(Settings.from_env().results)!r})}}
comparison = compare(runs[{a.name!r}], runs[{b.name!r}])
comparison.frame()
comparison.samples_frame()
"""
    )
    head.data({"differences": comparison.frame, "samples_that_differ": comparison.samples_frame})


def _choose(finished: list[Run]) -> tuple[Run, Run | None]:
    """Runs B and A. No other page uses their keys: a widget with another default would drop the value of a link."""
    names = runs.plain_first(finished)
    by_name, shown = {run.name: run for run in finished}, runs.in_list(finished)
    with st.container(horizontal=True, vertical_alignment="bottom", key="run_controls"):
        place = st.container(width=420)
        name = url_state.url_selectbox("Run B", names, key="b_run", **shown)
        others = [*(other for other in names if other != name), runs.NO_BASELINE]
        with place:
            against = url_state.url_selectbox("Run A", others, key="a_run", follows="b_run", **shown)
    return by_name[name], by_name.get(against)


def _table(comparison: Comparison) -> None:
    table = comparison.frame()
    scale = np.where(table["only_a"].isna(), 1.0, 100.0)  # right and wrong answers: percentage points
    sides = {
        key: [_score(*row) for row in zip(table[key] * scale, table[f"{key}_low"] * scale, table[f"{key}_high"] * scale,
                                          strict=True)]
        for key in ("a", "b")
    }  # fmt: skip
    interval = [
        _interval(low, high, "+") for low, high in zip(table["low"] * scale, table["high"] * scale, strict=True)
    ]
    shown = pd.DataFrame(
        {
            "task": [plain(task) for task in table["task"]],
            "metric": [plain(difference.a.label) for difference in comparison.differences],
            "n": table["n"],
            **sides,
            "difference": table["difference"] * scale,
            "interval": interval,
            "p": table["p"].map(p_text),
            "holm": table["holm"].map(p_text),
            "MDE": table["minimum_detectable_effect"] * scale,
            "only_a": table["only_a"],
            "only_b": table["only_b"],
            "test": table["test"],
        }
    )
    plain_table(
        shown,
        columns={
            "task": "Task",
            "metric": "Metric",
            "n": "n",
            "a": Column("A (95%)", right=True),
            "b": Column("B (95%)", right=True),
            "difference": Column("B − A", "+.1f"),
            "interval": Column("95% interval", right=True),
            "p": Column("p", right=True),
            "holm": Column("p (Holm)", right=True),
            "MDE": Column(
                "MDE", ".1f", help="The smallest difference that these questions detect with 80% power at 5%."
            ),
            "only_a": "Only A right",
            "only_b": "Only B right",
            "test": "Test",
        },
    )  # fmt: skip
    st.caption("Scores and differences of right and wrong answers are in percentage points.")
    origins = [f"{name}: {a} in A, {b} in B" for name, a, b in other_differences(comparison)]
    for note in (*comparison.notes, *origins):
        st.text(plain(note))


def _differing_questions(comparison: Comparison) -> None:
    """Draw the questions answered differently, first those that only one run has right."""
    tasks = list(dict.fromkeys(sample.task for sample in comparison.samples))
    with card(
        "Questions answered differently", key="parted", help="A question's link opens it in Samples, in a new tab."
    ):
        if not tasks:
            st.caption("Both runs gave the same answer to every shared question.")
            return
        with st.container(horizontal=True, vertical_alignment="bottom"):
            # Not the key of the Samples control, which lists all tasks of a run.
            task = url_state.url_widget(st.selectbox, "Task", tasks, key="parted_task", width=300)
        samples = [sample for sample in comparison.samples if sample.task == task]
        by_right_side = {side: [sample for sample in samples if sample.right == side] for side in ("A", "B", "")}
        left, right = st.columns(2)
        with left:
            _questions(f"Only A right: {len(by_right_side['A'])}", by_right_side["A"], comparison)
        with right:
            _questions(f"Only B right: {len(by_right_side['B'])}", by_right_side["B"], comparison)
        if by_right_side[""]:
            with st.expander(f"{len(by_right_side[''])} more answered differently, neither better"):
                _questions("", by_right_side[""], comparison)


def _questions(title: str, samples: Sequence[Sample], comparison: Comparison) -> None:
    if title:
        st.markdown(f"**{title}**")
    if not samples:
        st.caption("None.")
        return
    shown = samples[:MOST_ROWS]
    table = pd.DataFrame(
        {
            "open": [sample_url(sample, comparison) for sample in shown],
            "question": [plain(_one_line(str(sample.question))) for sample in shown],
            "a": [plain(_one_line(str(sample.answer_a))) for sample in shown],
            "b": [plain(_one_line(str(sample.answer_b))) for sample in shown],
            "margin_a": [sample.margin_a for sample in shown],
            "margin_b": [sample.margin_b for sample in shown],
        }
    ).astype({"margin_a": float, "margin_b": float})
    if table["margin_a"].isna().all():
        table = table.drop(columns=["margin_a", "margin_b"])
    st.dataframe(
        table,
        hide_index=True,
        height=table_height(len(table), max_height=330),
        column_config={
            "open": st.column_config.LinkColumn("Open", display_text=r"doc=(\d+)", width=55),
            "question": st.column_config.TextColumn("Question", width=180),
            "a": st.column_config.TextColumn("Answer A", width=80),
            "b": st.column_config.TextColumn("Answer B", width=80),
            "margin_a": st.column_config.NumberColumn(
                "Margin A", format="%.2f", help="In nats: right choice minus best other choice."
            ),
            "margin_b": st.column_config.NumberColumn("Margin B", format="%.2f"),
        },
    )
    if len(samples) > MOST_ROWS:
        st.caption(f"The first {MOST_ROWS} of {len(samples)}; the others are in the download.")
    st.page_link(
        "dashboard/pages/samples.py",
        label=f"Question {shown[0].doc_id} in Samples →",
        query_params=_parameters(shown[0], comparison),
    )


def sample_url(sample: Sample, comparison: Comparison) -> str:
    """URL of the Samples page for this question: run B, with run A as the other run."""
    return f"/samples?{urlencode(_parameters(sample, comparison))}"


def _parameters(sample: Sample, comparison: Comparison) -> dict[str, str]:
    return {"run": comparison.b.name, "baseline": comparison.a.name, "task": sample.task, "doc": str(sample.doc_id)}


def _one_line(text: str) -> str:
    return " ".join(text.split())[:160]


def p_text(p: float | None) -> str:
    """A p value as tables show it; empty for none."""
    if pd.isna(p):
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3g}"


def _score(value: float, low: float, high: float) -> str:
    return f"{value:.1f} ({_interval(low, high)})"


def _interval(low: float, high: float, sign: str = "") -> str:
    return "none" if pd.isna(low) or pd.isna(high) else f"{low:{sign}.1f} to {high:{sign}.1f}"
