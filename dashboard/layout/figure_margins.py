"""Margins that hold a figure's labels, worked out before it is sent.

Left to plotly, the browser draws a figure, measures its labels and draws it again: a tenth of each press.
"""

import html
import math
import unicodedata
from collections.abc import Iterable
from typing import Any

Parts = dict[str, Any]  # of a figure's JSON

# Pixels, of the page's 12-point labels and 14-point titles; on the generous side of what a browser measures.
_LINE, _TITLE, _GAP = 16, 20, 8
_WIDTHS = {char: width for width, chars in ((4, " ,.·:;'|!iIjl()[]"), (11, "mwMW@%…")) for char in chars}


def set_margins(fig: Parts) -> None:
    """Give labels that are names the margin they need, and have plotly measure neither them nor numbers, for which the
    figure's own margins are wide enough. What it may turn by itself, names below without an angle, it still measures.
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
    """Those of its colour axes, and of heatmaps that have one of their own."""
    scales = [part for name, part in fig["layout"].items() if name.startswith("coloraxis")]
    own = [trace for trace in fig["data"] if trace["type"] == "heatmap" and "coloraxis" not in trace]
    return [scale.setdefault("colorbar", {}) for scale in (*scales, *own)]


def _axis_labels(fig: Parts, axis: str) -> Iterable[str]:
    """The labels of an axis that are names: its own, or of categories those of the traces that stand on it."""
    known = fig["layout"][axis]
    if "ticktext" in known:
        return list(known["ticktext"])
    if known.get("type") != "category":
        return ()
    letter, own = axis[0], axis.replace("axis", "")
    traces = (trace for trace in fig["data"] if trace.get(f"{letter}axis", letter) == own)
    places = [trace.get(letter, ()) for trace in traces]
    return {str(name) for each in places if not isinstance(each, dict) for name in each}  # packed ones are numbers


def _width(name: str) -> int:
    return max(sum(map(_char, html.unescape(line))) for line in name.split("<br>"))


def _char(char: str) -> int:
    return 13 if unicodedata.east_asian_width(char) in "WF" else _WIDTHS.get(char, 7)
