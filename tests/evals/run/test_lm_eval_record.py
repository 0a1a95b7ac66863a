"""The results file has every key that lm-eval's own program writes, with the same hashes."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.utils import make_table

from evals.run.evaluate import evaluate
from evals.run.score_external import score
from evals.run.settings import Settings
from evals.tasks import registry
from evals.tasks.code_metrics import CodeGrader
from workbench.cli import main

TASKS = ("demo_gsm8k", "demo_mmlu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "demo"
    assert main(["convert", "demo", str(folder), "--layout", "hf"]) == 0
    return folder


@pytest.fixture(scope="module")
def theirs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A results file of lm-eval's Hugging Face backend, written by its own tracker."""
    output = tmp_path_factory.mktemp("theirs")
    loaded = registry.load(list(TASKS), root=None, grader=CodeGrader())
    tracker = EvaluationTracker(output_path=str(output))
    results = simple_evaluate(
        "hf",
        model_args={"pretrained": str(folder), "dtype": "float32"},
        tasks=list(loaded.tasks.values()),
        limit=2,
        device="cpu",
        gen_kwargs={"max_gen_toks": 4},
        system_instruction="Be brief.",
        fewshot_as_multiturn=False,  # as its command line sets it without a chat template
        evaluation_tracker=tracker,
    )
    assert results is not None
    tracker.save_results_aggregated(results=results, samples=results.pop("samples"))
    (path,) = output.rglob("results_*.json")
    return dict(json.loads(path.read_text()))


@pytest.mark.filterwarnings("ignore")  # transformers' and lm-eval's own
@pytest.mark.parametrize("backend", ["workbench", "hf"])
def test_every_key_of_lm_evals_results_is_there(
    backend: str, folder: Path, theirs: dict[str, Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"tasks": TASKS, "limit": 2, "gen_kwargs": {"max_gen_toks": 4}, "system": "Be brief."}
    run = evaluate(folder, Settings(output=tmp_path, backend=backend, **options), dtype="float32", device="cpu")
    ours = json.loads(run.path.read_text())
    assert theirs.keys() <= ours.keys() and theirs["config"].keys() <= ours["config"].keys()
    same = ("task_hashes", "system_instruction", "system_instruction_sha", "chat_template", "chat_template_sha",
            "fewshot_as_multiturn", "transformers_version", "lm_eval_version", "max_length", "eot_token_id",
            "n-shot", "n-samples", "versions", "higher_is_better")  # fmt: skip
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    for kind in ("eos", "bos"):
        assert ours[f"tokenizer_{kind}_token"] == theirs[f"tokenizer_{kind}_token"]
    assert ours["config"]["bootstrap_iters"] == theirs["config"]["bootstrap_iters"]
    assert ours["config"]["model_num_parameters"] == theirs["config"]["model_num_parameters"]
    assert make_table(ours).splitlines()[0] == make_table(theirs).splitlines()[0]


def test_scored_answers_have_every_key_too(theirs: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"doc_id": 0, "response": "#### 5"}\n')
    run = score("demo_gsm8k", path, output=tmp_path)
    only_of_a_model = {"model_dtype", "model_num_parameters", "device", "gen_kwargs"}
    ours = json.loads(run.path.read_text())
    assert theirs["config"].keys() - ours["config"].keys() <= only_of_a_model
    missing = theirs.keys() - ours.keys()
    assert missing <= {
        "git_hash",
        "model_name_sanitized",
        "max_length",
        "eot_token_id",
        "chat_template",
        "chat_template_sha",
    }
