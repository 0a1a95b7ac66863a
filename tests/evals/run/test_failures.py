"""Tasks that cannot be loaded or scored: the others of the run keep their results, and the reason is said."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

import yaml

from evals.cli.run import EXIT_PARTIAL
from evals.results.runs import read_run
from evals.run.evaluate import evaluate
from evals.run.settings import Settings
from tests.evals.own_task import write_own_task
from workbench.cli import main
from workbench.errors import DataError

QUESTIONS = [{"q": f"What is {n} plus 1?", "a": str(n + 1), "yes": n % 2} for n in range(6)]


def write_task(folder: Path, name: str, code: str = "", **changes: Any) -> str:
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return str(write_own_task(folder, name, code, **changes))


def in_metrics(name: str) -> dict[str, Any]:
    return {"process_results": f"!function {name}_code.process"}


def in_aggregation(name: str) -> dict[str, Any]:
    metric = {"metric": "m", "aggregation": f"!function {name}_code.aggregate", "higher_is_better": True}
    return {**in_metrics(name), "metric_list": [metric]}


def in_filter(name: str) -> dict[str, Any]:
    return {
        "filter_list": [{"name": "f", "filter": [{"function": "custom", "filter_fn": f"!function {name}_code.apply"}]}]
    }


RAISES = "    raise ZeroDivisionError('one\\ntwo')\n"
KINDS = {
    "metric": (in_metrics, f"def process(doc, results):\n{RAISES}"),
    "metric_of_one_question": (
        in_metrics,
        "def process(doc, results):\n    return {'m': 1 / (int(doc['a']) - 3)}\n",
    ),
    "aggregation": (
        in_aggregation,
        f"def process(doc, results):\n    return {{'m': 1.0}}\n\n\ndef aggregate(items):\n{RAISES}",
    ),
    "filter": (in_filter, f"def apply(responses, docs):\n{RAISES}"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_that_fails_in_scoring_does_not_cost_the_others(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, code = KINDS[kind]
    name = f"fails_in_{kind}"
    file = write_task(tmp_path, name, code, **changes(name))
    output = tmp_path / "out"
    arguments = ["--model", "demo", "--device", "cpu", "--limit", "4", "--output", str(output)]
    code_of_exit = main(["eval", "run", "--tasks", f"demo_mmlu,{file}", *arguments])
    printed = capsys.readouterr()
    assert code_of_exit == EXIT_PARTIAL, printed.err
    (path,) = output.glob("results_*.json")
    run = read_run(path)
    assert {score.task for score in run.scores} == {"demo_mmlu"}
    assert run.not_run.keys() == {name} and "ZeroDivisionError" in run.not_run[name] and "\n" not in run.not_run[name]
    assert f"{name} was not run: its answers could not be scored" in printed.out
    # alone it is an error of one line, and its answers are in the store
    with pytest.raises(DataError, match=f"{name}: its answers could not be scored"):
        evaluate("demo", Settings(tasks=(file,), output=output, limit=4), device="cpu", dtype="auto")


def test_a_group_has_no_score_without_one_of_its_tasks(tmp_path: Path) -> None:
    write_task(tmp_path, "part_a")
    write_task(tmp_path, "part_b", KINDS["metric"][1], **in_metrics("part_b"))
    group = {"group": "both", "task": ["part_a", "part_b"], "aggregate_metric_list": [{"metric": "exact_match"}]}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(group))
    settings = Settings(tasks=(str(tmp_path / "both.yaml"),), output=tmp_path / "out", limit=3)
    run = evaluate("demo", settings, device="cpu", dtype="auto")
    assert {score.task for score in run.scores} == {"part_a"} and set(run.not_run) == {"part_b"}


def test_metrics_that_are_no_means_over_questions_have_scores(tmp_path: Path) -> None:
    choice = {"output_type": "multiple_choice", "doc_to_choice": ["no", "yes"], "doc_to_target": "yes"}
    metrics = [
        {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False},
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
    ]
    file = write_task(tmp_path, "pairs", **choice, metric_list=metrics)
    run = evaluate("demo", Settings(tasks=(file,), output=tmp_path / "out"), device="cpu", dtype="auto")
    assert {score.metric for score in run.scores} == {"brier_score", "acc"} and not run.not_run


def test_a_task_that_cannot_be_loaded_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "demo", "--device", "cpu", "--limit", "2", "--data", str(tmp_path), "--output"]
    tasks = "demo_mmlu,squadv2,arc_easy"
    assert main(["eval", "run", "--tasks", tasks, *arguments, str(tmp_path / "out")]) == EXIT_PARTIAL
    printed = capsys.readouterr()
    (path,) = (tmp_path / "out").glob("results_*.json")
    run = read_run(path)
    assert {score.task for score in run.scores} == {"demo_mmlu"} and set(run.not_run) == {"squadv2", "arc_easy"}
    assert "eval prepare lighteval/squad_v2=FOLDER" in run.not_run["squadv2"]
    assert printed.err.index("squadv2 is not run: ") < printed.err.index("written to")
    with pytest.raises(DataError, match="lighteval/squad_v2.* allenai/ai2_arc"):
        evaluate("demo", Settings(tasks=("squadv2", "arc_easy"), output=tmp_path / "out", data=tmp_path))


def test_a_prompt_that_cannot_be_made_is_an_error_of_one_line(tmp_path: Path) -> None:
    text = "{% if q.startswith('What is 2') %}{{no_such_field}}{% else %}{{q}}{% endif %}"
    file = write_task(tmp_path, "third_prompt", doc_to_text=text)
    with pytest.raises(DataError, match="third_prompt: its prompts could not be made .*no_such_field") as error:
        evaluate("demo", Settings(tasks=(file,), output=tmp_path / "out"), device="cpu")
    assert "\n" not in str(error.value)
