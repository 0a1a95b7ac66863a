"""Makes a plain table one to choose from: a row is open, and a click, or arrow keys and Enter, open another."""

from collections.abc import Callable, Sequence
from pathlib import Path

import streamlit as st

# Registered once for the process: naming a component anew on each run would replace it under other users.
_component = st.components.v2.component(
    "workbench.chooser", js=Path(__file__).with_suffix(".js").read_text(encoding="utf-8"), isolate_styles=False
)


def chooser(card: str, *, rows: Sequence[int], chosen: int, on_choose: Callable[[int], None]) -> None:
    """Of the one table in the card with that key; `on_choose` gets the place of the row that was chosen, from 0 on.

    `rows` names the rows and `chosen` is the place of the open one.
    """
    key = f"{card}_chooser"

    def chose() -> None:
        at = st.session_state[key].get("chosen")
        if isinstance(at, int) and 0 <= at < len(rows):
            on_choose(at)

    _component(key=key, data={"card": card, "rows": list(rows), "chosen": chosen}, on_chosen_change=chose)
