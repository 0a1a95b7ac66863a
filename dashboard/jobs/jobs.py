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
from evals.store.store import StoredRun, Unfinished, unfinished
from workbench.errors import DataError
from workbench.hooks import interventions

FOLDER = ".jobs"
SETTINGS = ("limit", "num_fewshot", "preset", "chat", "seed")
"""What a record keeps of what was asked, besides the model, the tasks and the interventions."""
MAX_CONCURRENT = 2
"""Benchmarks at once: each loads the model anew."""
EXIT_PARTIAL = 3
"""Exit code of a run that left out tasks which could not be run here."""
STARTING, RUNNING, STOPPING = "starting", "running", "stopping"
FINISHED, FAILED, CANCELLED, OTHER_HOST = "finished", "failed", "cancelled", "elsewhere"
ACTIVE = (STARTING, RUNNING, STOPPING)
START_TIMEOUT_S = 30
"""Seconds that a process has to say that it is there."""
MAX_LOG_LINES, MAX_LOG_COLUMNS, MAX_LOG_BYTES = 200, 1000, 200_000
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
    settings: Mapping[str, Any]
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
    def status_text(self) -> str:
        """How it stands, in words."""
        if self.status == OTHER_HOST:
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
    records, problems = [], []
    for path in (results / FOLDER).glob(f"*/{supervisor.JOB}"):
        if path.parent.name.startswith("."):  # being made, or being deleted
            continue
        try:
            records.append(_read(path.parent))
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{path} tells of no job ({error or type(error).__name__}); delete its folder.")
    return sorted(records, key=lambda job: job.created, reverse=True), problems


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
            "job": job.id, "status": job.status, "code": job.code, "tasks": ", ".join(job.settings["tasks"]),
            "model": job.settings["model"], "changes": job.settings["changes"],
            "created": pd.Timestamp(job.created, unit="s").round("s"), "seconds": job.seconds,
        }
        for job in jobs(Path(results))[0]
    ]  # fmt: skip
    columns = ["job", "status", "code", "tasks", "model", "changes", "created", "seconds"]
    return pd.DataFrame(rows, columns=columns).astype({"code": "Int64"})


def unfinished_run(job: Job) -> Unfinished | None:
    """The run that this job left unfinished, which `resume` takes up; None if there is none."""
    stopped = [run for run in unfinished(job.output)[0] if run.run.status != "running"] if job.output.exists() else []
    return stopped[0] if stopped else None


def orphaned_runs(results: Path) -> tuple[list[Unfinished], list[str]]:
    """Runs below the folder that no job made and that were not finished, and what was wrong with each store."""
    ours = {job.output for job in jobs(results)[0]}
    unfinished_runs, problems = unfinished(results)
    return [run for run in unfinished_runs if run.root.resolve() not in ours], problems


def tail(job: Job, lines: int = MAX_LOG_LINES) -> str:
    """The end of its log as a terminal would show it: of a line that was written over, what was written last."""
    try:
        with (job.folder / supervisor.LOG).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MAX_LOG_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    shown = [_last_written(line)[:MAX_LOG_COLUMNS] for line in text.split("\n")]
    return "\n".join(shown[-lines - 1 :]).strip("\n")


def _last_written(line: str) -> str:
    return next((part for part in reversed(line.split("\r")) if part.strip()), "")


def log(job: Job) -> bytes:
    """The whole log. Raises: DataError if it cannot be read."""
    with _explain_os_errors(job.folder):
        return (job.folder / supervisor.LOG).read_bytes()


def _read(folder: Path) -> Job:
    record = json.loads((folder / supervisor.JOB).read_text(encoding="utf-8"))
    with suppress(FileNotFoundError):  # between here and there it is starting
        state = json.loads((folder / supervisor.STATE).read_text(encoding="utf-8"))
        record |= state if state["attempt"] == record["attempt"] else {}
    cancelled = (folder / supervisor.CANCELLED).exists()
    return Job(
        id=folder.name,
        folder=folder,
        output=Path(record["output"]),
        command=tuple(record["command"]),
        settings=_settings_of(record),
        status=_status(record, cancelled=cancelled),
        created=float(record["created"]),
        attempt=int(record["attempt"]),
        host=str(record["host"]),
        progress=progress.read(folder / supervisor.PROGRESS),
        **{key: record.get(key) for key in ("pid", "child", "started", "ended", "code")},
    )


def _settings_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Raises: KeyError, TypeError or ValueError where what a page shows of a job is missing or something else."""
    settings = {key: record["about"][key] for key in (*SETTINGS, "model", "changes")}
    limit = settings["limit"]
    return settings | {"tasks": [*map(str, record["about"]["tasks"])], "limit": None if limit is None else float(limit)}


def _status(record: Mapping[str, Any], *, cancelled: bool) -> str:
    code = record.get("code")
    if code in (0, EXIT_PARTIAL):
        return FINISHED
    if code is not None:
        return CANCELLED if cancelled else FAILED
    if record["host"] != socket.gethostname():
        return OTHER_HOST
    if "pid" not in record:
        if time.time() - record["created"] < START_TIMEOUT_S:
            return STOPPING if cancelled else STARTING
    elif _is_alive(record, "pid", "born") or _is_alive(record, "child", "child_born"):
        return STOPPING if cancelled else RUNNING
    return CANCELLED if cancelled else FAILED


def _is_alive(record: Mapping[str, Any], pid: str, since: str) -> bool:
    """Whether a process still runs, and is the one that was meant."""
    return (
        record.get(pid) is not None
        and record.get(since) is not None
        and process_start_time(record[pid]) == record[since]
    )


# --- what can be done -----------------------------------------------------------------------------------------


def start(results: Path, request: EvalRequest) -> Job:
    """Start a benchmark in a process of its own; `request` has been `checked`.

    Raises: DataError if the name is taken, as many run as may, or the folder cannot be written.
    """
    results = results.resolve()
    output = results / request.name
    with _locked(results):
        if output.exists() or (results / FOLDER / request.name).exists():
            raise DataError(f"the name {request.name} is taken in {results}; choose another one.")
        return _launch(results, request.name, output, request.command(output), request.settings())


def resume(results: Path, stopped: Unfinished) -> Job:
    """Go on with a run that was stopped, as the job that began it, or as a new one.

    Raises: DataError if it is running, its model was not loaded from a path, as many run as may, or the folder cannot
    be written.
    """
    need_lm_eval()
    results, root = results.resolve(), stopped.root.resolve()
    with _locked(results):
        known = next((job for job in jobs(results)[0] if job.output == root), None)
        if stopped.run.status == "running" or (known is not None and known.active):
            raise DataError(f"run {stopped.run.id} is running still; wait for it, or cancel it first.")
        if stopped.run.settings.get("model") is None:
            raise DataError(f"run {stopped.run.id} was made on a model in memory; evaluate that model again.")
        command = [*WORKBENCH, "eval", "resume", stopped.run.id, f"--results={root}"]
        settings = known.settings if known else _run_settings(stopped.run)
        return _launch(results, known.id if known else stopped.run.id, root, command, settings, previous=known)


def cancel(job: Job) -> None:
    """Interrupt a job; its warden kills what has not ended `warden.GRACE` seconds later. What it answered is kept."""
    with _explain_os_errors(job.folder):
        (job.folder / supervisor.CANCELLED).touch()
    _signal(job, signal.SIGINT)


def kill(job: Job) -> None:
    """End a job that does not listen at once."""
    _signal(job, signal.SIGKILL)


def delete(job: Job) -> None:
    """Forget a job that does not run; its results stay.

    Raises: DataError if it runs, or the folder cannot be written.
    """
    with _locked(job.folder.parent.parent):
        if _read(job.folder).active:
            raise DataError(f"{job.id} is running; cancel it first.")
        gone = job.folder.with_name(f".{job.id}.deleted")
        shutil.rmtree(gone, ignore_errors=True)
        job.folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _signal(job: Job, number: int) -> None:
    """Tell the warden to pass an interrupt on; where it is gone, or for a kill, tell the command's own group."""
    state = json.loads((job.folder / supervisor.STATE).read_text()) if (job.folder / supervisor.STATE).exists() else {}
    if state.get("attempt") != job.attempt or state["host"] != socket.gethostname():
        return
    with suppress(ProcessLookupError):
        if number == signal.SIGINT and _is_alive(state, "pid", "born"):
            os.kill(state["pid"], number)
        elif _is_alive(state, "child", "child_born"):
            os.killpg(state["child"], number)


def _launch(
    results: Path,
    name: str,
    output: Path,
    command: Sequence[str],
    settings: Mapping[str, Any],
    previous: Job | None = None,
) -> Job:
    running = [job.id for job in jobs(results)[0] if job.active]
    if len(running) >= MAX_CONCURRENT:
        raise DataError(
            f"{' and '.join(running)} are running, and at most {MAX_CONCURRENT} can run at once: wait for one to end, "
            "or cancel it."
        )
    folder = results / FOLDER / name
    fresh = folder if previous else folder.with_name(f".{name}.new")
    if not previous:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
    for old in (supervisor.CANCELLED, supervisor.PROGRESS):
        (fresh / old).unlink(missing_ok=True)
    environment = {progress.FILE: str(folder / supervisor.PROGRESS), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    record = {
        "command": [str(part) for part in command], "output": str(output), "about": dict(settings),
        "created": time.time(), "attempt": previous.attempt + 1 if previous else 1, "host": socket.gethostname(),
        "environment": environment,
    }  # fmt: skip
    supervisor.write(fresh / supervisor.JOB, record)
    if not previous:
        fresh.rename(folder)  # from here on it is a job
    with (folder / supervisor.LOG).open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "dashboard.jobs.supervisor", str(folder)],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    # Somebody has to hear of its end, or it stays in the list of processes for as long as the server runs.
    threading.Thread(target=process.wait, daemon=True).start()
    return _read(folder)


def _run_settings(run: StoredRun) -> dict[str, Any]:
    stored = run.settings.get("settings", {})
    options = {key: stored.get(key) for key in SETTINGS}
    changes = interventions.from_json(json.dumps(stored.get("interventions", [])))
    more = {"tasks": list(stored.get("tasks", [])), "changes": described(changes)}
    return options | more | {"model": run.settings.get("model")}


@contextmanager
def _locked(results: Path) -> Iterator[None]:
    """One start or deletion at a time, whichever server or window asks for it."""
    with _explain_os_errors(results):
        (results / FOLDER).mkdir(parents=True, exist_ok=True)
        with (results / FOLDER / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


@contextmanager
def _explain_os_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"the disk that holds {folder} is full; make room, then try again.") from error
        why = (error.strerror or str(error)).lower()
        raise DataError(f"{folder} cannot be used ({why}); serve another folder with --results.") from error
