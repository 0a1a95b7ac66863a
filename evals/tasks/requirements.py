"""What a task needs to score its answers: metrics of the Hugging Face hub, and packages that its functions import.

lm-eval's tasks load many of them only after the model has answered. Here they are read from the source of the task's
functions, so that they are known before the model is loaded. Runs none of these functions.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

_LIBRARY = Path(sys.modules["os"].__file__ or "").parent
_PACKAGES = ("site-packages", "dist-packages")
EXTRA = frozenset(
    [
        "antlr4",
        "emoji",
        "fugashi",
        "fuzzywuzzy",
        "immutabledict",
        "jieba",
        "langdetect",
        "math_verify",
        "nagisa",
        "neologdn",
        "nltk",
        "pycountry",
        "pymorphy2",
        "rouge",
        "rouge_score",
        "scipy",
        "statsmodels",
        "sympy",
        "wonderwords",
    ]
)
"""Packages of the extra `tasks`, by their names in Python."""
_DISTRIBUTIONS = {
    "bert_score": "bert-score",
    "bs4": "beautifulsoup4",
    "iso639": "iso639-lang",
    "kstar_planner": "'lm-eval[acpbench]'",
    "lark": "'lm-eval[acpbench]'",
    "pddl": "'lm-eval[acpbench]'",
    "tarski": "'lm-eval[acpbench]'",
    "tinyBenchmarks": "git+https://github.com/felipemaiapolo/tinyBenchmarks",
    "unitxt": "'lm-eval[unitxt]'",
}


def problem(task: Any, own_code: Path) -> str | None:
    """Why the answers to a task cannot be scored here, as the end of a sentence about it; None if they can be.

    own_code: the folder of lm-eval's tasks; functions of other installed packages are not searched.
    Metrics of the hub are loaded: from the cache of `evaluate`, or from the hub if the network is allowed.
    """
    unknown = unknown_metrics(task)
    functions = list(_walk(_scoring(task, own_code), own_code))
    metrics = [*unknown, *(call for function in functions for call in hub_metrics(function))]
    absent = sorted({name for function in functions for name in imports(function) if not installed(name)})
    if absent:
        return packages_problem(absent)
    missing = [name for name in dict.fromkeys(metrics) if name in unknown or not _loads(name)]
    return f"needs {listed('the metric', missing)} of the Hugging Face hub" if missing else None


def unknown_metrics(task: Any) -> list[str]:
    """The names in a task's list of metrics for which lm-eval has no function."""
    config = getattr(task, "config", None)
    if getattr(config, "process_results", None) is not None:
        return []
    return [str(name) for name, function in getattr(task, "_metric_fn_list", {}).items() if function is None]


def metrics_of(values: Any, own_code: Path) -> list[str]:
    """The metrics of the hub that functions in nested values load, themselves or in functions that they call."""
    return [name for function in _walk(values, own_code) for name in hub_metrics(function)]


def hub_metrics(function: FunctionType) -> list[str]:
    """The names of the metrics that a function loads with the library `evaluate`; "of its own" for a computed name."""
    tree, names = _source(function), dict(function.__globals__)
    if tree is None:
        return []
    for node in ast.walk(tree):  # imports inside the function
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: _EVALUATE for alias in node.names if alias.name == "evaluate"}
        elif isinstance(node, ast.ImportFrom) and node.module in ("evaluate", "datasets"):
            names |= {
                alias.asname or alias.name: _LOAD for alias in node.names if alias.name in ("load", "load_metric")
            }
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and _loads_metric(node.func, names))
    return [_first_text(call) or "of its own" for call in calls]


def imports(function: FunctionType) -> list[str]:
    """The top-level names of the packages that a function imports when it is called, without those it does without."""
    tree = _source(function)
    if tree is None:
        return []
    optional = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Try) for part in ast.walk(node)}
    names: list[str] = []
    for node in ast.walk(tree):
        if id(node) in optional:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


_EVALUATE, _LOAD = object(), object()


def _loads_metric(function: ast.expr, names: Mapping[str, Any]) -> bool:
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        module = names.get(function.value.id)
        is_evaluate = module is _EVALUATE or (isinstance(module, ModuleType) and module.__name__ == "evaluate")
        return is_evaluate and function.attr == "load"
    if isinstance(function, ast.Name):
        value = names.get(function.id)
        return value is _LOAD or (isinstance(value, FunctionType) and _is_load(value))
    return False


def _is_load(function: FunctionType) -> bool:
    return function.__name__ == "load" and function.__module__.partition(".")[0] == "evaluate"


def _first_text(call: ast.Call) -> str | None:
    values = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "path")]
    first = values[0] if values else None
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None


def _scoring(task: Any, own_code: Path) -> list[Any]:
    """The functions that score a task's answers, in nested values."""
    config = getattr(task, "config", None)
    fields = ("process_results", "metric_list", "filter_list")
    values: list[Any] = [getattr(config, name, None) for name in fields]
    values += list(getattr(task, "_aggregation_list", {}).values())
    classes = [parent for parent in type(task).__mro__ if _is_own(sys.modules.get(parent.__module__), own_code)]
    values += [getattr(type(task), name) for name in {name for parent in classes for name in vars(parent)}]
    return values


def _walk(values: Any, own_code: Path) -> Iterator[FunctionType]:
    """The functions in nested values, and those that they call, if they are tasks' code."""
    todo, seen = [*_callables(values)], set()
    while todo:
        function = todo.pop()
        if function in seen or not _is_own(function.__globals__, own_code):
            continue
        seen.add(function)
        yield function
        called = [function.__globals__.get(name) for name in _names(function.__code__)]
        enclosed = [cell.cell_contents for cell in function.__closure__ or () if _is_set(cell)]
        # a method's own class is enclosed for super(); its other methods are not called
        todo += _callables([*called, *(value for value in enclosed if not isinstance(value, type))])


def _callables(values: Any) -> Iterator[FunctionType]:
    """The Python functions in nested values: partial functions, methods, and the methods of classes included."""
    if isinstance(values, partial):
        yield from _callables([values.func, *values.args, *values.keywords.values()])
    elif isinstance(values, FunctionType):
        yield values
    elif isinstance(values, type):
        yield from (value for value in vars(values).values() if isinstance(value, FunctionType))
    elif isinstance(values, Mapping):
        yield from _callables(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _callables(value)
    elif isinstance(getattr(values, "__wrapped__", None), FunctionType):
        yield values.__wrapped__
    elif isinstance(getattr(values, "__func__", None), FunctionType):
        yield values.__func__


def _names(code: Any) -> Iterator[str]:
    yield from code.co_names
    for part in code.co_consts:
        if hasattr(part, "co_names"):
            yield from _names(part)


def _is_set(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _is_own(module: Any, own_code: Path) -> bool:
    """Whether a module, or its globals, is code of a task: lm-eval's, or a file that is in no installed package."""
    values = module if isinstance(module, dict) else vars(module) if module is not None else {}
    file = values.get("__file__")
    if file is None:
        return "__file__" not in values and "__builtins__" in values and values.get("__name__") != "builtins"
    path = Path(file)
    installed = any(part in _PACKAGES for part in path.parts) or path.is_relative_to(_LIBRARY)
    return path.is_relative_to(own_code) or not (installed or values.get("__name__", "").startswith("evals."))


def _source(function: Callable[..., Any]) -> ast.AST | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in others' texts
            return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None


def installed(name: str) -> bool:
    """Whether a package can be imported, by its top-level name."""
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _loads(metric: str) -> bool:
    if metric == "of its own":
        return True  # it is computed by a function that may look in a folder; a failure costs this task only
    import evaluate

    try:
        evaluate.load(metric)
    except Exception:  # of the network, of the metric's own imports, of its script
        return False
    return True


def packages_problem(names: Sequence[str]) -> str:
    """That packages are not installed, by their names in Python, and the command that installs them."""
    one = len(names) == 1
    in_extra = all(name in EXTRA for name in names)
    packages = "'.[tasks]'" if in_extra else " ".join(_DISTRIBUTIONS.get(name, name) for name in names)
    what, them = ("is", "it") if one else ("are", "them")
    absent = listed("the package", names)
    return f"needs {absent}, which {what} not installed; install {them} with `pip install {packages}`"


def listed(what: str, names: Sequence[str]) -> str:
    """Names after what they are the names of, in the plural if there are several."""
    return f"{what}{'' if len(names) == 1 else 's'} {', '.join(names)}"
