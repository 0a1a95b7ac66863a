"""Sandbox of chat templates: jinja2's immutable one, with bounds on the work and the text of one rendering.

A checkpoint's template is a stranger's program. jinja2's sandbox keeps it from the interpreter's internals; the bounds
keep it from running for ever and from filling the memory: every loop, call and printed value is counted.
The settings, filters and functions are those that transformers gives a chat template.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from workbench.errors import ChatError
from workbench.text.template_bounds import (
    MAX_BITS,
    MAX_SOURCE,
    PADDING,
    Rounds,
    bounded,
    check_format,
    check_length,
    check_padding,
    check_text_call,
    listed,
    size_of,
    work,
)

if TYPE_CHECKING:
    from jinja2.parser import Parser

# Filters that return items of their input, or a number, and so write no text.
_NO_TEXT = frozenset(
    {
        "attr", "batch", "count", "d", "default", "dictsort", "first", "groupby", "items", "last", "length", "list",
        "map", "max", "min", "random", "reject", "rejectattr", "reverse", "select", "selectattr", "slice", "sort",
        "sum", "unique",
    }
)  # fmt: skip


def compiled(source: str) -> jinja2.Template:
    """The template with bounds, compiled once.

    Raises: ChatError if it is too long; jinja2's TemplateSyntaxError.
    """
    if len(source) > MAX_SOURCE:
        raise ChatError(f"the chat template is too long: {len(source):,} characters, at most {MAX_SOURCE:,} are read.")
    return _compiled(source)


@lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    environment = _Sandbox()
    tree = environment.parse(source)
    _add_bounds(tree)
    with bounded():  # constant expressions are computed while compiling
        return environment.from_string(tree)


def _add_bounds(tree: nodes.Template) -> None:
    """Count the rounds of loops, and the text of the template itself, which macros and blocks can repeat."""

    def filtered(value: nodes.Node, name: str) -> Any:
        return nodes.Filter(value, name, [], [], None, None).set_lineno(value.lineno)

    loops, outputs = list(tree.find_all(nodes.For)), list(tree.find_all(nodes.Output))
    for loop in loops:
        loop.iter = filtered(loop.iter, "_rounds")
    for output in outputs:
        literal = sum(len(part.data) for part in output.nodes if isinstance(part, nodes.TemplateData))
        if literal:
            count = nodes.Const(literal).set_lineno(output.lineno)
            output.nodes.insert(0, filtered(count, "_literal"))
    _bound_values(tree)


def _bound_values(node: nodes.Node) -> None:
    """Replace `a ~ b` by a filter that looks at the length first, and measure every list and dict that is made: one
    that holds another twice, sixty times over, could never be compared or printed."""
    for name, value in node.iter_fields():
        children = value if isinstance(value, list) else [value]
        bounded_children = []
        for child in children:
            if isinstance(child, nodes.Node):
                _bound_values(child)
            is_made = isinstance(child, nodes.List | nodes.Dict) or (
                isinstance(child, nodes.Tuple) and child.ctx == "load"
            )
            if isinstance(child, nodes.Concat):
                child = nodes.Filter(child.nodes[0], "_joined", child.nodes[1:], [], None, None, lineno=child.lineno)
            elif is_made:
                child = nodes.Filter(child, "_measured", [], [], None, None, lineno=child.lineno)
            bounded_children.append(child)
        setattr(node, name, bounded_children if isinstance(value, list) else bounded_children[0])


class _Generation(Extension):
    """`{% generation %}`, which marks the assistant's text for training; here its text alone counts."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller: Callable[[], str]) -> str:
        return caller()


class _TemplateNamespace(Namespace):
    """`namespace()` without names that start with an underscore, which reach Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be the name of an attribute
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}: names must not start with an underscore")


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"], finalize=_printed
        )
        self.filters["tojson"] = _to_json
        self.filters |= {name: _bounded_filter(name, function) for name, function in self.filters.items()}
        self.filters |= {"_rounds": Rounds.of, "_literal": _literal, "_joined": _joined, "_measured": _measured}
        del self.globals["lipsum"]  # random text of any length
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "namespace": _TemplateNamespace,
            "dict": _new_dict,
        }

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        work().step()
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(times, int):
                    check_length(value, len(value) * max(times, 0))
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MAX_BITS:
                raise ChatError("the chat template computes a number that is too large.")
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            check_length(left, len(left) + len(right))
        if operator == "%" and isinstance(left, str):
            check_format(left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: B902, N805 - as in jinja2
        work().step()
        if isinstance(__obj, LoopContext) and args:  # a recursive loop
            args = (Rounds.of(args[0]), *args[1:])
        receiver = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)  # jinja2 wraps `format`
        if isinstance(receiver, str):
            args = tuple(listed(args))
            check_text_call(__obj.__name__, (receiver, *args, *kwargs.values()))
        return super().call(__context, __obj, *args, **kwargs)


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # also jinja2's mark of what the first argument is
    def filtered(*args: Any, **kwargs: Any) -> Any:
        work().step()
        values = (*args, *kwargs.values())
        if name not in _NO_TEXT:
            args = tuple(listed(args))
            values = (*args, *kwargs.values())
            work().write(size_of(values))
            check_text_call(name, values[1:] if hasattr(function, "jinja_pass_arg") else values)
        elif name in PADDING:
            check_padding(name, values)
        result = function(*args, **kwargs)
        if isinstance(result, str):
            work().write(len(result))
        return result

    return filtered


# --- filters and functions


@jinja2.pass_context  # so that it is not computed while compiling
def _literal(context: Any, count: int) -> str:
    work().write(count)
    return ""


def _joined(*values: Any) -> str:
    check_length("", sum(map(size_of, values)))
    return "".join(map(str, values))


def _measured(value: Any) -> Any:
    size_of(value)
    return value


def _printed(value: Any) -> Any:
    work().write(size_of(value))
    return value


def _to_json(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the escapes of HTML that jinja2's own filter makes; the parameters are those of transformers."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    check_format(format, ())
    return datetime.now().strftime(format)


def _new_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    values = dict(*args, **kwargs)
    size_of(values)
    return values
