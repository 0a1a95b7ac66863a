"""Results files from anywhere: damaged and hostile ones are named in one line, and never hide the good ones."""

import contextlib
import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evals.compare.compare import compare
from evals.compare.published import models_of_size
from evals.report import comparison_report, report, terminal_table
from evals.report.headlines import headlines
from evals.results import answer_counts, json_text
from evals.results.export import flat
from evals.results.provenance import differences, origin
from evals.results.runs import PROVENANCE, Run, question_counts, read_run, scan, write
from tests.evals.results.test_runs import QUIZ
from tests.evals.results.test_runs import report as results
from workbench.cli import main
from workbench.errors import WorkbenchError

RECORD = {
    "run": "20260101-000000-abc", "checkpoint_sha256": "0" * 64, "dtype": "float32", "device": "cpu", "seed": 1,
    "limit": None, "interventions": [], "versions": {"torch": "2"}, "not_run": {"code": "no sandbox"},
    "not_finite": {"words": 2}, "programs": {"words": [[5, 2, 3]]}, "data_sha256": {"s_a": "1"},
    "tasks": ["s", "words"], "cut_prompts": {"s_a": 1}, "cut_answers": {"words": 1}, "notes": ["x"],
    "unreadable": {"words": {"strict-match": 2}}, "generation": {"words": {"tokens": 5}},
    "not_judged": {"words": 1}, "why_not_judged": {"words": "x"}, "missing_modules": {"words": {"numpy": 1}},
    "tied": {"s_a": 3, "words": 1},
}  # fmt: skip
GOOD = results(
    **{
        PROVENANCE: RECORD,
        "higher_is_better": {"s_a": {"acc": True}, "words": {"exact_match": True}},
        "config": {"model": "x"},
    }
)
ODD = st.sampled_from(
    [
        None, True, -1, 10**400, 1e300, 1e308, float("inf"), float("nan"), "", "x", "../x", "\0", "\ud800", "\x1b[31m",
        "a" * 999,
        [], {}, [[]], [None], {"a": None}, {"../x": {}}, {"": 0}, ["s"], ["s_a", "s"], {"s": ["s"]},
        {"s_a": ["s"], "s": ["s_a"]},
        [[0, 0, 1]], [[5, 9, 1]], [[5, 2, 10**11]], {"effective": "x"}, {"original": -1, "effective": float("inf")},
    ]  # fmt: skip
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*path, key)
        yield from places(value[key], (*path, key))


def changed(data: Any, path: tuple[Any, ...], how: str, odd: Any) -> Any:
    data = copy.deepcopy(data)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    if how == "replace":
        inner[path[-1]] = odd
    elif how == "delete":
        del inner[path[-1]]
    elif how == "wrap":
        inner[path[-1]] = [inner[path[-1]]]
    elif isinstance(inner, dict):
        inner[odd if isinstance(odd, str) else "new"] = inner[path[-1]]
    return data


def show_everything(run: Run, good: Run) -> None:
    """What commands and pages read of a run; a user's mistake is the only exception that may leave it."""
    _ = run.name, run.date, run.model, run.not_run, run.without_score, run.scores, run.frame()
    for task in run.not_finite:
        run.not_finite_note(task)
    for name in [*run.tasks, *run.data["results"]]:
        question_counts(run, name)
    terminal_table.render(run)
    headlines(run)
    answer_counts.notes(run), answer_counts.shown(run), answer_counts.all_tied(run)
    origin(run), differences(run, good), differences(good, run)
    models_of_size((run.data.get("config") or {}).get("model_num_parameters"))
    reported = report.document([run, good])
    for form in ("md", "html", "latex", "csv", "json"):
        reported.text(form)
    for task in run.tasks:
        try:
            run.samples(task)
        except WorkbenchError:
            continue
    with contextlib.suppress(WorkbenchError):
        comparison_report.document(compare(run, good), samples=1).text("md")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_changed_results_file_is_named_in_one_line_or_shown(tmp_path: Path, data: st.DataObject) -> None:
    bad = GOOD
    for _ in range(data.draw(st.integers(1, 3))):
        every = [*places(bad)]
        if not every:
            break
        how = data.draw(st.sampled_from(["replace", "delete", "wrap", "add"]))
        bad = changed(bad, data.draw(st.sampled_from(every)), how, data.draw(ODD))
    good = tmp_path / "good"
    if not good.exists():
        write(good, GOOD, {"s_a": [QUIZ]}, at=1_700_000_000.0)
    (tmp_path / "results_bad.json").write_text(json.dumps(bad), encoding="utf-8")
    found, problems = scan(tmp_path)
    (known,) = (run for run in found if run.path.parent == good)
    assert len(found) + len(problems) == 2
    assert all("results_bad.json" in problem and "\n" not in problem for problem in problems)
    for run in found:
        show_everything(run, known)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_changed_sample_is_shown_or_named(tmp_path: Path, data: st.DataObject) -> None:
    bad = {**QUIZ, "replay": {"prompt_ids": [1], "choice_ids": [[1], [2]], "cut": 0}}
    for _ in range(data.draw(st.integers(1, 2))):
        how = data.draw(st.sampled_from(["replace", "delete", "wrap", "add"]))
        bad = changed(bad, data.draw(st.sampled_from([*places(bad)])), how, data.draw(ODD))
    run = write(tmp_path / "good", GOOD, {"s_a": [QUIZ]}, at=1_700_000_000.0)
    lines = [json.dumps(bad), json.dumps(QUIZ | {"doc_id": 8})]
    run.path.with_name(f"samples_s_a_{run.stamp}.jsonl").write_text("\n".join(lines) + "\n")
    for doc in (7, 8):
        assert main(["eval", "show", "good", "--sample", f"s_a/{doc}", "--results", str(tmp_path)]) in (0, 2)
    with contextlib.suppress(WorkbenchError):
        table = run.samples("s_a")
        flat(table).to_csv()
        comparison_report.document(compare(run, run), samples=1).text("md")


DAMAGED = {
    "a group that contains itself": {"group_subtasks": {"demo": ["demo"]}},
    "two groups that contain each other": {"group_subtasks": {"a": ["b"], "b": ["a"]}},
    "groups that double their tasks": {"group_subtasks": {f"g{i}": [f"g{i + 1}"] * 2 for i in range(60)}},
    "an infinite count": {"results": {"s": {"sample_len": float("inf"), "acc,none": 0.5}}},
    "no programs": {PROVENANCE: {"programs": {"words": [[0, 0, 1]]}}},
    "an empty list of programs": {PROVENANCE: {"programs": {"words": []}}},
    "a date in another age": {"date": 1e300},
    "tasks with a path": {"configs": {"../x": {}}},
    "configs that are a number": {"configs": 7},
    "tasks that are a number": {PROVENANCE: {"not_run": 5}},
}


def write_damaged(folder: Path) -> list[str]:
    """Files of every kind of damage; returns their names."""
    for number, changes in enumerate(DAMAGED.values()):
        (folder / f"results_{number}.json").write_text(json.dumps(results(**changes)))
    (folder / "results_deep.json").write_text("[" * 200_000)
    (folder / "results_rather_deep.json").write_text('{"results": {}, "config": ' + "[" * 500 + "]" * 500 + "}")
    (folder / "results_cut.json").write_text(json.dumps(results())[:-30])
    (folder / "results_bytes.json").write_bytes(b"\xff\xfe{}")
    (folder / "results_list.json").write_text("[]")
    (folder / "results_empty.json").write_text("")
    (folder / "results_folder.json").mkdir()
    os.mkfifo(folder / "results_pipe.json")
    return sorted(path.name for path in folder.glob("results_*"))


def test_damaged_files_hide_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "good", GOOD, {"s_a": [QUIZ]}, at=1_700_000_000.0)
    damaged = write_damaged(tmp_path)
    found, problems = scan(tmp_path)
    assert [run.path.parent.name for run in found] == ["good"]
    assert sorted(name for name in damaged for problem in problems if f"/{name} " in problem) == damaged
    assert main(["eval", "list", "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1 and printed.err.count("\n") == len(damaged)
    assert main(["eval", "show", "good", "--results", str(tmp_path)]) == 0


def test_any_text_is_written_and_read_back(tmp_path: Path) -> None:
    texts = ["\ud800", "a\udfffb", "\udc80", "\U0001f600", "é\ud83d", '"\\ud800', "\x1b[2J", "\x00"]
    row = {**QUIZ, "doc": {"question": texts}, "target": "\ud800"}
    run = write(tmp_path, results(**{PROVENANCE: {"not_run": {"\ud800": "\udfff"}}}), {"s_a": [row]})
    assert read_run(run.path).not_run == {"\ufffd": "\ufffd"}
    sample = json.loads(run.path.with_name(f"samples_s_a_{run.stamp}.jsonl").read_text())
    assert sample["doc"]["question"] == texts and sample["target"] == "\ud800", "the file has the exact text"
    table = run.samples("s_a")
    assert table.target[0] == "\ufffd", "a reader gets text that every encoding and table has"
    assert not list(tmp_path.glob("*.tmp"))
    assert "\ufffd" in table.to_csv()


@given(
    st.recursive(st.text(st.characters(codec=None)) | st.integers() | st.booleans() | st.none(), st.lists, max_leaves=8)
)
def test_json_text_can_be_encoded_and_is_json(value: Any) -> None:
    text = json_text.dumps(value, ensure_ascii=False).encode()
    assert json.loads(text) == json.loads(json.dumps(value))
    json_text.dumps(json_text.loads(text), ensure_ascii=False).encode("utf-8")
