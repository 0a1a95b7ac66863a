"""Runs are written atomically, found, and read as tables; damaged files are reported and do not hide other runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from evals import stats
from evals.report import terminal_table
from evals.results import runs
from evals.results.runs import Run, list_runs, read_run, scan, write
from workbench.errors import DataError


def report(**changes: Any) -> dict[str, Any]:
    """Two subjects in a group, and a generation task with two filters, as lm-eval writes them."""
    return {
        "results": {
            "s_a": {"alias": "a", "sample_len": 10, "acc,none": 0.8, "acc_stderr,none": 0.1333},
            "s_b": {"alias": "b", "sample_len": 30, "acc,none": 0.4, "acc_stderr,none": 0.0910},
            "words": {
                "sample_len": 5,
                "exact_match,strict-match": 0.2,
                "exact_match_stderr,strict-match": 0.2,
                "exact_match,flexible-extract": 0.4,
                "exact_match_stderr,flexible-extract": "N/A",
                "bleu,none": 31.5,
                "bleu_stderr,none": 2.0,
            },
            "s": {"alias": "s", "sample_len": 40, "acc,none": 0.5, "acc_stderr,none": 0.0781},
        },
        "group_subtasks": {"s": ["s_a", "s_b"]},
        "configs": {"s_a": {}, "s_b": {}, "words": {}},
        "n-shot": {"s_a": 5, "s_b": 5, "words": 0},
        "n-samples": {
            "s_a": {"original": 100, "effective": 10},
            "s_b": {"original": 100, "effective": 30},
            "words": {"original": 100, "effective": 5},
        },
        "model_name": "tiny",
        "date": 1_700_000_000.0,
        **changes,
    }


QUIZ = {
    "doc_id": 7,
    "doc": {"question": "?"},
    "target": "1",
    "arguments": {f"gen_args_{i}": {"arg_0": "Q", "arg_1": f" {c}"} for i, c in enumerate("AB")},
    "resps": [[["-2.0", "False"]], [["-1.0", "True"]]],
    "filtered_resps": [["-2.0", "False"], ["-1.0", "True"]],
    "filter": "none",
    "metrics": ["acc"],
    "acc": 1.0,
}


def test_a_run_is_found_again_as_it_was_written(tmp_path: Path) -> None:
    written = write(tmp_path / "deep" / "run", report(), {"s_a": [QUIZ]})
    (listed,) = list_runs(tmp_path)
    assert listed == written and listed.model == "tiny" and listed.provenance == {}
    assert not list(tmp_path.rglob("*.tmp"))
    row = listed.samples("s_a").iloc[0]
    assert (row.doc_id, row.answer, row.correct, row.logprobs, row.choices) == (7, 1, 1.0, [-2.0, -1.0], [" A", " B"])
    assert row.prompt_ids is None


def test_several_answers_to_a_question_make_no_proportion_of_questions(tmp_path: Path) -> None:
    scores = {"code": {"pass@1,create_test": 0.5, "pass@1_stderr,create_test": 0.1}}
    names = {"group_subtasks": {}, "n-samples": {"code": {"original": 20, "effective": 20}}}
    once, often = (
        write(tmp_path, report(results=scores, configs={"code": {"repeats": n}}, **names), {}).scores[0]
        for n in (1, 64)
    )
    assert (once.low, once.high) == stats.wilson(10, 20)
    assert (often.low, often.high) == stats.normal(0.5, 0.1), "lm-eval's file has no more than this"


def test_newest_comes_first(tmp_path: Path) -> None:
    stamps = [write(tmp_path, report(), {}).stamp for _ in range(3)]
    assert [run.stamp for run in list_runs(tmp_path)] == sorted(stamps, reverse=True)


def test_frame_has_n_and_intervals(tmp_path: Path) -> None:
    frame = write(tmp_path, report(), {}).frame()
    assert list(frame.columns[:7]) == ["task", "metric", "value", "stderr", "n", "low", "high"]
    rows = {(r.task, r.metric, r.filter, r.average): r for r in frame.itertuples()}
    micro, macro = rows["s", "acc", "none", "micro"], rows["s", "acc", "none", "macro"]
    assert (micro.value, micro.n) == (0.5, 40) and (micro.low, micro.high) == stats.wilson(20, 40)
    assert macro.value == pytest.approx(0.6)  # (0.8 + 0.4) / 2
    assert macro.stderr == pytest.approx((0.1333**2 + 0.0910**2) ** 0.5 / 2)
    assert rows["words", "exact_match", "flexible-extract", ""].n == 5
    assert rows["words", "bleu", "none", ""].low == pytest.approx(31.5 - 1.96 * 2, abs=0.01)
    assert frame.task.iloc[0] == "s", "groups come first"
    assert rows["s", "acc", "none", "micro"].shots == 5


def grouped(value: float) -> dict[str, Any]:
    """A group of one task with 10 questions, all right, and one with 990, all wrong; `value` is the group's score."""
    parts = {"s_a": {"acc,none": 1.0, "acc_stderr,none": 0.0}, "s_b": {"acc,none": 0.0, "acc_stderr,none": 0.0}}
    counts = {name: {"original": n, "effective": n} for name, n in (("s_a", 10), ("s_b", 990))}
    own = {"s": {"acc,none": value, "acc_stderr,none": 0.01}}
    return report(results=parts | own, **{"n-samples": counts})


def test_the_average_of_a_group_is_told_by_its_value(tmp_path: Path) -> None:
    for value in (0.01, 0.5):  # over questions, as most groups have it, and over tasks (weight_by_size: false)
        micro, macro = (score for score in write(tmp_path, grouped(value), {}).scores if score.task == "s")
        assert (micro.average, micro.value, micro.n) == ("micro", 0.01, 1000)
        assert (micro.low, micro.high) == stats.wilson(10, 1000)
        assert (macro.average, macro.value) == ("macro", 0.5)
    (own,) = (score for score in write(tmp_path, grouped(0.3), {}).scores if score.task == "s")
    assert (own.average, own.value) == ("group_rule", 0.3) and (own.low, own.high) == stats.normal(0.3, 0.01)


def test_a_macro_interval_stays_within_0_and_1(tmp_path: Path) -> None:
    data = report()
    for name, value in (("s_a", 1.0), ("s_b", 0.98), ("s", 0.985)):
        data["results"][name] |= {"acc,none": value, "acc_stderr,none": 0.1}
    (macro,) = [score for score in write(tmp_path, data, {}).scores if score.average == "macro"]
    assert macro.low is not None and 0 < macro.low < macro.value < 1.0 == macro.high


def test_table_shows_n_interval_and_what_was_not_run(tmp_path: Path) -> None:
    run = write(tmp_path, report(workbench={"not_run": {"code": "no bubblewrap; install it"}}), {})
    lines = terminal_table.render(run).splitlines()
    assert lines[0].split() == ["task", "shots", "metric", "n", "score", "95%", "interval"]
    low, high = (f"{100 * bound:.1f}" for bound in stats.wilson(20, 40))
    assert [line for line in lines if line.startswith("s (micro average)")][0].split()[3:] == [
        "5", "acc", "40", "50.0", low, "-", high,
    ]  # fmt: skip
    assert "code was not run: no bubblewrap; install it" in lines
    assert any(line.split() == ["code", "not", "run"] for line in lines)
    assert not any(line.startswith("s_a") for line in terminal_table.render(run, tasks=False).splitlines())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not complete JSON"),
        ('{"results": {"a": {"acc,no', "not complete JSON"),
        ("[1, 2]", "does not contain evaluation results"),
        ('{"results": []}', "does not contain evaluation results"),
        ('{"results": {"a": 5}}', "not an lm-eval results file"),
    ],
)
def test_damaged_files_are_reported_and_the_rest_is_read(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, report(), {})
    (tmp_path / "results_broken.json").write_text(text)
    runs, problems = scan(tmp_path)
    assert len(runs) == 1
    assert len(problems) == 1 and message in problems[0] and "results_broken.json" in problems[0]
    assert list_runs(tmp_path / "absent") == []


def test_samples_that_are_missing_or_cut_short(tmp_path: Path) -> None:
    run = write(tmp_path, report(), {"s_a": [QUIZ, QUIZ]})
    with pytest.raises(DataError, match="no samples of 's_b'"):
        run.samples("s_b")
    path = tmp_path / f"samples_s_a_{run.stamp}.jsonl"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match="line 2 is not a sample"):
        run.samples("s_a")


def test_what_lm_eval_itself_writes_can_be_read(tmp_path: Path) -> None:
    tracking = pytest.importorskip("lm_eval.loggers.evaluation_tracker", reason="lm_eval is not installed")
    tracker = tracking.EvaluationTracker(output_path=str(tmp_path))
    tracker.general_config_tracker.log_experiment_args("hf", "pretrained=org/model", None, None, False)
    sample = {
        **QUIZ,
        "arguments": [("Q", " A"), ("Q", " B")],
        "resps": [[(-2.0, False)], [(-1.0, True)]],
        "filtered_resps": [(-2.0, False), (-1.0, True)],
        **dict.fromkeys(("doc_hash", "prompt_hash", "target_hash"), "0"),
    }
    tracker.save_results_aggregated(results=report(), samples={"s_a": [sample]})
    tracker.save_results_samples(task_name="s_a", samples=[sample])
    (run,) = list_runs(tmp_path)
    assert run.model == "org/model" and len(run.scores) == 7
    assert run.samples("s_a").iloc[0].answer == 1


def test_ours_has_the_form_of_lm_evals(tmp_path: Path) -> None:
    run: Run = write(tmp_path, report(), {"s_a": [QUIZ]})
    assert read_run(run.path) == run
    assert run.path.name == f"results_{run.stamp}.json"
    lines = (tmp_path / f"samples_s_a_{run.stamp}.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [QUIZ]
    assert runs.PROVENANCE not in json.loads(run.path.read_text())
