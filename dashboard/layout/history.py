"""One history entry for each page, with the view that the page had: Back and Forward restore it.

Streamlit empties the query of a page's entry before it opens the next page, and adds an entry whenever the server sets
a parameter. So Back would show an emptied page first, and the defaults in place of the view.
"""

from pathlib import Path

import streamlit as st

# Registered once per process: to register it again on each run would replace it while other users have it open.
_component = st.components.v2.component(
    "workbench.history", js=Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
)


def mount() -> None:
    """Add the component to a page. It acts once per browser tab."""
    _component(key="history")
