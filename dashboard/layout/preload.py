"""Preloading: on a page without figures, the browser loads the code of other pages' elements while it is idle.

The browser otherwise loads the code of an element at its first use, and shows nothing during this time. Code that has
run before also runs faster, so a few small hidden figures are drawn.
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

# Registered once per process: to register it again on each run would replace it while other users have it open.
_component = st.components.v2.component(
    "workbench.ahead", js=Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
)


def mount() -> None:
    """Add the preloading component to the page. It has no effect if Streamlit stores its code in another place."""
    _component(key="ahead", data={"files": [f"../../{figure.CODE}", *_FILES], "figures": _figures()})


@cache
def _figures() -> list[str]:
    """One figure of each kind: heatmap with a colour bar, bars, and lines with a legend."""
    names, up = [f"{i} token" for i in range(8)], np.arange(8.0)
    of_tokens = {"kind": "", "title": "", "unit": "unit", "stamp": {}}
    figures = [
        drawing.atlas(np.outer(up, up), title="", unit="unit", heads=range(8), layers=range(8)),
        over_tokens(names, {"one": up}, **of_tokens),
        over_tokens(names, {"one": up, "other": -up}, **of_tokens),
    ]
    for fig in figures:
        fig.update_layout(meta=None)  # without `meta` they are not counted as figures of the page
    return [figure.figure_json(fig, "light") for fig in figures]
