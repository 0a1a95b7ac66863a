"""Processes of a sandbox: started in a group of their own, watched, ended and waited for. Knows nothing of programs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

SCRATCH = "/scratch"
_END_SECONDS = 5.0
_CHILD_PID = re.compile(rb'"child-pid":\s*(\d+)')


class Process(subprocess.Popen[bytes]):
    """A process that was started here. If it is bubblewrap, it has a child: the first process inside the sandbox."""

    info: int | None = None
    _about: bytes = b""
    _child: int | None = None
    _handle: int | None = None

    def find_child(self, seconds: float = 0.0) -> None:
        """Read which process is the child, if bubblewrap says so in this time; it writes its JSON piece by piece."""
        end = time.monotonic() + seconds
        while self.info is not None and self._child is None:
            if not select.select([self.info], [], [], max(0.0, end - time.monotonic()))[0]:
                return
            block = os.read(self.info, 1 << 16)
            if not block:  # bubblewrap failed before it started one
                return
            self._about += block
            if child := _CHILD_PID.search(self._about):
                self._child = int(child[1])
                with contextlib.suppress(AttributeError, OSError):  # an old kernel, or the child has ended
                    self._handle = os.pidfd_open(self._child)

    def files(self) -> int:
        """How many files there are in the scratch folder inside; 0 if that cannot be seen."""
        self.find_child()
        try:
            scratch = None if self._child is None else os.statvfs(f"/proc/{self._child}/root{SCRATCH}")
        except OSError:  # it has ended
            return 0
        return scratch.f_files - scratch.f_ffree if scratch else 0

    def end_child(self) -> None:
        """Kill the child; bubblewrap waits for it and ends."""
        if self._handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def reap_child(self) -> None:
        """Wait for the child if bubblewrap ended first and this process has become its parent, see `adopting`."""
        self.end_child()
        if self._handle is not None:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, self._handle, os.WEXITED)
            os.close(self._handle)
            self._handle = None


_adopting, _adopting_lock = 0, threading.Lock()
_restore: list[int] = []
_SET_CHILD_SUBREAPER, _GET_CHILD_SUBREAPER = 36, 37


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Let orphans become children of this process while sandboxes run.

    Bubblewrap reports how the program ended and does not wait for its own child, whose zombie stays where process 1
    waits for no orphans, as in many containers. Only bubblewrap's children are waited for here.
    """
    global _adopting
    prctl = ctypes.CDLL(None).prctl
    with _adopting_lock:
        _adopting += 1
        if _adopting == 1:
            was = ctypes.c_int()
            prctl(_GET_CHILD_SUBREAPER, ctypes.byref(was), 0, 0, 0)
            _restore.append(was.value)
            prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        with _adopting_lock:
            _adopting -= 1
            if _adopting == 0:
                prctl(_SET_CHILD_SUBREAPER, _restore.pop(), 0, 0, 0)


def popen(command: list[str], **streams: Any) -> Process:
    # In a new session, so that the whole group can be killed, and a terminal's Ctrl-C does not reach it.
    return Process(command, start_new_session=True, **streams)


def kill_and_close(process: Process) -> None:
    kill(process)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def kill(process: Process) -> None:
    """End a process and its group, and wait for it; also for bubblewrap's child."""
    process.find_child(_END_SECONDS if process.poll() is None else 0.0)
    if process.poll() is None:
        process.end_child()
        wait(process, 0.0 if process.info is None else _END_SECONDS)
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.reap_child()


def wait(process: Process, seconds: float) -> None:
    """Wait until a process has ended, at most this long."""
    try:
        ended = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # not Linux, or an old kernel: Python polls
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        return
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.poll(1000 * seconds)
    finally:
        os.close(ended)
