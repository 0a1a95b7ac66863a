"""Margins that hold a figure's labels, worked out before it is sent.

Left to plotly, the browser draws a figure, measures its labels and draws it again: a tenth of each press.
"""

import html
import math
import unicodedata
from collections.abc import Iterable
from typing import Any

import plotly.graph_objects as go

# Pixels, of the page's 12-point labels and 14-point titles; on the generous side of what a browser measures.
_LINE, _TITLE, _APART = 16, 20, 8
_WIDTHS = {char: width for width, chars in ((4, " ,.·:;'|!iIjl()[]"), (11, "mwMW@%…")) for char in chars}


def make(fig: go.Figure) -> None:
    """Give labels that are names the margin they need, and have plotly measure neither them nor numbers, for which the
    figure's own margins are wide enough. What it may turn by itself, names below without an angle, it still measures.
    """
    for bar in colour_bars(fig):
        bar.ticklabeloverflow = "allow"
    for axis in (*fig.select_xaxes(), *fig.select_yaxes()):
        below = axis.plotly_name.startswith("x")
        widest = max(map(_width, _names(fig, axis)), default=0)
        if below and axis.tickangle is None and widest > _LINE:
            continue
        axis.automargin, axis.ticklabeloverflow = False, "allow"
        axis.title.standoff = _APART
        if widest and axis.showticklabels is not False:
            angle = math.radians(axis.tickangle or 0)
            across = abs(math.sin(angle)) * widest + abs(math.cos(angle)) * _LINE if below else widest
            side, title = "b" if below else "l", _TITLE if axis.title.text else 0
            fig.layout.margin[side] = max(fig.layout.margin[side] or 0, math.ceil(2 * _APART + across + title))


def colour_bars(fig: go.Figure) -> list[Any]:
    """Those of its colour axes, and of heatmaps that have one of their own."""
    return [scale.colorbar for scale in (*fig.select_coloraxes(), *fig.select_traces({"type": "heatmap"}))]


def _names(fig: go.Figure, axis: go.layout.XAxis | go.layout.YAxis) -> Iterable[str]:
    """The labels of an axis that are names: its own, or of categories those of the traces that stand on it."""
    if axis.ticktext is not None:
        return axis.ticktext
    if axis.type != "category":
        return ()
    letter, own = axis.plotly_name[0], axis.plotly_name.replace("axis", "")
    traces = (trace for trace in fig.data if (trace[f"{letter}axis"] or letter) == own and trace[letter] is not None)
    return {str(name) for trace in traces for name in trace[letter]}


def _width(name: str) -> int:
    return max(sum(map(_char, html.unescape(line))) for line in name.split("<br>"))


def _char(char: str) -> int:
    return 13 if unicodedata.east_asian_width(char) in "WF" else _WIDTHS.get(char, 7)
