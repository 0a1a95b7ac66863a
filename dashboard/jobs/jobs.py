"""Benchmark jobs started from a page: each one a process that outlives the server, and a folder with its state.

`RESULTS/.jobs/ID` contains the request (job.json), the state of the process (state.json, written by `supervisor`), its
progress (progress.json, written by the evaluation) and its log. There is no other state, so all servers and all page
reloads see the same. Does not import Streamlit.
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
from evals.runtime import progress
from evals.runtime.process_start import process_start_time
from evals.runtime.progress import Progress
from evals.store import foreign_code
from evals.store.store import Store, StoredRun, UnfinishedRun, unfinished
from workbench.errors import DataError
from workbench.hooks import interventions
from workbench.hooks.intervention_options import described

FOLDER = ".jobs"
SETTINGS = ("limit", "num_fewshot", "preset", "chat", "seed")
"""Keys of `Job.settings`, besides the model, the tasks and the interventions."""
MAX_CONCURRENT = 2
"""Benchmarks that run at the same time. Each loads its own copy of the model."""
EXIT_PARTIAL = 3
"""Exit code of a run that skipped tasks because they cannot run here."""
STARTING, RUNNING, STOPPING = "starting", "running", "stopping"
FINISHED, FAILED, CANCELLED, OTHER_HOST = "finished", "failed", "cancelled", "elsewhere"
ACTIVE = (STARTING, RUNNING, STOPPING)
START_TIMEOUT_S = 30
"""Seconds within which a new process must write its state."""
MAX_LOG_LINES, MAX_LOG_COLUMNS, MAX_LOG_BYTES = 200, 1000, 200_000
"""Limits of the part of a log that a page shows."""


@dataclass(frozen=True)
class Job:
    """A snapshot of a benchmark job, read from its folder.

    Units: created, started and ended in seconds since 1970. `code` is the exit code, negative for a signal, None while
    there is none. `output` is the folder of its results. `settings`: tasks, model, changes and the keys of `SETTINGS`.
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
        """How long the job has run; None if unknown."""
        end = time.time() if self.active else self.ended
        return None if self.started is None or end is None else end - self.started

    @property
    def status_text(self) -> str:
        """The status in a sentence."""
        if self.status == OTHER_HOST:
            return f"The job was started on {self.host}. Its status cannot be checked from this machine."
        if self.active:
            active = {
                STARTING: "The job is starting.",
                RUNNING: "The job is running.",
                STOPPING: "The job is stopping.",
            }
            return active[self.status]
        if self.code == EXIT_PARTIAL:
            return (
                "The job finished without the tasks that cannot run here, or without a score for some questions "
                "(exit code 3); the log names them."
            )
        if self.code == 0:
            return "The job finished (exit code 0)."
        if self.status == FINISHED:
            return "The job finished. Its exit code is not known, because the process that watched it was killed."
        outcome = "The job was cancelled" if self.status == CANCELLED else "The job failed"
        if self.code is None:
            return f"{outcome}: its process ended without an exit code. It was killed, or the machine was restarted."
        if self.code < 0:
            name = signal.Signals(-self.code).name
            cause = ". The system also sends this signal when memory runs out" if self.code == -9 else ""
            return f"{outcome}: it was killed by {name}{cause}."
        return f"{outcome} with exit code {self.code}."


# --- reading --------------------------------------------------------------------------------------------------


def jobs(results: Path) -> tuple[list[Job], list[str]]:
    """Every job of a results folder, newest first, and the problems of records that cannot be read."""
    records, problems = [], []
    for path in (results / FOLDER).glob(f"*/{supervisor.JOB}"):
        if path.parent.name.startswith("."):  # being created or deleted
            continue
        try:
            records.append(_read(path.parent))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            problems.append(f"{path} is not a valid job record ({error or type(error).__name__}); delete its folder.")
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


def unfinished_run(job: Job) -> UnfinishedRun | None:
    """The unfinished run of this job, which `resume` can continue; None if there is none."""
    stopped = [run for run in unfinished(job.output)[0] if run.run.status != "running"] if job.output.exists() else []
    return stopped[0] if stopped else None


def orphaned_runs(results: Path) -> tuple[list[UnfinishedRun], list[str]]:
    """Unfinished runs in the folder that do not belong to a job, and the problems of stores that cannot be read."""
    outputs = {job.output for job in jobs(results)[0]}
    unfinished_runs, problems = unfinished(results)
    return [run for run in unfinished_runs if run.root.resolve() not in outputs], problems


def tail(job: Job, lines: int = MAX_LOG_LINES) -> str:
    """The end of a job's log as a terminal would show it: an overwritten line shows its last content."""
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
    with suppress(FileNotFoundError):  # not written yet: the process is starting
        state = json.loads((folder / supervisor.STATE).read_text(encoding="utf-8"))
        record |= state if state["attempt"] == record["attempt"] else {}
    for key in ("created", "started", "ended"):
        time.localtime(record.get(key))  # a time that cannot be shown makes the record invalid
    cancelled = (folder / supervisor.CANCELLED).exists()
    status = _status(record, cancelled=cancelled)
    if status in (FAILED, CANCELLED) and record.get("code") is None and (finished := _finished_run(record)):
        status, record["ended"] = FINISHED, finished.finished
    return Job(
        id=folder.name,
        folder=folder,
        output=Path(record["output"]),
        command=tuple(record["command"]),
        settings=_settings_of(record),
        status=status,
        created=float(record["created"]),
        attempt=int(record["attempt"]),
        host=str(record["host"]),
        progress=progress.read(folder / supervisor.PROGRESS),
        **{key: record.get(key) for key in ("pid", "child", "started", "ended", "code")},
    )


def _finished_run(record: Mapping[str, Any]) -> StoredRun | None:
    """The run that this attempt of a job finished, although its supervisor was killed and could not record it."""
    output, began = Path(record["output"]), float(record["created"])
    try:
        with Store.open(output, create=False) as store:
            ended = [run for run in store.runs() if run.status == "finished" and (run.finished or 0) >= began]
    except DataError:
        return None
    return next((run for run in ended if run.results and (output / run.results).is_file()), None)


def _settings_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a record. Raises: KeyError, TypeError or ValueError if one is missing or has the wrong type."""
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
    """Whether the recorded process still runs; another process with the same id has another start time."""
    return (
        record.get(pid) is not None
        and record.get(since) is not None
        and process_start_time(record[pid]) == record[since]
    )


# --- actions --------------------------------------------------------------------------------------------------


def start(results: Path, request: EvalRequest) -> Job:
    """Start a benchmark in its own process; `request` must come from `EvalRequest.checked`.

    Raises: DataError if the name is taken, too many jobs run, or the folder cannot be written.
    """
    results = results.resolve()
    output = results / request.name
    with _locked(results):
        if output.exists() or (results / FOLDER / request.name).exists():
            raise DataError(f"the name {request.name} is already used in {results}; choose another one.")
        return _launch(results, request.name, output, request.command(output), request.settings())


def resume(results: Path, stopped: UnfinishedRun) -> Job:
    """Continue a stopped run, as the job that started it or as a new job.

    Raises: DataError if it is running, its model was not loaded from a path, too many jobs run, or the folder cannot be
    written.
    """
    need_lm_eval()
    results, root = results.resolve(), stopped.root.resolve()
    with _locked(results):
        known = next((job for job in jobs(results)[0] if job.output == root), None)
        if stopped.run.elsewhere:
            raise DataError(
                f"run {stopped.run.id} is recorded as running on {stopped.run.host}; if it has ended there, continue "
                f"it with `workbench eval resume {stopped.run.id} --results {root}` in a terminal."
            )
        if stopped.run.status == "running" or (known is not None and known.active):
            raise DataError(f"run {stopped.run.id} is still running; wait for it, or cancel it first.")
        if runs_code := foreign_code.summary(stopped.run.settings):
            raise DataError(
                f"run {stopped.run.id} uses {runs_code}, which may run code that its folder "
                "names. If you trust it, continue it with `workbench eval resume` in a terminal."
            )
        if stopped.run.settings.get("model") is None:
            raise DataError(
                f"run {stopped.run.id} used a model that was not loaded from a path, so it cannot be continued here; "
                "evaluate that model again."
            )
        command = [*WORKBENCH, "eval", "resume", stopped.run.id, f"--results={root}"]
        settings = known.settings if known else _run_settings(stopped.run)
        return _launch(results, known.id if known else stopped.run.id, root, command, settings, previous=known)


def cancel(job: Job) -> None:
    """Interrupt a job; its supervisor kills it after `supervisor.KILL_AFTER_S` more seconds. Its answers are kept."""
    with _explain_os_errors(job.folder):
        (job.folder / supervisor.CANCELLED).touch()
    _signal(job, signal.SIGINT)


def kill(job: Job) -> None:
    """Kill a job immediately, for one that ignores the interrupt."""
    _signal(job, signal.SIGKILL)


def delete(job: Job) -> None:
    """Delete the record of a job that is not running; its results are kept.

    Raises: DataError if it is running, or the folder cannot be written.
    """
    with _locked(job.folder.parent.parent):
        if _read(job.folder).active:
            raise DataError(f"{job.id} is running; cancel it first.")
        deleted = job.folder.with_name(f".{job.id}.deleted")
        shutil.rmtree(deleted, ignore_errors=True)
        job.folder.rename(deleted)
        shutil.rmtree(deleted, ignore_errors=True)


def _signal(job: Job, number: int) -> None:
    """Send an interrupt through the supervisor; without one, and to kill, signal the command's process group."""
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
            f"{' and '.join(running)} are running, and at most {MAX_CONCURRENT} jobs can run at the same time; wait "
            "for one to end, or cancel it."
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
        fresh.rename(folder)  # the job exists from here on
    with (folder / supervisor.LOG).open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "dashboard.jobs.supervisor", str(folder)],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    # Wait for its end in a thread: otherwise it stays a zombie process for as long as the server runs.
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
    """Hold a file lock: only one start or deletion at a time, over all servers and windows."""
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
            raise DataError(f"the disk of {folder} is full; free some space, then try again.") from error
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"{folder} cannot be used ({reason}); start the server with another --results.") from error
