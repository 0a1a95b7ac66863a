"""Margins that are wide enough for a figure's labels, computed on the server.

Without them, plotly draws a figure, measures its labels and draws it again, which takes a tenth of each interaction.
"""

import html
import math
import unicodedata
from collections.abc import Iterable
from typing import Any

Parts = dict[str, Any]  # a part of a figure's JSON

# In pixels, for the page's 12-point labels and 14-point titles; slightly more than a browser measures.
_LINE, _TITLE, _GAP = 16, 20, 8
_WIDTHS = {char: width for width, chars in ((4, " ,.·:;'|!iIjl()[]"), (11, "mwMW@%…")) for char in chars}


def set_margins(fig: Parts) -> None:
    """Set the margins that text labels need, and turn plotly's own measuring off.

    Numeric labels fit into the figure's own margins. Plotly still measures text labels below the figure that have no
    fixed angle, because it may rotate them.
    """
    layout = fig["layout"]
    for bar in _colour_bars(fig):
        bar["ticklabeloverflow"] = "allow"
    for name in {"xaxis", "yaxis", *(name for name in layout if name[1:].startswith("axis"))}:
        axis, below = layout.setdefault(name, {}), name.startswith("x")
        widest = max(map(_width, _axis_labels(fig, name)), default=0)
        if below and "tickangle" not in axis and widest > _LINE:
            continue
        axis |= {"automargin": False, "ticklabeloverflow": "allow"}
        axis.setdefault("title", {})["standoff"] = _GAP
        if widest and axis.get("showticklabels", True):
            angle = math.radians(axis.get("tickangle", 0))
            across = abs(math.sin(angle)) * widest + abs(math.cos(angle)) * _LINE if below else widest
            side, title = "b" if below else "l", _TITLE if axis["title"].get("text") else 0
            margin = layout.setdefault("margin", {})
            margin[side] = max(margin.get(side, 0), math.ceil(2 * _GAP + across + title))


def _colour_bars(fig: Parts) -> Iterable[Parts]:
    """The colour bars of the figure's colour axes, and of heatmaps without a shared colour axis."""
    axes = [part for name, part in fig["layout"].items() if name.startswith("coloraxis")]
    heatmaps = [trace for trace in fig["data"] if trace["type"] == "heatmap" and "coloraxis" not in trace]
    return [scale.setdefault("colorbar", {}) for scale in (*axes, *heatmaps)]


def _axis_labels(fig: Parts, axis: str) -> Iterable[str]:
    """The text labels of an axis: its tick texts, or the categories of the traces on it."""
    layout = fig["layout"][axis]
    if "ticktext" in layout:
        return list(layout["ticktext"])
    if layout.get("type") != "category":
        return ()
    letter, axis_id = axis[0], axis.replace("axis", "")
    traces = (trace for trace in fig["data"] if trace.get(f"{letter}axis", letter) == axis_id)
    coordinates = [trace.get(letter, ()) for trace in traces]
    return {str(name) for each in coordinates if not isinstance(each, dict) for name in each}  # a dict holds numbers


def _width(name: str) -> int:
    return max(sum(map(_char, html.unescape(line))) for line in name.split("<br>"))


def _char(char: str) -> int:
    return 13 if unicodedata.east_asian_width(char) in "WF" else _WIDTHS.get(char, 7)
