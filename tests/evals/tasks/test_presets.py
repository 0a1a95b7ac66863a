"""Presets ask as their sources say, and several programs a problem give the unbiased estimate."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate

from evals import sandbox
from evals.report import headlines
from evals.run.evaluate import evaluate as run_evaluation
from evals.run.settings import Settings
from evals.tasks import presets, registry
from evals.tasks.code_metrics import CodeGrader
from workbench.cli import main
from workbench.errors import DataError
from workbench.model import Transformer


def test_names_in_metas_two_ways() -> None:
    names = ["mmlu", "mmlu_anatomy", "mmlu_stem", "gsm8k", "humaneval", "demo_mmlu", "mmlu_pro"]
    plain = ("mmlu", "mmlu_anatomy", "mmlu_stem", "gsm8k_cot", "humaneval", "demo_mmlu", "mmlu_pro")
    chat = (
        "mmlu_llama",
        "mmlu_llama_anatomy",
        "mmlu_llama_stem",
        "gsm8k_llama",
        "humaneval_instruct",
        "demo_mmlu",
        "mmlu_pro",
    )
    assert presets.tasks("meta", names, chat=False) == plain
    assert presets.tasks("meta", names, chat=True) == chat
    assert presets.tasks("meta", ["mmlu_cot", "mmlu_cot_virology"], chat=True) == (
        "mmlu_cot_llama",
        "mmlu_cot_llama_virology",
    )
    assert presets.tasks("lm-eval", names, chat=True) == tuple(names)
    with pytest.raises(DataError, match="no preset 'mega'; the presets are lm-eval and meta"):
        presets.tasks("mega", names, chat=False)


def config(task: Any) -> tuple[int, int | None]:
    arguments = task.config.generation_kwargs or {}
    return task.get_config("num_fewshot") or 0, arguments.get("max_gen_toks")


@pytest.mark.parametrize(
    ("name", "chat", "expected"),
    [
        ("mmlu_anatomy", False, (5, None)),
        ("gsm8k", False, (8, 1024)),
        ("humaneval", False, (0, 1024)),
        ("mmlu_anatomy", True, (5, 10)),
        ("mmlu_cot_anatomy", True, (0, 1024)),
        ("gsm8k", True, (8, 1024)),
        ("humaneval", True, (0, 1024)),
    ],
)
def test_shots_and_lengths(shared_data: Path, name: str, chat: bool, expected: tuple[int, int | None]) -> None:
    (task,) = presets.tasks("meta", [name], chat=chat)
    loaded = registry.load([task], root=shared_data, grader=CodeGrader(), preset="meta", chat=chat).tasks[task]
    assert config(loaded) == expected
    loaded.build_all_requests(limit=1)
    counted = {"gsm8k_cot": ("\nA:", 9), "mmlu_anatomy": ("\nAnswer:", 6)}
    if task in counted:
        mark, times = counted[task]
        assert loaded.instances[0].args[0].count(mark) == times


def test_lm_evals_preset_changes_nothing(shared_data: Path) -> None:
    plain = registry.load(["mmlu_anatomy", "gsm8k"], root=shared_data, grader=CodeGrader()).tasks
    for name, task in registry.load(
        ["mmlu_anatomy", "gsm8k"], root=shared_data, grader=CodeGrader(), preset="lm-eval"
    ).tasks.items():
        assert config(task) == config(plain[name])


@dataclass
class Score:
    task: str
    metric: str
    filter: str
    average: str


def test_the_headline_is_metas_macro_average_and_lm_evals_micro() -> None:
    micro, macro = (Score("mmlu", "acc", "none", average) for average in ("micro", "macro"))
    part = Score("mmlu_anatomy", "acc", "none", "")
    scores = [micro, macro, part, Score("mmlu_llama", "exact_match", "strict_match", "macro")]
    assert headlines.headline("meta", "mmlu", scores, chat=False) is macro
    assert headlines.headline("lm-eval", "mmlu", scores, chat=False) is micro
    assert headlines.headline("meta", "mmlu_anatomy", scores, chat=False) is part
    assert headlines.headline("meta", "mmlu_llama", scores, chat=True) is scores[3]
    assert headlines.headline("meta", "demo_mmlu", scores, chat=False) is None


@pytest.mark.parametrize("name", ["humaneval", "humaneval_instruct"])
def test_samples_are_drawn_and_pass_at_k_follows(shared_data: Path, name: str) -> None:
    task = registry.load([name], root=shared_data, grader=CodeGrader(), samples=20).tasks[name]
    assert task.config.repeats == 20 and task.config.generation_kwargs["do_sample"] is True
    assert task.config.generation_kwargs["max_gen_toks"] == 1024
    assert task.config.metric_list[0]["k"] == [1, 10]
    for samples, expected in ((1, [1]), (9, [1]), (10, [1, 10]), (200, [1, 10, 100])):
        task = registry.load([name], root=shared_data, grader=CodeGrader(), samples=samples).tasks[name]
        assert task.config.metric_list[0]["k"] == expected
    assert task.config.generation_kwargs["temperature"] == 0.2
    greedy_task = registry.load([name], root=shared_data, grader=CodeGrader(), samples=1).tasks[name]
    assert greedy_task.config.generation_kwargs["do_sample"] is False
    with pytest.raises(DataError, match="--samples is for tasks whose answers are programs"):
        registry.load(["gsm8k"], root=shared_data, grader=CodeGrader(), samples=2)


def test_lm_evals_own_sampled_task_keeps_its_settings(shared_data: Path) -> None:
    task = registry.load(["humaneval_64"], root=shared_data, grader=CodeGrader()).tasks["humaneval_64"]
    assert task.config.repeats == 64 and task.config.metric_list[0]["k"] == [2, 8, 16, 32, 64]
    assert task.config.generation_kwargs["temperature"] == 0.2


class Seldom(LM):
    """Writes a right program every third time that it is asked for one."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def generate_until(self, requests: list[Any]) -> list[str]:
        answers = []
        for request in requests:
            self.asked += 1
            answers.append(request.doc["canonical_solution"] if self.asked % 3 == 0 else "    return None\n")
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


@pytest.mark.skipif(sandbox.why_unavailable() is not None, reason=f"no sandbox here: {sandbox.why_unavailable()}")
def test_several_programs_give_the_unbiased_estimate(shared_data: Path) -> None:
    """Of each problem's 11 programs, 3 or 4 are right: pass@10 is 1, for no ten are all among the 7 or 8 wrong ones."""
    loaded = registry.load(["humaneval"], root=shared_data, grader=CodeGrader(workers=2), samples=11)
    results = evaluate(lm=Seldom(), task_dict=loaded.as_dict(), limit=3, confirm_run_unsafe_code=True)
    scores = results["results"]["humaneval"]
    assert scores["pass@10,create_test"] == 1.0
    # Programs are asked for one problem after the other: the 33 have their eleven right ones at every third place.
    assert scores["pass@1,create_test"] == pytest.approx((3 + 4 + 4) / 33, abs=1e-12)
    assert [len(sample["resps"][0]) for sample in results["samples"]["humaneval"]] == [11] * 3


def test_a_run_by_metas_preset_in_a_chat(speaking_model: Transformer, shared_data: Path, tmp_path: Path) -> None:
    settings = Settings(
        tasks=("mmlu_anatomy",), output=tmp_path, data=shared_data, limit=2, preset="meta", chat=True, seed=3
    )
    assert Settings.from_dict(settings.to_dict()) == settings
    run = run_evaluation(speaking_model, settings)
    assert run.tasks == ["mmlu_llama_anatomy"]
    (row, _) = (prompt for prompt in run.samples("mmlu_llama_anatomy").prompt)
    # A context of 640 bytes holds the end of the chat alone: the question, and the answer that is begun for the model.
    assert row.endswith("<|start_header_id|>assistant<|end_header_id|>\n\nThe best answer is")
    assert run.data["n-shot"]["mmlu_llama_anatomy"] == 5
    ((score, rule),) = headlines.headlines(run)
    assert (score.task, score.metric, score.filter, score.n) == ("mmlu_llama_anatomy", "exact_match", "strict_match", 2)
    assert "macro average" in rule.source and run.provenance["preset"] == "meta"


def test_a_command_by_the_preset(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_DATA", str(shared_data))
    suite = tmp_path / "mine.jsonl"
    suite.write_text('{"question": "1 + 1?", "answer": 2}\n')
    arguments = ["--tasks", "mmlu_abstract_algebra", "--suite", str(suite), "--limit", "1", "--preset", "meta"]
    assert main(["eval", "run", *arguments, "--output", str(tmp_path / "out"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {score["task"] for score in shown["scores"]} == {"mmlu_abstract_algebra", "mine"}
    assert shown["headlines"]["mmlu_abstract_algebra"]["shots"] == 5
    assert main(["eval", "show", str(tmp_path / "out")]) == 0
    assert "mmlu_abstract_algebra, this run's score by Meta's rule: " in capsys.readouterr().out
    for more, message in ((["--preset", "mega"], "no preset"), (["--samples", "4"], "--samples is for tasks")):
        assert main(["eval", "run", "--tasks", "gsm8k", *more, "--output", str(tmp_path / "none")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
