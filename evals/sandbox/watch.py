"""Watches a run: reads the output of program and judge until a verdict or the timeout, and returns the result.

Does not know how the sandbox works.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import time
from dataclasses import dataclass
from typing import IO, Any, Literal

from evals.sandbox.engines import START_SECONDS
from evals.sandbox.limits import Limits
from evals.sandbox.processes import Process, kill, wait
from workbench.errors import SandboxError

Verdict = Literal["passed", "failed", "timeout", "memory", "killed", "forbidden", "no code", "not judged"]

_LOOK_SECONDS = 0.2  # how often the files of a running program are counted
_VERDICT_BYTES = 1 << 20  # the judge's own lines are much shorter


@dataclass(frozen=True)
class ProgramRun:
    """The result of one program; `stdout` and `stderr` contain a mark where they were cut.

    Units: seconds of wall-clock time since the sandbox was ready.
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


class Cancelled(Exception):
    """The caller does not need the result any more."""


class CappedOutput:
    """The start and the end of a stream, at most `max_bytes` in total."""

    def __init__(self, max_bytes: int) -> None:
        self._half, self._cut = max_bytes // 2, 0
        self._head, self._tail = bytearray(), bytearray()

    def add(self, block: bytes) -> None:
        room = max(0, self._half - len(self._head))
        self._head += block[:room]
        self._tail += block[room:]
        over = max(0, len(self._tail) - self._half)
        del self._tail[:over]
        self._cut += over

    def text(self) -> str:
        mark = f"\n[... {self._cut} bytes were cut here ...]\n".encode() if self._cut else b""
        return bytes(self._head + mark + self._tail).decode(errors="replace")


def watch(program: Process, judge: Process, limits: Limits, *, cancel: int | None = None) -> ProgramRun:
    """Wait for the result of the program; both processes are dead afterwards.

    cancel: a descriptor that becomes readable when the result is not needed any more.
    Raises: SandboxError if the sandbox did not start, Cancelled.
    """
    # An engine without a third stream sends the verdict on the judge's stderr.
    streams = {"stdout": program.stdout, "stderr": program.stderr}
    streams |= {"verdict": judge.stdout, "judge": judge.stderr} if judge.stdout else {"verdict": judge.stderr}
    pipes = {name: pipe for name, pipe in streams.items() if pipe is not None}
    output = {name: CappedOutput(_VERDICT_BYTES if name == "verdict" else limits.output_bytes) for name in streams}
    started = time.monotonic()
    ready: float | None = None
    speaking, too_many, look = True, False, started + _LOOK_SECONDS
    with selectors.DefaultSelector() as selector:
        for name, pipe in pipes.items():
            selector.register(pipe, selectors.EVENT_READ, name)
        if cancel is not None:
            selector.register(cancel, selectors.EVENT_READ, "cancel")
        while speaking:
            end = started + START_SECONDS if ready is None else ready + limits.seconds
            left = end - time.monotonic()
            if left <= 0:
                break
            for key, _ in selector.select(min(left, _LOOK_SECONDS)):
                if key.data == "cancel":
                    raise Cancelled
                if not _read_some(key.fileobj, output[key.data]):
                    selector.unregister(key.fileobj)
                    speaking = speaking and key.data != "verdict"
            if ready is None and _judge_messages(output["verdict"])[0]:
                ready = time.monotonic()
                for process in (program, judge):
                    process.find_child()
            if time.monotonic() > look:
                look = time.monotonic() + _LOOK_SECONDS
                if too_many := program.files() > limits.files:
                    break
    seconds = time.monotonic() - (ready or started)
    if not speaking:
        # Its own exit code is more informative than that of our kill.
        wait(program, 2.0)
    exit_code = program.poll()
    for process in (program, judge):
        kill(process)
    for name, pipe in pipes.items():
        while _read_some(pipe, output[name]):
            pass
    messages, noise = _judge_messages(output["verdict"])
    if not messages or "ready" not in messages[0]:
        texts = [output[name].text() for name in ("stderr", "judge") if name in output]
        reason = "".join([*texts, *noise]).strip()[-500:]
        raise SandboxError(f"the sandbox did not start: {reason or 'no reason given'}")
    if too_many:
        verdict, message = "forbidden", f"the program made more than {limits.files} files"
    else:
        verdict, message = _conclude(messages[-1], exit_code, limits, timed_out=speaking)
    output["stderr"].add(str(messages[-1].get("trace", "")).encode(errors="replace"))
    return ProgramRun(verdict, message, output["stdout"].text(), output["stderr"].text(), seconds, exit_code)


def _read_some(pipe: IO[bytes] | Any, into: CappedOutput) -> bool:
    """Read a block, store what the cap allows, and return whether there may be more."""
    block = os.read(pipe.fileno(), 1 << 16)
    into.add(block)
    return bool(block)


def _judge_messages(stream: CappedOutput) -> tuple[list[dict[str, Any]], list[str]]:
    """The judge's complete messages, and other lines of the same stream, such as the engine's own errors."""
    messages, noise = [], []
    for line in stream.text().splitlines(keepends=True):
        try:
            message = json.loads(line) if line.endswith("\n") else None
        except ValueError:
            message = None
        if isinstance(message, dict):
            messages.append(message)
        else:
            noise.append(line)
    return messages, noise


def _conclude(
    message: dict[str, Any], exit_code: int | None, limits: Limits, *, timed_out: bool
) -> tuple[Verdict, str]:
    if timed_out:
        return "timeout", f"still running after {limits.seconds:g} s"
    if "verdict" in message:
        return message["verdict"], message["message"]
    if "ended" not in message:
        return "failed", f"the tests could not be run: {message.get('broken', 'the judge was stopped')}"
    early = "before the tests had finished" if message.get("tests") else "before it had run to its end"
    if message["ended"].startswith("exit("):
        return "failed", f"the program called {message['ended']} {early}"
    if message["ended"] != "ended":
        return "failed", f"the program sent {message['ended']}"
    # Bubblewrap and docker report a signal as 128 + n, a plain process as -n.
    number = 0 if exit_code is None else -exit_code if exit_code < 0 else exit_code - 128
    if number > 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(number).name
            if name == "SIGXCPU":
                return "timeout", f"used more than {limits.cpu} s of processor time"
            return "killed", f"the program was killed by {name}"
    if exit_code is None:
        return "failed", f"the program left {early}"
    return "failed", f"the program's process ended (exit code {exit_code}) {early}"
