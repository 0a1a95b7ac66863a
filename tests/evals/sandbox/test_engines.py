"""Other ways to hold a program: docker by its command line and protocol, nothing at all for whoever insists."""

import json
import os
import shutil
import sys
import textwrap
from pathlib import Path

import pytest

from evals.sandbox import Docker, Limits, Program, Unsafe, run_all, run_tests, seccomp
from evals.sandbox.engines import IMAGE_VARIABLE
from workbench.errors import SandboxError

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system-call filter is for Linux")
RIGHT = "def add(a, b):\n    print('adding')\n    return a + b\n"
TESTS = "assert add(1, 2) == 3"
PROGRAMS = {
    RIGHT: "passed",
    "def add(a, b): return 0": "failed",
    "def add(a, b):\n    while True: pass": "timeout",
    "def add(a, b): return len(bytearray(10**10))": "memory",
    "import os\ndef add(a, b): os.kill(os.getpid(), 9)": "killed",
    "import os\ndef add(a, b): os.fork()": "forbidden",
    "import socket\ndef add(a, b): socket.socket()": "forbidden",
    "import os\ndef add(a, b): os._exit(0)": "failed",
    "# to do": "no code",
}

# What an engine does, less the holding: runs the command of the container here, on the streams it was given. A signal
# is reported as docker does.
FAKE = """
    import json, os, subprocess, sys
    arguments = sys.argv[1:]
    with open({log!r}, "a") as log:
        log.write(json.dumps(arguments) + "\\n")
    if arguments[0] == "run":
        inside = next(a for a in arguments if a.startswith("type=bind,")).split("src=")[1].split(",")[0]
        command = arguments[arguments.index("python3") :]
        command = [sys.executable, *(inside if part == "/inside.py" else part for part in command[1:])]
        code = subprocess.run(command).returncode
        sys.exit(128 - code if code < 0 else code)
"""


@pytest.fixture
def fake_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A docker that writes down what it was asked; the file of its notes."""
    log = tmp_path / "log"
    fake = tmp_path / "docker"
    fake.write_text(f"#!{sys.executable}\n" + textwrap.dedent(FAKE).format(log=str(log)))
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return log


@linux
@pytest.mark.parametrize("engine", [Docker(), Unsafe()], ids=lambda engine: engine.name)
def test_verdicts_are_the_same_without_bubblewrap(engine: Docker | Unsafe, fake_docker: Path) -> None:
    limits = Limits(seconds=1.5)
    programs = [Program(code, TESTS, "add") for code in PROGRAMS]
    runs = dict(run_all(programs, limits=limits, engine=engine, workers=2))
    assert {code: runs[i].verdict for i, code in enumerate(PROGRAMS)} == PROGRAMS
    assert "adding" in runs[0].stdout + runs[0].stderr


@linux
def test_docker_is_asked_for_every_limit(fake_docker: Path) -> None:
    limits = Limits(seconds=7.0, memory=100 << 20, processes=5, file_bytes=1 << 20)
    assert run_tests(RIGHT, TESTS, entry_point="add", limits=limits, engine=Docker("an/image:1")).passed
    commands = [json.loads(line) for line in fake_docker.read_text().splitlines()]
    runs, (removed,) = [a for a in commands if a[0] == "run"], [a for a in commands if a[0] == "rm"]
    assert len(runs) == 2
    for command in runs:
        text = " ".join(command)
        for part in (
            "--network none",
            "--read-only",
            "--tmpfs /scratch:rw,noexec,nosuid,nodev,mode=1777,size=1048576",
            "--memory 105906176b --memory-swap 105906176b",  # 101 MiB
            "--pids-limit 13",
            "--cap-drop ALL",
            "--security-opt no-new-privileges",
            "--user 65534:65534",
            "--pull never",
            "an/image:1 -s KILL 67 python3",
        ):
            assert part in text
        assert "--privileged" not in command and "--volume" not in command
    names = {command[command.index("--name") + 1] for command in runs}
    assert len(names) == 2 and set(removed[-2:]) == names and "--force" in removed


def test_docker_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "docker"
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv(IMAGE_VARIABLE, "some:image")
    for message, reason in (
        ("Error response from daemon: No such image: some:image", "docker pull some:image"),
        ("Cannot connect to the Docker daemon", "Cannot connect to the Docker daemon"),
    ):
        fake.write_text(f"#!/bin/sh\necho '{message}' >&2\nexit 1\n")
        fake.chmod(0o755)
        assert reason in str(Docker().missing())
        with pytest.raises(SandboxError, match="did not start"):
            run_tests(RIGHT, TESTS, entry_point="add", engine=Docker())
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert Docker().missing() == "docker is not installed"


def test_a_real_docker_engine_gives_the_same_verdicts() -> None:
    reason = Docker().missing()
    if reason is not None:
        pytest.skip(f"no docker engine: {reason}")
    limits = Limits(seconds=5.0)
    programs = [Program(code, TESTS, "add") for code in PROGRAMS]
    runs = dict(run_all(programs, limits=limits, engine=Docker(), workers=2))
    assert {code: runs[i].verdict for i, code in enumerate(PROGRAMS)} == PROGRAMS
    escape = "import os\ndef add(a, b):\n    open('/usr/x', 'w')\n"
    assert run_tests(escape, TESTS, entry_point="add", limits=limits, engine=Docker()).verdict == "forbidden"


@linux
def test_unsafe_leaves_no_folder_and_shows_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("A_SECRET", "squirrel")
    code = "import os\ndef add(a, b):\n    assert 'A_SECRET' not in os.environ\n    open('x', 'w')\n    return a + b\n"
    run = run_tests(code, TESTS, entry_point="add", engine=Unsafe())
    assert run.passed, run
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not seccomp.supported(), reason="the filter is not known for this machine")
def test_the_filter_is_whole_instructions() -> None:
    assert len(seccomp.program_filter()) % 8 == 0
