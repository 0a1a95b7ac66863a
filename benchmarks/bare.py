"""The model without its hook points: the same source without any line about taps.

The cost of hook points is measured against it. It is made from the model's source, so both always agree.
"""

from __future__ import annotations

import ast
import sys
import types
from pathlib import Path

import workbench.model


class _WithoutTaps(ast.NodeTransformer):
    """`if tap: ...` goes, `tap and ...` is None, `a if tap else b` is b; methods that need a tap go."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef | None:
        self.generic_visit(node)
        needs_tap = any(a.annotation and ast.unparse(a.annotation) == "hook_points.Tap" for a in node.args.args)
        return None if needs_tap else node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        return node.orelse or [ast.Pass()] if _asks_tap(node.test) else node

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        self.generic_visit(node)
        return node.orelse if _asks_tap(node.test) else node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        return ast.Constant(None) if _asks_tap(node) else node

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        self.generic_visit(node)
        makes_tap = isinstance(node.targets[0], ast.Name) and node.targets[0].id == "tap"
        return ast.Assign(node.targets, ast.Constant(None)) if makes_tap else node


def _asks_tap(test: ast.expr) -> bool:
    first = test.values[0] if isinstance(test, ast.BoolOp) else test
    is_none = isinstance(first, ast.Constant) and first.value is None
    return is_none or (isinstance(first, ast.Name) and first.id == "tap")


def bare_module() -> types.ModuleType:
    """`workbench.model` compiled without its hook points; its `Transformer` loads the same weights."""
    path = Path(workbench.model.__file__)
    tree = ast.fix_missing_locations(_WithoutTaps().visit(ast.parse(path.read_text())))
    left = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_tap_call(node)]
    assert not left, f"a hook point is left on line {left[0].lineno} of {path.name}"
    module = types.ModuleType("workbench_bare_model")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(tree, "bare model", "exec"), module.__dict__)
    return module


def _is_tap_call(node: ast.Call) -> bool:
    if isinstance(node.func, ast.Name):
        return node.func.id == "tap"
    return (
        isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) and node.func.value.id == "tap"
    )


def bare_twin(model: workbench.model.Transformer) -> workbench.model.Transformer:
    """A bare model that shares the weights of `model`."""
    twin = bare_module().Transformer(model.config).to(model.dtype)
    twin.load_state_dict(model.state_dict(), assign=True)
    return twin.to(model.device).eval()
