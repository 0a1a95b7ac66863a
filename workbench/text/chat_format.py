"""Llama 3's chat format: messages to token ids, and an assistant's ids back to a message, including tool calls.

It knows nothing of models or sampling. A message is encoded as it is: nothing is trimmed and no system text is added
(Hugging Face's template for 3.1 does both), and the text of a special token in a message stays text.
Source: Meta's published prompt formats for Llama 3, 3.1, 3.2 and 3.3.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from workbench.errors import ChatError
from workbench.text.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant", "ipython", "tool"]
StopReason = Literal["end_of_turn", "end_of_message", "out_of_tokens"]

CODE_INTERPRETER = "code_interpreter"
BUILTIN_TOOLS = frozenset({"brave_search", "wolfram_alpha", CODE_INTERPRETER})


@dataclass(frozen=True)
class ToolCall:
    """A function call by the assistant; the argument of `code_interpreter` is its `code`."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Message:
    """One message of a conversation; a tool's result has the role "ipython" or its synonym "tool".

    A call of a built-in tool is written after `<|python_tag|>` and ends with `<|eom_id|>`; any other call is JSON and
    ends with `<|eot_id|>`. `python_tag` and `stop_reason` override this if set; `decode_message` sets them to what it
    found.
    """

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    stop_reason: StopReason | None = None
    python_tag: bool | None = None

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise ChatError(f"unknown role {self.role!r}; Llama 3 has {', '.join(get_args(Role))}.")
        if not isinstance(self.content, str):
            raise ChatError(f"a message's content must be text, found {type(self.content).__name__}.")
        object.__setattr__(self, "tool_calls", tuple(self.tool_calls))
        if self.tool_calls and self.role != "assistant":
            raise ChatError(f"only the assistant can call tools, not {self.role!r}.")
        if self.tool_calls and self.content and not self._tagged:
            raise ChatError("a tool call in JSON must be the whole message; for text before it, set python_tag=True.")
        if len(self.tool_calls) > 1 and any(call.name in BUILTIN_TOOLS for call in self.tool_calls):
            raise ChatError("a message with a built-in tool call must have no other call; send one message per call.")

    @classmethod
    def from_dict(cls, message: Mapping[str, Any]) -> Message:
        """A message in the form of chat APIs: role, content, tool_calls with a function's name and arguments.

        Raises: ChatError for a missing or unknown role, or arguments that are not JSON.
        """
        if not isinstance(message, Mapping) or "role" not in message:
            raise ChatError(f"a message needs a role and content, found {message!r}.")
        calls = []
        for entry in message.get("tool_calls") or ():
            try:
                function = entry.get("function", entry)
                arguments = function["arguments"]
                arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
                calls.append(ToolCall(str(function["name"]), dict(arguments)))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ChatError(f"a tool call needs a name and arguments, found {entry!r}.") from error
        content = message.get("content")
        return cls(message["role"], "" if content is None else content, tuple(calls))

    @property
    def _tagged(self) -> bool:
        if self.python_tag is None:
            return any(call.name in BUILTIN_TOOLS for call in self.tool_calls)
        return self.python_tag


def encode_chat(
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
    ids = [tokenizer.special("<|begin_of_text|>")]
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
    if message._tagged:
        ids.append(tokenizer.special("<|python_tag|>"))
    ids += tokenizer.encode(_write_calls(message.tool_calls))
    reason = message.stop_reason
    if reason is None:
        builtin = any(call.name in BUILTIN_TOOLS for call in message.tool_calls)
        reason = "end_of_message" if builtin else "end_of_turn"
    ends = {"end_of_turn": ["<|eot_id|>"], "end_of_message": ["<|eom_id|>"], "out_of_tokens": []}
    return ids + [tokenizer.special(name) for name in ends[reason]]


def decode_message(tokenizer: Tokenizer, ids: Sequence[int]) -> Message:
    """The message in ids that a model generated: content, tool calls, and why it stopped.

    A header at the start is optional and gives the role (default: assistant). Decoding ends at the first stop token;
    `stop_reason` is "out_of_tokens" if there is none. A body that looks like a tool call but cannot be parsed stays
    content.
    """
    ids = list(ids)
    role, ids = _take_header(tokenizer, ids)
    reasons: dict[int, StopReason] = {
        tokenizer.special("<|end_of_text|>"): "end_of_turn",
        tokenizer.special("<|eot_id|>"): "end_of_turn",
        tokenizer.special("<|eom_id|>"): "end_of_message",
    }
    end = next((i for i, token in enumerate(ids) if token in reasons), None)
    stop_reason: StopReason = "out_of_tokens" if end is None else reasons[ids[end]]
    body = ids[:end]
    if role != "assistant":
        return Message(role, tokenizer.decode(body), stop_reason=stop_reason)
    tag = tokenizer.special("<|python_tag|>")
    if tag in body:
        tag_index = body.index(tag)
        call = _read_tagged(tokenizer.decode(body[tag_index + 1 :]))
        return Message(role, tokenizer.decode(body[:tag_index]), (call,), stop_reason, python_tag=True)
    content = tokenizer.decode(body)
    calls = _read_json(content) or _read_list(content)
    return Message(role, "" if calls else content, calls, stop_reason, python_tag=False)


def _take_header(tokenizer: Tokenizer, ids: list[int]) -> tuple[Role, list[int]]:
    if not ids or ids[0] != tokenizer.special("<|start_header_id|>"):
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


def _write_calls(calls: Sequence[ToolCall]) -> str:
    if not calls:
        return ""
    if len(calls) > 1:  # the format of several calls in Llama 3.2 and 3.3
        return "[" + ", ".join(_write_keywords(call) for call in calls) + "]"
    name, arguments = calls[0].name, calls[0].arguments
    if name == CODE_INTERPRETER:
        if set(arguments) != {"code"} or not isinstance(arguments["code"], str):
            raise ChatError(f"{CODE_INTERPRETER} takes one argument, code; found {sorted(arguments)}.")
        return str(arguments["code"])
    if name in BUILTIN_TOOLS:
        return f"{name}.call(" + ", ".join(f'{key}="{value}"' for key, value in arguments.items()) + ")"
    try:
        call = {"name": name, "parameters": dict(arguments)}
        return json.dumps(call, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ChatError(f"the arguments of {name!r} cannot be written as JSON ({error}).") from error


def _write_keywords(call: ToolCall) -> str:
    if not call.name.isidentifier() or not all(key.isidentifier() for key in call.arguments):
        raise ChatError(f"several calls in one message need names that are Python identifiers, found {call.name!r}.")
    return f"{call.name}(" + ", ".join(f"{key}={value!r}" for key, value in call.arguments.items()) + ")"


def _read_tagged(body: str) -> ToolCall:
    """Parse the text after <|python_tag|>: a built-in's `name.call(key="value")`, a call in JSON, or code."""
    match = re.fullmatch(r'\s*(\w+)\.call\((\w+=".*")\)\s*', body, re.DOTALL)
    if match:
        # Values are not escaped in this format, so a value ends only at a quote before another key.
        pairs = (pair.split('="', 1) for pair in re.split(r'", (?=\w+=")', match[2][:-1]))
        return ToolCall(match[1], dict(pairs))
    calls = _read_json(body)
    return calls[0] if calls else ToolCall(CODE_INTERPRETER, {"code": body})


def _read_json(body: str) -> tuple[ToolCall, ...]:
    if not body.strip().startswith("{"):
        return ()
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        return ()
    name, arguments = call.get("name"), call.get("parameters", call.get("arguments"))
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return ()
    return (ToolCall(name, arguments),)


def _read_list(body: str) -> tuple[ToolCall, ...]:
    """Parse calls in Python syntax, `[f(a=1), g(b='x')]`, as in Llama 3.2 and 3.3; literals only."""
    text = body.strip()
    if not (text.startswith("[") and text.endswith(")]")):
        return ()
    try:
        with warnings.catch_warnings(action="ignore"):  # no warning for an invalid escape in a model's text
            expression = ast.parse(text, mode="eval").body
        calls = []
        for call in expression.elts if isinstance(expression, ast.List) else ():
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
                return ()
            if any(keyword.arg is None for keyword in call.keywords):
                return ()
            calls.append(ToolCall(call.func.id, {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}))
        return tuple(calls)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return ()
