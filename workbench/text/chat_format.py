"""Llama 3's own chat format: messages to token ids, and a reply's ids back to a message, including tool calls.

It is for Meta's folders, which have no chat template; `chat` chooses. A message is encoded as it is: nothing is
trimmed and no system text is added (Hugging Face's template for 3.1 does both), and the text of a special token in a
message stays text. Replies are read in any checkpoint's format.
Source: Meta's published prompt formats for Llama 3, 3.1, 3.2 and 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast, get_args

from workbench.errors import ChatError, TokenizerError
from workbench.text.chat_message import Message, Role, StopReason, ToolCall, default_form
from workbench.text.tokenizer import Tokenizer
from workbench.text.tool_calls import read_calls, read_tagged, write_calls

__all__ = ["Message", "ToolCall", "can_encode", "decode_message", "encode_header", "encode_message", "encode_messages"]

_MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def can_encode(tokenizer: Tokenizer) -> bool:
    """Whether a vocabulary has the special tokens of this format."""
    return all(special_id(tokenizer, mark) is not None for mark in _MARKS)


def encode_messages(
    tokenizer: Tokenizer,
    messages: Sequence[Message | Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
) -> list[int]:
    """Ids of a conversation, starting with begin-of-text; a generation prompt adds the assistant's header at the end.

    Raises: ChatError if there are no messages, or one cannot be written in this format.
    """
    if not messages:
        raise ChatError("a conversation needs at least one message.")
    ids = [tokenizer.special("<|begin_of_text|>") if tokenizer.bos_id is None else tokenizer.bos_id]
    for message in messages:
        ids += encode_message(tokenizer, message if isinstance(message, Message) else Message.from_dict(message))
    return ids + (encode_header(tokenizer, "assistant") if add_generation_prompt else [])


def encode_header(tokenizer: Tokenizer, role: Role) -> list[int]:
    """Ids of a message's header and the blank line after it."""
    start, end = tokenizer.special("<|start_header_id|>"), tokenizer.special("<|end_header_id|>")
    role_name = "ipython" if role == "tool" else role
    return [start, *tokenizer.encode(role_name), end, *tokenizer.encode("\n\n")]


def encode_message(tokenizer: Tokenizer, message: Message) -> list[int]:
    """Ids of one message from its header to its end token; a message that ran out of tokens has no end token."""
    ids = encode_header(tokenizer, message.role) + tokenizer.encode(message.content)
    if message.tagged:
        ids.append(tokenizer.special("<|python_tag|>"))
    ids += tokenizer.encode(write_calls(message.tool_calls, message.call_form))
    reason = message.stop_reason
    if reason is None:
        form = message.call_form or default_form(message.tool_calls)
        reason = "end_of_message" if form == "builtin" else "end_of_turn"
    ends = {"end_of_turn": ["<|eot_id|>"], "end_of_message": ["<|eom_id|>"], "out_of_tokens": []}
    return ids + [tokenizer.special(name) for name in ends[reason]]


def decode_message(tokenizer: Tokenizer, ids: Sequence[int]) -> Message:
    """The message in ids that a model generated: content, tool calls, and why it stopped.

    A header of Llama 3 at the start is optional and gives the role (default: assistant). Decoding ends at the first
    stop token; `stop_reason` is "out_of_tokens" if there is none. A body that looks like a tool call but cannot be
    parsed stays content.
    """
    ids = list(ids)
    role, ids = _take_header(tokenizer, ids)
    end_of_message = special_id(tokenizer, "<|eom_id|>")
    end = next((i for i, token in enumerate(ids) if token in tokenizer.stop_ids), None)
    reason: StopReason = "out_of_tokens"
    if end is not None:
        reason = "end_of_message" if ids[end] == end_of_message else "end_of_turn"
    body = ids[:end]
    if role != "assistant":
        return Message(role, tokenizer.decode(body), stop_reason=reason)
    tag = special_id(tokenizer, "<|python_tag|>")
    if tag is not None and tag in body:
        place = body.index(tag)
        calls, form = read_tagged(tokenizer.decode(body[place + 1 :]))
        message = Message(role, tokenizer.decode(body[:place]), calls, reason, python_tag=True, call_form=form)
    else:
        text = tokenizer.decode(body)
        found = read_calls(text)
        if found is None:
            return Message(role, text, (), reason, python_tag=False)
        content, calls, form = found
        message = Message(role, content, calls, reason, python_tag=False, call_form=form)
    return replace(message, call_form=None) if form == default_form(calls) else message


def special_id(tokenizer: Tokenizer, name: str) -> int | None:
    """The id of a special token; None if the vocabulary has none of this name."""
    try:
        return tokenizer.special(name)
    except TokenizerError:
        return None


def _take_header(tokenizer: Tokenizer, ids: list[int]) -> tuple[Role, list[int]]:
    if not ids or ids[0] != special_id(tokenizer, "<|start_header_id|>"):
        return "assistant", ids
    end = tokenizer.special("<|end_header_id|>")
    if end not in ids:
        raise ChatError("the header of this message has no end (<|end_header_id|>).")
    stop = ids.index(end)
    role = tokenizer.decode(ids[1:stop])
    if role not in get_args(Role):
        raise ChatError(f"unknown role {role!r} in a message's header.")
    blank = tokenizer.encode("\n\n")
    rest = ids[stop + 1 :]
    return cast(Role, role), rest[len(blank) :] if rest[: len(blank)] == blank else rest
