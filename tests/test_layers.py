"""Imports point down between packages, rooms and files; the core imports little and has no side effect."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

OURS = {"app", "workbench", "evals", "probes", "dashboard"}

# What each layer may import of ours.
BELOW = {
    "app": {"dashboard"},
    "dashboard": {"dashboard", "evals", "probes", "workbench"},
    "evals": {"evals", "workbench"},
    "probes": {"probes", "workbench"},
    "workbench": {"workbench"},
}

# Other people's packages: who may import them, as patterns of paths below the project's root.
ALLOWED = {
    "fairscale": ("workbench/layers/tensor_parallel.py",),
    "streamlit": ("app.py", "dashboard/*"),
    # result.py for a type annotation alone
    "plotly": ("evals/report/forest_plots.py", "probes/*figures.py", "probes/base/drawing.py", "probes/base/result.py",
               "dashboard/*"),
    "lm_eval": ("evals/*",),
    "datasets": ("evals/*",),
    "pandas": ("evals/*", "probes/*", "dashboard/*"),
    "pyarrow": ("evals/*", "dashboard/*"),
    "typer": ("*/cli.py", "evals/cli/*", "probes/*commands.py", "probes/base/cli_options.py", "workbench/commands.py",
              "workbench/command_options.py"),
    "transformers": (),
    "gguf": ("workbench/checkpoint/*", "workbench/text/*"),
    "huggingface_hub": ("workbench/checkpoint/*", "evals/*"),
    "jinja2": ("workbench/text/*", "evals/*"),
    "sentencepiece": ("workbench/text/*",),
    "tokenizers": ("workbench/text/*",),
}  # fmt: skip

# The whole of what the core may import; anything else is a new dependency and a decision.
CORE = {
    "fairscale", "huggingface_hub", "jinja2", "numpy", "regex", "rich", "safetensors", "tiktoken", "tokenizers",
    "torch", "typer",
}  # fmt: skip
# Of the extra `formats`: imported where a file needs them, with a hint what to install.
FORMATS = {"gguf", "sentencepiece"}


def imported(path: Path) -> Iterator[str]:
    """Top-level names of everything a file imports, inside functions and by `import_module("...")` too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import hides which layer it reaches"
            yield (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            if name in {"import_module", "__import__"}:
                yield str(node.args[0].value).partition(".")[0]


def files(root: Path, layer: str) -> list[Path]:
    return [root / "app.py"] if layer == "app" else sorted((root / layer).rglob("*.py"))


@pytest.mark.parametrize("layer", sorted(OURS))
def test_imports_point_down(project_root: Path, layer: str) -> None:
    paths = files(project_root, layer)
    assert paths
    wrong = [
        f"{path.relative_to(project_root)} imports {name}"
        for path in paths
        for name in imported(path)
        if name in OURS - BELOW[layer]
    ]
    assert wrong == []


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_foreign_packages_stay_where_they_belong(project_root: Path, package: str) -> None:
    wrong = [
        str(path.relative_to(project_root))
        for layer in sorted(OURS)
        for path in files(project_root, layer)
        if package in imported(path)
        and not any(fnmatch(str(path.relative_to(project_root)), pattern) for pattern in ALLOWED[package])
    ]
    assert wrong == []


def test_few_modules_know_lm_eval(project_root: Path) -> None:
    knowing = [path.name for path in files(project_root, "evals") if "lm_eval" in imported(path)]
    assert 1 <= len(knowing) <= 4, knowing


def test_the_core_depends_on_little(project_root: Path) -> None:
    used = {name for path in files(project_root, "workbench") for name in imported(path)}
    assert used - set(sys.stdlib_module_names) - {"workbench"} <= CORE | FORMATS


PACKAGES = sorted(OURS - {"app"})
MOST_MODULES = 16


def module_name(root: Path, path: Path) -> str:
    """`evals/store/store.py` is `evals.store.store`; a folder's `__init__.py` is the folder."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(root: Path, package: str) -> dict[str, set[str]]:
    """Which modules of a package each of its modules imports; imports inside functions and for types alone count."""
    paths = {module_name(root, path): path for path in files(root, package)}
    graph: dict[str, set[str]] = {name: set() for name in paths}
    for name, path in paths.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & paths.keys()
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    target = f"{node.module}.{alias.name}"
                    graph[name] |= {target if target in paths else str(node.module)} & paths.keys()
    return graph


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circle_of_imports_between_files(project_root: Path, package: str) -> None:
    graph = import_graph(project_root, package)
    assert sum(map(len, graph.values())) > 10
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def drawn_floors(root: Path) -> dict[str, list[list[str]]]:
    """The rooms of each package by floor, from the top down, as docs/architecture.md draws them."""
    text = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    blocks = [block.splitlines() for block in re.findall(r"```rooms\n(.*?)```", text, flags=re.DOTALL)]
    return {lines[0].rstrip("/"): [line.split() for line in lines[1:]] for lines in blocks}


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_stand_on_the_floors_that_are_drawn(project_root: Path, package: str) -> None:
    floors = drawn_floors(project_root)[package]
    height = {room: -floor for floor, rooms in enumerate(floors) for room in rooms}
    graph = import_graph(project_root, package)
    rooms = {name: name.split(".")[1] for name in graph if "." in name and not name.endswith(".__main__")}
    assert set(rooms.values()) == set(height), "rooms of the package, and those drawn in docs/architecture.md"
    wrong = [
        f"{name} imports {target}"
        for name, targets in graph.items()
        for target in targets
        if name in rooms and target in rooms and rooms[name] != rooms[target]
        if height[rooms[name]] <= height[rooms[target]]
    ]
    assert wrong == []


def test_no_folder_holds_many_modules(project_root: Path) -> None:
    folders = {path.parent for top in (*PACKAGES, "tests") for path in (project_root / top).rglob("*.py")}
    counts = {
        str(folder.relative_to(project_root)): sum(path.stem != "__init__" for path in folder.glob("*.py"))
        for folder in folders
    }
    assert len(counts) > 30
    assert {name: count for name, count in counts.items() if count > MOST_MODULES} == {}


IMPORT_QUIETLY = """
import sys, time
import torch, numpy, tiktoken, safetensors.torch
before = set(sys.modules)
start = time.process_time()
import workbench
seconds = time.process_time() - start
new = {name.partition(".")[0] for name in set(sys.modules) - before}
heavy = new & {"fairscale", "streamlit", "lm_eval", "plotly", "pandas", "datasets", "transformers", "typer"}
assert not heavy, heavy
assert not torch.cuda.is_initialized()
assert not torch.distributed.is_initialized()
assert seconds < 2, seconds
"""

REFUSE_NETWORK = """
import socket
def refuse(*args, **kwargs):
    raise AssertionError("importing the workbench opened a connection")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


def test_importing_the_core_is_quick_silent_and_light() -> None:
    program = REFUSE_NETWORK + IMPORT_QUIETLY
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_the_core_changes_no_global_setting() -> None:
    program = """
import random, torch
def settings():
    return (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.initial_seed(),
            torch.are_deterministic_algorithms_enabled(), random.getstate(), torch.get_rng_state().tolist())
before = settings()
import workbench
assert settings() == before
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
