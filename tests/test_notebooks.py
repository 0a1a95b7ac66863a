"""Every notebook runs from its first cell to its last, and is committed without outputs."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stripped_and_short(path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is a test dependency")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in code if cell.outputs or cell.execution_count] == []
    assert len(notebook.cells) <= 30


# The kernel's client leaves sockets and event loops to the garbage collector, in its own time.
IGNORED = (
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
)


def execute(path: Path, model: str = "demo") -> list[Any]:
    """The code cells after a run, with their outputs; `model` replaces the one that the notebook names."""
    nbformat = pytest.importorskip("nbformat", reason="nbformat is a test dependency")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is a test dependency")
    notebook = nbformat.read(path, as_version=4)
    if model != "demo":
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        assert first.source.count('\nname = "demo"\n') == 1
        first.source = first.source.replace('\nname = "demo"\n', f"\nname = {model!r}\n")
    resources = {"metadata": {"path": str(ROOT)}}
    ran = nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    return [cell for cell in ran.cells if cell.cell_type == "code"]


def printed(cells: list[Any], stream: str) -> str:
    outputs = [output for cell in cells for output in cell.outputs if output.output_type == "stream"]
    return "".join(output.text for output in outputs if output.name == stream)


@IGNORED[0]
@IGNORED[1]
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path) -> None:
    code = execute(path)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    silent = [cell.source for cell in code if not cell.outputs]
    assert silent == []
    assert printed(code, "stderr") == ""


@IGNORED[0]
@IGNORED[1]
@pytest.mark.real
@pytest.mark.slow
def test_the_induction_notebook_finds_a_real_models_heads(smollm2: Path) -> None:
    code = execute(ROOT / "notebooks" / "induction_heads.ipynb", str(smollm2))
    assert all(cell.outputs for cell in code) and printed(code, "stderr") == ""
    text = printed(code, "stdout")
    lines = dict(re.findall(r"^(induction|previous-token) heads: ([^;\n]+)", text, re.M))
    induction, previous = (lines[kind].split() for kind in ("induction", "previous-token"))
    assert induction[0] == "L18H6" and {"L17H3", "L17H4", "L17H5"} <= set(induction)
    assert previous[0] == "L16H0"
    assert float(re.search(r"strongest score ([\d.]+)", text)[1]) == pytest.approx(0.86, abs=0.05)  # type: ignore[index]
    assert "guessing costs 10.80" in text
