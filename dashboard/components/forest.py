"""A forest plot: one row for each task and metric, its value and 95% interval, with another run's beside it."""

from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from dashboard.text import plotly_plain

_COLOURS = ("#2f5bd7", "#8a8f9c")


@dataclass(frozen=True)
class Scores:
    """A run's name and its scores, as `Run.frame()` gives them."""

    name: str
    table: pd.DataFrame


def forest(shown: Scores, baseline: Scores | None = None) -> go.Figure:
    """Proportions in percent. Rows keep the table's order, from the top."""
    fig = go.Figure()
    order = [_row(row) for _, row in shown.table.iterrows()]
    for scores, colour in zip([shown] + ([baseline] if baseline else []), _COLOURS, strict=False):
        table = scores.table
        value = 100 * table["value"]
        fig.add_scatter(
            x=value,
            y=[_row(row) for _, row in table.iterrows()],
            name=plotly_plain(scores.name),
            mode="markers",
            marker={"size": 10, "color": colour, "symbol": "square" if scores is shown else "diamond"},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": 100 * table["high"] - value,
                "arrayminus": value - 100 * table["low"],
                "thickness": 2,
                "width": 5,
                "color": colour,
            },
            customdata=table[["n", "low", "high"]],
            hovertemplate="%{y}<br>%{x:.1f}% (%{customdata[1]:.1%} to %{customdata[2]:.1%}), "
            "n = %{customdata[0]}<extra></extra>",
        )
    fig.update_xaxes(title="score (%), with 95% interval", range=[0, 100], zeroline=False, dtick=10)
    fig.update_yaxes(type="category", categoryorder="array", categoryarray=order[::-1], automargin=True)
    fig.update_layout(
        template="plotly_white",
        height=110 + 54 * max(2, len(order)),
        margin={"l": 10, "r": 20, "t": 36 if baseline else 10, "b": 45},
        showlegend=baseline is not None,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        meta={"kind": "forest", "run": shown.name},
    )
    return fig


def proportions(table: pd.DataFrame) -> pd.DataFrame:
    """The scores that a percent axis can carry: with an interval, between 0 and 1."""
    inside = table["value"].between(0, 1) & table["low"].notna() & table["high"].notna()
    return table[inside]


def _row(score: pd.Series) -> str:
    return f"{plotly_plain(score['task'])}<br>{plotly_plain(score['label'])}"
