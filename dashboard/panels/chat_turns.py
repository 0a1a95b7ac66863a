"""Chat on the Generate page: system message, the turns so far, and their token ids by the checkpoint's template."""

import json
from dataclasses import dataclass

import streamlit as st

from dashboard.layout.page import show_error
from dashboard.session import url_state, url_values
from dashboard.token_text import plain
from workbench.errors import ChatError, DataError, WorkbenchError
from workbench.model import Transformer
from workbench.text.chat import encode_chat, format_of, template_source
from workbench.text.chat_message import Message
from workbench.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Turn:
    """One message of the conversation."""

    role: str
    content: str


def refusal(tokenizer: Tokenizer | None) -> str | None:
    """Why this tokenizer cannot encode a chat, in one sentence; None if it can."""
    if tokenizer is None:
        return "Chat needs a tokenizer, and this checkpoint has none."
    try:
        format_of(tokenizer)
    except ChatError as error:
        return f"Chat is not available: {error}"
    return None


def _show_template(tokenizer: Tokenizer) -> None:
    """Draw which chat template is in use."""
    try:
        source = template_source(tokenizer)
    except ChatError as error:
        st.caption(f"Chat template: {error}")
        return
    if source is None:
        st.caption("Chat template: none in this checkpoint; Llama 3's built-in format is used.")
        return
    with st.container(horizontal=True, vertical_alignment="center", key="chat_template"):
        st.caption("Chat template: the checkpoint's own.")
        with st.popover("Show", help="The template's text"):
            st.code(plain(source), language="jinja2", wrap_lines=True)


def choose(model: Transformer, message: str) -> tuple[tuple[int, ...], str] | None:
    """Draw the system message and the turns before `message`; return the ids and the code that makes them.

    None if there is no message yet, or the conversation cannot be encoded; the page says which.
    """
    assert model.tokenizer is not None
    _show_template(model.tokenizer)
    system = url_state.url_widget(
        st.text_input, "System message", "", key="system", max_chars=2000, placeholder="none",
        help="Instructions at the start of the conversation. The prompt below is the user's message.",
    )  # fmt: skip
    try:
        turns = read()
    except DataError as error:
        show_error("The conversation in the URL cannot be read.", str(error))
        st.button("New conversation", on_click=clear)
        return None
    if turns:
        with st.container(border=True, key="turns", height=min(260, 70 + 52 * len(turns))):
            for turn in turns:
                st.text(f"{turn.role}: {plain(turn.content)}")
        st.button("New conversation", on_click=clear, help="Removes the turns so far.")
    if not message.strip():
        st.info("Type the next message as the prompt." if turns else "Type a message as the prompt.")
        return None
    turns = [*([Turn("system", system)] if system else []), *turns, Turn("user", message)]
    try:
        ids = encode_chat(model.tokenizer, [Message(turn.role, turn.content) for turn in turns])  # type: ignore[arg-type]
    except WorkbenchError as error:
        show_error("This conversation cannot be written with this chat template.", str(error))
        return None
    written = ", ".join(f"wb.Message({turn.role!r}, {turn.content!r})" for turn in turns)
    return tuple(ids), f"wb.encode_chat(model.tokenizer, [{written}])"


def read() -> list[Turn]:
    """The turns in the URL.

    Raises: DataError if they are not a list of user and assistant messages.
    """
    text = url_state.url_param("turns")
    if text is None:
        return []
    try:
        turns = [Turn(role, content) for role, content in json.loads(text)]
    except (ValueError, TypeError, RecursionError):
        turns = []
    roles = [turn.role for turn in turns]
    texts = all(isinstance(turn.content, str) for turn in turns)
    if not turns or not texts or roles != ["user", "assistant"] * (len(turns) // 2):
        raise DataError(
            "It must be a JSON list of alternating ['user', text] and ['assistant', text]. Start a new conversation."
        )
    return turns


def continue_chat(message: str, answer: str) -> None:
    """Add the message and its answer to the turns, and clear the message. A button's callback."""
    url_state.set_url_param("turns", _with(message, answer))
    st.session_state["prompt"] = ""


def fits(message: str, answer: str) -> bool:
    """Whether the URL still has room for another turn; the message is then no longer in `prompt`."""
    return url_values.fits_in_url({**st.query_params.to_dict(), "prompt": "", "turns": _with(message, answer)})


def _with(message: str, answer: str) -> str:
    turns = [*read(), Turn("user", message), Turn("assistant", answer)]
    return json.dumps([[turn.role, turn.content] for turn in turns], ensure_ascii=False)


def clear() -> None:
    """Remove the turns. A button's callback."""
    url_state.clear_url_param("turns")
