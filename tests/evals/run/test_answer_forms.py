"""Right answers in the forms of chat models: a second, named score finds them, and lm-eval's own stays as it is."""

import gzip
import json
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

from evals import sandbox
from evals.report import terminal_table
from evals.results.runs import Run, read_run
from evals.run import fenced_programs
from evals.run.score_external import score
from evals.tasks import local_data
from evals.tasks.letter_extraction import letter

needs_sandbox = pytest.mark.skipif(
    sandbox.why_unavailable() is not None, reason=f"no sandbox here: {sandbox.why_unavailable()}"
)
QUIZ = local_data.embedded("demo_mmlu")["test"]
PROGRAMS = local_data.embedded("demo_humaneval")["test"][:4]


def written(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def values(run: Run) -> dict[str, float]:
    return {f"{s.metric}, {s.filter}": s.value for s in run.scores}


# --- letters

FORMS = [
    "{x}. {text}",
    "({x}) {text}",
    "{x}) {text}",
    "**{x}**",
    "**{x}. {text}**",
    "Answer: {x}",
    "answer: ({x})",
    "ANSWER: {x}. {text}",
    "**Answer:** {x}",
    "**Answer: {x}**",
    "The correct answer is: {x}",
    "The correct answer is {x}.",
    "The answer is option {x}.",
    "The best option is {x}: {text}",
    "Let us think.\nFirst, not this.\nAnswer: {x}\n",
    r"So \boxed{{{x}}}.",
    r"$\boxed{{\text{{{x}}}}}$",
    r"A is wrong, and B too, so we get \boxed{{{x}}}",
    "The answer is **{x}**, because it fits.",
    "Final answer: {x}",
    "Answer - {x}",
    "The answer is A? No. The answer is {x}.",
    "{x}",
    " {x}.\n",
    "{x}\nbecause of that",
]
NO_LETTER = [
    "",
    "I do not know.",
    "A dog has four legs.",
    "I think so.",
    "The answer is a dog.",
    "The answer is A dog.",
    "The answer is not B.",
    "Both B and C.",
    "The answer is B or C.",
    "Answer:",
    "answer is Benjamin",
    "Option B is wrong.",
    "The answer is I think unclear.",
    r"\boxed{12}",
    "Because B.",
    "K. nothing",
]


@pytest.mark.parametrize("form", FORMS)
def test_a_letter_is_found_in_every_form(form: str) -> None:
    for x in "ABCDEFGHIJ":
        assert letter(form.format(x=x, text="a word or two")) == x


@pytest.mark.parametrize("text", NO_LETTER)
def test_no_letter_is_made_up(text: str) -> None:
    assert letter(text) == "[invalid]"


def test_letters_in_prose_have_a_score_of_their_own(tmp_path: Path) -> None:
    forms = [form for form in FORMS if not form.startswith(("{x}\n", " {x}", "**{x}**")) and form != "{x}"]
    rows = [
        {"doc_id": i, "response": form.format(x="ABCD"[QUIZ[i]["answer"]], text=QUIZ[i]["choices"][QUIZ[i]["answer"]])}
        for i, form in enumerate(forms)
    ]
    run = score("demo_mmlu", written(tmp_path / "a.jsonl", rows), output=tmp_path)
    assert values(run)["exact_match, letter-in-text"] == 1.0
    assert values(run)["exact_match, get_response"] == 0.0, "lm-eval's own rule is as it was"
    assert run.provenance["unreadable"]["demo_mmlu"].get("letter-in-text", 0) == 0
    assert read_run(run.path).scores == run.scores


def test_plain_letters_have_lm_evals_scores_alone(tmp_path: Path) -> None:
    rows = [{"doc_id": i, "response": f" ({'ABCD'[QUIZ[i]['answer']]})\n"} for i in range(5)]
    run = score("demo_mmlu", written(tmp_path / "a.jsonl", rows), output=tmp_path)
    assert {s.filter for s in run.scores} == {"get_response", "custom-extract"}


# --- programs


def body(problem: dict[str, Any]) -> str:
    return str(problem["canonical_solution"])


def whole(problem: dict[str, Any]) -> str:
    return f"{problem['prompt']}{problem['canonical_solution']}"


FENCES: dict[str, Callable[[dict[str, Any]], str]] = {
    "body": lambda p: f"Here is the completed function:\n\n```python\n{body(p)}```\n",
    "whole": lambda p: f"Sure!\n```python\n{whole(p)}\n```\nIt works because ...\n",
    "no language": lambda p: f"Here:\n```\n{whole(p)}\n```",
    "dedented body": lambda p: f"```py\n{textwrap.dedent(body(p))}```",
    "cut": lambda p: f"Here:\n```python\n{whole(p)}",
    "second block": lambda p: f"Install it:\n```bash\npip install x\n```\nThen:\n```python\n{whole(p)}```\n",
    "tildes": lambda p: f"~~~python\n{whole(p)}\n~~~\n",
    "windows": lambda p: f"Here:\r\n```python\r\n{whole(p)}\r\n```\r\n",
    "tests after": lambda p: f"```python\n{whole(p)}```\nTry it:\n```python\nprint({p['entry_point']})\n```\n",
}


@needs_sandbox
@pytest.mark.parametrize("form", FENCES)
def test_programs_in_fences_have_a_score_of_their_own(tmp_path: Path, form: str) -> None:
    rows = [{"task_id": p["task_id"], "completion": FENCES[form](p)} for p in PROGRAMS]
    run = score("demo_humaneval", written(tmp_path / "a.jsonl", rows), output=tmp_path)
    found = values(run)
    assert found["pass@1, fenced"] == 1.0 and found["pass@1, create_test"] == 0.0
    (fenced,) = (s for s in run.scores if s.filter == "fenced")
    assert fenced.n == len(PROGRAMS) and fenced.high == 1.0
    assert "pass@1, fenced" in terminal_table.render(run)


@needs_sandbox
def test_a_fence_does_not_make_a_wrong_program_right(tmp_path: Path) -> None:
    texts = [
        FENCES["whole"](PROGRAMS[0]),
        "```python\n    return None\n```",
        body(PROGRAMS[2]),
        FENCES["body"](PROGRAMS[0]),
    ]
    rows = [{"task_id": p["task_id"], "completion": text} for p, text in zip(PROGRAMS, texts, strict=True)]
    run = score("demo_humaneval", written(tmp_path / "a.jsonl", rows), output=tmp_path)
    assert values(run) == {"pass@1, create_test": 0.25, "pass@1, fenced": 0.5}
    intervals = {s.filter: (s.low, s.high) for s in run.scores}
    assert intervals["fenced"] != intervals["create_test"], "each has the interval of its own programs"


@needs_sandbox
def test_programs_without_fences_have_lm_evals_score_alone(tmp_path: Path) -> None:
    rows = [
        {"task_id": p["task_id"], "completion": text} for p in PROGRAMS for text in (body(p), body(p) + "```\nDone.")
    ]
    run = score("demo_humaneval", written(tmp_path / "a.jsonl", rows), output=tmp_path)
    assert {s.filter for s in run.scores} == {"create_test"}


@pytest.mark.slow
@needs_sandbox
def test_all_of_humaneval_in_fences(shared_data: Path, tmp_path: Path) -> None:
    with gzip.open(shared_data / "humaneval" / "HumanEval.jsonl.gz", "rt") as file:
        problems = [json.loads(line) for line in file]
    rows = [{"task_id": p["task_id"], "completion": FENCES["body"](p)} for p in problems]
    for task in ("humaneval", "humaneval_instruct"):
        run = score(task, written(tmp_path / "a.jsonl", rows), output=tmp_path, data=shared_data)
        assert values(run) == {"pass@1, create_test": 0.0, "pass@1, fenced": 1.0}


@given(st.text("`~\n\r pyx1"))
def test_any_text_has_a_program(text: str) -> None:
    parts = fenced_programs.blocks(text)
    assert all(part in text for part in parts)
    assert fenced_programs.program(text, "f") or not text or parts
    assert parts or fenced_programs.program(text) == text


@given(st.lists(st.text("xyz =\n", max_size=12), max_size=4))
def test_each_block_is_found_as_it_is(contents: list[str]) -> None:
    text = "Text\n" + "".join(f"```python\n{content}\n```\nmore\n" for content in contents)
    assert fenced_programs.blocks(text) == [f"{content}\n" for content in contents]
