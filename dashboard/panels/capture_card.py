"""Overview's list of saved captures: save the capture of this prompt, open or delete one."""

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
from workbench.hooks.capture_request import Request
from workbench.model import Transformer


def show(model: Transformer, prompt: Input | None) -> None:
    """Draw the list; `prompt` is None if there is nothing to run."""
    with card("Captures", key="captures", help=f"Saved in {plain(str(captures.folder()))}; scripts can load them too."):
        if prompt is not None:
            _offer(model, prompt)
        refused = st.session_state.pop("_capture_refused", None)
        if refused:
            show_error("The capture was not saved or deleted.", refused)
        stored = captures.list_captures()
        if not stored:
            none_yet(model)
            return
        _table(model, stored)
        _actions(stored)


def none_yet(model: Transformer) -> None:
    """Say that there is no saved capture, with the command that saves one."""
    if model.tokenizer is None:
        empty("No capture is saved yet. Save one on the Overview page.")
        return
    prompt = st.session_state.get("prompt") or "PROMPT"  # a sample has no prompt box
    empty("No capture is saved yet. Save one on the Overview page, or in a terminal:")
    verbatim(captures.capture_command(computed.model_path(), prompt))


def _offer(model: Transformer, prompt: Input) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom", key="save_capture_row"):
        st.text_input(
            "Name", key="capture_name", max_chars=81, placeholder="peru and spain",
            help="Saves what all pages need of this prompt, so that the model is not run again.",
        )  # fmt: skip
        st.button("Save this prompt's capture", key="save_capture", on_click=_save, args=(model, prompt))
        request = Request.of(model.config, captures.HOOKS)
        needed = sum(request.n_bytes(model.config, 1, len(prompt), 0, model.dtype.itemsize).values())
        st.text(f"takes {model_cost.readable_bytes(needed)}")


def _table(model: Transformer, stored: list[StoredCapture]) -> None:
    own = computed.fingerprint(model)
    table = pd.DataFrame(
        {
            "name": printable(item.name for item in stored),
            "model": printable(
                f"{item.model}{'' if item.checkpoint in (None, own) else ' (other checkpoint)'}" for item in stored
            ),
            "tokens": [item.tokens for item in stored],
            "hooks": [item.hooks for item in stored],
            "size": [model_cost.readable_bytes(item.bytes) for item in stored],
            "when": [item.modified for item in stored],
            "state": [plain(f"damaged: {item.problem}") if item.problem else "" for item in stored],
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


def _actions(stored: list[StoredCapture]) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom", key="capture_actions"):
        name = st.selectbox(
            "Capture", [item.name for item in stored], key="capture_choice", width=320, format_func=plain
        )
        st.button("Open it", key="open_capture", on_click=_open, args=(name,))
        with st.popover("Delete …"):
            st.text(plain(f"Delete {name} permanently?"))
            st.button("Delete it", key="delete_capture", on_click=_delete, args=(name,))


def _save(model: Transformer, prompt: Input) -> None:
    try:
        name = st.session_state["capture_name"].strip()
        captures.path_of(name)  # fails before the model is run
        ref = computed.capture(model, prompt.ids, captures.HOOKS, prompt.changes)
        captures.save(ref.capture, name, checkpoint=computed.fingerprint(model))
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
