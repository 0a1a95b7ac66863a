"""What a task needs to score its answers is known before a model is loaded: for all of lm-eval's modules."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

from lm_eval.tasks._yaml_loader import _load_module_with_cache

from evals.tasks import hub, missing, registry, requirements
from evals.tasks.code_metrics import CodeGrader
from evals.tasks.index import LM_EVAL_TASKS
from tests.evals.own_task import write_own_task
from workbench.errors import DataError

MODULES = sorted(
    path.relative_to(LM_EVAL_TASKS).as_posix()
    for path in LM_EVAL_TASKS.rglob("*/*.py")
    if "evaluate" in path.read_text() or "load_metric" in path.read_text()
)


def loading(tree: ast.Module) -> set[str]:
    """The top-level functions and classes of a module that load a metric, themselves or by a function they name."""
    modules, functions = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name for alias in node.names if alias.name == "evaluate"}
        elif isinstance(node, ast.ImportFrom) and node.module in ("evaluate", "datasets"):
            functions |= {alias.asname or alias.name for alias in node.names if alias.name in ("load", "load_metric")}
    parts = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}

    def loads(node: ast.AST) -> bool:
        return any(
            isinstance(call, ast.Call)
            and (
                (isinstance(call.func, ast.Name) and call.func.id in functions)
                or (
                    isinstance(call.func, ast.Attribute)
                    and call.func.attr == "load"
                    and isinstance(call.func.value, ast.Name)
                    and call.func.value.id in modules
                )
            )
            for call in ast.walk(node)
        )

    found = {name for name, node in parts.items() if loads(node)}
    while more := {
        name
        for name, node in parts.items()
        if name not in found and any(isinstance(part, ast.Name) and part.id in found for part in ast.walk(node))
    }:
        found |= more
    return found


def test_there_are_such_modules() -> None:
    assert len(MODULES) >= 25 and "squadv2/task.py" in MODULES


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("module", MODULES)
def test_a_metric_of_the_hub_is_known_without_scoring(module: str) -> None:
    hub.allow_network(False)
    path = LM_EVAL_TASKS / module
    expected = loading(ast.parse(path.read_text()))
    try:
        loaded = _load_module_with_cache(path)
    except (Exception, SystemExit) as error:  # so the task cannot be built, which is known before the model is loaded
        reason = missing.Problem.of("task", error).reason
        assert reason.startswith(("task needs", "task does not work", "task cannot be loaded")) and "\n" not in reason
        return
    seen = {
        name
        for name, value in vars(loaded).items()
        if getattr(value, "__module__", None) == loaded.__name__ and requirements.metrics_of([value], LM_EVAL_TASKS)
    }
    assert seen == expected


@pytest.fixture
def task_folder(tmp_path: Path) -> Path:
    (tmp_path / "questions.jsonl").write_text('{"q": "1+1?", "a": "2"}\n' * 3)
    return tmp_path


def process(body: str) -> str:
    return f"def process(doc, results):\n    return inner(results)\n\n\ndef inner(results):\n    {body}\n"


KINDS = {
    "module": ("import evaluate\n\n\n" + process('return {"m": evaluate.load("rouge")}'), "the metric rouge of the"),
    "alias": ("import evaluate as e\n\n\n" + process('return {"m": e.load("x/y")}'), "the metric x/y of the"),
    "function": ("from evaluate import load as get\n\n\n" + process('return {"m": get("bleu")}'), "the metric bleu of"),
    "inside": (process('import evaluate; return {"m": evaluate.load(path="ter")}'), "the metric ter of the"),
    "package": (process('import no_such_package_x; return {"m": 1}'), "`pip install no_such_package_x`"),
    "import": ("import no_such_package_x\n" + process("return {}"), "`pip install no_such_package_x`"),
    "extra": (process('from bert_score import score; return {"m": 1}'), "`pip install bert-score`"),
    "exit": ("raise SystemExit('no prolog')\n" + process("return {}"), "no prolog"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_function_of_a_task_needs_is_said_before_it_runs(kind: str, task_folder: Path) -> None:
    code, message = KINDS[kind]
    if kind == "extra" and importlib.util.find_spec("bert_score"):
        pytest.skip("bert_score is installed")
    hub.allow_network(False)
    file = write_own_task(task_folder, f"needs_{kind}", code, process_results=f"!function needs_{kind}_code.process")
    with pytest.raises(DataError) as error:
        registry.load([str(file)], root=None, grader=CodeGrader())
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["no_such_metric", "rouge"])
def test_a_metric_that_lm_eval_does_not_know_is_said(name: str, task_folder: Path) -> None:
    hub.allow_network(False)
    metric = {"metric": name, "aggregation": "mean", "higher_is_better": True}
    file = write_own_task(task_folder, f"metric_{name}", metric_list=[metric])
    with pytest.raises(DataError, match=rf"needs the metric {name} of the Hugging Face hub"):
        registry.load([str(file)], root=None, grader=CodeGrader())


def test_an_import_that_a_function_does_without_is_no_requirement(task_folder: Path) -> None:
    body = 'try:\n        import no_such_package_x\n    except ImportError:\n        pass\n    return {"m": 1.0}'
    file = write_own_task(
        task_folder, "optional_import", process(body), process_results="!function optional_import_code.process"
    )
    assert list(registry.load([str(file)], root=None, grader=CodeGrader()).tasks) == ["optional_import"]


def test_every_package_of_the_extra_has_its_command() -> None:
    for name in requirements.EXTRA:
        assert requirements.packages_problem([name]).endswith("install it with `pip install '.[tasks]'`")


def test_the_extra_brings_them() -> None:
    from importlib.metadata import requires

    wanted = [line for line in requires("lm_eval") or () if 'extra == "tasks"' in line]
    extras = {name.replace("_", "-") for line in wanted for name in re.findall(r"lm_eval\[([\w-]+)\]", line)}
    brought = " ".join(line for line in requires("lm_eval") or () if any(f'extra == "{e}"' in line for e in extras))
    for name in requirements.EXTRA - {"rouge_score"}:  # which the extra names itself
        assert re.search(rf"\b{name.replace('_', '[_-]')}\b", brought), name


def test_what_all_tasks_of_a_group_need_is_said_once(task_folder: Path) -> None:
    for name in ("part_one", "part_two", "part_three"):
        package = "no_such_package_y" if name == "part_three" else "no_such_package_x"
        code = process(f'import {package}; return {{"m": 1}}')
        write_own_task(task_folder, name, code, process_results=f"!function {name}_code.process")
    (task_folder / "all.yaml").write_text("group: all_parts\ntask: [part_one, part_two, part_three]\n")
    with pytest.raises(DataError) as error:
        registry.load([str(task_folder / "all.yaml")], root=None, grader=CodeGrader())
    text = str(error.value)
    assert text.count("no_such_package_x, which") == 1 and text.startswith("all_parts needs the package")
    assert "part_three needs the package no_such_package_y" in text and "part_one" not in text
