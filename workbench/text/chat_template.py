"""Chat templates of checkpoints: jinja2 text that turns a conversation into a prompt, rendered as transformers does.

It needs a template's text and the texts of the special tokens, no tokenizer.
Source: transformers' documentation of chat templates; tests compare the text with `apply_chat_template`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.errors import ChatError

_REASONING = ("reasoning_content", "thinking", "reasoning")
_OPEN_END = "\ue000open\ue001 "  # put at the end of a message that the reply continues; the space shows trimming
_MAX_MESSAGE = 300
_MAX_DEPTH = 200


def choose_template(templates: Mapping[str, str], *, tools: bool, name: str | None = None) -> str:
    """The text of one of several named templates: `name`, else `tool_use` if there are tools, else `default`,
    else the only one.

    Raises: ChatError if there is none of this name, or no default.
    """
    names = ", ".join(sorted(templates))
    if name is not None:
        if name not in templates:
            raise ChatError(f"this checkpoint has no chat template {name!r}; it has {names or 'none'}.")
        return templates[name]
    if tools and "tool_use" in templates:
        return templates["tool_use"]
    if len(templates) == 1:
        return next(iter(templates.values()))
    if "default" not in templates:
        raise ChatError(f"this checkpoint has several chat templates and no default: {names}.")
    return templates["default"]


def render(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    special_tokens: Mapping[str, str] | None = None,
) -> str:
    """The prompt that a template makes of messages.

    special_tokens: the texts that the template may read, by name: `bos_token`, `eos_token`, ...
    continue_final_message: leave the last message open, so that the reply continues it.
    Raises: ChatError if the template refuses the messages, is not valid, or does too much work.
    """
    if not messages:
        raise ChatError("a conversation needs at least one message.")
    if add_generation_prompt and continue_final_message:
        raise ChatError("a reply either continues the last message or starts a new one; choose one of the two.")
    conversation = [_message(message) for message in messages]
    final = _open_last(conversation, source) if continue_final_message else ""
    variables = {
        **(special_tokens or {}),
        "messages": conversation,
        "tools": _plain(tools),
        "documents": _plain(documents),
        "add_generation_prompt": add_generation_prompt,
    }
    text = _render(source, variables)
    return _cut_open(text, final) if continue_final_message else text


def _render(source: str, variables: Mapping[str, Any]) -> str:
    import jinja2

    from workbench.text.template_bounds import MAX_CHARACTERS, bounded, too_long
    from workbench.text.template_sandbox import compiled

    pieces, length = [], 0
    try:
        template = compiled(source)
        with bounded():
            for piece in template.generate(variables):
                pieces.append(piece)
                length += len(piece)
                if length > MAX_CHARACTERS:
                    raise too_long()
    except ChatError:
        raise
    except jinja2.TemplateSyntaxError as error:
        raise ChatError(f"the chat template is not valid: line {error.lineno}: {_short(error)}") from error
    except jinja2.TemplateError as error:
        raise ChatError(f"the chat template refuses these messages: {_short(error)}") from error
    except RecursionError as error:
        raise ChatError("the chat template, or a value in the messages, is nested too deep.") from error
    except Exception as error:  # a template is a program: it can raise anything
        raise ChatError(
            f"the chat template fails on these messages: {type(error).__name__}: {_short(error)}"
        ) from error
    return "".join(pieces)


def _short(error: Exception) -> str:
    message = " ".join((getattr(error, "message", None) or str(error)).split())
    return message if len(message) <= _MAX_MESSAGE else message[: _MAX_MESSAGE - 2] + " …"


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as the template sees it. Chat APIs write None for what a message does not have; templates test for the
    key. A message's reasoning has three names in use: the template finds the one that it reads."""
    if not isinstance(message, Mapping):
        raise ChatError(f"a message must be a dict with a role and content, found {type(message).__name__}.")
    values: dict[str, Any] = {key: value for key, value in _plain(message).items() if value is not None}
    reasoning = next((values[name] for name in _REASONING if name in values), None)
    if reasoning is not None:
        values = {"thinking": reasoning, **values, "reasoning_content": reasoning}
    return values


def _plain(value: Any) -> Any:
    """A copy of JSON types only: an object's methods would be open to the template."""
    return _copy(value, _MAX_DEPTH)


def _copy(value: Any, depth: int) -> Any:
    if depth == 0:
        raise ChatError(f"a message is nested too deep: at most {_MAX_DEPTH} levels can be written.")
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {_copy(key, depth - 1): _copy(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(item, depth - 1) for item in value]
    raise ChatError(f"a message can hold text, numbers, lists and dicts; found {type(value).__name__}.")


def _open_last(conversation: list[dict[str, Any]], source: str) -> str:
    """Mark the end of the last message's text, and return the text."""
    last, content = conversation[-1], conversation[-1].get("content")
    if content is None or "content" not in source:
        raise ChatError("the last message has no content that the reply could continue.")
    if isinstance(content, str):
        last["content"] = content + _OPEN_END
        return content
    part = next((part for part in reversed(content) if isinstance(part, dict) and "text" in part), None)
    if part is None or not isinstance(part["text"], str):
        raise ChatError("the last message has no text that the reply could continue.")
    text = part["text"]
    part["text"] = text + _OPEN_END
    return str(text)


def _cut_open(text: str, final: str) -> str:
    mark = _OPEN_END.strip()
    if mark not in text or final.strip() not in text:
        raise ChatError("the chat template does not write the last message, so the reply cannot continue it.")
    cut = text.rindex(mark)
    # Without the mark's space the template has trimmed the message.
    return text[:cut] if text.startswith(_OPEN_END, cut) else text[:cut].rstrip()
