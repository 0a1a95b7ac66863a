"""The clock of a run: reads what program and judge say until the judge has spoken or the time is over, and concludes.

Knows nothing of how the two are held.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import IO, Any, Literal

from evals.sandbox.engines import START_SECONDS, kill, wait
from evals.sandbox.limits import Limits
from workbench.errors import SandboxError

Verdict = Literal["passed", "failed", "timeout", "memory", "killed", "forbidden", "no code"]

_VERDICT_BYTES = 1 << 20  # the judge's own lines, which are far shorter


@dataclass(frozen=True)
class ProgramRun:
    """What became of one program; `stdout` and `stderr` hold a mark where they were cut.

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


class Cancelled(Exception):
    """The caller wants no more answers."""


class Kept:
    """The beginning and the end of a stream, within a number of bytes."""

    def __init__(self, most: int) -> None:
        self._half, self._cut = most // 2, 0
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


def watch(
    program: subprocess.Popen[bytes], judge: subprocess.Popen[bytes], limits: Limits, *, cancel: int | None = None
) -> ProgramRun:
    """What became of the program; both processes are dead afterwards.

    cancel: a descriptor that becomes readable when nobody waits any more.
    Raises: SandboxError if the sandbox did not start, Cancelled.
    """
    # An engine without a third stream has the verdict on the judge's stderr.
    streams = {"stdout": program.stdout, "stderr": program.stderr}
    streams |= {"verdict": judge.stdout, "judge": judge.stderr} if judge.stdout else {"verdict": judge.stderr}
    pipes = {name: pipe for name, pipe in streams.items() if pipe is not None}
    kept = {name: Kept(_VERDICT_BYTES if name == "verdict" else limits.output_bytes) for name in streams}
    started = time.monotonic()
    ready: float | None = None
    speaking = True
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
            for key, _ in selector.select(left):
                if key.data == "cancel":
                    raise Cancelled
                if not _read_some(key.fileobj, kept[key.data]):
                    selector.unregister(key.fileobj)
                    speaking = speaking and key.data != "verdict"
            if ready is None and _said(kept["verdict"])[0]:
                ready = time.monotonic()
    seconds = time.monotonic() - (ready or started)
    if not speaking:
        # Its own exit code says more than being killed by us would.
        wait(program, 2.0)
    exit_code = program.poll()
    for process in (program, judge):
        kill(process)
    for name, pipe in pipes.items():
        while _read_some(pipe, kept[name]):
            pass
    said, noise = _said(kept["verdict"])
    if not said or "ready" not in said[0]:
        texts = [kept[name].text() for name in ("stderr", "judge") if name in kept]
        reason = "".join([*texts, *noise]).strip()[-500:]
        raise SandboxError(f"the sandbox did not start: {reason or 'no reason was given'}")
    verdict, message = _conclude(said[-1], exit_code, limits, timed_out=speaking)
    kept["stderr"].add(str(said[-1].get("trace", "")).encode(errors="replace"))
    return ProgramRun(verdict, message, kept["stdout"].text(), kept["stderr"].text(), seconds, exit_code)


def _read_some(pipe: IO[bytes] | Any, into: Kept) -> bool:
    """Read a block, keep what the cap allows, and say whether there may be more."""
    block = os.read(pipe.fileno(), 1 << 16)
    into.add(block)
    return bool(block)


def _said(stream: Kept) -> tuple[list[dict[str, Any]], list[str]]:
    """The judge's whole lines, and what else came the same way: an engine's own complaints."""
    said, noise = [], []
    for line in stream.text().splitlines(keepends=True):
        try:
            message = json.loads(line) if line.endswith("\n") else None
        except ValueError:
            message = None
        if isinstance(message, dict):
            said.append(message)
        else:
            noise.append(line)
    return said, noise


def _conclude(said: dict[str, Any], exit_code: int | None, limits: Limits, *, timed_out: bool) -> tuple[Verdict, str]:
    if timed_out:
        return "timeout", f"still running after {limits.seconds:g} s"
    if "verdict" in said:
        return said["verdict"], said["message"]
    if "ended" not in said:
        return "failed", f"the tests could not be run: {said.get('broken', 'the judge was stopped')}"
    if said["ended"] == "exited":
        return "failed", "the program called exit before the tests had finished"
    if said["ended"] != "ended":
        return "failed", f"the program sent {said['ended']}"
    # Bubblewrap and docker report a signal as a shell does, a plain process as a negative number.
    number = 0 if exit_code is None else -exit_code if exit_code < 0 else exit_code - 128
    if number > 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(number).name
            if name == "SIGXCPU":
                return "timeout", f"used more than {limits.cpu} s of processor time"
            return "killed", f"the program was killed by {name}"
    if exit_code is None:
        return "failed", "the program left its tests before they had finished"
    return "failed", f"the program's process ended (exit code {exit_code}) before the tests had finished"
