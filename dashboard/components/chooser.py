"""Makes a plain table one to choose from: a row is open, and a click, or arrow keys and Enter, open another; of a long
list it is one page, and buttons turn to the others."""

from collections.abc import Callable
from pathlib import Path

import streamlit as st

PAGE = 50
"""Rows of a list that are shown at once: a browser lays all of them out before it shows one."""

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


def chooser(
    card: str, *, total: int, first: int, chosen: int, on_choose: Callable[[int], None], on_turn: Callable[[int], None]
) -> None:
    """Of the one table in the card with that key, which shows up to `PAGE` rows of a list from place `first` on.

    chosen: the open row's place in the list, wherever that is. `on_choose` gets the place of the row that was chosen,
    `on_turn` that of the first row to be shown. Places count from 0 on.
    """
    key, count = f"{card}_chooser", min(PAGE, total - first)

    def chose() -> None:
        at = st.session_state[key].get("chosen")
        if isinstance(at, int) and 0 <= at < count:
            on_choose(first + at)

    def turned() -> None:
        to = st.session_state[key].get("turned")
        if isinstance(to, int) and 0 <= to < total:
            on_turn(to)

    _component(
        key=key,
        data={
            "card": card,
            "chosen": chosen - first if first <= chosen < first + count else -1,
            "first": first,
            "count": count,
            "total": total,
            "page": PAGE,
        },
        on_chosen_change=chose,
        on_turned_change=turned,
    )
