"""A table with one open row: a click, or arrow keys and Enter, opens another. Long tables are split into pages."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import streamlit as st

from dashboard.layout.page import show_error
from dashboard.layout.tables import Column, plain_table
from dashboard.session import url_values

PAGE_SIZE = 50
"""Rows per page: a browser lays out all rows before it shows the first one."""

FROM = "from"
"""URL parameter: a row on the page that is shown, counted from 1."""

_HTML = """
<div class="turning">
  <button type="button" aria-label="Previous rows">‹</button>
  <span role="status"></span>
  <button type="button" aria-label="Next rows">›</button>
</div>
"""

# Registered once per process: to register it again on each run would replace it while other users have it open.
_component = st.components.v2.component(
    "workbench.chooser",
    html=_HTML,
    js=Path(__file__).with_suffix(".js").read_text(encoding="utf-8"),
    isolate_styles=False,
)


def row_picker(
    frame: pd.DataFrame,
    columns: Mapping[str, Column | str],
    *,
    card: str,
    rows: Sequence[int],
    chosen: int,
    on_choose: Callable[[int], None],
    max_height: int,
) -> None:
    """Draw a frame like `plain_table`; the card with this key must not contain another table.

    rows: identifies the frame's rows, so that a new list is recognised. chosen: index of the open row, counted from 0.
    on_choose: called with the index of the row that was chosen.
    """
    key, total, first = f"{card}_chooser", len(frame), _first_row(list(rows), chosen, card)
    count = min(PAGE_SIZE, total - first)

    def chose() -> None:
        at = st.session_state[key].get("chosen")
        if isinstance(at, int) and 0 <= at < count:
            on_choose(first + at)

    def turned() -> None:
        to = st.session_state[key].get("turned")
        if isinstance(to, int) and 0 <= to < total:
            st.query_params[FROM] = str(to + 1)

    plain_table(frame[first : first + PAGE_SIZE], columns, max_height=max_height, sortable=False)
    _component(
        key=key,
        data={
            "card": card,
            "chosen": chosen - first if first <= chosen < first + count else -1,
            "first": first,
            "count": count,
            "total": total,
            "page": PAGE_SIZE,
        },
        on_chosen_change=chose,
        on_turned_change=turned,
    )


def _first_row(rows: list[int], chosen: int, card: str) -> int:
    """Index of the first row shown: on the page in the URL, unless the list or the open row has changed since; else on
    the page of the open row."""
    session, parameters, memory = st.session_state, st.query_params, f"_listed_{card}"
    if session.get(memory) != (rows, chosen) and not session["_arrived"]:
        parameters.pop(FROM, None)
    session[memory] = rows, chosen
    turned = parameters.get(FROM)
    if turned is not None:
        at = url_values.parse_count(turned) or 0
        if 0 < at <= len(rows):
            return (at - 1) // PAGE_SIZE * PAGE_SIZE
        show_error("The row in the URL is not in the list.", f"{FROM}={turned}: the list has {len(rows)} rows.")
    return chosen // PAGE_SIZE * PAGE_SIZE
