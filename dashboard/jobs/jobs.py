"""Benchmarks started from a page: each a process of its own that outlives the server, and a folder that tells of it.

`RESULTS/.jobs/ID` holds what was asked (job.json), how the process fares (state.json, by `warden`), how far it is
(progress.json, by the evaluation) and its log. Nothing is remembered elsewhere, so every server and every reload sees
the same. Knows nothing of Streamlit.
"""

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dashboard.jobs import supervisor
from dashboard.jobs.eval_request import WORKBENCH, EvalRequest, need_lm_eval
from evals.interventions import described
from evals.runtime import progress
from evals.runtime.process_start import process_start_time
from evals.runtime.progress import Progress
from evals.store.store import StoredRun, UnfinishedRun, unfinished
from workbench.errors import DataError
from workbench.hooks import interventions

FOLDER = ".jobs"
ASKED = ("limit", "num_fewshot", "preset", "chat", "seed")
"""What a record keeps of what was asked, besides the model, the tasks and the interventions."""
MAX_CONCURRENT = 2
"""Benchmarks at once: each loads the model anew."""
EXIT_PARTIAL = 3
"""Exit code of a run that left out tasks which could not be run here."""
STARTING, RUNNING, STOPPING = "starting", "running", "stopping"
FINISHED, FAILED, CANCELLED, ELSEWHERE = "finished", "failed", "cancelled", "elsewhere"
ACTIVE = (STARTING, RUNNING, STOPPING)
START_TIMEOUT_S = 30
"""Seconds that a process has to say that it is there."""
MOST_LINES, MOST_COLUMNS, MOST_BYTES = 200, 1000, 200_000
"""Of a log, what a page shows."""


@dataclass(frozen=True)
class Job:
    """A benchmark that was started from a page, as its folder tells of it at one moment.

    Units: created, started and ended in seconds since 1970. `code` is the exit code, below zero for a signal, None
    while there is none. `output` is the folder that its results go to.
    """

    id: str
    folder: Path
    output: Path
    command: tuple[str, ...]
    about: Mapping[str, Any]
    status: str
    created: float
    attempt: int
    host: str
    pid: int | None
    child: int | None
    started: float | None
    ended: float | None
    code: int | None
    progress: Progress | None

    @property
    def active(self) -> bool:
        return self.status in ACTIVE

    @property
    def seconds(self) -> float | None:
        """How long it has run; None if it is not known."""
        until = time.time() if self.active else self.ended
        return None if self.started is None or until is None else until - self.started

    @property
    def ending(self) -> str:
        """How it stands, in words."""
        if self.status == ELSEWHERE:
            return f"It was started on {self.host}; whether it still runs cannot be seen from here."
        if self.active:
            return {STARTING: "Its process starts.", RUNNING: "It runs.", STOPPING: "It was told to stop."}[self.status]
        if self.code == EXIT_PARTIAL:
            return "It finished without the tasks that could not be run here (exit code 3); the log names them."
        if self.code == 0:
            return "It finished (exit code 0)."
        how = "It was cancelled" if self.status == CANCELLED else "It failed"
        if self.code is None:
            return f"{how}: its process is gone without an exit code, killed from outside or with the machine."
        if self.code < 0:
            sign = signal.Signals(-self.code).name
            more = ", which is also what a process gets that takes more memory than there is" if self.code == -9 else ""
            return f"{how}: it was killed by {sign}{more}."
        return f"{how} with exit code {self.code}."


# --- what there is --------------------------------------------------------------------------------------------


def jobs(results: Path) -> tuple[list[Job], list[str]]:
    """Every job of a results folder, newest first, and what was wrong with the other records."""
    found, problems = [], []
    for path in (results / FOLDER).glob(f"*/{supervisor.JOB}"):
        if path.parent.name.startswith("."):  # being made, or being deleted
            continue
        try:
            found.append(_read(path.parent))
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{path} tells of no job ({error or type(error).__name__}); delete its folder.")
    return sorted(found, key=lambda job: job.created, reverse=True), problems


def find(results: Path, name: str) -> Job:
    """Raises: DataError if there is no such job."""
    for job in jobs(results)[0]:
        if job.id == name:
            return job
    raise DataError(f"there is no job {name!r} in {results / FOLDER}; it may have been deleted in another window.")


def frame(results: str | Path) -> pd.DataFrame:
    """The jobs as a table. Units: created in UTC, seconds."""
    rows = [
        {
            "job": job.id, "status": job.status, "code": job.code, "tasks": ", ".join(job.about["tasks"]),
            "model": job.about["model"], "changes": job.about["changes"],
            "created": pd.Timestamp(job.created, unit="s").round("s"), "seconds": job.seconds,
        }
        for job in jobs(Path(results))[0]
    ]  # fmt: skip
    columns = ["job", "status", "code", "tasks", "model", "changes", "created", "seconds"]
    return pd.DataFrame(rows, columns=columns).astype({"code": "Int64"})


def open_run(job: Job) -> UnfinishedRun | None:
    """The run that this job left unfinished, which `resume` takes up; None if there is none."""
    found = [one for one in unfinished(job.output)[0] if one.run.status != "running"] if job.output.exists() else []
    return found[0] if found else None


def orphaned_runs(results: Path) -> tuple[list[UnfinishedRun], list[str]]:
    """Runs below the folder that no job made and that were not finished, and what was wrong with each store."""
    ours = {job.output for job in jobs(results)[0]}
    found, problems = unfinished(results)
    return [one for one in found if one.root.resolve() not in ours], problems


def tail(job: Job, lines: int = MOST_LINES) -> str:
    """The end of its log as a terminal would show it: of a line that was written over, what was written last."""
    try:
        with (job.folder / supervisor.LOG).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MOST_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    shown = [_last_written(line)[:MOST_COLUMNS] for line in text.split("\n")]
    return "\n".join(shown[-lines - 1 :]).strip("\n")


def _last_written(line: str) -> str:
    return next((part for part in reversed(line.split("\r")) if part.strip()), "")


def log(job: Job) -> bytes:
    """The whole log. Raises: DataError if it cannot be read."""
    with _explained(job.folder):
        return (job.folder / supervisor.LOG).read_bytes()


def _read(folder: Path) -> Job:
    said = json.loads((folder / supervisor.JOB).read_text(encoding="utf-8"))
    with suppress(FileNotFoundError):  # between here and there it is starting
        state = json.loads((folder / supervisor.STATE).read_text(encoding="utf-8"))
        said |= state if state["attempt"] == said["attempt"] else {}
    cancelled = (folder / supervisor.CANCELLED).exists()
    return Job(
        id=folder.name,
        folder=folder,
        output=Path(said["output"]),
        command=tuple(said["command"]),
        about=_about_of(said),
        status=_status(said, cancelled=cancelled),
        created=float(said["created"]),
        attempt=int(said["attempt"]),
        host=str(said["host"]),
        progress=progress.read(folder / supervisor.PROGRESS),
        **{key: said.get(key) for key in ("pid", "child", "started", "ended", "code")},
    )


def _about_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """Raises: KeyError, TypeError or ValueError where what a page shows of a job is missing or something else."""
    about = {key: said["about"][key] for key in (*ASKED, "model", "changes")}
    limit = about["limit"]
    return about | {"tasks": [*map(str, said["about"]["tasks"])], "limit": None if limit is None else float(limit)}


def _status(said: Mapping[str, Any], *, cancelled: bool) -> str:
    code = said.get("code")
    if code in (0, EXIT_PARTIAL):
        return FINISHED
    if code is not None:
        return CANCELLED if cancelled else FAILED
    if said["host"] != socket.gethostname():
        return ELSEWHERE
    if "pid" not in said:
        if time.time() - said["created"] < START_TIMEOUT_S:
            return STOPPING if cancelled else STARTING
    elif _there(said, "pid", "born") or _there(said, "child", "child_born"):
        return STOPPING if cancelled else RUNNING
    return CANCELLED if cancelled else FAILED


def _there(said: Mapping[str, Any], pid: str, since: str) -> bool:
    """Whether a process still runs, and is the one that was meant."""
    return said.get(pid) is not None and said.get(since) is not None and process_start_time(said[pid]) == said[since]


# --- what can be done -----------------------------------------------------------------------------------------


def start(results: Path, request: EvalRequest) -> Job:
    """Start a benchmark in a process of its own; `request` has been `checked`.

    Raises: DataError if the name is taken, as many run as may, or the folder cannot be written.
    """
    results = results.resolve()
    output = results / request.name
    with _only(results):
        if output.exists() or (results / FOLDER / request.name).exists():
            raise DataError(f"the name {request.name} is taken in {results}; choose another one.")
        return _launch(results, request.name, output, request.command(output), request.about())


def resume(results: Path, one: UnfinishedRun) -> Job:
    """Go on with a run that was stopped, as the job that began it, or as a new one.

    Raises: DataError if it is running, its model was not loaded from a path, as many run as may, or the folder cannot
    be written.
    """
    need_lm_eval()
    results, root = results.resolve(), one.root.resolve()
    with _only(results):
        known = next((job for job in jobs(results)[0] if job.output == root), None)
        if one.run.status == "running" or (known is not None and known.active):
            raise DataError(f"run {one.run.id} is running still; wait for it, or cancel it first.")
        if one.run.settings.get("model") is None:
            raise DataError(f"run {one.run.id} was made on a model in memory; evaluate that model again.")
        command = [*WORKBENCH, "eval", "resume", one.run.id, f"--results={root}"]
        about = known.about if known else _about(one.run)
        return _launch(results, known.id if known else one.run.id, root, command, about, again=known)


def cancel(job: Job) -> None:
    """Interrupt a job; its warden kills what has not ended `warden.GRACE` seconds later. What it answered is kept."""
    with _explained(job.folder):
        (job.folder / supervisor.CANCELLED).touch()
    _signal(job, signal.SIGINT)


def kill(job: Job) -> None:
    """End a job that does not listen at once."""
    _signal(job, signal.SIGKILL)


def delete(job: Job) -> None:
    """Forget a job that does not run; its results stay.

    Raises: DataError if it runs, or the folder cannot be written.
    """
    with _only(job.folder.parent.parent):
        if _read(job.folder).active:
            raise DataError(f"{job.id} is running; cancel it first.")
        gone = job.folder.with_name(f".{job.id}.deleted")
        shutil.rmtree(gone, ignore_errors=True)
        job.folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _signal(job: Job, number: int) -> None:
    """Tell the warden to pass an interrupt on; where it is gone, or for a kill, tell the command's own group."""
    said = json.loads((job.folder / supervisor.STATE).read_text()) if (job.folder / supervisor.STATE).exists() else {}
    if said.get("attempt") != job.attempt or said["host"] != socket.gethostname():
        return
    with suppress(ProcessLookupError):
        if number == signal.SIGINT and _there(said, "pid", "born"):
            os.kill(said["pid"], number)
        elif _there(said, "child", "child_born"):
            os.killpg(said["child"], number)


def _launch(
    results: Path, name: str, output: Path, command: Sequence[str], about: Mapping[str, Any], again: Job | None = None
) -> Job:
    running = [job.id for job in jobs(results)[0] if job.active]
    if len(running) >= MAX_CONCURRENT:
        raise DataError(
            f"{' and '.join(running)} are running, and at most {MAX_CONCURRENT} can run at once: wait for one to end, "
            "or cancel it."
        )
    folder = results / FOLDER / name
    fresh = folder if again else folder.with_name(f".{name}.new")
    if not again:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
    for old in (supervisor.CANCELLED, supervisor.PROGRESS):
        (fresh / old).unlink(missing_ok=True)
    environment = {progress.FILE: str(folder / supervisor.PROGRESS), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    said = {
        "command": [str(part) for part in command], "output": str(output), "about": dict(about),
        "created": time.time(), "attempt": again.attempt + 1 if again else 1, "host": socket.gethostname(),
        "environment": environment,
    }  # fmt: skip
    supervisor.write(fresh / supervisor.JOB, said)
    if not again:
        fresh.rename(folder)  # from here on it is a job
    with (folder / supervisor.LOG).open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "dashboard.jobs.supervisor", str(folder)],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    # Somebody has to hear of its end, or it stays in the list of processes for as long as the server runs.
    threading.Thread(target=process.wait, daemon=True).start()
    return _read(folder)


def _about(run: StoredRun) -> dict[str, Any]:
    asked = run.settings.get("settings", {})
    kept = {key: asked.get(key) for key in ASKED}
    changes = interventions.from_json(json.dumps(asked.get("interventions", [])))
    more = {"tasks": list(asked.get("tasks", [])), "changes": described(changes)}
    return kept | more | {"model": run.settings.get("model")}


@contextmanager
def _only(results: Path) -> Iterator[None]:
    """One start or deletion at a time, whichever server or window asks for it."""
    with _explained(results):
        (results / FOLDER).mkdir(parents=True, exist_ok=True)
        with (results / FOLDER / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"the disk that holds {folder} is full; make room, then try again.") from error
        why = (error.strerror or str(error)).lower()
        raise DataError(f"{folder} cannot be used ({why}); serve another folder with --results.") from error
