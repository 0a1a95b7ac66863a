"""Forest plots: Plotly figures of scores and their differences, with 95% intervals.

Every figure has a title, units on its axes, and `layout.meta` with its `kind` and the values of `stamp`. Markup in the
names of runs and tasks is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import plotly.graph_objects as go

from evals.compare.compare import Comparison
from evals.compare.published import Published, compare_with_published
from evals.report.document import write
from evals.report.markup import line
from evals.results.runs import Run, Score, question_counts
from workbench.hooks.intervention_options import described_record

Theme = Literal["light", "dark"]
Stamp = Mapping[str, Any]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito
_BETWEEN = " · "  # separates task and metric
SYMBOLS = ("square", "diamond", "circle", "triangle-up", "pentagon", "hexagon")


def forest(
    runs: Sequence[Run],
    *,
    figures: Sequence[Published] = (),
    keep: Callable[[Score], bool] | None = None,
    card: bool = False,
    theme: Theme = "light",
    stamp: Stamp | None = None,
) -> go.Figure:
    """All proportions of these runs with their intervals, one row per task, metric and average. Published scores are
    crosses.

    keep: whether to show a score; all if None.
    card: for a narrow card that has its own title, with labels on two lines.
    """
    fig = go.Figure()
    rows: list[str] = []
    for i, run in enumerate(runs):
        scores = [score for score in run.scores if score.proportion and score.low is not None]
        scores = [score for score in scores if keep is None or keep(score)]
        rows += [_row_label(score) for score in scores]
        values, low, high = ([100 * getattr(score, end) for score in scores] for end in ("value", "low", "high"))
        fig.add_scatter(
            x=values, y=[_row_label(score) for score in scores], name=_run_label(run), mode="markers", orientation="h",
            customdata=[(score.n, "-" if score.shots is None else score.shots) for score in scores],
            hovertemplate="%{y}<br>%{x:.1f}%, n = %{customdata[0]}, %{customdata[1]} shots"
            "<extra>%{fullData.name}</extra>",
            **_marks(values, low, high, i),
        )  # fmt: skip
    # One cross per published score, even if several runs are compared with it.
    crosses = {
        (_row_label(comparison.score), comparison.published): None
        for run in runs
        for comparison in compare_with_published(run, figures)
    }
    for name in dict.fromkeys(figure.name for _, figure in crosses):
        mine = [(row, figure) for row, figure in crosses if figure.name == name]
        fig.add_scatter(
            x=[100 * figure.value for _, figure in mine], y=[row for row, _ in mine], name=f"{name}, published",
            mode="markers", orientation="h", marker={"symbol": "x", "size": 10, "color": "#777777"},
            customdata=[(figure.source, figure.shots, figure.metric) for _, figure in mine],
            hovertemplate="%{x:.1f}% · %{customdata[2]} · %{customdata[1]} shots<br>%{customdata[0]}<extra></extra>",
        )  # fmt: skip
    names = dict.fromkeys(rows)
    fig.update_xaxes(title="score (%), with 95% interval", range=[0, 100], zeroline=False)
    fig = _finish(fig, "forest", "Scores", list(names), theme, stamp)
    return _in_card(fig) if card else fig


def differences(comparison: Comparison, *, theme: Theme = "light", stamp: Stamp | None = None) -> go.Figure:
    """B minus A with its interval, one row per task, metric and average; filled if Holm's p is below 5%."""
    shown = [difference for difference in comparison.differences if difference.a.proportion]
    significant = [difference.holm is not None and difference.holm < 0.05 for difference in shown]
    values = [100 * difference.value for difference in shown]
    # Without an interval the error bar has length 0.
    low = [100 * (difference.value if difference.low is None else difference.low) for difference in shown]
    high = [100 * (difference.value if difference.high is None else difference.high) for difference in shown]
    labels = [_row_label(difference.a) for difference in shown]
    marks = _marks(values, low, high, 0)
    marks["marker"]["symbol"] = ["square" if yes else "square-open" for yes in significant]
    fig = go.Figure()
    fig.add_scatter(
        x=values, y=labels, name="B minus A", mode="markers", orientation="h", showlegend=False,
        customdata=[
            (difference.a.n, "-" if difference.holm is None else f"{difference.holm:.3g}", difference.test)
            for difference in shown
        ],
        hovertemplate="%{y}<br>%{x:+.1f} points, n = %{customdata[0]}<br>p = %{customdata[1]} (%{customdata[2]}, Holm)"
        "<extra></extra>",
        **marks,
    )  # fmt: skip
    fig.add_vline(x=0, line={"color": "#888888", "width": 1})
    fig.update_xaxes(title="difference (percentage points), with 95% interval", zeroline=False)
    title = f"{_escaped(comparison.b.name)} minus {_escaped(comparison.a.name)}"
    return _finish(fig, "differences", title, list(dict.fromkeys(labels)), theme, stamp)


def save(fig: go.Figure, path: Path) -> None:
    """Write a figure as a standalone HTML page that works offline.

    Raises: DataError if the file cannot be written.
    """
    # Without plotly's button that uploads the figure.
    page = fig.to_html(include_plotlyjs=True, config={"displaylogo": False, "showSendToCloud": False})
    write(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


def _marks(values: Sequence[float], low: Sequence[float], high: Sequence[float], i: int) -> dict[str, Any]:
    colour = COLOURS[i % len(COLOURS)]
    above = [top - value for top, value in zip(high, values, strict=True)]
    below = [value - bottom for bottom, value in zip(low, values, strict=True)]
    bars = {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 2, "width": 5}
    return {
        "marker": {"size": 9, "color": colour, "symbol": SYMBOLS[i % len(SYMBOLS)]},
        "error_x": {**bars, "color": colour},
    }


def _finish(fig: go.Figure, kind: str, title: str, rows: Sequence[str], theme: Theme, stamp: Stamp | None) -> go.Figure:
    """Set the title, template, metadata, legend, and the order of the rows from the top."""
    fig.update_yaxes(type="category", categoryorder="array", categoryarray=rows[::-1], automargin=True)
    layout = {
        "title": {"text": title, "x": 0, "xref": "container", "pad": {"l": 12}},
        "template": "plotly_dark" if theme == "dark" else "plotly_white",
        "meta": {"kind": kind, **(stamp or {})},
        "margin": {"l": 10, "r": 20, "t": 90, "b": 50},
        "height": 160 + 30 * max(2, len(rows)),
        "scattermode": "group",
        "legend": {"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0},
    }
    for name, value in layout.items():  # `update_layout` copies the template more than once
        fig.layout[name] = value
    return fig


def _in_card(fig: go.Figure) -> go.Figure:
    for trace in fig.data:
        trace.y = [_two_lines(row) for row in trace.y]
    rows = [_two_lines(row) for row in fig.layout.yaxis.categoryarray]
    alone = len(fig.data) == 1
    fig.update_yaxes(categoryarray=rows)
    fig.update_layout(
        title=None, showlegend=not alone, margin_t=10 if alone else 36, height=110 + 54 * max(2, len(rows))
    )
    return fig


def _two_lines(row: str) -> str:
    return row.replace(_BETWEEN, "<br>", 1)


def _row_label(score: Score) -> str:
    return _escaped(f"{score.task}{_BETWEEN}{score.label}")


def _run_label(run: Run) -> str:
    """The name of a run, with its change of the model, and "(partial)" if a score is over a part of the questions."""
    counts = (question_counts(run, task) for task in {score.task for score in run.scores})
    change = described_record(run.provenance.get("interventions"))
    notes = ([change] if change else []) + (["partial"] if any(done < total for done, total in counts) else [])
    return _escaped(run.name) + (f" ({_escaped(', '.join(notes))})" if notes else "")


def _escaped(text: str) -> str:
    """The text as one line with Plotly markup escaped and unprintable characters removed."""
    return line(text).replace("&", "&amp;").replace("<", "&lt;")
