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


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    import pandas as pd

    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(path)


def test_names_in_metas_two_ways() -> None:
    names = ["mmlu", "mmlu_anatomy", "mmlu_stem", "gsm8k", "humaneval"]
    plain = ("mmlu", "mmlu_anatomy", "mmlu_stem", "gsm8k_cot", "humaneval")
    chat = (
        "mmlu_llama",
        "mmlu_llama_anatomy",
        "mmlu_llama_stem",
        "gsm8k_llama",
        "humaneval_instruct",
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


def test_every_published_row_has_a_task_or_a_reason() -> None:
    from evals.compare.published import published

    for row in published():
        chat = row.variant == "instruct"
        if row.task in presets.NOT_REPRODUCED:
            with pytest.raises(DataError, match=rf"no rule for '{row.task}': .*few_shot_prompts.csv"):
                presets.tasks("meta", [row.task], chat=chat)
            continue
        (task,) = presets.tasks("meta", [row.task], chat=chat)
        rule = presets.rule("meta", task, chat=chat)
        assert rule is not None and str(rule.shots) == row.shots, row
        assert ("macro" if "macro" in row.metric else "") == rule.average, row


@pytest.mark.parametrize("name", ["hellaswag", "mmlu_pro", "demo_mmlu", "squadv2", "arc_challenge", "agieval_en"])
def test_a_task_without_a_rule_is_refused_under_metas_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"--preset meta has no rule for '{name}': .*--preset lm-eval"):
        run_evaluation("demo", Settings(tasks=("mmlu_anatomy", name), output=tmp_path / "out", preset="meta"))
    assert not (tmp_path / "out").exists()


def test_squad_as_meta_asks(tmp_path: Path) -> None:
    rows = [
        {"title": "T", "context": "C1", "question": "q1", "answers": {"text": ["one", "1"], "answer_start": [0, 1]}},
        {"title": "T", "context": "C1", "question": "q2", "answers": {"text": [], "answer_start": []}},
        {"title": "T", "context": "C2", "question": "q3", "answers": {"text": ["three"], "answer_start": [0]}},
        {"title": "T", "context": "C1", "question": "q4", "answers": {"text": ["four"], "answer_start": [0]}},
    ]
    train = {"title": "E", "context": "CE", "question": "qe", "answers": {"text": ["ae"], "answer_start": [0]}}
    for split, docs in (("validation", rows), ("train", [train])):
        write(tmp_path / "hub" / "lighteval" / "squad_v2" / "squad_v2" / f"{split}-0.parquet", docs)
    (name,) = presets.tasks("meta", ["squad"], chat=False)
    task = registry.load([name], root=tmp_path, grader=CodeGrader(), preset="meta").tasks[name]
    task.set_fewshot_seed(1)
    task.build_all_requests()
    prompts = [instance.args[0] for instance in task.instances]
    example = "Title: E\n\nBackground: CE\n\nQuestion: qe\n\nAnswer: ae\n\n"
    earlier = "Question: q1\n\nAnswer: one\n\nQuestion: q2\n\nAnswer: unanswerable\n\n"
    assert prompts[0] == f"{example}Title: T\n\nBackground: C1\n\nQuestion: q1\n\nAnswer:"
    assert prompts[2] == f"{example}Title: T\n\nBackground: C2\n\nQuestion: q3\n\nAnswer:"
    assert prompts[3] == f"{example}Title: T\n\nBackground: C1\n\n{earlier}Question: q4\n\nAnswer:"
    assert task.instances[0].args[1]["max_gen_toks"] == 32 and task.instances[0].args[1]["until"] == ["\n"]
    answers = [(0, " The one.", 1.0), (0, " two", 0.0), (1, " unanswerable", 1.0), (1, " one", 0.0), (2, "", 0.0)]
    for index, answer, right in answers:
        assert task.process_results(task.eval_docs[index], [answer]) == {"exact_match": right}


def test_commonsense_qa_as_meta_asks(tmp_path: Path) -> None:
    choices = {"label": list("ABCDE"), "text": ["bank", "library", "store", "mall", "york"]}
    row = {"id": "1", "question": "Where is it? ", "question_concept": "it", "choices": choices, "answerKey": "D"}
    for split in ("train", "validation"):
        write(tmp_path / "hub" / "tau" / "commonsense_qa" / f"{split}-0.parquet", [row])
    (name,) = presets.tasks("meta", ["commonsense_qa"], chat=False)
    task = registry.load([name], root=tmp_path, grader=CodeGrader(), preset="meta").tasks[name]
    task.build_all_requests()
    prompt = task.instances[0].args[0]
    assert [instance.args[1] for instance in task.instances] == [" A", " B", " C", " D", " E"]
    assert prompt.endswith("\n\nQuestion: Where is it?\nA. bank\nB. library\nC. store\nD. mall\nE. york\nAnswer:")
    shots = prompt.split("\n\n")[:-1]
    assert [shot[-1] for shot in shots] == ["E", "C", "B", "A", "B", "D", "C"]  # as in the paper
    assert shots[1] == (
        "Question: What home entertainment equipment requires cable?\n"
        "A. radio shack\nB. substation\nC. television\nD. cabinet\nAnswer: C"
    )
    assert task.process_results(task.eval_docs[0], [(-1.0, False)] * 3 + [(-0.5, False), (-1.0, False)]) == {"acc": 1.0}
