"""Run generated code in a sandbox, and say of each program what became of it.

The sandbox is bubblewrap: no network, no view of the file system but a read-only system and Python, a small
scratch folder that vanishes, no environment, no new processes (see `seccomp`), limits on processor time,
memory, file size and open files, a wall-clock limit, and a cap on what is kept of the output.

`passed` is never the program's own word. Program and tests are in two processes in two sandboxes: the
program answers calls with plain values, and the judge, to which the program has no access, sees whether the
tests ran to their end. Exit codes, printed markers, patched builtins, objects that equal everything,
`sys.exit`, `os._exit`, tampering with the harness's frames, files or descriptors: none of them reaches the
judge.

What remains, stated honestly. `run_program` is given one source: where it ends as HumanEval's programs do
(`def check(...)` and a call of it) these tests are moved to the judge; any other program can only be asked
whether it ran to its end, and one written against this very file could answer too early. A helper function
of the program's that the tests call is only as honest as the program, unless it is in `context`. A function
passed as an argument by the tests, or a value that is no plain data, does not cross over. The kernel is
trusted.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

from evals.sandbox import seccomp
from evals.sandbox.source import compilable, has_code, split_tests
from workbench.errors import SandboxError

Verdict = Literal["passed", "failed", "timeout", "memory", "killed", "forbidden", "no code"]

_INSIDE = Path(__file__).with_name("inside.py")
_INSTALL = "install it with: apt-get install bubblewrap"
_KEPT_OUTPUT = 64 << 10
_SCRATCH_BYTES = 16 << 20
_START_SECONDS = 60.0


@dataclass(frozen=True)
class ProgramRun:
    """What became of one program.

    Units: seconds of wall-clock time, from the moment the sandbox stood.
    """

    verdict: Verdict
    message: str
    stdout: str
    stderr: str
    seconds: float
    exit_code: int | None

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"


def run_program(source: str, *, timeout: float = 5.0, memory_mb: int = 512) -> ProgramRun:
    """Run one whole program; it passes if it ran to its end without an error.

    A source that ends with `def check(...)` and `check(name)` is judged as `run_tests` does.

    Units:  timeout in seconds of wall-clock time, memory_mb in MiB of address space.
    Raises: SandboxError if there is no sandbox here.
    """
    split = split_tests(source)
    if split is not None:
        code, tests, entry_point, context = split
        return run_tests(
            code, tests, entry_point=entry_point, context=context, timeout=timeout, memory_mb=memory_mb
        )
    return _run(
        {"source": source, "name": "__main__"},
        {"tests": "", "context": "", "entry_point": None},
        timeout=timeout,
        memory_mb=memory_mb,
    )


def run_tests(
    code: str,
    tests: str,
    *,
    entry_point: str | None = None,
    context: str = "",
    timeout: float = 5.0,
    memory_mb: int = 512,
) -> ProgramRun:
    """Run tests against a program that cannot see them; it passes if they ran to their end without an error.

    `tests` call the program's functions by name, `entry_point` among them. `context` is trusted code (the
    part of the program that was given to the model) and is run beside the tests: what it defines, other
    than the entry point, the tests take from there.

    Units:  timeout in seconds of wall-clock time for code and tests together, memory_mb in MiB of address
    space.
    Raises: SandboxError if there is no sandbox here, or the tests themselves cannot be compiled.
    """
    return _run(
        {"source": code, "name": "program"},
        {"tests": tests, "context": compilable(context), "entry_point": entry_point},
        timeout=timeout,
        memory_mb=memory_mb,
    )


def require() -> None:
    """Return if programs can be run here.

    Raises: SandboxError with the reason and what to do.
    """
    reason = why_unavailable()
    if reason is not None:
        raise SandboxError(f"Generated code is not run without a sandbox, and there is none here: {reason}")


@cache
def why_unavailable() -> str | None:
    """None if the sandbox works here, else the reason. Found by running a program in it, once per process."""
    if not sys.platform.startswith("linux"):
        return f"bubblewrap exists on Linux only, this is {sys.platform}"
    if not seccomp.supported():
        return "the system-call filter is known for x86-64 and aarch64 only"
    if shutil.which("bwrap") is None:
        return f"bubblewrap (bwrap) is not installed; {_INSTALL}"
    try:
        run = _run(
            {"source": "pass", "name": "__main__"},
            {"tests": "", "context": "", "entry_point": None},
            timeout=_START_SECONDS,
            memory_mb=512,
            probe=True,
        )
    except SandboxError as error:
        return str(error)
    return None if run.passed else f"a trial program did not pass: {run.message} {run.stderr[-300:]}"


# --- two processes and a clock


def _run(
    program: dict[str, Any], tests: dict[str, Any], *, timeout: float, memory_mb: int, probe: bool = False
) -> ProgramRun:
    if not probe:
        require()
    if timeout <= 0 or memory_mb < 64:
        found = f"found {timeout:g} and {memory_mb}"
        raise SandboxError(f"timeout must be above 0 s and memory_mb at least 64, {found}")
    if not has_code(program["source"]):
        return ProgramRun("no code", "there is no statement in it", "", "", 0.0, None)
    limits = {
        "RLIMIT_CPU": int(timeout) + 2,
        "RLIMIT_AS": memory_mb << 20,
        "RLIMIT_FSIZE": _SCRATCH_BYTES,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_NPROC": 64,
        "RLIMIT_CORE": 0,
    }
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(end) for end in socket.socketpair()]
        jobs = (
            {"role": "program", **program, "limits": limits},
            {"role": "judge", **tests, "limits": limits, "nonce": secrets.token_hex(16)},
        )
        processes = [
            stack.enter_context(_sandboxed(job, end)) for job, end in zip(jobs, ends, strict=True)
        ]
        for end in ends:
            end.close()
        return _watch(*processes, timeout=timeout)


@contextlib.contextmanager
def _sandboxed(job: dict[str, Any], channel: socket.socket) -> Iterator[subprocess.Popen[bytes]]:
    """One process in a sandbox of its own; it and all that it started are gone afterwards."""
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as bpf:
        stdin.write(json.dumps({**job, "channel": channel.fileno()}).encode())
        stdin.seek(0)
        bpf.write(seccomp.program_filter())
        bpf.seek(0)
        process = subprocess.Popen(
            [*_bwrap_arguments(bpf.fileno()), *_python_command()],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(channel.fileno(), bpf.fileno()),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _kill(process)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _python_command() -> list[str]:
    # No site packages, no user folder, no script folder on the path, no bytecode written.
    return [os.path.realpath(sys.executable), "-s", "-S", "-P", "-B", "/inside.py"]


def _bwrap_arguments(bpf: int) -> list[str]:
    arguments = ["bwrap", "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534"]
    arguments += ["--die-with-parent", "--cap-drop", "ALL", "--hostname", "sandbox"]
    arguments += ["--clearenv", "--setenv", "PATH", "/usr/bin", "--setenv", "HOME", "/scratch"]
    arguments += ["--setenv", "LANG", "C.UTF-8", "--setenv", "PYTHONHASHSEED", "0"]
    arguments += ["--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/lib", "/lib64"):
        if os.path.islink(name):
            arguments += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            arguments += ["--ro-bind", name, name]
    arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    if not Path(sys.base_prefix).is_relative_to("/usr"):
        arguments += ["--ro-bind", sys.base_prefix, sys.base_prefix]
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        arguments += ["--dev-bind", device, device]
    arguments += ["--ro-bind", str(_INSIDE), "/inside.py"]
    arguments += ["--size", str(_SCRATCH_BYTES), "--tmpfs", "/scratch", "--chdir", "/scratch"]
    return [*arguments, "--remount-ro", "/", "--seccomp", str(bpf)]


def _watch(program: subprocess.Popen[bytes], judge: subprocess.Popen[bytes], *, timeout: float) -> ProgramRun:
    """Read what both say until the judge has spoken or the time is over."""
    kept: dict[str, bytearray] = {name: bytearray() for name in ("stdout", "stderr", "verdict", "judge")}
    started = time.monotonic()
    ready: float | None = None
    with selectors.DefaultSelector() as selector:
        for name, pipe in (
            ("stdout", program.stdout),
            ("stderr", program.stderr),
            ("verdict", judge.stdout),
            ("judge", judge.stderr),
        ):
            assert pipe is not None
            selector.register(pipe, selectors.EVENT_READ, name)
        speaking = True
        while speaking:
            end = started + _START_SECONDS if ready is None else ready + timeout
            left = end - time.monotonic()
            if left <= 0:
                break
            for key, _ in selector.select(left):
                if not _read_some(key.fileobj, kept[key.data]):
                    selector.unregister(key.fileobj)
                    speaking = speaking and key.data != "verdict"
            if ready is None and b"\n" in kept["verdict"]:
                ready = time.monotonic()
    seconds = time.monotonic() - (ready or started)
    said = [json.loads(line) for line in kept["verdict"].decode().splitlines()]
    if not speaking:
        # Its own exit code says more than being killed by us would.
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(2.0)
    exit_code = program.poll()
    for process in (program, judge):
        _kill(process)
    for name, pipe in (("stdout", program.stdout), ("stderr", program.stderr), ("judge", judge.stderr)):
        while _read_some(pipe, kept[name]):
            pass
    texts = {name: bytes(data).decode(errors="replace") for name, data in kept.items()}
    if not said or "ready" not in said[0]:
        reason = (texts["stderr"] + texts["judge"]).strip()[-500:]
        raise SandboxError(f"the sandbox did not start: {reason or 'no reason was given'}")
    verdict, message = _conclude(
        said[-1], exit_code, timed_out=speaking, timeout=timeout, judge_said=texts["judge"]
    )
    stderr = texts["stderr"] + str(said[-1].get("trace", ""))
    return ProgramRun(verdict, message, texts["stdout"], stderr[-_KEPT_OUTPUT:], seconds, exit_code)


def _read_some(pipe: IO[bytes] | Any, into: bytearray) -> bool:
    """Read a block, keep what the cap allows, and say whether there may be more."""
    block = os.read(pipe.fileno(), 1 << 16)
    into.extend(block[: max(0, _KEPT_OUTPUT - len(into))])
    return bool(block)


def _conclude(
    said: dict[str, Any], exit_code: int | None, *, timed_out: bool, timeout: float, judge_said: str
) -> tuple[Verdict, str]:
    if timed_out:
        return "timeout", f"still running after {timeout:g} s"
    if "verdict" in said:
        return said["verdict"], said["message"]
    if "ended" not in said:
        reasons = judge_said.strip().splitlines() or ["no reason was given"]
        return "failed", f"the tests could not be run: {reasons[-1]}"
    if said["ended"] == "exited":
        return "failed", "the program called exit before the tests had finished"
    if said["ended"] != "ended":
        return "failed", f"the program sent {said['ended']}"
    if exit_code is not None and exit_code > 128:
        with contextlib.suppress(ValueError):
            name = signal.Signals(exit_code - 128).name
            if name == "SIGXCPU":
                return "timeout", f"used more than {int(timeout) + 2} s of processor time"
            return "killed", f"the program was killed by {name}"
    if exit_code is None:
        return "failed", "the program left its tests before they had finished"
    return "failed", f"the program's process ended (exit code {exit_code}) before the tests had finished"
