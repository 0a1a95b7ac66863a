"""A plain table to choose from: a row is open, and a click, or arrow keys and Enter, open another; of a long list it is
one page, and buttons turn to the others."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import streamlit as st

from dashboard.layout.page import show_error
from dashboard.layout.tables import Column, plain_table
from dashboard.session import url_values

PAGE_SIZE = 50
"""Rows of a list that are shown at once: a browser lays all of them out before it shows one."""

FROM = "from"
"""In an address: a row of the page that was turned to, counted from 1."""

_HTML = """
<div class="turning">
  <button type="button" aria-label="Previous rows">‹</button>
  <span role="status"></span>
  <button type="button" aria-label="Next rows">›</button>
</div>
"""

# Registered once for the process: naming a component anew on each run would replace it under other users.
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
    """Draw it as `plain_table` does, the only table of the card with that key.

    `rows` tells the frame's rows apart, and a list from another. `chosen` is the place of the open row, counted from 0
    on; `on_choose` gets that of the row that was chosen.
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

    plain_table(frame[first : first + PAGE_SIZE], columns, max_height=max_height)
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
    """The place of the first row shown: of the page that was turned to, until the list or its open row is another;
    else of the open row's."""
    session, parameters, memory = st.session_state, st.query_params, f"_listed_{card}"
    if session.get(memory) != (rows, chosen) and not session["_arrived"]:
        parameters.pop(FROM, None)
    session[memory] = rows, chosen
    turned = parameters.get(FROM)
    if turned is not None:
        at = url_values.parse_count(turned) or 0
        if 0 < at <= len(rows):
            return (at - 1) // PAGE_SIZE * PAGE_SIZE
        show_error("The row that this address names is not in the list.", f"{FROM}={turned}: it has {len(rows)} rows.")
    return chosen // PAGE_SIZE * PAGE_SIZE
