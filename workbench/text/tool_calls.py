"""The written forms of tool calls: text to calls and back.

    builtin     `brave_search.call(query="gold")`; code for `code_interpreter`
    json        `{"name": "f", "parameters": {"a": 1}}`, several with `; ` between them
    json_list   `[{"name": "f", "parameters": {"a": 1}}, ...]`
    list        `[f(a=1), g(b=2)]`, Python's literals, as in Llama 3.2 and 3.3
    function    `<function=f>{"a": 1}</function>`, Meta's custom format for 3.1
    tool_call   `<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>`, as Hermes writes them

Text that cannot be parsed as a whole is no call. Source: Meta's published prompt formats; the Hermes function format.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workbench.errors import ChatError
from workbench.text.chat_message import CODE_INTERPRETER, CallForm, ToolCall, default_form

Found = tuple[str, tuple[ToolCall, ...], CallForm]
"""The text before the calls, the calls, and their form."""

_TOOL_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_FUNCTION = re.compile(r"<function=([^<>\s]+)>(.*?)</function>", re.DOTALL)
_BUILTIN = re.compile(r'\s*([\w.]+)\.call\((\w+=".*")\)\s*', re.DOTALL)
_MAX_CHARACTERS = 1_000_000  # Python's parser needs 100 times the memory of its text


def read_calls(text: str) -> Found | None:
    """The calls in an assistant's text without `<|python_tag|>`; None if it is text."""
    for mark, pattern in (("<tool_call>", _TOOL_CALL), ("<function=", _FUNCTION)):
        if mark in text:
            return _read_marked(text, pattern)
    readers: tuple[tuple[CallForm, Callable[[str], tuple[ToolCall, ...]]], ...] = (
        ("json", _read_json),
        ("json_list", _read_json_list),
        ("list", _read_list),
    )
    for form, read in readers:
        if calls := read(text):
            return "", calls, form
    return None


def read_tagged(text: str) -> tuple[tuple[ToolCall, ...], CallForm]:
    """The calls after `<|python_tag|>`; text that is nothing else is code."""
    match = _BUILTIN.fullmatch(text)
    if match:
        # Values are not escaped in this form, so a value ends only at a quote before another key.
        pairs = (pair.split('="', 1) for pair in re.split(r'", (?=\w+=")', match[2][:-1]))
        return (ToolCall(match[1], dict(pairs)),), "builtin"
    found = None if text.strip().endswith(")") else read_calls(text)  # `f(a=1)` alone is code here
    if found is None or found[0].strip():
        return (ToolCall(CODE_INTERPRETER, {"code": text}),), "builtin"
    return found[1], found[2]


def write_calls(calls: Sequence[ToolCall], form: CallForm | None = None) -> str:
    """The text of calls. Raises: ChatError for arguments that the form cannot write."""
    if not calls:
        return ""
    form = form or default_form(calls)
    if form == "builtin":
        return _write_builtin(calls)
    if form == "list":
        return "[" + ", ".join(map(_write_keywords, calls)) + "]"
    if form == "function":
        return "".join(f"<function={call.name}>{_json(call.name, dict(call.arguments))}</function>" for call in calls)
    if form == "tool_call":
        entries = [{"name": call.name, "arguments": dict(call.arguments)} for call in calls]
        return "\n".join(f"<tool_call>\n{_json(str(entry['name']), entry)}\n</tool_call>" for entry in entries)
    texts = [_json(call.name, {"name": call.name, "parameters": dict(call.arguments)}) for call in calls]
    return "[" + ", ".join(texts) + "]" if form == "json_list" else "; ".join(texts)


def _write_builtin(calls: Sequence[ToolCall]) -> str:
    (name, arguments) = calls[0].name, calls[0].arguments
    if len(calls) > 1:
        raise ChatError("a message with a built-in tool call must have no other call; send one message per call.")
    if name == CODE_INTERPRETER:
        if set(arguments) != {"code"} or not isinstance(arguments["code"], str):
            raise ChatError(f"{CODE_INTERPRETER} takes one argument, code; found {sorted(arguments)}.")
        return str(arguments["code"])
    return f"{name}.call(" + ", ".join(f'{key}="{value}"' for key, value in arguments.items()) + ")"


def _write_keywords(call: ToolCall) -> str:
    names = [*call.name.split("."), *call.arguments]
    if not all(name.isidentifier() for name in names):
        raise ChatError(f"several calls in one message need names that are Python identifiers, found {call.name!r}.")
    return f"{call.name}(" + ", ".join(f"{key}={value!r}" for key, value in call.arguments.items()) + ")"


def _json(name: str, value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ChatError(f"the arguments of {name!r} cannot be written as JSON ({error}).") from error


# --- reading


def _read_marked(text: str, pattern: re.Pattern[str]) -> Found | None:
    """Calls between marks after a text; nothing but white space may stand between and after them."""
    matches = list(pattern.finditer(text))
    if not matches or pattern.sub("", text[matches[0].start() :]).strip():
        return None
    calls = []
    for match in matches:
        if pattern is _TOOL_CALL:
            call = _as_call(_loads(match[1]))
        else:
            arguments = _loads(match[2])
            call = ToolCall(match[1], arguments) if isinstance(arguments, dict) else None
        if call is None:
            return None
        calls.append(call)
    return text[: matches[0].start()], tuple(calls), "tool_call" if pattern is _TOOL_CALL else "function"


def _read_json(text: str) -> tuple[ToolCall, ...]:
    """Calls in JSON, one after the other; a semicolon or a line break stands between them."""
    calls, rest, decoder = [], text.strip(), json.JSONDecoder()
    while rest.startswith("{"):
        try:
            value, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError):
            return ()
        call = _as_call(value)
        if call is None:
            return ()
        calls.append(call)
        between = re.match(r"\s*;\s*|\s*\n\s*|\s*$", rest[end:])
        if between is None:
            return ()
        rest = rest[end + between.end() :]
    return () if rest else tuple(calls)


def _read_json_list(text: str) -> tuple[ToolCall, ...]:
    values = _loads(text) if re.match(r"\s*\[\s*\{", text) else None
    calls = [_as_call(value) for value in values] if isinstance(values, list) else []
    return () if None in calls else tuple(call for call in calls if call)


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _as_call(value: Any) -> ToolCall | None:
    """A call from JSON: a name with parameters or arguments, in the object itself or in its `function`."""
    if not isinstance(value, dict):
        return None
    function = value.get("function")
    if isinstance(function, dict):
        value = function
    name = value.get("name", function if isinstance(function, str) else None)
    arguments = value.get("parameters", value.get("arguments"))
    if isinstance(arguments, str):  # chat APIs write the arguments as the text of an object
        arguments = _loads(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return ToolCall(name, arguments)


def _read_list(text: str) -> tuple[ToolCall, ...]:
    """Calls in Python's syntax with keywords and literals: a list of them, or one alone that has an argument."""
    text = text.strip()
    listed = text.startswith("[") and text.endswith("]")
    alone = re.match(r"[A-Za-z_][\w.]*\(\s*[A-Za-z_]\w*\s*=", text) and text.endswith(")")
    if not (listed or alone) or len(text) > _MAX_CHARACTERS:
        return ()
    try:
        with warnings.catch_warnings(action="ignore"):  # no warning for an invalid escape in a model's text
            expression = ast.parse(text, mode="eval").body
        entries = expression.elts if isinstance(expression, ast.List) else [expression]
        calls = [_python_call(entry) for entry in entries]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return ()
    return () if None in calls else tuple(call for call in calls if call)


def _python_call(node: ast.expr) -> ToolCall | None:
    if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
        return None
    names, function = [], node.func
    while isinstance(function, ast.Attribute):
        names.append(function.attr)
        function = function.value
    if not isinstance(function, ast.Name):
        return None
    name = ".".join([function.id, *reversed(names)])
    return ToolCall(name, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords})
