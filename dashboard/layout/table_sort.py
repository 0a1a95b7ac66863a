"""Sorting of the plain tables by their headers, in the browser: nothing is computed or sent again."""

from pathlib import Path

import streamlit as st

# Registered once per process: to register it again on each run would replace it while other users have it open.
_component = st.components.v2.component(
    "workbench.table_sort", js=Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
)


def mount() -> None:
    """Add the component to a page. It acts once per browser tab, on every table of `tables.plain_table`."""
    _component(key="table_sort")
