"""What a program's source is, found in the sandbox before the program runs: whether it has code, and its imports.

Runs with the program's limits, because Python's parser needs a thousand times the memory of its source. Standard
library only; `ast` is not imported, which takes long.
"""

from __future__ import annotations

import builtins
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ONLY_AST = 0x400  # ast.PyCF_ONLY_AST
_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)


def look_at(source: str, context: str) -> dict[str, Any]:
    """Whether the source has a statement that is not in its context, and its imports that its tests may also need.

    A source that does not parse counts as code, so that its error is shown.
    """
    try:
        body = parsed(source)
    except _UNREADABLE:
        return {"code": bool(source.strip()), "imports": []}
    if all(is_text(node) for node in body):
        return {"code": False, "imports": []}
    try:
        code = not context or not same(body, parsed(context))
    except _UNREADABLE:
        code = True
    return {"code": code, "imports": [text for node in body for text in [import_text(node)] if text]}


def parsed(source: str) -> list[Any]:
    tree: Any = compile(source, "<program>", "exec", _ONLY_AST, dont_inherit=True)
    return list(tree.body)


def kind(node: Any) -> str:
    return type(node).__name__


def is_text(node: Any) -> bool:
    """Whether a statement is a constant, such as a docstring."""
    return kind(node) == "Expr" and kind(node.value) == "Constant"


def same(a: Any, b: Any) -> bool:
    """Whether two syntax trees are equal; positions are not compared."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    fields = getattr(a, "_fields", None)
    return a == b if fields is None else all(same(getattr(a, f, None), getattr(b, f, None)) for f in fields)


def import_text(node: Any) -> str:
    """An import that is safe to run with the tests, as text: standard modules and numpy under their own names.

    A program's `from builtins import any as all` must not reach its judge.
    """
    if kind(node) == "Import":
        modules, start = [alias.name for alias in node.names], "import "
    elif kind(node) == "ImportFrom" and node.level == 0:
        modules, start = [node.module], f"from {node.module} import "
    else:
        return ""
    if not all(name.split(".")[0] in (sys.stdlib_module_names | {"numpy"}) - {"__future__"} for name in modules):
        return ""
    if kind(node) == "Import" and [(alias.name, alias.asname) for alias in node.names] == [("numpy", "np")]:
        return "import numpy as np"
    if any(alias.asname or alias.name == "*" or hasattr(builtins, alias.name) for alias in node.names):
        return ""
    return start + ", ".join(alias.name for alias in node.names)
