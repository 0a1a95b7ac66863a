"""Messages of a conversation, with tool calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from workbench.errors import ChatError

Role = Literal["system", "user", "assistant", "ipython", "tool"]
StopReason = Literal["end_of_turn", "end_of_message", "out_of_tokens"]
CallForm = Literal["builtin", "json", "json_list", "list", "function", "tool_call"]
"""How tool calls are written: see `tool_calls`."""

CODE_INTERPRETER = "code_interpreter"
BUILTIN_TOOLS = frozenset({"brave_search", "wolfram_alpha", CODE_INTERPRETER})


@dataclass(frozen=True)
class ToolCall:
    """A function call by the assistant; the argument of `code_interpreter` is its `code`."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def default_form(calls: Sequence[ToolCall]) -> CallForm:
    """The form of calls in Llama 3's format, if a message does not say."""
    if any(call.name in BUILTIN_TOOLS for call in calls):
        return "builtin"
    return "list" if len(calls) > 1 else "json"


@dataclass(frozen=True)
class Message:
    """One message of a conversation; a tool's result has the role "ipython" or its synonym "tool".

    In Llama 3's own format, a call of a built-in tool is written after `<|python_tag|>` and ends with `<|eom_id|>`; any
    other call is JSON and ends with `<|eot_id|>`. `python_tag`, `call_form` and `stop_reason` override this if set;
    `decode_message` sets them to what it found. A checkpoint's own template decides for itself.
    """

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    stop_reason: StopReason | None = None
    python_tag: bool | None = None
    call_form: CallForm | None = None

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise ChatError(f"unknown role {self.role!r}; Llama 3 has {', '.join(get_args(Role))}.")
        if not isinstance(self.content, str):
            raise ChatError(f"a message's content must be text, found {type(self.content).__name__}.")
        object.__setattr__(self, "tool_calls", tuple(self.tool_calls))
        if self.tool_calls and self.role != "assistant":
            raise ChatError(f"only the assistant can call tools, not {self.role!r}.")
        if self.tool_calls and self.content and not self.tagged and self.call_form not in ("function", "tool_call"):
            raise ChatError("a tool call in JSON must be the whole message; for text before it, set python_tag=True.")
        if len(self.tool_calls) > 1 and self._form == "builtin":
            raise ChatError("a message with a built-in tool call must have no other call; send one message per call.")

    @classmethod
    def from_dict(cls, message: Mapping[str, Any]) -> Message:
        """A message in the form of chat APIs: role, content, tool_calls with a function's name and arguments.

        Content in parts is joined. Raises: ChatError for a missing or unknown role, a part that is not text, or
        arguments that are not JSON.
        """
        if not isinstance(message, Mapping) or "role" not in message:
            raise ChatError(f"a message needs a role and content, found {_start(message)}.")
        calls = []
        for entry in message.get("tool_calls") or ():
            try:
                function = entry.get("function", entry)
                arguments = function["arguments"]
                arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
                calls.append(ToolCall(str(function["name"]), dict(arguments)))
            except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
                raise ChatError(f"a tool call needs a name and arguments, found {_start(entry)}.") from error
        return cls(message["role"], _content(message.get("content")), tuple(calls))

    def to_dict(self) -> dict[str, Any]:
        """The message in the form of chat APIs, as a chat template reads it."""
        calls = [
            {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in self.tool_calls
        ]
        return {"role": self.role, "content": self.content, **({"tool_calls": calls} if calls else {})}

    @property
    def tagged(self) -> bool:
        """Whether `<|python_tag|>` stands before the calls."""
        return self._form == "builtin" if self.python_tag is None else self.python_tag

    @property
    def _form(self) -> CallForm:
        return self.call_form or default_form(self.tool_calls)


def _content(content: Any) -> Any:
    if content is None:
        return ""
    if not isinstance(content, Sequence) or isinstance(content, str):
        return content
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    if any(not isinstance(text, str) for text in texts):
        raise ChatError("a message's content must be text, or parts that are text; Llama 3's format has no other.")
    return "".join(map(str, texts))


def _start(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:198] + " …"
