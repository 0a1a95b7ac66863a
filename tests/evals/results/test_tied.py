"""A model that prefers nothing gets a score by the order of the choices: it is counted, said, and not exit code 0."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

from evals.results import answer_counts
from evals.results.runs import PROVENANCE, Run, list_runs
from tests.evals.results.test_runs import QUIZ, report
from workbench.checkpoint.convert import convert
from workbench.cli import main


def quiz(doc: int, *logprobs: float) -> dict[str, Any]:
    arguments = {f"gen_args_{i}": {"arg_0": "Q", "arg_1": f" {i}"} for i, _ in enumerate(logprobs)}
    return {**QUIZ, "doc_id": doc, "arguments": arguments, "resps": [[[str(value), "False"]] for value in logprobs]}


def generated(doc: int, *logprobs: float) -> dict[str, Any]:
    arguments = {"gen_args_0": {"arg_0": "Q", "arg_1": {"until": []}}}
    replay = {"logprobs": [list(logprobs)]}
    return {"doc_id": doc, "arguments": arguments, "replay": replay, "filtered_resps": ["x"], "resps": [["x"]]}


@pytest.mark.parametrize(
    ("row", "tied"),
    [
        (quiz(0, -7.15, -7.15, -7.15), True),
        (quiz(0, -7.15, -7.15, -7.2), False),
        (quiz(0, float("-inf"), float("-inf")), True),
        (quiz(0, -1.0), False),
        ({**quiz(0, -1.0, -1.0), "not_finite": True}, False),
        (generated(0, -7.15, -7.15, -7.15), True),
        (generated(0, -7.15, -7.14), False),
        (generated(0, 0.0, 0.0, 0.0), False),  # sure of each token
        (generated(0, -7.15), False),
    ],
)
def test_a_question_is_tied_if_nothing_was_preferred(row: dict[str, Any], tied: bool) -> None:
    assert answer_counts.of_samples({"t": [row]})["tied"] == ({"t": 1} if tied else {})


def test_all_of_a_task_are_tied() -> None:
    data = report(**{PROVENANCE: {"tied": {"s_a": 10, "s_b": 29}, "dtype": "bfloat16"}})
    run = Run(Path("results_x.json"), data)
    assert answer_counts.all_tied(run) == ["s_a"]
    note = "s_a: in 10 of 10 questions all choices have the same log-probability"
    assert any(line.startswith(note) and "--dtype float32" in line for line in answer_counts.notes(run))


@pytest.mark.parametrize("how", ["weights", "intervention"])
def test_an_overflow_is_said_and_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str) -> None:
    folder, output = tmp_path / "model", tmp_path / "out"
    convert("demo", folder, layout="meta")
    command = ["eval", "run", "--model", str(folder), "--tasks", "demo_mmlu,demo_gsm8k", "--limit", "3"]
    assert main([*command, "--output", str(tmp_path / "clean")]) == 0
    assert "tied" not in capsys.readouterr().out
    if how == "weights":
        file = folder / "consolidated.00.safetensors"
        weights = {
            name: value * 1e30 if name.endswith("w2.weight") else value for name, value in load_file(file).items()
        }
        assert all(torch.isfinite(value).all() for value in weights.values())
        save_file(weights, file)
    else:
        command += ["--scale", "L2.mlp=1e30"]
    assert main([*command, "--output", str(output)]) == 3
    printed = capsys.readouterr().out
    for task in ("demo_mmlu", "demo_gsm8k"):
        assert f"{task}: in 3 of 3 questions all choices have the same log-probability" in printed
    (run,) = list_runs(output)
    assert json.loads(run.path.read_text())[PROVENANCE]["tied"] == {"demo_mmlu": 3, "demo_gsm8k": 3}
