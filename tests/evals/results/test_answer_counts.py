"""Cut prompts, cut answers and answers in which nothing was found are counted wherever a run is shown."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

from evals import sandbox
from evals.report import report, terminal_table
from evals.results import answer_counts
from evals.results.export import export
from evals.results.runs import Run, Score, read_run
from evals.run.evaluate import evaluate
from evals.run.score_external import score
from evals.run.settings import Settings
from evals.tasks import local_data
from workbench.cli import main
from workbench.model import Transformer

needs_sandbox = pytest.mark.skipif(
    sandbox.why_unavailable() is not None, reason=f"no sandbox here: {sandbox.why_unavailable()}"
)
SUMS = local_data.embedded("demo_gsm8k")["test"]
QUIZ = local_data.embedded("demo_mmlu")["test"]
PROGRAMS = local_data.embedded("demo_humaneval")["test"]
LIMIT = 4


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def column(run: Run, title: str) -> list[str]:
    """A column of the terminal's table, by score."""
    head, _, *rows = terminal_table.render(run).splitlines()
    start = head.index(title)
    return [row[start : start + len(title)].strip() for row in rows[: len(run.scores)]]


def test_cut_answers_and_prompts_are_in_every_table(
    speaking_model: Transformer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(
        tasks=("demo_gsm8k", "demo_mmlu"), output=tmp_path, limit=LIMIT, num_fewshot=5, gen_kwargs={"max_gen_toks": 5}
    )
    run = evaluate(speaking_model, settings)
    assert f"demo_gsm8k: {LIMIT} prompts were longer than the context" in capsys.readouterr().err
    rows = run.samples("demo_gsm8k")
    assert len(rows) == 2 * LIMIT, "one row for each filter"
    cut = rows[rows.finish_reason == "length"].doc_id.nunique()
    prompts = {task: run.samples(task).query("cut > 0").doc_id.nunique() for task in run.tasks}
    nothing = {name: int((part.answer == "[invalid]").sum()) for name, part in rows.groupby("filter")}
    assert cut and prompts["demo_gsm8k"] == LIMIT and nothing["strict-match"]
    assert run.provenance["cut_prompts"] == prompts
    assert run.provenance["cut_answers"] == {"demo_gsm8k": cut}
    assert run.provenance["unreadable"]["demo_gsm8k"] == {name: count for name, count in nothing.items() if count}
    # The run's own table, also when it is read back; `eval show` prints the same.
    for shown in (run, read_run(run.path)):
        by_score = [(s.task, s.filter) for s in shown.scores]
        assert column(shown, "cut answers") == [str(cut if task == "demo_gsm8k" else 0) for task, _ in by_score]
        assert column(shown, " unreadable") == [str(nothing.get(name, 0)) for _, name in by_score]
        assert column(shown, "cut prompts") == [str(prompts[task]) for task, _ in by_score]
    note = f"demo_gsm8k: {cut} of {LIMIT} questions have an answer that was cut at the limit of 5 tokens"
    text = terminal_table.render(run)
    assert note in text and f"the filter strict-match found nothing in {nothing['strict-match']} of {LIMIT}" in text
    assert f"demo_gsm8k: {LIMIT} of {LIMIT} prompts were longer than the context" in text
    # The report, as text and as a table, and the exported samples.
    built = report.build([run])
    assert any(note in badge for badge in built.badges)
    assert {"cut answers", "unreadable", "cut prompts"} <= set(built.tables[0].head)
    table = report.frame([run]).set_index(["task", "filter"])
    assert table.loc[("demo_gsm8k", "strict-match"), ["cut_answers", "unreadable", "cut_prompts"]].tolist() == [
        cut, nothing["strict-match"], LIMIT,
    ]  # fmt: skip
    (csv,) = (
        path
        for path in export(run, tmp_path / "out")
        if path.name.startswith("samples_demo_g") and path.suffix == ".csv"
    )
    assert csv.read_text().count(",length") == 2 * cut
    assert main(["eval", "show", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cut_answers"] == {"demo_gsm8k": cut}
    assert (
        main(
            [
                "eval",
                "show",
                str(run.path),
                "--sample",
                f"demo_gsm8k/{rows[rows.finish_reason == 'length'].doc_id.iloc[0]}",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "finish reason: length (cut after 5 tokens" in out and "tokens were truncated on the left" in out


def test_a_run_without_such_questions_has_no_such_columns(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"doc_id": i, "response": SUMS[i]["answer"]} for i in range(3)])
    run = score("demo_gsm8k", path, output=tmp_path)
    assert answer_counts.shown(run) == [] == answer_counts.notes(run)
    assert "unreadable" not in terminal_table.render(run) and "unreadable" not in report.frame([run])


def test_answers_in_a_form_of_their_own_are_unreadable_not_wrong_in_silence(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"doc_id": i, "response": f"A: {i}"} for i in range(3)])
    run = score("demo_gsm8k", path, output=tmp_path)
    assert run.provenance["unreadable"] == {"demo_gsm8k": {"strict-match": 3}}
    assert "demo_gsm8k: the filter strict-match found nothing in 3 of 3 answers" in terminal_table.render(run)
    whole = score("demo_gsm8k", path, output=tmp_path, missing_wrong=True)
    assert whole.provenance["unreadable"]["demo_gsm8k"]["strict-match"] == 3, "questions without an answer are missing"


@pytest.mark.parametrize(("text", "unreadable"), [("A", 0), (" (b).", 0), ("c\nbecause", 0), ("It is A", 1), ("", 1)])
def test_a_letter_is_found_or_counted(tmp_path: Path, text: str, unreadable: int) -> None:
    path = written(tmp_path / "a.jsonl", [{"doc_id": 0, "response": text}, {"doc_id": 1, "response": "A"}])
    run = score("demo_mmlu", path, output=tmp_path)
    assert run.provenance["unreadable"]["demo_mmlu"].get("get_response", 0) == unreadable


@needs_sandbox
def test_programs_that_are_not_python_are_counted(tmp_path: Path) -> None:
    answers = [
        "Here it is:\n\n```python\nx = 1\n```\n",
        "",
        PROGRAMS[2]["canonical_solution"],
        "    return undefined\n",
    ]
    rows = [{"task_id": p["task_id"], "completion": text} for p, text in zip(PROGRAMS, answers, strict=False)]
    run = score("demo_humaneval", written(tmp_path / "a.jsonl", rows), output=tmp_path)
    assert run.provenance["unreadable"] == {"demo_humaneval": {"create_test": 2, "fenced": 1}}
    assert "demo_humaneval: the filter create_test found no Python program in 2 of 4 answers" in terminal_table.render(
        run
    )


def test_the_members_of_a_group_are_added_up(tmp_path: Path) -> None:
    members = {name: {"original": 5, "effective": 5} for name in ("a", "b")}
    data = {
        "results": {}, "group_subtasks": {"g": ["a", "b"]}, "configs": {"a": {}, "b": {}}, "n-samples": members,
        "workbench": {"cut_answers": {"a": 2}, "unreadable": {"a": {"x": 1}, "b": {"x": 3, "y": 2}}},
    }  # fmt: skip
    run = Run(tmp_path, data)
    assert [answer_counts.count(run, "unreadable", name, "x") for name in ("g", "a", "b")] == [4, 1, 3]
    assert answer_counts.count(run, "cut_answers", "g", "x") == 2 and answer_counts.shown(run) == [
        "cut_answers",
        "unreadable",
    ]
    assert Score.__dataclass_fields__.keys().isdisjoint(answer_counts.COLUMNS)
