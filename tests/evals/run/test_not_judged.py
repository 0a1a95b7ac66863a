"""Problems whose tests cannot run here are counted and have no score; right answers to the others keep theirs."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from evals import sandbox
from evals.report import report, terminal_table
from evals.results.runs import read_run
from evals.run.score_external import score
from evals.tasks import prepare
from workbench.cli import main

pytestmark = pytest.mark.skipif(
    sandbox.why_unavailable() is not None, reason=f"no sandbox here: {sandbox.why_unavailable()}"
)

HELPER = "import {} as lib\n\ndef same(a, b):\n    assert a == b or lib.allclose(a, b)\n\n"
CHECK = "def check(candidate):\n    same(candidate(3), {})\n"
RIGHT = ["    return x + 0.5\n", "    import numpy as np\n    return np.float64(x) * 2\n", "    return [x, 1.5]\n"]


def prepared(folder: Path, modules: list[str]) -> Path:
    """A data folder with HumanEval+ of three problems, whose tests import these modules as EvalPlus's import numpy."""
    rows = [
        {
            "task_id": f"HumanEval/{i}",
            "prompt": f"def f{i}(x):\n",
            "canonical_solution": RIGHT[i],
            "entry_point": f"f{i}",
            "test": HELPER.format(module) + CHECK.format(("3.5", "6", "[3, 1.5]")[i]),
        }
        for i, module in enumerate(modules)
    ]
    (folder / "plus" / "data").mkdir(parents=True)
    Dataset.from_list(rows).to_parquet(folder / "plus" / "data" / "test-00000-of-00001.parquet")
    prepare.prepare([f"evalplus/humanevalplus={folder / 'plus'}"], folder / "data")
    return folder / "data"


def answers(folder: Path, completions: list[str]) -> Path:
    rows = [{"task_id": f"HumanEval/{i}", "completion": code} for i, code in enumerate(completions)]
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_tests_that_import_numpy_give_right_answers_their_score(tmp_path: Path) -> None:
    data = prepared(tmp_path, ["numpy"] * 3)
    run = score("humaneval_plus", answers(tmp_path, RIGHT), output=tmp_path / "out", data=data)
    assert [(s.value, s.n) for s in run.scores] == [(1.0, 3)] and run.not_judged == {}
    wrong = score("humaneval_plus", answers(tmp_path, ["    return 0\n"] * 3), output=tmp_path / "out", data=data)
    assert [(s.value, s.n) for s in wrong.scores] == [(0.0, 3)]


def test_problems_whose_tests_cannot_run_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = prepared(tmp_path, ["no_such_library", "numpy", "numpy"])
    path = answers(tmp_path, [RIGHT[0], RIGHT[1], "    import sympy\n"])
    arguments = ["eval", "score", "--task", "humaneval_plus", "--samples", str(path), "--data", str(data)]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 3
    out = capsys.readouterr().out
    assert "1 of 3 questions are not judged" in out and "No module named 'no_such_library'" in out
    assert "a module is missing in the sandbox: 1 (sympy)" in out
    (file,) = (tmp_path / "out").glob("results_*.json")
    run = read_run(file)
    (row,) = run.scores
    assert (row.value, row.n) == (0.5, 2) and run.not_judged == {"humaneval_plus": 1}
    assert run.provenance["programs"] == {"humaneval_plus": [[1, 0, 1], [1, 1, 1]]}
    assert run.samples("humaneval_plus").verdict.tolist() == ["not judged", "passed", "failed"]
    assert any("not judged" in note for note in report.badges(run))
    assert main(["eval", "show", str(file), "--sample", "humaneval_plus/0"]) == 0
    assert capsys.readouterr().out.startswith("humaneval_plus/0: not judged\n")


@pytest.mark.parametrize("code", [RIGHT[0], "    return 0\n", "    pass\n"], ids=["right", "wrong", "nothing"])
def test_a_task_that_cannot_be_judged_has_no_score_whatever_the_answers(code: str, tmp_path: Path) -> None:
    data = prepared(tmp_path, ["no_such_library"] * 3)
    path = answers(tmp_path, [code] * 3)
    run = score("humaneval_plus", path, output=tmp_path / "out", data=data)
    assert run.scores == [] and run.without_score == ["humaneval_plus"]
    assert "no score" in terminal_table.render(run)
    arguments = ["eval", "score", "--task", "humaneval_plus", "--samples", str(path), "--data", str(data)]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 1
