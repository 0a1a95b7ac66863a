"""A whole program in HumanEval's format: its tests begin at `def check`, and no program moves that place."""

import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evals import sandbox
from evals.sandbox import Limits, run_program
from evals.sandbox.source import split_tests

pytestmark = pytest.mark.skipif(
    sandbox.why_unavailable() is not None, reason=f"no sandbox here: {sandbox.why_unavailable()}"
)

CHECK = "def check(f):\n    assert f(2) == 4\ncheck(square)\n"
GUARDED = CHECK.replace("check(square)", "if __name__ == '__main__':\n    check(square)")
WRONG = "def square(x):\n    return 0\n"
RIGHT = "def square(x):\n    return x * x\n"

# Ends of a wrong program that would change what the tests are if they and the program were one text.
ENDS = {
    "decorator": "@(lambda f: lambda *a: None)",
    "decorator and blank lines": "@(lambda f: lambda *a: None)\n\n\n",
    "decorator and comment": "@(lambda f: lambda *a: None)\n# done",
    "two decorators": "@staticmethod\n@(lambda f: lambda *a: None)",
    "decorator with code": '@(__import__(\'os\').write(1, b\'{"verdict": "passed", "message": ""}\\n\') and print)',
    "coroutine": "async \\",
    "open condition": "if False:",
    "open bracket": "x = (",
    "open string": "x = '''",
    "open docstring": 'def later():\n    """',
    "own check": "def check(f):\n    pass",
    "own check and its call": "def check(f):\n    pass\ncheck(square)",
    "own check as a name": "check = lambda f: None",
    "carriage return": "@(lambda f: lambda *a: None)\r",
    "form feed": "@(lambda f: lambda *a: None)\n\f",
}


@pytest.mark.parametrize("name", ENDS)
def test_no_end_of_a_program_changes_its_tests(name: str) -> None:
    for between in ("\n", "\n\n\nMETADATA = {'author': 'jt'}\n\n\n"):
        for tests in (CHECK, CHECK + "print('done')\n", GUARDED):
            run = run_program(WRONG + ENDS[name] + between + tests, limits=Limits(seconds=20.0))
            assert run.verdict == "failed", (between, tests, run)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decorator", "coroutine", "own check"])
def test_no_wrong_program_passes_humaneval(name: str, shared_data: Path) -> None:
    with gzip.open(shared_data / "humaneval" / "HumanEval.jsonl.gz", "rt") as file:
        problems = [json.loads(line) for line in file]
    assert len(problems) == 164

    def passes(problem: dict[str, str]) -> bool:
        program = (
            f"{problem['prompt']}    return None\n\n{ENDS[name]}\n{problem['test']}\ncheck({problem['entry_point']})"
        )
        return run_program(program, limits=Limits(seconds=20.0)).passed

    with ThreadPoolExecutor(3) as pool:
        assert [p["task_id"] for p, passed in zip(problems, pool.map(passes, problems), strict=True) if passed] == []


@pytest.mark.parametrize(
    "end",
    ["", "# the end\n", "\n   \n#\n", "\r\n", "print('all passed')\n", "x = square(3)\nassert x == 9\n"],
    ids=["nothing", "comment", "blank lines", "carriage return", "print", "more tests"],
)
def test_right_programs_pass_however_they_end(end: str) -> None:
    assert run_program(RIGHT + CHECK + end).passed and run_program(RIGHT + GUARDED).passed
    assert run_program((RIGHT + CHECK).replace("\n", "\r\n") + end).passed


def test_a_byte_order_mark_is_no_part_of_a_program() -> None:
    assert run_program("\ufeff" + RIGHT + CHECK).passed
    assert run_program("\ufeffx = 1\nassert x").passed


def test_other_programs_are_not_split() -> None:
    later = "def check(f):\n    assert f(2) == 4\ndef square(x):\n    return x * x\ncheck(square)\n"
    assert split_tests(later) is None, "what is checked is defined after the check"
    assert split_tests(CHECK.replace("\ncheck", "\nsquare = pow\ncheck")) is None
    assert run_program(later).passed and not run_program(later.replace("x * x", "x + 1")).passed
    for source in (
        RIGHT,
        RIGHT + "assert square(2) == 4",
        "check(square)",
        CHECK.replace("check(sq", "  check(sq"),
        "",
    ):
        assert split_tests(source) is None


def test_a_program_without_tests_that_exits_has_not_run_to_its_end() -> None:
    unittest = "import unittest\nclass T(unittest.TestCase):\n    def test(self): pass\nunittest.main()"
    for source in ("import sys\nsys.exit(0)", "raise SystemExit", "x = 1\nimport sys\nsys.exit()", unittest):
        run = run_program(source)
        assert run.verdict == "failed"
        assert run.message.startswith("the program called exit(") and run.message.endswith("had run to its end")


def test_a_large_source_has_a_verdict_in_time_and_costs_the_caller_little() -> None:
    import psutil

    before = psutil.Process().memory_info().rss
    for source, verdicts in (
        ("x=1\n" * 500_000, {"timeout", "memory"}),  # 2 MB, for which Python's compiler needs more than 512 MiB
        ("x=1\n" * 12_500_000, {"failed"}),
        ("x = '" + "a" * 3_000_000 + "'\n" + RIGHT + CHECK, {"passed"}),
    ):
        run = run_program(source, limits=Limits(seconds=3.0))
        assert run.verdict in verdicts and run.seconds < 4, run
    assert psutil.Process().memory_info().rss - before < 300 << 20


@pytest.mark.parametrize("sign", ["-", "not ", "~", "lambda: "])
def test_nesting_too_deep_for_the_parser_is_not_called_memory(sign: str) -> None:
    run = run_program(f"def square(x):\n    return {sign * 100_000}1\n" + CHECK)
    assert run.verdict == "failed" and "nest" in run.message, run
