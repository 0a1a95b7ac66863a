"""Public names exist, every module has a docstring, and files stay short."""

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import workbench

# Scripts written against the first version rely on these.
PROMISED = {
    "Ablate",
    "Add",
    "Capture",
    "ModelConfig",
    "Patch",
    "Scale",
    "Tokenizer",
    "Transformer",
    "WorkbenchError",
    "generate",
    "load_model",
    "score",
}


def test_all_is_sorted_and_true() -> None:
    names = workbench.__all__
    assert names == sorted(names)
    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(workbench, name)] == []
    public = {
        name
        for name, value in vars(workbench).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public - {"annotations"} <= set(names)


def test_promised_names_are_there() -> None:
    assert set(workbench.__all__) >= PROMISED


@pytest.mark.parametrize("package", ["workbench", "evals", "probes", "dashboard"])
def test_every_module_says_what_it_is(package: str) -> None:
    root = importlib.import_module(package)
    modules = [module.name for module in pkgutil.walk_packages(root.__path__, f"{package}.")]
    assert modules
    silent = []
    for name in modules:
        if ".assets" in name or name.endswith("__main__") or ".pages" in name:
            continue  # data folders, and scripts that run when imported
        if not (importlib.import_module(name).__doc__ or "").strip():
            silent.append(name)
    assert silent == []


def test_every_exception_has_the_one_root() -> None:
    from workbench import errors

    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert len(classes) > 10
    roots = (errors.WorkbenchError, errors.WorkbenchWarning)
    assert [cls for cls in classes if not issubclass(cls, roots)] == []
    drawn = errors.__doc__ or ""
    assert [cls.__name__ for cls in classes if cls.__name__ not in drawn] == []


def test_files_stay_readable(project_root: Path) -> None:
    folders = ["workbench", "evals", "probes", "dashboard", "tests", "tools", "benchmarks"]
    paths = [path for folder in folders for path in (project_root / folder).rglob("*.py")]
    assert len(paths) > 30
    lengths = {str(path.relative_to(project_root)): len(path.read_text().splitlines()) for path in paths}
    assert {name: lines for name, lines in lengths.items() if lines > 500} == {}
