"""A user's file of questions is asked as the embedded suite of its form is, and a faulty line is named."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

from lm_eval.evaluator import evaluate as lm_eval_evaluate

from evals import sandbox
from evals.run.evaluate import evaluate
from evals.run.settings import Settings
from evals.tasks import custom, local_data, registry
from evals.tasks.code_metrics import CodeGrader
from tests.evals.tasks.test_registry import Oracle
from workbench.errors import DataError
from workbench.model import Transformer

CHOICE = {"question": "Which is odd?", "choices": ["2", "4", "5", "8"], "answer": 2}
NUMBER = {"question": "1 + 1?", "answer": "#### 2"}
PROGRAM = {
    "task_id": "mine/0",
    "prompt": "def double(x):\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
}


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def arguments(task: Any, shots: int | None = None) -> list[Any]:
    if shots is not None:
        task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(1234)
    task.build_all_requests(limit=4)
    return [request.args for request in task.instances]


@pytest.mark.parametrize(("like", "shots"), [("demo_mmlu", 2), ("demo_gsm8k", 2), ("demo_humaneval", 0)])
def test_the_embedded_questions_as_a_users_file_are_asked_alike(tmp_path: Path, like: str, shots: int) -> None:
    rows = local_data.embedded(like)
    write(tmp_path / "mine.jsonl", *rows["test"])
    if rows["dev"]:
        write(tmp_path / "mine_dev.jsonl", *rows["dev"])
    mine = registry.load([str(tmp_path)], root=None, grader=CodeGrader()).tasks["mine"]
    theirs = registry.load([like], root=None, grader=CodeGrader()).tasks[like]
    ours, expected = arguments(mine, shots), arguments(theirs, shots)
    if like == "demo_mmlu":
        assert ours == expected
        return
    # The length of an answer is the benchmark's own, not that of the embedded suite's short ones.
    limit = {"demo_gsm8k": None, "demo_humaneval": 1024}[like]
    assert [prompt for prompt, _ in ours] == [prompt for prompt, _ in expected]
    for (_, mine_kwargs), (_, their_kwargs) in zip(ours, expected, strict=True):
        assert mine_kwargs.get("max_gen_toks") == limit
        assert {**mine_kwargs, "max_gen_toks": 0} == {**their_kwargs, "max_gen_toks": 0}


def test_any_number_of_choices_and_no_subject(tmp_path: Path) -> None:
    two = {"question": "True?", "choices": ["yes", "no"], "answer": "B"}
    write(tmp_path / "quiz.jsonl", CHOICE, two)
    task = registry.load([str(tmp_path / "quiz.jsonl")], root=None, grader=CodeGrader()).tasks["quiz"]
    requests = arguments(task)
    head = "The following are multiple choice questions (with answers).\n\n"
    assert requests[0] == (f"{head}Which is odd?\nA. 2\nB. 4\nC. 5\nD. 8\nAnswer:", " A") and len(requests) == 6
    assert requests[4:] == [(f"{head}True?\nA. yes\nB. no\nAnswer:", f" {letter}") for letter in "AB"]
    assert [task.doc_to_target(doc) for doc in task.eval_docs] == [2, 1]


@pytest.mark.skipif(sandbox.why_unavailable() is not None, reason=f"no sandbox here: {sandbox.why_unavailable()}")
@pytest.mark.parametrize("right", [True, False])
def test_who_knows_all_scores_one_and_who_knows_nothing_zero(tmp_path: Path, right: bool) -> None:
    write(tmp_path / "a_quiz.jsonl", CHOICE, {**CHOICE, "answer": "A"})
    write(tmp_path / "b_sums.jsonl", NUMBER, {"question": "Half of 3?", "answer": 1.5})
    write(tmp_path / "c_code.jsonl", PROGRAM)
    loaded = registry.load([str(tmp_path)], root=None, grader=CodeGrader(workers=1))
    results = lm_eval_evaluate(lm=Oracle(right=right), task_dict=loaded.as_dict(), confirm_run_unsafe_code=True)
    scores = {
        (task, key): value
        for task, result in results["results"].items()
        for key, value in result.items()
        if key in ("acc,none", "exact_match,flexible-extract", "pass@1,create_test")
    }
    assert scores == {
        ("a_quiz", "acc,none"): float(right),
        ("b_sums", "exact_match,flexible-extract"): float(right),
        ("c_code", "pass@1,create_test"): float(right),
    }


def test_a_run_takes_a_folder_and_names_its_suites(speaking_model: Transformer, tmp_path: Path) -> None:
    write(tmp_path / "suites" / "quiz.jsonl", CHOICE, {**CHOICE, "answer": "A"})
    write(tmp_path / "suites" / "sums.jsonl", NUMBER)
    write(tmp_path / "suites" / "sums_dev.jsonl", {**NUMBER, "question": "Example?"})
    settings = Settings(tasks=(str(tmp_path / "suites"),), output=tmp_path / "out", num_fewshot=1)
    run = evaluate(speaking_model, settings)
    assert run.tasks == ["quiz", "sums"] and len(run.samples("quiz")) == 2
    # Examples come from the file of examples, and a suite without one has none: never from the questions.
    assert run.samples("sums").prompt[0] == "Question: Example?\nAnswer: #### 2\n\nQuestion: 1 + 1?\nAnswer:"
    assert run.samples("quiz").prompt[0].count("Which is odd?") == 1
    assert set(run.provenance["data_sha256"]) == {"quiz", "sums"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([CHOICE, {**CHOICE, "answer": 4}], "line 2 has the answer 4, which is neither a letter nor an index"),
        ([{**CHOICE, "answer": "E"}], "line 1 has the answer 'E'"),
        ([CHOICE, "", {**CHOICE, "choices": ["one"]}], "line 3 needs a list of 2 to 26 choices"),
        ([CHOICE, {"question": "q", "choices": ["a", "b"]}], "line 2 has no field 'answer'"),
        ([{**CHOICE, "question": " "}], "line 1 has no text in 'question'"),
        ([NUMBER, {**NUMBER, "answer": "Paris"}], "line 2 ends in 'Paris', which is not a number"),
        ([NUMBER, CHOICE["question"]], "line 2 is not JSON"),
        ([NUMBER, "[1]"], "line 2 is not a JSON object"),
        ([PROGRAM, {**PROGRAM, "entry_point": "a b"}], "line 2 has the entry point 'a b'"),
        ([PROGRAM, {**PROGRAM, "test": "assert True"}], r"line 2 has a test without `def check\(candidate\)`"),
        ([{k: v for k, v in PROGRAM.items() if k != "task_id"}], "line 1 has no field 'task_id'"),
        ([{"text": "x"}], "line 1 has the fields text; expected question, choices, answer"),
        ([], "is empty"),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, rows: list[Any], message: str) -> None:
    file = write(tmp_path / "mine.jsonl", *rows)
    with pytest.raises(DataError, match=rf"mine\.jsonl.* {message}"):
        registry.load([str(file)], root=None, grader=CodeGrader())


def test_names_and_places(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a suite"):
        registry.check([str(tmp_path)])
    with pytest.raises(DataError, match="is not a suite"):
        registry.check([str(tmp_path / "absent.jsonl")])
    write(tmp_path / "gsm8k.jsonl", NUMBER)
    with pytest.raises(DataError, match="has the same name as the benchmark gsm8k"):
        registry.load([str(tmp_path)], root=None, grader=CodeGrader())
    write(tmp_path / "two words.jsonl", NUMBER)
    with pytest.raises(DataError, match="name may only have"):
        registry.check([str(tmp_path)])
    write(tmp_path / "other" / "code.jsonl", PROGRAM)
    assert registry.runs_code(str(tmp_path / "other")) and not registry.runs_code(str(tmp_path / "gsm8k.jsonl"))
    assert custom.is_path("./x") and custom.is_path("x.jsonl") and not custom.is_path("mmlu_anatomy")
