"""Overview's list of models: select another, add a folder, or unload one."""

from pathlib import Path

import streamlit as st

from dashboard.layout.page import card, show_error
from dashboard.session import computed, models, url_state
from dashboard.session.models import ServedModel
from dashboard.token_text import plain
from workbench import model_cost
from workbench.errors import WorkbenchError


def show() -> None:
    with card(
        "Models", key="models", help="Each is loaded when it is first selected, and stays in memory for all users."
    ):
        loaded_bytes, chosen = models.pool().loaded_bytes(), computed.selected_model()
        for known in models.served():
            _row(known, loaded_bytes.get(known.path), chosen == known)
        with st.container(horizontal=True, vertical_alignment="bottom", key="add_model_row"):
            text = st.text_input(
                "Checkpoint folder", key="add_model", max_chars=1000, placeholder="/checkpoints/Llama-3.2-1B",
                help="On this server: a folder with Meta's or Hugging Face's files, or a GGUF file.",
            )  # fmt: skip
            st.button("Add", key="add_model_button", on_click=_add, disabled=not text.strip())
        refused = st.session_state.pop("_model_refused", None)
        if refused:
            show_error("This folder cannot be added.", refused)
        elif text.strip():
            _estimate(text)


def _row(known: ServedModel, n_bytes: int | None, chosen: bool) -> None:
    with st.container(horizontal=True, vertical_alignment="center", key=f"model_{known.id}"):
        where = "" if known.path == "demo" else f", in {Path(known.path).parent}"
        memory = "not loaded" if n_bytes is None else f"{model_cost.readable_bytes(n_bytes)} of weights in memory"
        st.text(plain(f"{known.id}{where}: {memory}" + (", selected" if chosen else "")))
        if not chosen:
            st.button("Select", key=f"look_{known.id}", on_click=url_state.preset_widget, args=("model", known.id))
        if n_bytes is not None:
            st.button(
                "Unload", key=f"unload_{known.id}", on_click=computed.unload, args=(known,), disabled=chosen,
                help="Select another model first." if chosen else "It is reloaded the next time someone opens it.",
            )  # fmt: skip


def _add() -> None:
    try:
        known = models.add(st.session_state["add_model"])
    except WorkbenchError as error:
        st.session_state["_model_refused"] = str(error)
        return
    st.session_state["add_model"] = ""
    url_state.preset_widget("model", known.id)


def _estimate(text: str) -> None:
    try:
        path, needed = models.inspect_checkpoint(text)
    except WorkbenchError as error:
        show_error("This folder cannot be added.", str(error))
        return
    count, layers = model_cost.readable_count(needed.config.n_params), needed.config.n_layers
    st.text(plain(f"{path}: {count} parameters in {layers} layers. It needs {needed}."))
    if needed.weights > needed.free:
        st.warning("Its weights need more memory than is free. Unload a model, or use a larger machine.")
