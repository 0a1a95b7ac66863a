"""No control sequence of an answer, a model or a task reaches a terminal; it is spelled out."""

import ast
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard import token_text
from evals.results.runs import PROVENANCE, write
from evals.runtime.printing import ESCAPED, plain
from evals.store.store import Store
from tests.evals.results.test_runs import QUIZ, report
from workbench.cli import main

LINK, RED, TITLE, OVERRIDE = "\x1b]8;;http://evil.test\x07", "\x1b[31m", "\x1b]0;root\x07", "\u202e"
C1 = "\x9b31m"
HOSTILE = LINK + RED + TITLE + OVERRIDE + C1 + "\r\x08"
TASK = f"s{RED}"


def clean(text: str) -> bool:
    return all(char in "\n\t" or unicodedata.category(char) not in ESCAPED or char in " \u200d\u00a0" for char in text)


@given(st.text())
def test_what_is_printed_hides_nothing(text: str) -> None:
    assert clean(plain(text))
    assert plain(text) == token_text.plain(text), "pages and terminals spell it alike"
    assert plain(plain(text)) == plain(text)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two finished runs and a stopped one, hostile wherever a text comes from a file."""
    for number in range(2):
        arguments = {f"gen_args_{i}": {"arg_0": f"Q{HOSTILE}", "arg_1": f" {c}{HOSTILE}"} for i, c in enumerate("AB")}
        row: dict[str, Any] = {**QUIZ, "arguments": arguments, "target": HOSTILE, "doc": {"q": HOSTILE}, "acc": number}
        record = {
            "run": f"2026{number}{HOSTILE}", "dtype": HOSTILE, "device": HOSTILE, "not_run": {f"x{HOSTILE}": HOSTILE},
            "notes": [HOSTILE], "commit": HOSTILE, "checkpoint_sha256": HOSTILE,
        }  # fmt: skip
        data = report(
            results={TASK: {"alias": HOSTILE, f"acc,none{RED}": 0.5, f"acc_stderr,none{RED}": 0.1}},
            configs={TASK: {}}, group_subtasks={}, model_name=f"model{HOSTILE}", versions={TASK: HOSTILE},
            **{PROVENANCE: record},
        )  # fmt: skip
        data["n-samples"] = {TASK: {"original": 10, "effective": 10}}
        write(tmp_path / f"run{number}", data, {TASK: [row]}, at=1_700_000_000.0 + number)
    with Store.open(tmp_path / "stopped") as store:
        settings = {"tasks": [HOSTILE], "backend": f"hf{RED}", "model_args": {RED: HOSTILE}}
        store.fail(store.register({"model": HOSTILE, "settings": settings}), HOSTILE, interrupted=True)
    return tmp_path


FORMATS = ("md", "html", "latex", "csv", "json")
COMMANDS = {
    "list": ["list"],
    "list as JSON": ["list", "--json"],
    "show": ["show", "run0"],
    "show as JSON": ["show", "run0", "--json"],
    "a sample": ["show", "run0", "--sample", f"{TASK}/7"],
    "no such sample": ["show", "run0", "--sample", f"{TASK}/8"],
    "an unfinished run": ["show", "2026"],
    "compare": ["compare", "run0", "run1"],
    **{
        f"report as {form}": ["report", "run0", "run1", "--format", form]
        for form in ("md", "html", "latex", "csv", "json")
    },
    "no such run": ["show", HOSTILE],
    "resume": ["resume", "2026"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_no_control_sequence_is_printed(results: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (results / "results_bad.json").write_text(
        f'{{"results": {{}}, "date": "{HOSTILE.encode("unicode_escape").decode()}"}}'
    )
    folder = results / "stopped" if command[0] == "resume" else results
    code = main(["eval", *command, "--results", str(folder)])
    printed = capsys.readouterr()
    assert code in (0, 2) and (printed.out or printed.err)
    assert clean(printed.out) and clean(printed.err)
    if command in (["list"], ["show", "run0"]):
        assert code == 0 and "model⟨U+001B⟩]8;;http://evil.test⟨U+0007⟩" in printed.out


def test_everything_is_printed_by_one_function(project_root: Path) -> None:
    printers = {
        str(path.relative_to(project_root))
        for path in (project_root / "evals").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "typer.echo", "sys.stdout.write")
    }
    assert printers == {"evals/runtime/printing.py"}
