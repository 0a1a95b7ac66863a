"""Overview's list of captures on disk: keep the one of this prompt, open or delete one."""

import pandas as pd
import streamlit as st

from dashboard.layout.page import card, empty, show_error
from dashboard.layout.tables import Column, plain_table, verbatim
from dashboard.panels.prompt_input import Input
from dashboard.session import captures, computed, url_state
from dashboard.session.captures import StoredCapture
from dashboard.token_text import plain, printable
from workbench import model_cost
from workbench.errors import WorkbenchError
from workbench.hooks.capture import Request
from workbench.model import Transformer


def show(model: Transformer, given: Input | None) -> None:
    """The list, which is there where nothing can be run as well: `given` is None."""
    with card("Captures", key="captures", help=f"Kept in {plain(str(captures.folder()))}, also for scripts."):
        if given is not None:
            _offer(model, given)
        refused = st.session_state.pop("_capture_refused", None)
        if refused:
            show_error("The capture was not kept.", refused)
        found = captures.list_captures()
        if not found:
            none_yet(model)
            return
        _table(model, found)
        _actions(found)


def none_yet(model: Transformer) -> None:
    """That no capture is kept, and the command that keeps one of the prompt."""
    if model.tokenizer is None:
        empty("No capture is kept yet. Overview keeps one of its prompt.")
        return
    prompt = st.session_state.get("prompt") or "PROMPT"  # a sample has no box of its own
    empty("No capture is kept yet. Overview keeps one of its prompt, and so does a terminal:")
    verbatim(captures.capture_command(computed.model_path(), prompt))


def _offer(model: Transformer, given: Input) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom", key="save_capture_row"):
        st.text_input(
            "Name", key="capture_name", max_chars=81, placeholder="peru and spain",
            help="Keeps what all pages ask of this prompt, so that nothing is run again.",
        )  # fmt: skip
        st.button("Save this prompt's capture", key="save_capture", on_click=_save, args=(model, given))
        request = Request.of(model.config, captures.HOOKS)
        needed = sum(request.n_bytes(model.config, 1, len(given), 0, model.dtype.itemsize).values())
        st.text(f"takes {model_cost.readable_bytes(needed)}")


def _table(model: Transformer, found: list[StoredCapture]) -> None:
    own = computed.fingerprint(model)
    table = pd.DataFrame(
        {
            "name": printable(one.name for one in found),
            "model": printable(f"{one.model}{'' if one.checkpoint in (None, own) else ' (another)'}" for one in found),
            "tokens": [one.tokens for one in found],
            "hooks": [one.hooks for one in found],
            "size": [model_cost.readable_bytes(one.bytes) for one in found],
            "when": [one.modified for one in found],
            "state": [plain(f"damaged: {one.problem}") if one.problem else "" for one in found],
        }
    )
    if not table["state"].any():
        del table["state"]
    plain_table(
        table,
        max_height=250,
        columns={
            "name": "Name", "model": "Model", "tokens": "Tokens", "hooks": "Hook points", "size": "File",
            "when": Column("Saved", "%Y-%m-%d %H:%M"), "state": "State",
        },
    )  # fmt: skip


def _actions(found: list[StoredCapture]) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom", key="capture_actions"):
        name = st.selectbox("Capture", [one.name for one in found], key="capture_choice", width=320, format_func=plain)
        st.button("Open it", key="open_capture", on_click=_open, args=(name,))
        with st.popover("Delete …"):
            st.text(plain(f"Delete {name} for good?"))
            st.button("Delete it", key="delete_capture", on_click=_delete, args=(name,))


def _save(model: Transformer, given: Input) -> None:
    try:
        name = st.session_state["capture_name"].strip()
        captures.path_of(name)  # before the model runs for nothing
        held = computed.capture(model, given.ids, captures.HOOKS, given.changes)
        captures.save(held.capture, name, checkpoint=computed.fingerprint(model))
    except WorkbenchError as error:
        st.session_state["_capture_refused"] = str(error)
        return
    st.session_state["capture_name"] = ""


def _open(name: str) -> None:
    url_state.clear_url_param("sample")
    url_state.set_url_param("capture", name)


def _delete(name: str) -> None:
    try:
        captures.delete(name)
    except WorkbenchError as error:
        st.session_state["_capture_refused"] = str(error)
    if st.session_state.get("_last_capture") == name:
        url_state.clear_url_param("capture")
