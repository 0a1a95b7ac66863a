"""Hostile programs of many kinds have their right verdicts, and HumanEval's solutions pass: as the superuser and as an
ordinary user, with a process 1 that waits for orphans and without."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from evals import sandbox
from evals.sandbox import Limits, Program, run_all

pytestmark = pytest.mark.skipif(
    sandbox.why_unavailable() is not None, reason=f"no sandbox here: {sandbox.why_unavailable()}"
)
FOLDER = Path(__file__).parent


TESTS = """
def check(candidate):
    assert candidate(1, 2) == 3
    assert candidate(-1, 1) == 0
    assert abs(candidate(20, 22) - 42) < 1e-6

check(add)
"""
# What a table in TOML cannot hold, or only at length.
LONG = {"syntax error": ("\ud800", "-" * 200_000 + "1", "x = 1\n" * 1000 + "if", "(" * 100_000)}


def hostile_programs() -> Iterator[tuple[str, str, str]]:
    """Kind, source and verdict of each program of the table."""
    for kind, row in tomllib.loads((FOLDER / "hostile.toml").read_text(encoding="utf-8")).items():
        for variant in (*row["variants"], *LONG.get(kind, ())):
            yield kind, row["program"].replace("{}", variant), row["verdict"]


PROGRAMS = list(hostile_programs())
FIRST = list({kind: (kind, source, verdict) for kind, source, verdict in reversed(PROGRAMS)}.values())


def wrong_verdicts(programs: list[tuple[str, str, str]]) -> list[tuple[str, ...]]:
    """Kind, source, right verdict and verdict of each program that got another verdict than its own."""
    wrong = []
    for endless, seconds in ((False, 20.0), (True, 1.0)):
        part = [program for program in programs if (program[2] == "timeout") == endless]
        jobs = [Program(source, TESTS, "add") for _, source, _ in part]
        for index, run in run_all(jobs, limits=Limits(seconds=seconds)):
            if run.verdict != part[index][2] or not run.message:
                wrong.append((*part[index], run.verdict, run.message))
    return wrong


def test_the_table_has_many_kinds_and_no_program_twice() -> None:
    assert len({kind for kind, _, _ in PROGRAMS}) >= 40 and len(PROGRAMS) >= 300
    assert len({source for _, source, _ in PROGRAMS}) == len(PROGRAMS)
    assert {verdict for _, _, verdict in PROGRAMS} == {"failed", "forbidden", "timeout", "memory", "killed", "no code"}


def test_one_program_of_each_kind_has_its_verdict() -> None:
    assert wrong_verdicts(FIRST) == []


@pytest.mark.slow
def test_every_hostile_program_has_its_verdict() -> None:
    assert wrong_verdicts(PROGRAMS) == []


SCRIPT = """
import gzip, json, os, sys
from evals.sandbox import Limits, Program, run_all, require

assert require().name == "bubblewrap"
programs, tests, solutions = json.load(sys.stdin)
wrong = []
for endless, seconds in ((False, 20.0), (True, 1.0)):
    part = [p for p in programs if (p[2] == "timeout") == endless]
    for i, run in run_all([Program(p[1], tests, "add") for p in part], limits=Limits(seconds=seconds)):
        if run.verdict != part[i][2]:
            wrong.append((*part[i], run.verdict, run.message))
solved = 0
if solutions:
    rows = [json.loads(line) for line in gzip.open(solutions, "rt")]
    for row in rows:
        row["test"] += f"\\ncheck({row['entry_point']})"
    jobs = [Program(r["prompt"] + r["canonical_solution"], r["test"], r["entry_point"], r["prompt"]) for r in rows]
    solved = sum(run.passed for _, run in run_all(jobs, limits=Limits(seconds=20.0)))
zombies = 0
for entry in filter(str.isdigit, os.listdir("/proc")):
    try:
        status = open(f"/proc/{entry}/stat").read().rpartition(")")[2].split()
    except OSError:
        continue
    zombies += status[0] == "Z" and os.getpid() == 1
print(json.dumps({"wrong": wrong, "solved": solved, "zombies": zombies, "user": os.geteuid(), "pid": os.getpid()}))
"""


def elsewhere(user: int, *, init: bool, every: bool, solutions: str) -> dict[str, object]:
    """Run hostile programs and solutions in a process of its own as this user, which is process 1 without init."""
    if os.geteuid() != 0 or None in map(shutil.which, ("setpriv", "unshare")):
        pytest.skip("another user and a process namespace need the superuser, setpriv and unshare")
    paths = [str(FOLDER.parents[2]), *(path for path in sys.path if path.endswith("site-packages"))]
    environment = {"PATH": os.environ["PATH"], "HOME": "/", "PYTHONPATH": os.pathsep.join(paths), "TMPDIR": "/tmp"}
    as_user = ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups"] if user else []
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info[1]}"):
        trial = [*as_user, python, "-c", "import numpy; from evals.sandbox import require; require()"]
        if shutil.which(python) and not subprocess.run(trial, env=environment, cwd="/", capture_output=True).returncode:
            break
    else:
        pytest.skip(f"user {user} may not read this Python or this checkout")
    first = [] if init else ["unshare", "--pid", "--fork", "--mount-proc"]
    done = subprocess.run(
        [*first, *as_user, python, "-c", SCRIPT], input=json.dumps([PROGRAMS if every else FIRST, TESTS, solutions]),
        capture_output=True, text=True, env=environment, cwd="/", timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    assert result["user"] == user and (result["pid"] == 1) == (not init)
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("user", "init", "every"), [(65534, False, True), (65534, True, False), (0, False, False)],
    ids=["ordinary user without init", "ordinary user", "superuser without init"],
)  # fmt: skip
def test_verdicts_are_the_same_for_every_user_and_without_init(
    user: int, init: bool, every: bool, shared_data: Path
) -> None:
    solutions = str(shared_data / "humaneval" / "HumanEval.jsonl.gz") if every else ""
    result = elsewhere(user, init=init, every=every, solutions=solutions)
    assert result["wrong"] == [] and result["zombies"] == 0
    assert result["solved"] == (164 if every else 0)
