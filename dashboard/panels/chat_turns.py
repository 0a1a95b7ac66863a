"""A chat on the Generate page: system text, the turns so far, and the ids that Llama 3's format makes of them."""

import json
from dataclasses import dataclass

import streamlit as st

from dashboard.layout.page import show_error
from dashboard.session import url_state, url_values
from dashboard.token_text import plain
from workbench.errors import DataError, TokenizerError, WorkbenchError
from workbench.model import Transformer
from workbench.text.chat_format import Message, encode_chat
from workbench.text.tokenizer import Tokenizer

MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
"""The tokens without which there is no chat."""


@dataclass(frozen=True)
class Turn:
    """What one side said."""

    role: str
    content: str


def refusal(tokenizer: Tokenizer | None) -> str | None:
    """Why there can be no chat with this vocabulary, in one sentence; None where there can."""
    if tokenizer is None:
        return "Chat needs a tokenizer, and this checkpoint has none."
    for mark in MARKS:
        try:
            tokenizer.special(mark)
        except TokenizerError:
            return f"Chat needs the special token `{mark}`, which this checkpoint's tokenizer does not have."
    return None


def choose(model: Transformer, said: str) -> tuple[tuple[int, ...], str] | None:
    """Draw the system text and the turns before `said`; ids of the conversation, and the code that makes them.

    None where there is nothing to answer yet, or the conversation cannot be used: the page says which.
    """
    assert model.tokenizer is not None
    system = url_state.url_widget(
        st.text_input, "System message", "", key="system", max_chars=2000, placeholder="none",
        help="Stands before the conversation: how to answer. The prompt below is what the user says.",
    )  # fmt: skip
    try:
        turns = read()
    except DataError as error:
        show_error("The conversation in the address cannot be read.", str(error))
        st.button("New conversation", on_click=end)
        return None
    if turns:
        with st.container(border=True, key="turns", height=min(260, 70 + 52 * len(turns))):
            for turn in turns:
                st.text(f"{turn.role}: {plain(turn.content)}")
        st.button("New conversation", on_click=end, help="Forgets the turns so far.")
    if not said.strip():
        st.info("Type the next message as the prompt." if turns else "Type a message as the prompt.")
        return None
    turns = [*([Turn("system", system)] if system else []), *turns, Turn("user", said)]
    try:
        ids = encode_chat(model.tokenizer, [Message(turn.role, turn.content) for turn in turns])  # type: ignore[arg-type]
    except WorkbenchError as error:
        show_error("This conversation cannot be written in the chat format.", str(error))
        return None
    written = ", ".join(f"wb.Message({turn.role!r}, {turn.content!r})" for turn in turns)
    return tuple(ids), f"wb.encode_chat(model.tokenizer, [{written}])"


def read() -> list[Turn]:
    """The turns in the address.

    Raises: DataError if they are no list of user's and assistant's texts.
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
        raise DataError("It must be a JSON list of ['user', text] and ['assistant', text] in turn. Begin a new one.")
    return turns


def go_on(said: str, answer: str) -> None:
    """Put the message and its answer among the turns, and clear the message. A button's callback."""
    url_state.set_url_param("turns", _with(said, answer))
    st.session_state["prompt"] = ""


def fits(said: str, answer: str) -> bool:
    """Whether another turn still fits the address, in which the message will no longer stand by itself."""
    return url_values.fits_in_url({**st.query_params.to_dict(), "prompt": "", "turns": _with(said, answer)})


def _with(said: str, answer: str) -> str:
    turns = [*read(), Turn("user", said), Turn("assistant", answer)]
    return json.dumps([[turn.role, turn.content] for turn in turns], ensure_ascii=False)


def end() -> None:
    """Forget the turns. A button's callback."""
    url_state.clear_url_param("turns")
