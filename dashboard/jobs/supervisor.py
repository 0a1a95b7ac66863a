"""Supervisor process of one benchmark: it outlives the server and records how the benchmark ended.

`python -P -m dashboard.jobs.supervisor FOLDER` runs the command in FOLDER/job.json, writes its output to log.txt and
its state to state.json. Imports little, because it stays in memory for hours next to a model.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from evals.runtime.process_start import process_start_time

JOB, STATE, LOG, PROGRESS, CANCELLED = "job.json", "state.json", "log.txt", "progress.json", "cancelled"
KILL_AFTER_S = 15
"""Seconds between an interrupt and a kill, if the command has not ended."""
NOT_STARTED = 127


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically: a reader sees the old or the new content."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(values, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def watch(folder: Path) -> int:
    """Run a job's command to its end; returns its exit code, negative for a signal."""
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    state = {
        "attempt": job["attempt"], "host": socket.gethostname(), "pid": os.getpid(),
        "born": process_start_time(os.getpid()),
        "started": time.time(), "child": None, "child_born": None, "ended": None, "code": None,
    }  # fmt: skip
    children: list[int] = []

    def interrupt(*_: object) -> None:
        _send_signal(children, signal.SIGINT)
        signal.alarm(KILL_AFTER_S)

    # Handlers, not SIG_IGN: the child would inherit SIG_IGN, but it must receive the interrupt.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    signal.signal(signal.SIGALRM, lambda *_: _send_signal(children, signal.SIGKILL))
    with (folder / LOG).open("ab") as log:
        log.write(f"$ {shlex.join(job['command'])}\n".encode(errors="surrogateescape"))
        log.flush()
        try:
            child = subprocess.Popen(
                job["command"], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, process_group=0,
                env=os.environ | job["environment"],
            )  # fmt: skip
        except OSError as error:
            log.write(f"the command could not be started: {error}\n".encode(errors="surrogateescape"))
            write(folder / STATE, {**state, "ended": time.time(), "code": NOT_STARTED})
            return NOT_STARTED
    children.append(child.pid)
    state |= {"child": child.pid, "child_born": process_start_time(child.pid)}
    with suppress(OSError):  # the disk is full; it may have space when the exit code is written
        write(folder / STATE, state)
    if (folder / CANCELLED).exists():  # cancelled before the handlers were set
        interrupt()
    code = child.wait()
    signal.alarm(0)
    _send_signal(children, signal.SIGKILL)  # remaining processes of its group
    write(folder / STATE, {**state, "ended": time.time(), "code": code})
    return code


def _send_signal(groups: list[int], number: int) -> None:
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
