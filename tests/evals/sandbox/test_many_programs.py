"""Many programs at full use of the cores leave nothing behind, whether they end, are given up or are killed."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from evals import sandbox
from evals.sandbox import Bubblewrap, Limits, Program, run_all

pytestmark = pytest.mark.skipif(
    sandbox.why_unavailable() is not None, reason=f"no sandbox here: {sandbox.why_unavailable()}"
)

SLEEPING = "import time\ntime.sleep(60)"


def tiny(number: int) -> Program:
    """Right for even numbers, wrong for odd ones."""
    return Program(f"def f(x): return x + {number % 2}", f"assert f({number}) == {number}", "f")


def left_over() -> tuple[set[int], set[str], list[str], int]:
    """Child processes, open descriptors, files in the temporary folder, threads."""
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    descriptors = {entry for entry in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{entry}")}
    return children, descriptors, sorted(os.listdir(tempfile.gettempdir())), threading.active_count()


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_hundreds_of_programs_leave_nothing_behind() -> None:
    before = left_over()
    seen = {place: run.verdict for place, run in run_all(map(tiny, range(200)))}
    assert [seen[place] for place in range(200)] == ["passed", "failed"] * 100
    assert left_over() == before


def test_programs_are_taken_as_they_are_needed() -> None:
    taken = []

    def endless() -> Iterator[Program]:
        for number in itertools.count():
            taken.append(number)
            yield tiny(number)

    before = left_over()
    runs = run_all(endless(), workers=2)
    places = {next(runs)[0] for _ in range(20)}
    runs.close()
    assert len(places) == 20 and len(taken) <= 24
    assert left_over() == before


def test_giving_up_stops_what_runs() -> None:
    before = left_over()
    programs = [tiny(0), *(Program(SLEEPING) for _ in range(10))]
    started = time.monotonic()
    runs = run_all(programs, limits=Limits(seconds=50.0), workers=2)
    assert next(runs)[1].passed
    runs.close()
    assert time.monotonic() - started < 30
    assert left_over() == before


def test_a_sandbox_that_fails_in_the_middle_stops_the_rest() -> None:
    def programs() -> Iterator[Program]:
        yield Program(SLEEPING)
        yield tiny(0)
        raise OSError("the disk is gone")

    before = left_over()
    with pytest.raises(OSError, match="the disk is gone"):
        list(run_all(programs(), limits=Limits(seconds=50.0), workers=2))
    assert left_over() == before


def test_a_sandbox_that_fails_once_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = shutil.which("bwrap"), tmp_path / "bin" / "bwrap"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\nmkdir {fake.parent}/once 2>/dev/null && exit 1\nexec {real} "$@"\n')
    fake.chmod(0o755)
    sandbox.require()
    monkeypatch.setenv("PATH", f"{fake.parent}{os.pathsep}{os.environ['PATH']}")
    assert [run.verdict for _, run in run_all([tiny(0), tiny(1)], engine=Bubblewrap(), workers=1)] == [
        "passed",
        "failed",
    ]
    assert (fake.parent / "once").is_dir()


def test_a_killed_run_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    mark = f"mark-{os.getpid()}"
    script = (
        "from evals.sandbox import Limits, Program, engines, run_all\n"
        f"engines._PYTHON = (*engines._PYTHON, '-X', {mark!r})\n"
        f"given = [Program({SLEEPING!r})] * 4\n"
        "list(run_all(given, limits=Limits(seconds=50.0), workers=2))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[3])
    try:
        wait_for(lambda: len(marked(mark)) >= 4)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_for(lambda: not marked(mark))
    assert os.listdir(tmp_path) == []


def marked(mark: str) -> list[int]:
    """Processes in sandboxes, a program and its judge each, by what is in their command."""
    processes = psutil.process_iter(["cmdline"])
    return [p.pid for p in processes if mark in (line := p.info["cmdline"] or []) and line[0] != "bwrap"]


def wait_for(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)
