"""plotly's code, read by the browser while a page without figures is looked at, so that the first figure need not wait.

It is 4.7 MB, which Streamlit loads with the first figure: more than a second, in which a switch of pages shows nothing.
"""

from pathlib import Path

import streamlit as st

_CODE = Path(st.__file__).parent / "static" / "static" / "js"
_FILES = [file.name for file in _CODE.glob("PlotlyChart.*.js")]

# Registered once for the process: naming a component anew on each run would replace it under other users.
_component = st.components.v2.component(
    "workbench.ahead", js=Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
)


def read_plotly() -> None:
    """Have the browser read it when it has nothing else to do. Without effect where Streamlit keeps it elsewhere."""
    if len(_FILES) == 1:
        _component(key="ahead", data={"file": _FILES[0]})
