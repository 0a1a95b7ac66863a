"""Odd lines in a file of answers: they never cost the file, and are counted."""

import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

from evals.results.export import export
from evals.results.runs import list_runs
from evals.run.evaluate import evaluate
from evals.run.score_external import score
from evals.run.settings import Settings
from evals.tasks import local_data
from workbench.errors import DataError
from workbench.model import Transformer

SUMS = local_data.embedded("demo_gsm8k")["test"]
QUIZ = local_data.embedded("demo_mmlu")["test"]


def written(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ODD_TEXT = st.text(
    st.one_of(
        st.sampled_from('\x00\x07\x1b\ufeff\u2028\u202e\r\n\t \\"`$é\U0001f600'),
        st.characters(categories=["Cs", "Co", "Lo"]),
    ),
    max_size=12,
)


@given(st.lists(ODD_TEXT, min_size=1, max_size=12))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_odd_characters_in_an_answer_change_no_score(tmp_path: Path, texts: list[str]) -> None:
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    gold = [SUMS[i]["answer"].rpartition("#### ")[2] for i in range(len(texts))]
    rows = [{"doc_id": i, "response": f"{text}\n#### {gold[i]}"} for i, text in enumerate(texts)]
    run = score("demo_gsm8k", written(folder / "a.jsonl", rows), output=folder)
    assert {(s.value, s.n) for s in run.scores} == {(1.0, len(texts))}
    broken = sum(any("\ud800" <= c <= "\udfff" for c in text) for text in texts)
    assert run.provenance["answers"]["repaired"] == broken
    expected = [re.sub("[\ud800-\udfff]", "\ufffd", row["response"]) for row in rows]
    shown = run.samples("demo_gsm8k").query("filter == 'strict-match'").response
    # Two halves of an emoji that stand together are the emoji.
    whole = [row["response"].encode("utf-16", "surrogatepass").decode("utf-16", "replace") for row in rows]
    assert all(a in (b, c) for a, b, c in zip(shown, expected, whole, strict=True))
    assert export(run, folder / "out") and list_runs(folder)[0].path == run.path
    assert not list(folder.glob("*.tmp"))


def test_half_an_emoji_is_replaced_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"doc_id": "0", "response": "#### %s \\ud83d"}\n' % SUMS[0]["answer"].rpartition(" ")[2].encode()
        + b'{"doc_id": 1.0, "response": "\xff\xfe #### %s"}\n' % SUMS[1]["answer"].rpartition(" ")[2].encode()
        + b'{"doc_id": 2, "response": "\\ud83d\\ude00 #### %s"}\n' % SUMS[2]["answer"].rpartition(" ")[2].encode()
    )
    run = score("demo_gsm8k", path, output=tmp_path)
    assert {(s.value, s.n) for s in run.scores} == {(1.0, 3)}
    assert (
        "2 lines with broken characters, replaced by U+FFFD (a.jsonl: line 1, a.jsonl: line 2)"
        in capsys.readouterr().err
    )
    assert run.samples("demo_gsm8k").response[4].startswith("\U0001f600")


EMPTY = ["null", "[]", "[null]", "{}", "true", '{"A": -1, "B": null}', "[-1.0, NaN, -3.0, -4.0]", "[[1]]"]


@pytest.mark.parametrize("value", EMPTY)
def test_a_line_without_an_answer_leaves_its_question_open(
    tmp_path: Path, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    letter = "ABCD"[QUIZ[0]["answer"]]
    lines = [f'{{"doc_id": 0, "response": "{letter}"}}', f'{{"doc_id": 1, "response": {value}}}']
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    run = score("demo_mmlu", path, output=tmp_path)
    assert {(s.value, s.n) for s in run.scores if s.filter == "get_response"} == {(1.0, 1)}
    assert "1 lines with neither text nor numbers, taken as no answer (a.jsonl: line 2)" in capsys.readouterr().err
    whole = score("demo_mmlu", path, output=tmp_path, missing_wrong=True)
    assert {(s.value, s.n) for s in whole.scores if s.filter == "get_response"} == {(1 / len(QUIZ), len(QUIZ))}
    path.write_text(lines[1])
    with pytest.raises(DataError, match=r"no line has an answer.*a\.jsonl: line 1 has neither text nor a number"):
        score("demo_mmlu", path, output=tmp_path)


def test_a_log_with_a_number_that_was_not_finite_is_scored(tmp_path: Path) -> None:
    # A run of ours writes null for NaN, and one line for each filter.
    def resps(right: int) -> list[list[list[str]]]:
        return [[[str(0.0 if i == right else -1.0), "False"]] for i in range(4)]

    rows = [{"doc_id": 0, "resps": resps(QUIZ[0]["answer"])}, {"doc_id": 1, "resps": [[[None, "False"]]] * 4}]
    run = score("demo_mmlu", written(tmp_path / "a.jsonl", rows), output=tmp_path)
    assert [(s.value, s.n) for s in run.scores] == [(1.0, 1)] and run.provenance["answers"]["empty"] == 1


def test_a_chat_message_is_its_content_and_odd_numbers_are_unknown(tmp_path: Path) -> None:
    gold = SUMS[0]["answer"].rpartition("#### ")[2]
    rows = [{"doc_id": 0, "response": {"role": "assistant", "content": f"#### {gold}"}}]
    rows += [{"doc_id": odd, "response": "#### 1"} for odd in (-1, 10**30, "x", 1.5, True, [0])]
    run = score("demo_gsm8k", written(tmp_path / "a.jsonl", rows), output=tmp_path)
    assert {(s.value, s.n) for s in run.scores} == {(1.0, 1)}
    assert run.provenance["answers"]["unknown"] == 6


def test_a_broken_character_in_a_suite_is_replaced(speaking_model: Transformer, tmp_path: Path) -> None:
    suite = tmp_path / "mine.jsonl"
    suite.write_text('{"question": "How many \\ud83d?", "answer": "7"}\n')
    run = evaluate(speaking_model, Settings(tasks=(str(suite),), output=tmp_path, gen_kwargs={"max_gen_toks": 2}))
    assert "How many \ufffd?" in run.samples("mine").prompt[0]
