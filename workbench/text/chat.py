"""Chat of any checkpoint: a conversation to text and token ids, with the checkpoint's own template if it has one.

A checkpoint without a template that has Llama 3's special tokens gets Llama 3's built-in format, `chat_format`. The
text of a special token inside a message stays text: only those that the format itself writes become special tokens.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from workbench.errors import ChatError, WorkbenchWarning
from workbench.text import chat_format, chat_template
from workbench.text.chat_message import Message
from workbench.text.tokenizer import Tokenizer

BUILTIN: Literal["llama3"] = "llama3"
Format = Literal["template", "llama3"]
"""The checkpoint's own template, or the built-in format."""

Conversation = Sequence[Message | Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]

_PRIVATE_USE = range(0xE000, 0xF8FF)


@dataclass(frozen=True)
class ChatPrompt:
    """The text of a conversation; `quoted` are the places in it where the text of a special token is only text."""

    text: str
    quoted: frozenset[int] = frozenset()

    def ids(self, tokenizer: Tokenizer) -> list[int]:
        """The token ids of the prompt."""
        if not self.quoted:
            return tokenizer.encode(self.text, allow_special=True)
        ids: list[int] = []
        for is_quoted, piece in _pieces(self.text, self.quoted, _special_pattern(tuple(tokenizer.special_tokens))):
            if is_quoted:
                ids += _encode_inside(tokenizer, piece, first=not ids)
            else:
                ids += tokenizer.encode(piece, allow_special=True)
        return ids

    def followed_by(self, tokenizer: Tokenizer, text: str) -> ChatPrompt:
        """The prompt with a text after it, in which special tokens are only text too."""
        return ChatPrompt(self.text + text, self.quoted | _places(tokenizer, text, after=len(self.text)))


def format_of(tokenizer: Tokenizer) -> Format:
    """Which format a tokenizer's chats have.

    Raises: ChatError if there is neither.
    """
    if tokenizer.chat_templates:
        return "template"
    if chat_format.can_encode(tokenizer):
        return BUILTIN
    raise ChatError(
        "this checkpoint has no chat template, and its vocabulary does not have Llama 3's chat tokens; "
        "use a checkpoint that was trained on chats, or put its chat_template.jinja into the folder."
    )


def template_source(tokenizer: Tokenizer, *, tools: bool = False, name: str | None = None) -> str | None:
    """The text of the template that a tokenizer's chats are written with; None for the built-in format.

    tools: whether the conversation has tools; some checkpoints have a template of their own for that.
    name: one of several named templates. Raises: ChatError if there is no template, or none of this name.
    """
    if format_of(tokenizer) == BUILTIN:
        if name is not None:
            raise ChatError(f"this checkpoint has no chat template {name!r}: it has none of its own.")
        return None
    return chat_template.choose_template(tokenizer.chat_templates, tools=tools, name=name)


def encode_chat(
    tokenizer: Tokenizer,
    messages: Conversation,
    *,
    tools: Tools | None = None,
    add_generation_prompt: bool = True,
) -> list[int]:
    """Ids of a conversation, as the checkpoint's chat template writes it; a generation prompt starts the reply.

    messages: `Message`s, or dicts in the form of chat APIs.
    tools: JSON schemas of the functions that the model may call; a WorkbenchWarning says if the template ignores them.
    Raises: ChatError if the checkpoint has no chat format, or the messages cannot be written in it.
    """
    if format_of(tokenizer) == BUILTIN:
        _warn_of_tools(tools)
        return chat_format.encode_messages(tokenizer, messages, add_generation_prompt=add_generation_prompt)
    prompt = chat_prompt(tokenizer, messages, tools=tools, add_generation_prompt=add_generation_prompt)
    return prompt.ids(tokenizer)


def render_chat(
    tokenizer: Tokenizer,
    messages: Conversation,
    *,
    tools: Tools | None = None,
    add_generation_prompt: bool = True,
) -> str:
    """The text of a conversation, special tokens by name; see `encode_chat`."""
    return chat_prompt(tokenizer, messages, tools=tools, add_generation_prompt=add_generation_prompt).text


def chat_prompt(
    tokenizer: Tokenizer,
    messages: Conversation,
    *,
    tools: Tools | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    template: str | None = None,
) -> ChatPrompt:
    """The prompt of a conversation; see `encode_chat`.

    continue_final_message: leave the last message open, so that the reply continues it.
    template: the name of one of several templates.
    """
    source = template_source(tokenizer, tools=tools is not None, name=template)
    if source is None:
        _warn_of_tools(tools)
        ids = chat_format.encode_messages(tokenizer, messages, add_generation_prompt=add_generation_prompt)
        return _from_ids(tokenizer, ids[:-1] if continue_final_message else ids)
    render = partial(
        chat_template.render,
        source,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        special_tokens=special_texts(tokenizer),
    )
    dicts = [message.to_dict() if isinstance(message, Message) else message for message in messages]
    text = render(dicts, tools=tools)
    if tools and _ignores_tools(render, dicts, text):
        _warn_of_tools(tools)
    pattern = _special_pattern(tuple(tokenizer.special_tokens))
    mark = _unused_character(source, dicts, tools)
    marked_messages, marked_tools = _marked(dicts, pattern, mark), _marked(tools, pattern, mark)
    if (marked_messages, marked_tools) == (dicts, tools):
        return ChatPrompt(text)
    marked = render(marked_messages, tools=marked_tools)
    if marked.replace(mark, "") != text:
        raise ChatError(
            "the chat template changes a special token's text inside a message, so it cannot be told from the "
            "template's own. Remove that text from the messages."
        )
    places = (match.start() - number for number, match in enumerate(re.finditer(mark, marked)))
    return ChatPrompt(text, frozenset(place - 1 for place in places))


def special_texts(tokenizer: Tokenizer) -> dict[str, str]:
    """The texts of the special tokens that a template may read, by the names that templates use."""
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unk": tokenizer.unk_id, "pad": tokenizer.pad_id}
    return {f"{role}_token": tokenizer.name(token) for role, token in ids.items() if token is not None}


def warn_of_builtin_format(tokenizer: Tokenizer, folder: Path | None) -> None:
    """Warn if the built-in format is used for a folder that is not Meta's own, whose model may not know it."""
    if folder is not None and format_of(tokenizer) == BUILTIN and not (folder / "params.json").is_file():
        text = "this checkpoint has no chat template; Llama 3's format is used, which the model may not know."
        warnings.warn(text, WorkbenchWarning, stacklevel=3)


def _ignores_tools(render: Callable[..., str], dicts: Sequence[Any], text: str) -> bool:
    """Whether a text is the same without tools; a template that cannot do without them uses them."""
    try:
        return text == render(dicts)
    except ChatError:
        return False


def _warn_of_tools(tools: Tools | None) -> None:
    if tools:
        text = "this chat template ignores tools: the model is not told about them. Describe them in a system message."
        warnings.warn(text, WorkbenchWarning, stacklevel=4)


# --- special tokens inside messages


@lru_cache(maxsize=16)
def _special_pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted((name for name in names if name), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _unused_character(*values: Any) -> str:
    """A character that no text of a conversation has, to mark places with."""
    used = set("".join(_texts(values)))
    return next(chr(code) for code in _PRIVATE_USE if chr(code) not in used)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _marked(value: Any, pattern: re.Pattern[str], mark: str) -> Any:
    """The value with a mark after the first character of every special token's text in it."""
    if isinstance(value, str):
        return pattern.sub(lambda match: match[0][0] + mark + match[0][1:], value)
    if isinstance(value, Mapping):
        return {key: _marked(item, pattern, mark) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(item, pattern, mark) for item in value]
    return value


def _places(tokenizer: Tokenizer, text: str, *, after: int = 0) -> frozenset[int]:
    """Where the texts of special tokens start in a text, counted from `after`."""
    pattern = _special_pattern(tuple(tokenizer.special_tokens))
    return frozenset(after + match.start() for match in pattern.finditer(text))


def _pieces(text: str, quoted: frozenset[int], pattern: re.Pattern[str]) -> Iterator[tuple[bool, str]]:
    """The text in pieces: text that holds quoted special tokens and runs to the next special token on both sides, or
    anything else, with its special tokens."""
    parts: list[tuple[bool, str]] = []
    start, has_quoted = 0, False
    for match in [*pattern.finditer(text), None]:
        if match is not None and match.start() in quoted:
            has_quoted = True
            continue
        parts.append((has_quoted, text[start : match.start() if match else len(text)]))
        if match is not None:
            parts.append((False, match[0]))
            start, has_quoted = match.end(), False
    for is_quoted, group in groupby(parts, key=lambda part: part[0]):
        yield is_quoted, "".join(piece for _, piece in group)


def _encode_inside(tokenizer: Tokenizer, text: str, *, first: bool) -> list[int]:
    """Ids of a text without special tokens that stands after one. Some vocabularies add a space at the start of a text
    only: they encode it after a line break, whose ids are then removed."""
    ids = tokenizer.encode(text)
    special = next(iter(tokenizer.special_tokens))
    if first or tokenizer.encode(special + "a", allow_special=True)[1:] == tokenizer.encode("a"):
        return ids
    line, after_line = tokenizer.encode("\n"), tokenizer.encode("\n" + text)
    return after_line[len(line) :] if after_line[: len(line)] == line else ids


def _from_ids(tokenizer: Tokenizer, ids: Sequence[int]) -> ChatPrompt:
    """The prompt of ids that a format wrote, in which every special token is its own."""
    special = set(tokenizer.special_tokens.values())
    text, quoted = "", frozenset[int]()
    for is_special, group in groupby(ids, key=special.__contains__):
        piece = tokenizer.decode(group)
        if not is_special:
            quoted |= _places(tokenizer, piece, after=len(text))
        text += piece
    return ChatPrompt(text, quoted)
