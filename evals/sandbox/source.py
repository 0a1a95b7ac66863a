"""Static checks of a program before it runs: whether it has code, and where its tests start. Runs nothing."""

from __future__ import annotations

import ast
import builtins
import sys


def split_tests(source: str) -> tuple[str, str, str, str] | None:
    """Program, tests, entry point and imports of a source in HumanEval's format; None for any other source."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not (body and isinstance(body[-1], ast.Expr) and isinstance(call := body[-1].value, ast.Call)):
        return None
    plain = isinstance(call.func, ast.Name) and call.func.id == "check" and len(call.args) == 1
    if not plain or not isinstance(argument := call.args[0], ast.Name):
        return None
    checks = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    if not checks:
        return None
    start = min([checks[-1].lineno, *(decorator.lineno for decorator in checks[-1].decorator_list)]) - 1
    # Split as the parser does; `splitlines` would also split at form feeds.
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    code, tests = "\n".join(lines[:start]), "\n".join(lines[start:])
    return code, tests, argument.id, _imports(body)


def imports(source: str) -> str:
    """A program's imports of standard modules, which its tests may also need."""
    try:
        return _imports(ast.parse(source).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""


def _imports(body: list[ast.stmt]) -> str:
    statements = [ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom) and _plain(node)]
    return "\n".join(statements)


def _plain(node: ast.Import | ast.ImportFrom) -> bool:
    """Whether an import is safe to run with the tests: standard modules with their own names, and no built-in's name.

    A program's `from builtins import any as all` must not reach its judge.
    """
    if isinstance(node, ast.ImportFrom):
        modules = [node.module or ""] if node.level == 0 else [""]
    else:
        modules = [alias.name for alias in node.names]
    standard = all(name.split(".")[0] in sys.stdlib_module_names - {"__future__"} for name in modules)
    return standard and not any(
        alias.asname or alias.name == "*" or hasattr(builtins, alias.name) for alias in node.names
    )


def compilable(context: str) -> str:
    """The context if it compiles on its own, else an empty string: a prompt may end inside a statement."""
    try:
        compile(context, "<context>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return ""
    return context


def has_code(source: str) -> bool:
    """Whether the source has a statement; a source that does not parse counts as code, so that its error is shown."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return bool(source.strip())
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body)


def adds_code(source: str, context: str) -> bool:
    """Whether the source has a statement that is not already in its context (the source may start with the context)."""
    if not has_code(source):
        return False
    try:
        return not context or ast.dump(ast.parse(source)) != ast.dump(ast.parse(context))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return True
