"""Answers made elsewhere find their questions and score what a run of our own scores; a bad line is named."""

import csv
import gzip
import hashlib
import json
import random
import shlex
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import Mock

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

from evals import sandbox, stats
from evals.compare.compare import compare
from evals.report import headlines, report, terminal_table
from evals.results import runs as external_runs
from evals.results.runs import Run, list_runs
from evals.run import external_answers
from evals.run.evaluate import evaluate
from evals.run.external_answers import Answer, match
from evals.run.score_external import score
from evals.run.settings import Settings
from evals.sandbox import Limits
from evals.store.store import Store
from evals.tasks import local_data
from evals.tasks.code_metrics import CodeGrader
from workbench.cli import main
from workbench.errors import DataError
from workbench.model import Transformer

needs_sandbox = pytest.mark.skipif(
    sandbox.why_unavailable() is not None, reason=f"no sandbox here: {sandbox.why_unavailable()}"
)
PROGRAMS = local_data.embedded("demo_humaneval")["test"]
SUMS = local_data.embedded("demo_gsm8k")["test"]
QUIZ = local_data.embedded("demo_mmlu")["test"]


def written(path: Path, rows: Iterable[Any]) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def values(run: Run) -> dict[tuple[str, str], float]:
    return {(s.metric, s.filter): s.value for s in run.scores if not s.average}


# --- against what is known to be right


@needs_sandbox
def test_humaneval_canonical_solutions_score_all_and_shuffled_ones_none(shared_data: Path, tmp_path: Path) -> None:
    problems = local_data.load("openai/openai_humaneval", None, shared_data)["test"]
    right = [{"task_id": p["task_id"], "completion": p["canonical_solution"]} for p in problems]
    run = score("humaneval", written(tmp_path / "a.jsonl.gz", right), output=tmp_path, data=shared_data)
    assert values(run) == {("pass@1", "create_test"): 1.0} and run.scores[0].n == 164
    # Each solution to the next problem's question; some of those share a test's answer by chance.
    shifted = [{**row, "completion": right[i - 1]["completion"]} for i, row in enumerate(right)]
    wrong = score("humaneval", written(tmp_path / "b.jsonl", shifted[:40]), output=tmp_path, data=shared_data)
    assert values(wrong)["pass@1", "create_test"] <= 0.05 and wrong.scores[0].n == 40


def test_gsm8k_worked_answers_score_all_and_shifted_ones_few(shared_data: Path, tmp_path: Path) -> None:
    problems = local_data.load("openai/gsm8k", "main", shared_data)["test"]
    right = [{"doc_id": i, "response": p["answer"]} for i, p in enumerate(problems)]
    random.Random(0).shuffle(right)
    run = score("gsm8k", written(tmp_path / "a.jsonl", right), output=tmp_path, data=shared_data)
    assert {s.filter: (s.value, s.n) for s in run.scores} == {
        "strict-match": (1.0, 1319),
        "flexible-extract": (1.0, 1319),
    }
    # By the question's text; each has the answer to the one before. What is equal is equal by chance.
    rows = [{"question": p["question"], "response": problems[i - 1]["answer"]} for i, p in enumerate(problems)]
    equal = mean(
        p["answer"].split("####")[1] == problems[i - 1]["answer"].split("####")[1] for i, p in enumerate(problems)
    )
    shifted = score("gsm8k", written(tmp_path / "b.jsonl", rows), output=tmp_path, data=shared_data)
    assert {s.value for s in shifted.scores} == {equal} and equal < 0.05


def test_mmlu_by_letter_by_sentence_and_by_number(shared_data: Path, tmp_path: Path) -> None:
    subject, other = "abstract_algebra", "virology"
    random_ = random.Random(0)
    letters, sentences, numbers, right = [], [], [], []
    for name in (subject, other):
        with (shared_data / "mmlu" / "test" / f"{name}_test.csv").open(newline="") as file:
            for i, row in enumerate(csv.reader(file)):
                letter = random_.choice("ABCD")
                right.append((name, letter == row[5]))
                about = {"subject": name.replace("_", " "), "doc_id": i}
                letters.append({**about, "response": random_.choice([letter, f" ({letter})", f"{letter}.\nFor"])})
                sentences.append({**about, "response": f"Since A and B fail, the answer is ({letter})."})
                numbers.append({**about, "logprobs": {c: -1.0 if c == letter else -3.0 for c in "ABCD"}})
    expected = {f"mmlu_{name}": mean(ok for of, ok in right if of == name) for name in (subject, other)}
    for rows, metric, filter_ in (
        (letters, "exact_match", "get_response"),
        (sentences, "exact_match", "custom-extract"),
        (numbers, "acc", "none"),
    ):
        run = score("mmlu_stem", written(tmp_path / "a.jsonl", rows), output=tmp_path, data=shared_data)
        assert "mmlu_stem" not in {s.task for s in run.scores}, "a group of which a part is missing has no score"
        scores = {s.task: s.value for s in run.scores if (s.metric, s.filter) == (metric, filter_)}
        assert scores == {f"mmlu_{subject}": expected[f"mmlu_{subject}"]}
        assert run.provenance["answers"]["unknown"] == sum(of == other for of, _ in right), "virology is not of STEM"


@needs_sandbox
def test_a_log_scored_again_gives_what_the_run_gave(speaking_model: Transformer, tmp_path: Path) -> None:
    tasks = ("demo_mmlu", "demo_gsm8k", "demo_humaneval")
    first = evaluate(speaking_model, Settings(tasks=tasks, output=tmp_path / "run", limit=8))
    record = first.provenance["sandbox"]
    assert record == {"engine": sandbox.require().name, **CodeGrader().limits.to_dict()} and record["seconds"] == 10.0
    stated = {(s.task, s.metric, s.filter): (s.value, s.n) for s in first.scores}
    again: dict[tuple[str, str, str], tuple[float, int]] = {}
    for task in tasks:
        log = first.path.with_name(f"samples_{task}_{first.stamp}.jsonl")
        run = score(task, log, output=tmp_path / "again")
        again |= {(s.task, s.metric, s.filter): (s.value, s.n) for s in run.scores}
        rows, before = run.samples(task), first.samples(task)
        assert list(rows.correct) == list(before.correct) and list(rows.answer) == list(before.answer)
        assert run.provenance["answers"]["duplicates"] == 0, "a line for each filter is no second answer"
    assert again == stated


def test_answers_are_scored_as_they_were_asked(shared_data: Path, tmp_path: Path) -> None:
    """GSM8K by Meta's preset is asked with chains of thought, which say "The answer is" and have no "####"."""
    rows = [{"doc_id": 0, "response": "So 9 * 2 = 18. The answer is 18."}]
    path = written(tmp_path / "a.jsonl", rows)
    for preset, task, value in ((None, "gsm8k", 0.0), ("meta", "gsm8k_cot", 1.0)):
        run = score("gsm8k", path, output=tmp_path, data=shared_data, preset=preset)
        scores = {(s.task, s.filter): s.value for s in run.scores}
        assert scores[task, "strict-match"] == value and run.provenance["preset"] == (preset or "lm-eval")
    with pytest.raises(DataError, match="no preset 'mega'"):
        score("gsm8k", path, output=tmp_path, data=shared_data, preset="mega")


def test_a_log_is_scored_by_the_preset_of_its_run(
    speaking_model: Transformer, shared_data: Path, tmp_path: Path
) -> None:
    options = {"tasks": ("mmlu_anatomy",), "data": shared_data, "limit": 3}
    first = evaluate(speaking_model, Settings(output=tmp_path / "run", preset="meta", chat=True, **options))
    log = first.path.with_name(f"samples_mmlu_llama_anatomy_{first.stamp}.jsonl")
    again = score("mmlu_anatomy", log, output=tmp_path / "again", data=shared_data)
    assert [(s.task, s.metric, s.filter, s.value, s.n) for s in again.scores] == [
        (s.task, s.metric, s.filter, s.value, s.n) for s in first.scores
    ]
    assert (again.provenance["preset"], again.provenance["chat"]) == ("meta", True)
    assert [s.task for s, _ in headlines.headlines(again)] == ["mmlu_llama_anatomy"]
    evaluate(speaking_model, Settings(output=tmp_path / "run", **options))
    with pytest.raises(DataError, match="different presets or chat settings"):
        score("mmlu_anatomy", tmp_path / "run", output=tmp_path / "again", data=shared_data)


@needs_sandbox
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(tmp_path: Path) -> None:
    right = [2, 0, 1]  # of five samples each
    rows = [
        {"task_id": p["task_id"], "completion": p["canonical_solution"] + f"    # {n}\n" if n < correct else f"    {n}"}
        for p, correct in zip(PROGRAMS, right, strict=False)
        for n in range(5)
    ]
    run = score("demo_humaneval", written(tmp_path / "a.jsonl", rows), output=tmp_path)
    draws = {
        k: [any(i < correct for i in draw) for correct in right for draw in combinations(range(5), k)]
        for k in (1, 2, 5)
    }
    assert values(run) == {(f"pass@{k}", "create_test"): pytest.approx(mean(some)) for k, some in draws.items()}
    assert run.scores[0].n == 3
    assert run.provenance["programs"] == {"demo_humaneval": [[5, 0, 1], [5, 1, 1], [5, 2, 1]]}
    # Of three drawn from 0, 1 and 2 in five, three zeros and three twos are one way in 27 each: 3.7%, more than 2.5%.
    intervals = {s.metric: (s.low, s.high) for s in run.scores}
    assert intervals["pass@1"] == pytest.approx((0, 2 / 5)) and intervals["pass@5"] == stats.wilson(2, 3)
    (shown,) = [line for line in terminal_table.render(run).splitlines() if "pass@1 " in line]
    assert shown.split()[-4:] == ["20.0", "0.0", "-", "40.0"]
    assert report.build([run]).tables[0].rows[0][-2:] == ("20.0", "0.0 - 40.0")
    less = score("demo_humaneval", written(tmp_path / "b.jsonl", rows[:5] + rows[10:]), output=tmp_path)
    (diff,) = [diff for diff in compare(run, less).differences if diff.a.metric == "pass@1"]
    assert (diff.a.n, diff.a.value, diff.a.low, diff.a.high) == pytest.approx((2, 0.3, 0.2, 0.4)), "of two problems"


# --- what is missing, unknown or there twice


def test_what_is_left_out_is_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"doc_id": i, "response": SUMS[i]["answer"]} for i in range(4)]
    rows += [{"doc_id": 2, "response": "#### 0"}, {"doc_id": 10**6, "response": "1"}]
    path = written(tmp_path / "mine.jsonl", rows)
    run = score("demo_gsm8k", path, output=tmp_path)
    assert {(s.value, s.n) for s in run.scores} == {(1.0, 4)}
    err = capsys.readouterr().err
    assert f"answers to 4 of {len(SUMS)} questions, in 6 lines" in err
    assert "1 unknown questions (mine.jsonl: line 6)" in err and "not used (mine.jsonl: line 5)" in err
    about = run.provenance["answers"]
    assert about["partial"] and (about["missing"], about["unknown"], about["duplicates"]) == (len(SUMS) - 4, 1, 1)
    counts = run.data["n-samples"]["demo_gsm8k"]
    assert counts == {"original": len(SUMS), "effective": 4}
    whole = score("demo_gsm8k", path, output=tmp_path, missing_wrong=True)
    assert {(s.value, s.n) for s in whole.scores} == {(4 / len(SUMS), len(SUMS))}
    assert not whole.provenance["answers"]["partial"]


@needs_sandbox
def test_a_problem_without_a_program_counts_as_wrong_for_every_k(tmp_path: Path) -> None:
    rows = [{"task_id": PROGRAMS[0]["task_id"], "completion": PROGRAMS[0]["canonical_solution"]}] * 2
    run = score("demo_humaneval", written(tmp_path / "a.jsonl", rows), output=tmp_path, missing_wrong=True)
    share = pytest.approx(1 / len(PROGRAMS))
    assert values(run) == {("pass@1", "create_test"): share, ("pass@2", "create_test"): share}
    verdicts = run.samples("demo_humaneval").verdict
    assert list(verdicts) == ["passed"] + ["no code"] * (len(PROGRAMS) - 1)


def test_numbers_that_are_missing_count_as_wrong(tmp_path: Path) -> None:
    numbers = [0.0 if i == QUIZ[0]["answer"] else -1.0 for i in range(4)]
    path = written(tmp_path / "a.jsonl", [{"doc_id": 0, "response": numbers}])
    run = score("demo_mmlu", path, output=tmp_path, missing_wrong=True)
    assert values(run) == {("acc", "none"): pytest.approx(1 / len(QUIZ))}


LINES = {
    "{": "line 2 is not JSON",
    "[1]": "line 2 is not a JSON object, but list",
    '{"response": "A"}': "line 2 does not say which question",
    '{"doc_id": 1}': "line 2 has no answer",
    '{"doc_id": null, "response": "A"}': "line 2 does not say which question",
    '{"doc_id": 1, "response": [-1.0, -2.0, -3.0]}': "line 2 has 3 numbers for a question with 4 choices",
    '{"doc_id": 1, "response": [-1.0, -2.0, -3.0, -4.0]}': "line 2 has numbers, but the lines before it have text",
    '{"doc_id": 1, "question": "Which?", "response": "A"}': "line 2: its question does not match question 1",
    '{"doc_id": 1, "doc": {"question": "Which?"}, "resps": [["A"]]}': "line 2: its question does not match question 1",
}


@pytest.mark.parametrize("line", LINES)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"doc_id": 0, "response": "A"}\n' + line + "\n")
    with pytest.raises(DataError, match=f"a.jsonl: {LINES[line]}"):
        score("demo_mmlu", path, output=tmp_path)
    assert not list(tmp_path.glob("results_*"))


def test_files_that_cannot_be_scored_say_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        score("demo_gsm8k", tmp_path / "none.jsonl", output=tmp_path)
    with pytest.raises(DataError, match=r"has no samples_TASK_TIME\.jsonl"):
        score("demo_gsm8k", tmp_path, output=tmp_path)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b'{"doc_id": 0, "response": "1"}\n' * 1000)[:-12])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz cannot be read"):
        score("demo_gsm8k", cut, output=tmp_path)
    empty = written(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match="no line answers a question of demo_gsm8k; the file has no lines"):
        score("demo_gsm8k", empty, output=tmp_path)


def test_a_line_that_could_mean_two_questions_is_refused() -> None:
    docs = {"a": [{"question": "x"}, {"question": "y"}], "b": [{"question": "x"}]}

    def found(about: dict[str, Any], task: str | None = None) -> set[tuple[str, int]]:
        return match([Answer("line 1", about, task, ("t",))], docs, choices=lambda name, doc: 0).answered

    assert found({"question": " y\n"}) == {("a", 1)}
    assert found({"doc_id": 1}) == {("a", 1)}, "b has no second question"
    assert found({"question": "x"}, "b") == {("b", 0)}
    for about in ({"question": "x"}, {"doc_id": 0}):
        with pytest.raises(DataError, match=r"line 1 matches 2 questions, such as a 0 and b 0; add task and doc_id\."):
            found(about)


def test_logs_in_a_folder_are_told_apart_by_their_names(tmp_path: Path) -> None:
    for subject in ("anatomy", "virology"):
        written(tmp_path / f"samples_mmlu_{subject}_2026-01-02T03-04-05.678.jsonl", [{"doc_id": 0, "resps": [["A"]]}])
    (tmp_path / "results_2026-01-02T03-04-05.678.json").write_text("{}")
    read = [answer for path in external_answers.files(tmp_path) for answer in external_answers.read(path)]
    assert [answer.task for answer in read] == ["mmlu_anatomy", "mmlu_virology"]


def test_a_file_whose_scoring_failed_is_scored_again_by_the_command_that_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "my answers.jsonl", [{"doc_id": 0, "response": "#### 5"}])
    with monkeypatch.context() as patch:
        patch.setattr(external_runs, "write", Mock(side_effect=RuntimeError("gone")))
        with pytest.raises(RuntimeError, match="gone"):
            score("demo_gsm8k", path, output=tmp_path)
    assert main(["eval", "list", "--results", str(tmp_path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    program, *command = shlex.split(row["resume"])
    assert program == "workbench" and main(command) == 0
    assert len(list_runs(tmp_path)) == 1


# --- the run that it is


def test_the_run_is_in_the_store_and_says_what_was_scored(tmp_path: Path) -> None:
    path = written(tmp_path / "theirs.jsonl", [{"doc_id": 0, "response": "#### 5"}])
    run = score("demo_gsm8k", path, output=tmp_path, model_name="a-model")
    assert run.model == "a-model" and list_runs(tmp_path) == [run]
    with Store.open(tmp_path, create=False) as store:
        (stored,) = store.runs()
    assert (stored.status, stored.results, stored.id) == ("finished", run.path.name, run.provenance["run"])
    about = run.provenance["answers"]
    assert about["sha256"] == {"theirs.jsonl": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert run.scores[0].shots is None, "how they were asked is not known"
    row = run.samples("demo_gsm8k").iloc[0]
    assert row.response == "#### 5" and SUMS[0]["question"] in row.prompt


def test_the_command_prints_metrics_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(
        tmp_path / "theirs.jsonl", [{"doc_id": i, "response": "ABCD"[q["answer"]]} for i, q in enumerate(QUIZ)]
    )
    arguments = ["--task", "demo_mmlu", "--samples", str(path), "--output", str(tmp_path), "--json"]
    assert main(["eval", "score", *arguments]) == 0
    shown = json.loads(capsys.readouterr().out)
    scores = {s["filter"]: (s["value"], s["n"]) for s in shown["scores"]}
    assert scores["get_response"] == (1.0, len(QUIZ)) and shown["model"] == "theirs"
    arguments[3] = str(tmp_path / "none")
    assert main(["eval", "score", *arguments]) == 2
    capsys.readouterr()
    assert main(["eval", "show", "--results", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == shown["path"]


@needs_sandbox
def test_a_run_without_a_sandbox_says_so_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"task_id": PROGRAMS[0]["task_id"], "completion": PROGRAMS[0]["canonical_solution"]}
    path = written(tmp_path / "a.jsonl", [row])
    flags = ["--task", "demo_humaneval", "--samples", str(path), "--output", str(tmp_path), "--json", "--unsafe-exec"]
    assert main(["eval", "score", *flags]) == 0
    captured = capsys.readouterr()
    assert "WARNING: --unsafe-exec" in captured.err
    report = json.loads(captured.out)
    assert report["provenance"]["sandbox"]["engine"] == "none (unsafe)" and report["scores"][0]["value"] == 1.0


def test_a_log_of_lm_evals_own_program_is_read(tmp_path: Path) -> None:
    from lm_eval.evaluator import evaluate as lm_eval_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.dummy import DummyLM

    from evals.tasks import registry
    from evals.tasks.code_metrics import CodeGrader

    random.seed(0)
    loaded = registry.load(["demo_mmlu", "demo_gsm8k"], root=None, grader=CodeGrader())
    theirs = lm_eval_evaluate(lm=DummyLM(), task_dict=loaded.as_dict(), limit=40, log_samples=True)
    tracker = EvaluationTracker(output_path=str(tmp_path / "log"))
    samples = theirs.pop("samples")
    tracker.save_results_aggregated(results=theirs, samples=samples)
    for task in loaded.tasks:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    (folder,) = {path.parent for path in (tmp_path / "log").rglob("samples_*.jsonl")}
    for task in loaded.tasks:
        (log,) = folder.glob(f"samples_{task}_*.jsonl")
        run = score(task, log, output=tmp_path / "again")
        for task_score in run.scores:
            assert task_score.n == 40
            assert task_score.value == theirs["results"][task][f"{task_score.metric},{task_score.filter}"]
            assert task_score.stderr == pytest.approx(
                theirs["results"][task][f"{task_score.metric}_stderr,{task_score.filter}"]
            )
    assert 0 < theirs["results"]["demo_mmlu"]["acc,none"] < 1, "guesses, some of them right"
    everything = score("demo_mmlu", folder, output=tmp_path / "again")
    assert everything.provenance["answers"]["unknown"] == 80, "the other task's lines, one for each filter"


def test_runs_of_answers_are_compared_on_what_both_answered(tmp_path: Path) -> None:
    right = [{"doc_id": i, "response": row["answer"]} for i, row in enumerate(SUMS)]
    wrong = [{**row, "response": "#### 123456789"} if row["doc_id"] < 3 else row for row in right[:10]]
    first = score("demo_gsm8k", written(tmp_path / "a.jsonl", right), output=tmp_path / "a")
    second = score("demo_gsm8k", written(tmp_path / "b.jsonl", wrong), output=tmp_path / "b")
    frame = compare(first, second).frame()
    assert set(frame.n) == {10} and set(frame.difference.round(9)) == {-0.3}


def test_every_limit_of_a_program_is_passed_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score_options: dict[str, Any] = {}

    def stop(*arguments: Any, **options: Any) -> None:
        score_options.update(options)
        raise DataError("far enough")

    monkeypatch.setattr("evals.run.score_external.score", stop)
    flags = "--timeout 3 --cpu 2 --memory 128 --processes 5 --file-size 0.5 --open-files 20 --output-size 1"
    assert main(["eval", "score", "--task", "humaneval", "--samples", str(tmp_path / "x"), *flags.split()]) != 0
    assert score_options["limits"] == Limits(
        seconds=3.0,
        cpu_seconds=2,
        memory=128 << 20,
        processes=5,
        file_bytes=1 << 19,
        open_files=20,
        output_bytes=1024,
    )
