"""What other pages are made of, read by the browser while a page without figures is looked at, so that the first switch
to one with figures need not wait.

The code of an element is loaded with the first of its kind, and in that time a switch of pages shows nothing. What a
browser has run before, it also runs faster: so a few small figures are drawn, unseen.
"""

from functools import cache
from pathlib import Path

import numpy as np
import streamlit as st

from dashboard.layout import figure
from dashboard.layout.bars import over_tokens
from probes.base import drawing

_CODE = Path(st.__file__).parent / "static" / "static" / "js"
_KINDS = ("Selectbox", "NumberInput", "ButtonGroup", "Checkbox", "Slider", "TextArea", "TextInput", "Metric",
          "DownloadButton", "DataFrame")  # fmt: skip
_FILES = [file.name for kind in _KINDS for file in _CODE.glob(f"{kind}.*.js")]

# Registered once for the process: naming a component anew on each run would replace it under other users.
_component = st.components.v2.component(
    "workbench.ahead", js=Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
)


def mount() -> None:
    """Have the browser do so whenever it is idle. Without effect where Streamlit keeps its code elsewhere."""
    _component(key="ahead", data={"files": [f"../../{figure.CODE}", *_FILES], "figures": _figures()})


@cache
def _figures() -> list[str]:
    """One of each kind that pages have: squares with a colour bar, bars, and lines with a legend."""
    names, up = [f"{i} token" for i in range(8)], np.arange(8.0)
    of_tokens = {"kind": "", "title": "", "unit": "unit", "stamp": {}}
    figures = [
        drawing.atlas(np.outer(up, up), title="", unit="unit", heads=range(8), layers=range(8)),
        over_tokens(names, {"one": up}, **of_tokens),
        over_tokens(names, {"one": up, "other": -up}, **of_tokens),
    ]
    for fig in figures:
        fig.update_layout(meta=None)  # nobody shall take one for a page's
    return [figure.figure_json(fig, "light") for fig in figures]
