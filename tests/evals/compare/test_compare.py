"""Comparison of two runs: differences worked out by hand, what can be compared, and the notes on the rest."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt

from evals import stats
from evals.compare.clustered import clustered as by_cluster
from evals.compare.compare import compare
from evals.compare.difference import Part, paired_difference
from evals.report import comparison_report, report, terminal_table
from evals.results.runs import Run, Score, list_runs, write
from workbench.cli import main
from workbench.errors import DataError
from workbench.hooks.interventions import Ablate

scipy_stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")


def quiz(doc_id: int, correct: bool, *, question: str = "", prompt: str = "0 shots", **doc: Any) -> dict[str, Any]:
    """A question with two choices as lm-eval logs it; the second is right."""
    logprobs = (-2.0, -1.0) if correct else (-1.0, -1.5)
    return {
        "doc_id": doc_id,
        "doc": {"question": question or f"q{doc_id}", **doc},
        "target": "1",
        "arguments": {f"gen_args_{i}": {"arg_0": f"{prompt} q{doc_id}", "arg_1": f" {c}"} for i, c in enumerate("AB")},
        "resps": [[[str(value), "False"]] for value in logprobs],
        "filtered_resps": [[str(value), "False"] for value in logprobs],
        "filter": "none",
        "metrics": ["acc"],
        "acc": float(correct),
    }


def run_of(folder: Path, samples: dict[str, list[dict[str, Any]]], **changes: Any) -> Run:
    """A run of these samples, all tasks in the group `all` if there are several."""
    results: dict[str, Any] = {}
    for task, rows in samples.items():
        values = [row["acc"] for row in rows]
        results[task] = {"acc,none": sum(values) / len(values), "acc_stderr,none": stats.mean_stderr(values)}
    if len(samples) > 1:
        every = [row["acc"] for rows in samples.values() for row in rows]
        results["all"] = {"acc,none": sum(every) / len(every), "acc_stderr,none": stats.mean_stderr(every)}
    data = {
        "results": results,
        "group_subtasks": {"all": list(samples)} if len(samples) > 1 else {},
        "configs": {task: {} for task in samples},
        "n-shot": dict.fromkeys(samples, 0),
        "n-samples": {task: {"original": 100, "effective": len(rows)} for task, rows in samples.items()},
        "model_name": folder.name,
        **changes,
    }
    return write(folder, data, samples)


def verdicts(a: str, b: str, folder: Path, **changes: Any) -> tuple[Run, Run]:
    """Two runs of one task, from strings of 1 and 0."""
    return tuple(
        run_of(folder / name, {"s": [quiz(i, mark == "1") for i, mark in enumerate(marks)]}, **changes)
        for name, marks in (("a", a), ("b", b))
    )


def rows_of(run: Run) -> list[dict[str, Any]]:
    lines = run.path.with_name(f"samples_s_{run.stamp}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_right_and_wrong_by_hand(tmp_path: Path) -> None:
    # 4 right in both, 1 only in a, 5 only in b, 2 in neither.
    comparison = compare(*verdicts("111110000000", "111101111100", tmp_path))
    (difference,) = comparison.differences
    assert (difference.a.value, difference.b.value, difference.a.n) == (5 / 12, 9 / 12, 12)
    assert (difference.only_a, difference.only_b, difference.test) == (1, 5, "mcnemar")
    assert difference.value == pytest.approx(4 / 12) and difference.p == difference.holm == 2 * 7 / 64
    assert (difference.low, difference.high) == stats.paired_interval(1, 5, 12)
    assert (difference.a.low, difference.a.high) == stats.wilson(5, 12)
    assert difference.minimum_detectable_effect == stats.detectable_pairs(12, 0.5)
    assert comparison.notes == ()
    row = comparison.frame().iloc[0]
    assert (row.task, row.a, row.b, row.difference, row.p, row.n) == (
        "s",
        5 / 12,
        0.75,
        difference.value,
        difference.p,
        12,
    )


def test_samples_that_one_run_has_right_come_first(tmp_path: Path) -> None:
    a, b = verdicts("1100", "0110", tmp_path)
    lines = b.path.with_name(f"samples_s_{b.stamp}.jsonl")
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    rows[3]["filtered_resps"] = rows[3]["filtered_resps"][::-1]  # wrong still by its verdict, another answer
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = compare(a, b).samples
    assert [(s.doc_id, s.right) for s in samples] == [(0, "A"), (2, "B"), (3, "")]
    first = samples[0]
    assert (first.answer_a, first.answer_b, first.target, first.same_prompt) == ("B", "A", "B", True)
    assert first.logprobs_a == [-2.0, -1.0] and (first.margin_a, first.margin_b) == (1.0, -0.5)
    assert list(compare(a, b).samples_frame().doc_id) == [0, 2, 3]


def test_groups_are_resampled_by_subject(tmp_path: Path) -> None:
    marks = {"x": ("1" * 8 + "0" * 2, "1" * 4 + "0" * 6), "y": ("0" * 20 + "1" * 10, "1" * 9 + "0" * 21)}
    runs = [
        run_of(tmp_path / name, {t: [quiz(i, m == "1") for i, m in enumerate(both[side])] for t, both in marks.items()})
        for side, name in enumerate("ab")
    ]
    differences = {(difference.a.task, difference.a.average): difference for difference in compare(*runs).differences}
    assert set(differences) == {("all", "micro"), ("all", "macro"), ("x", ""), ("y", "")}
    micro, macro = differences["all", "micro"], differences["all", "macro"]
    assert micro.value == pytest.approx((13 - 18) / 40) and micro.a.n == 40
    assert macro.value == pytest.approx(((4 - 8) / 10 + (9 - 10) / 30) / 2)
    assert (micro.test, macro.test) == ("mcnemar", "bootstrap")
    assert micro.p == pytest.approx(scipy_stats.binomtest(14, 14 + 9).pvalue)
    # Each subject's variance by itself, then weighted: what the stratified draws spread by, to 5%.
    parts = {t: np.array([int(b) - int(a) for a, b in zip(*both, strict=True)]) for t, both in marks.items()}
    errors = {t: v.std() / math.sqrt(len(v)) for t, v in parts.items()}
    for difference, weights in ((micro, {"x": 0.25, "y": 0.75}), (macro, {"x": 0.5, "y": 0.5})):
        expected = math.sqrt(sum((weights[t] * errors[t]) ** 2 for t in parts))
        assert difference.low is not None and difference.high is not None
        assert (difference.high - difference.low) / 2 == pytest.approx(1.96 * expected, rel=0.06)
    # The group stands for itself; its two members are adjusted together.
    assert micro.holm == micro.p
    assert differences["x", ""].holm == pytest.approx(min(1.0, 2 * min(differences["x", ""].p, differences["y", ""].p)))


def test_numbers_that_are_no_verdicts_are_resampled(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    a, b = random.random(40), random.random(40) + 0.2
    score = Score("s", "rouge", "none", "", 0, 0, 0.0, None, None, None)
    difference = paired_difference(score, score, [Part(a, b)])
    assert (difference.test, difference.only_a) == ("bootstrap", None)
    t = scipy_stats.ttest_rel(b, a)
    assert difference.p == pytest.approx(t.pvalue, abs=0.01)
    # Student's interval over the percentile one: 2.02 / 1.96, and n - 1 for n; 4% in all with 40 questions.
    assert (difference.low, difference.high) == pytest.approx(tuple(t.confidence_interval()), abs=0.02)
    assert difference.minimum_detectable_effect == pytest.approx(
        2.8016 * np.std(b - a, ddof=1) / math.sqrt(40), rel=1e-4
    )
    alike = paired_difference(score, score, [Part(a, a + 0.5)])
    assert (alike.low, alike.p) == (None, None), "nothing varies, so nothing can be drawn from it"
    assert paired_difference(score, score, [Part(a, a)]).p == 1.0


def test_questions_of_one_passage_count_once(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    easy = random.random(30) < 0.5
    a = [quiz(i, bool(easy[i // 5]), passage=f"p{i // 5}") for i in range(150)]
    b = [quiz(i, bool(easy[i // 5] or i // 5 < 8), passage=f"p{i // 5}") for i in range(150)]
    runs = run_of(tmp_path / "a", {"s": a}), run_of(tmp_path / "b", {"s": b})
    (plain,), (clustered,) = (compare(*runs, cluster=field).differences for field in (None, "passage"))
    assert clustered.test == "clustered" and clustered.value == plain.value
    differences = [y["acc"] - x["acc"] for x, y in zip(a, b, strict=True)]
    error = stats.clustered_stderr(differences, [i // 5 for i in range(150)])
    assert clustered.minimum_detectable_effect == pytest.approx(2.8016 * error, rel=1e-4)
    assert clustered.p > plain.p and clustered.high - clustered.low > 1.8 * (plain.high - plain.low)  # sqrt(5) = 2.2
    with pytest.raises(
        DataError, match="no task has the field 'story' in all of its documents; the fields are: passage, question"
    ):
        compare(*runs, cluster="story")
    # The interval of one run's score counts passages too, in tables, reports and figures alike.
    counted = by_cluster(runs[0], "passage")
    (score,), (clustered_score,) = runs[0].scores, counted.scores
    error = stats.clustered_stderr([row["acc"] for row in a], [i // 5 for i in range(150)])
    assert (clustered_score.value, clustered_score.stderr) == (score.value, pytest.approx(error))
    assert (clustered_score.low, clustered_score.high) == pytest.approx(stats.normal(score.value, error))
    assert clustered_score.high - clustered_score.low > 1.8 * (score.high - score.low)
    text = report.document([counted]).text("md")
    assert "Standard errors are clustered by passage" in text and f"{100 * clustered_score.low:.1f} - " in text
    with pytest.raises(DataError, match="has the field 'story'"):
        by_cluster(runs[0], "story")


def test_only_shared_questions_count(tmp_path: Path) -> None:
    a, b = verdicts("110011", "1011", tmp_path)
    comparison = compare(a, b)
    assert comparison.differences[0].a.n == 4 and comparison.differences[0].a.value == 0.5
    assert comparison.notes == ("s: 2 questions are only in A and are left out",)


def test_other_questions_under_the_same_number_are_left_out(tmp_path: Path) -> None:
    a = run_of(tmp_path / "a", {"s": [quiz(0, True), quiz(1, False), quiz(2, False)]})
    b = run_of(tmp_path / "b", {"s": [quiz(0, True), quiz(1, True, question="new"), quiz(2, True)]})
    comparison = compare(a, b)
    assert comparison.differences[0].a.n == 2
    assert comparison.notes == ("s: 1 question numbers are different questions in A and B, and are left out",)
    other = run_of(tmp_path / "c", {"s": [quiz(i, True, question=f"new {i}") for i in range(3)]})
    with pytest.raises(DataError, match="s: the runs have no question in common .* 3 have the same number"):
        compare(a, other)


def test_other_prompts_are_compared_and_named(tmp_path: Path) -> None:
    a = run_of(tmp_path / "a", {"s": [quiz(0, True), quiz(1, False)]})
    b = run_of(tmp_path / "b", {"s": [quiz(i, True, prompt="5 shots") for i in range(2)]}, **{"n-shot": {"s": 5}})
    comparison = compare(a, b)
    assert comparison.notes == ("s: 2 of 2 questions have different prompts (0 and 5 shots)",)
    assert (comparison.differences[0].a.shots, comparison.differences[0].b.shots) == (0, 5)
    assert not comparison.samples[0].same_prompt


def test_what_two_runs_cannot_be_compared_on(tmp_path: Path) -> None:
    a = run_of(tmp_path / "a", {"s": [quiz(0, True)]})
    with pytest.raises(DataError, match="given twice"):
        compare(a, a)
    with pytest.raises(DataError, match="no task in common: only A has s; only B has t"):
        compare(a, run_of(tmp_path / "b", {"t": [quiz(0, True)]}))
    both = run_of(tmp_path / "c", {"s": [quiz(0, False)], "t": [quiz(0, True)]})
    assert compare(a, both).notes == ("only B has t",)
    both.path.with_name(f"samples_s_{both.stamp}.jsonl").unlink()
    with pytest.raises(DataError, match="has no samples of 's'"):
        compare(a, both)


def test_a_metric_that_is_no_mean_is_not_compared(tmp_path: Path) -> None:
    rows = [{**quiz(i, True), "metrics": ["acc", "perplexity"], "perplexity": -1.5} for i in range(3)]
    results = {"s": {"acc,none": 1.0, "perplexity,none": math.exp(1.5)}}
    a, b = (run_of(tmp_path / name, {"s": rows}, results=results) for name in "ab")
    comparison = compare(a, b)
    assert [difference.a.metric for difference in comparison.differences] == ["acc"]
    assert "perplexity is not the mean over its samples (score 4.48169" in comparison.notes[0]


def test_origins_that_differ_are_named(tmp_path: Path) -> None:
    own = {"checkpoint_sha256": "aa", "dtype": "float32", "interventions": [], "versions": {"torch": "2.13.0"}}
    a, b = (
        run_of(tmp_path / name, {"s": [quiz(0, True)]}, model_name="m", workbench=made)
        for name, made in (("a", own), ("b", {**own, "dtype": "bfloat16", "interventions": [{"heads": "L5H3"}]}))
    )
    assert compare(a, b).origins == (
        ("dtype", "float32", "bfloat16"),
        ("interventions", None, [{"heads": "L5H3"}]),
    )
    # In words; what no intervention of this version reads stays as it was written.
    assert terminal_table.other_differences(compare(a, b))[1] == ("interventions", "none", '[{"heads": "L5H3"}]')
    c = run_of(tmp_path / "c", {"s": [quiz(0, True)]}, workbench={**own, "interventions": [Ablate("L5H3").to_dict()]})
    assert ("interventions", "none", "ablate L5H3") in terminal_table.other_differences(compare(a, c))


def test_the_terminal_has_differences_and_samples(tmp_path: Path) -> None:
    comparison = compare(*verdicts("111110000000", "111101111100", tmp_path))
    text = terminal_table.render_comparison(comparison, samples=1)
    low, high = stats.paired_interval(1, 5, 12)
    row = next(line.split() for line in text.splitlines() if line.startswith("s "))
    assert row[:6] == ["s", "acc", "12", "41.7", "75.0", "+33.3"]
    assert row[6:9] == [f"{100 * low:+.1f}", "to", f"{100 * high:+.1f}"] and row[9:13] == ["1", "5", "0.22", "0.22"]
    assert "6 answers are right in only one run; 0 others differ." in text
    assert "s/4  acc, none: only A is right" in text and "margin +1.000" in text and "s/5" not in text


def test_a_terminal_is_given_no_control_characters(tmp_path: Path) -> None:
    a, b = (
        run_of(tmp_path / name, {"s": [quiz(0, right, question="x\x1b[2J\x07y" + "z" * 999)]})
        for name, right in (("a", True), ("b", False))
    )
    text = terminal_table.render_comparison(compare(a, b), samples=5)
    assert "\x1b" not in text and "\x07" not in text and "z" * 400 not in text


HOSTILE = "<b>&[x]_$y$ %\\end{tabular}\n# *z*\x1b[2J|"


def test_a_document_says_in_every_format_what_the_terminal_says(tmp_path: Path) -> None:
    a, b = verdicts("111110000000", "111101111100", tmp_path, versions={"s": 1})
    comparison = compare(a, run_of(tmp_path / "b2", {"s": rows_of(b)}, versions={"s": 2}))
    made = comparison_report.document(comparison, samples=2)
    table_, origins = made.report().tables
    assert table_.rows == tuple(terminal_table.difference_cells(difference) for difference in comparison.differences)
    assert ("task_version.s", "1", "2") in origins.rows
    assert [title for title, _ in made.report().samples] == [
        "s/4  acc, none: only A is right", "s/5  acc, none: only B is right",
    ]  # fmt: skip
    for format in ("md", "html", "latex"):
        text = made.text(format)
        assert "+33.3" in text and "s/4" in text and "s/6" not in text and "margin" in text
    values = json.loads(made.text("json"))
    assert values["differences"][0]["difference"] == comparison.differences[0].value and len(values["samples"]) == 2
    for format, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        first, second = made.save(format, tmp_path / f"d.{format}")
        shown, expected = (
            frame.astype({"minimum_detectable_effect": float})
            for frame in (read(first).assign(average=""), comparison.frame())
        )
        pd.testing.assert_frame_equal(shown, expected, check_dtype=False)
        assert second.name == f"d.samples.{format}" and read(second).doc_id.tolist() == [4, 5, 6, 7, 8, 9]
        assert json.loads(read(second).doc[0]) == {"question": "q4"}
    assert not list(tmp_path.glob("*.partial"))


def test_what_a_model_said_is_text_in_every_format(tmp_path: Path) -> None:
    a, b = (run_of(tmp_path / name, {"s": [quiz(0, right, question=HOSTILE)]}) for name, right in (("a", 1), ("b", 0)))
    made = comparison_report.document(compare(a, b), samples=5)
    assert all("\x1b" not in made.text(format) for format in ("md", "html", "latex"))
    assert "<b>" not in made.text("html") and "&lt;b&gt;&amp;[x]_$y$" in made.text("html")
    shown = MarkdownIt("commonmark", {"html": True}).enable("table").parse(made.text("md"))
    kinds = {child.type for token in shown for child in token.children or []}
    assert kinds <= {"text", "text_special", "strong_open", "strong_close", "softbreak"}, "no more than text"
    tex = made.text("latex")
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 2
    plain = re.sub(r"\\[\\{}$&#%_]", "", tex.split("\n", 1)[1])
    assert plain.count("{") == plain.count("}") and not re.search(r"[$#%]", plain) and r"\\ [" not in plain


def test_runs_of_lm_evals_own_command(tmp_path: Path) -> None:
    tracking = pytest.importorskip("lm_eval.loggers.evaluation_tracker", reason="lm_eval is not installed")
    for name, marks in (("first", "110"), ("second", "011")):
        tracker = tracking.EvaluationTracker(output_path=str(tmp_path / name))
        tracker.general_config_tracker.log_experiment_args("hf", f"pretrained=org/{name}", None, None, False)
        samples = []
        for i, mark in enumerate(marks):
            sample = quiz(i, mark == "1")
            sample["arguments"] = [tuple(part.values()) for part in sample["arguments"].values()]
            samples.append({**sample, **dict.fromkeys(("doc_hash", "prompt_hash", "target_hash"), "0")})
        results = {
            "results": {"s": {"acc,none": 2 / 3, "acc_stderr,none": 1 / 3}},
            "configs": {"s": {}},
            "n-shot": {"s": 0},
            "n-samples": {"s": {"original": 3, "effective": 3}},
        }
        tracker.save_results_aggregated(results=results, samples={"s": samples})
        tracker.save_results_samples(task_name="s", samples=samples)
    a, b = (list_runs(tmp_path / name)[0] for name in ("first", "second"))
    comparison = compare(a, b)
    assert [(s.doc_id, s.right) for s in comparison.samples] == [(0, "A"), (2, "B")]
    assert comparison.differences[0].p == 1.0 and comparison.notes == ()
    assert ("model", "org/first", "org/second") in comparison.origins


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = verdicts("1100", "0111", tmp_path)
    assert main(["eval", "compare", str(a.path), str(b.path), "--json", "--samples", "2"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["differences"][0]["difference"] == 0.25 and [s["right"] for s in shown["samples"]] == ["A", "B"]
    assert main(["eval", "compare", str(a.path), str(b.path), "--figure", str(tmp_path / "d.html")]) == 0
    assert "only A is right" in capsys.readouterr().out and (tmp_path / "d.html").is_file()
    assert main(["eval", "report", str(a.path), str(b.path), "--format", "md"]) == 0
    out = capsys.readouterr()
    assert "| s | acc | 0 | 4 of 100 | 50.0 |" in out.out and out.err == ""
    page = tmp_path / "r.html"
    assert main(["eval", "report", str(a.path), "--format", "html", "--output", str(page)]) == 0
    assert "<table>" in page.read_text() and capsys.readouterr().out == ""
    for name in ("d.md", "d.tex", "d.csv", "d.json"):  # the file's name says the format
        assert main(["eval", "compare", str(a.path), str(b.path), "--output", str(tmp_path / name)]) == 0
    assert "## Differences" in (tmp_path / "d.md").read_text() and r"\section*" in (tmp_path / "d.tex").read_text()
    assert json.loads((tmp_path / "d.json").read_text())["differences"][0]["n"] == 4
    assert capsys.readouterr().err.count("written to") == 5, "the samples of the CSV are a file of their own"
    assert main(["eval", "report", str(a.path), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["value"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "RUN", "--format", "parquet"], "Parquet cannot be printed"),
        (["report", "RUN", "--published", "gpt-2"], "no published scores for 'gpt-2'"),
        (["report", "RUN", "--figure", "f.png"], "ends in .html"),
        (["report", "RUN", "--output", "report.doc"], "does not end in a known suffix; pass --format md, latex"),
        (["compare", "RUN", "RUN", "--format", "parquet"], "Parquet cannot be printed"),
        (["compare", "RUN", "RUN"], "given twice"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, {"s": [quiz(0, True)]})
    assert main(["eval", *(str(run.path) if word == "RUN" else word for word in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_published_scores_are_offered_by_size_and_shown_when_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"humaneval": [{**quiz(i, i < 3), "metrics": ["acc", "pass@1"], "pass@1": float(i < 3)} for i in range(5)]}
    size = {"model_num_parameters": 8_030_261_248}
    run = run_of(tmp_path, rows, results={"humaneval": {"pass@1,create_test": 0.6}}, config=size)
    assert main(["eval", "report", str(run.path)]) == 0
    out = capsys.readouterr()
    assert "72.6" not in out.out and "as many parameters as llama-3-8b, llama-3.1-8b" in out.err
    assert main(["eval", "report", str(run.path), "--published", "llama-3.1-8b-instruct"]) == 0
    out = capsys.readouterr()
    assert "72.6" in out.out and "inside" in out.out and "5 of 100 questions" in out.out and out.err == ""
