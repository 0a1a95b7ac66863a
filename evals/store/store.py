"""Response store: caches model answers, so that a question is asked once.

A stored answer is never served for a different model or prompt.

A folder has `store.sqlite` (an index in WAL mode: runs, metrics, samples, and the location of each response) and
`responses/*.zz`, append-only files of compressed frames with checksums; every writer has its own file. A frame is on
the disk before the index refers to it, so a process may be killed at any moment: all that the index refers to is
complete. Frames contain their keys, so a lost index can be rebuilt. With several machines, each except the first has
its own store below `machines/`. Knows nothing of models, tasks or lm-eval.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from evals.runtime.process_start import process_start_time
from evals.store import record_file
from evals.store.schema import migrate
from workbench.errors import DataError

INDEX, RESPONSES, MACHINES = "store.sqlite", "responses", "machines"
LOCK_TIMEOUT_S = 60.0  # how long one writer waits for another's transaction
KEYS_PER_QUERY = 500


def cache_key(*parts: Any) -> bytes:
    """A response's cache key: the SHA-256 of everything that determines it, in canonical JSON.

    Two lists of parts have the same key only if they are equal: JSON delimits every part.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).digest()


@dataclass(frozen=True)
class StoredRun:
    """A run in the index. `status` is running, finished, failed, interrupted, or damaged (the entry cannot be read).

    Units: started and finished in seconds since 1970. `results` is the path of its results file, relative to the store.
    """

    id: str
    started: float
    finished: float | None
    status: str
    settings: dict[str, Any]
    results: str | None
    error: str | None
    host: str

    @property
    def elsewhere(self) -> bool:
        """Whether it is recorded as running on another machine, or in a container with another host name."""
        return self.status == "running" and self.host != socket.gethostname()


@dataclass(frozen=True)
class UnfinishedRun:
    """A run that is running or was stopped, its store, and the number of its saved answers."""

    run: StoredRun
    root: Path
    answers: int


def unfinished(root: str | Path) -> tuple[list[UnfinishedRun], list[str]]:
    """Every unfinished run below a folder, newest first, and a message for each store or entry that cannot be read."""
    entries, problems = [], []
    for path in Path(root).rglob(INDEX):
        try:
            with Store.open(path.parent, create=False) as store:
                counts = store.response_counts()
                runs = [run for run in store.runs() if run.status != "finished"]
        except DataError as error:
            problems.append(str(error))
            continue
        problems += [f"{path}: {run.error}" for run in runs if run.status == "damaged"]
        runs = [run for run in runs if run.status != "damaged"]
        entries += [UnfinishedRun(run, path.parent, counts.get(run.id, 0)) for run in runs]
    return sorted(entries, key=lambda entry: entry.run.started, reverse=True), problems


class Store:
    """An open store. Several processes may open it at the same time."""

    def __init__(self, root: Path, index: sqlite3.Connection) -> None:
        self.root, self._index = root, index

    @classmethod
    def open(cls, root: str | Path, *, create: bool = True) -> Store:
        """Open the store in a folder and migrate it to this version; an empty index is rebuilt from the response files.

        Raises: DataError if there is none and `create` is false, it is damaged, or a newer version wrote it.
        """
        root = Path(root)
        path = root / INDEX
        if not create and not path.is_file():
            raise DataError(f"{root} has no {INDEX}; `workbench eval run --output {root}` creates one.")
        with store_errors(root):
            (root / RESPONSES).mkdir(parents=True, exist_ok=True)
            index = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
            _enable_wal(index)
            index.execute("PRAGMA synchronous = FULL")
            index.execute("PRAGMA foreign_keys = ON")
            migrate(index, path)
            store = cls(root, index)
            if index.execute("SELECT 1 FROM runs UNION SELECT 1 FROM responses LIMIT 1").fetchone() is None:
                store._rebuild_index(sorted((root / RESPONSES).glob("*.zz")))
        return store

    def close(self) -> None:
        self._index.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- runs

    def register(self, settings: Mapping[str, Any]) -> str:
        """Add a run that starts now; returns its name."""
        name = time.strftime("%Y%m%d-%H%M%S-") + uuid.uuid4().hex[:6]
        row = (name, time.time(), "running", socket.gethostname(), os.getpid(), json.dumps(settings, sort_keys=True))
        columns = "id, started, status, host, pid, settings, born"
        with self._transaction() as index:
            index.execute(
                f"INSERT INTO runs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, process_start_time(os.getpid()))
            )
        return name

    def resume(self, run: str) -> None:
        """Mark a run as running again, in this process.

        Raises: DataError if it is running on this machine; other machines' processes cannot be checked.
        """
        with self._transaction() as index:  # in the transaction: two processes cannot both find it stopped
            stored = self.run(run)
            if stored.status == "running" and stored.host == socket.gethostname():
                raise DataError(f"run {stored.id} is still running; wait for it, or stop its process first.")
            index.execute(
                "UPDATE runs SET status = 'running', finished = NULL, error = NULL, host = ?, pid = ?, born = ? "
                "WHERE id = ?",
                (socket.gethostname(), os.getpid(), process_start_time(os.getpid()), run),
            )

    def finish(
        self, run: str, *, results: str, metrics: Iterable[Sequence[Any]] = (), samples: Iterable[Sequence[Any]] = ()
    ) -> None:
        """Mark a run as finished, with its metrics (task, metric, filter, average, n, value, stderr, low, high) and its
        samples (task, doc_id, filter, metric, correct), in one transaction."""
        with self._transaction() as index:
            index.execute("DELETE FROM metrics WHERE run = ?", (run,))
            index.execute("DELETE FROM samples WHERE run = ?", (run,))
            index.executemany(
                "INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                ((run, *map(_utf8, row)) for row in metrics),
            )
            index.executemany(
                "INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?)", ((run, *map(_utf8, row)) for row in samples)
            )
            index.execute(
                "UPDATE runs SET status = 'finished', finished = ?, results = ?, error = NULL WHERE id = ?",
                (time.time(), _utf8(results), run),
            )

    def fail(self, run: str, error: str, *, interrupted: bool = False) -> None:
        """Mark a run as failed or, if a user stopped it, interrupted; its answers stay."""
        row = ("interrupted" if interrupted else "failed", time.time(), _utf8(error), run)
        with self._transaction() as index:
            index.execute("UPDATE runs SET status = ?, finished = ?, error = ? WHERE id = ?", row)

    def runs(self) -> list[StoredRun]:
        """Every run, newest first; one whose process is gone is "interrupted"."""
        with store_errors(self.root):
            rows = self._index.execute(
                "SELECT id, started, finished, status, settings, results, error, host, pid, born FROM runs "
                "ORDER BY started DESC, id DESC"
            ).fetchall()
        return [_stored_run(row) for row in rows]

    def run(self, name: str) -> StoredRun:
        """The run with this name or name prefix.

        Raises: DataError if there is none, or several.
        """
        matches = [run for run in self.runs() if run.id.startswith(name)]
        exact = [run for run in matches if run.id == name]
        if len(exact or matches) != 1:
            problem = "several runs start with" if matches else "there is no run"
            listed = ", ".join(run.id for run in (matches or self.runs())[:5]) or "none"
            raise DataError(f"{problem} {name!r} in {self.root}; found {listed}.")
        return (exact or matches)[0]

    def response_counts(self) -> dict[str, int]:
        """The number of stored responses of each run."""
        with store_errors(self.root):
            return dict(self._index.execute("SELECT run, count(*) FROM responses GROUP BY run").fetchall())

    # --- responses

    def writer(self, run: str, *, rank: int = 0) -> Writer:
        """A writer for one process of a run; every writer has a new file."""
        return Writer(self, run, self.root / RESPONSES / f"{run}.{rank}.{uuid.uuid4().hex[:8]}.zz")

    def contains(self, keys: Iterable[bytes]) -> set[bytes]:
        """Which of these responses are in the store."""
        return {key for key, *_ in self._locations(keys)}

    def read(self, keys: Iterable[bytes]) -> tuple[dict[bytes, Any], list[str]]:
        """The stored responses of these keys, without those in damaged frames, and a message for each damaged frame."""
        locations: dict[tuple[str, int], list[tuple[bytes, int]]] = {}
        for key, file, offset, item in self._locations(keys):
            locations.setdefault((file, offset), []).append((key, item))
        responses: dict[bytes, Any] = {}
        problems: list[str] = []
        for (file, offset), wanted in sorted(locations.items()):
            try:
                values = record_file.read(self.root / RESPONSES / file, offset)
                responses.update({key: values[item] for key, item in wanted})
            except DataError as error:
                problems.append(str(error))
                self._drop(file, offset)
            except (IndexError, TypeError):
                problems.append(f"{self.root / INDEX} does not match {file}; those answers will be computed again.")
                self._drop(file, offset)
        return responses, problems

    def _locations(self, keys: Iterable[bytes]) -> Iterator[tuple[bytes, str, int, int]]:
        wanted = list(dict.fromkeys(keys))
        with store_errors(self.root):
            for first in range(0, len(wanted), KEYS_PER_QUERY):
                batch = wanted[first : first + KEYS_PER_QUERY]
                placeholders = ",".join("?" * len(batch))
                yield from self._index.execute(
                    f"SELECT key, file, offset, item FROM responses WHERE key IN ({placeholders})", batch
                )

    def _rebuild_index(self, files: Iterable[Path]) -> None:
        """Add the responses of files that the index does not know."""
        for path in files:
            rows = [
                (key, path.name, offset, item, path.name.partition(".")[0])
                for offset, keys in record_file.scan(path)
                for item, key in enumerate(keys)
            ]
            with self._transaction() as index:
                index.executemany("INSERT OR IGNORE INTO responses VALUES (?, ?, ?, ?, ?)", rows)

    def _drop(self, file: str, offset: int) -> None:
        """Remove a damaged frame from the index, so that its answers are computed again; the file stays."""
        with self._transaction() as index:
            index.execute("DELETE FROM responses WHERE file = ? AND offset = ?", (file, offset))

    # --- cleanup

    def remove(self, run: str) -> None:
        """Remove a run from the index. Its responses stay until `gc`, because other runs may share them."""
        with self._transaction() as index:
            index.execute("DELETE FROM runs WHERE id = ?", (self.run(run).id,))

    def gc(self, *, without: Sequence[str] = (), dry_run: bool = False, force: bool = False) -> tuple[int, int]:
        """Delete the responses of runs that are not in the index; returns their number and the bytes freed.

        The files of a removed run are deleted whole; files of running runs are never touched. The stores of other
        machines follow this index. without: runs to remove from the index first. dry_run: only count. force: remove
        also a run of `without` that is recorded as running on another machine, which cannot be checked from here.
        Raises: DataError if one of these runs is running, or this is another machine's store.
        """
        main = self.root.absolute().parent.parent
        if self.root.absolute().parent.name == MACHINES and (main / INDEX).is_file():
            raise DataError(f"{self.root} is one machine's part of the store in {main}; use that folder instead.")
        for run in self.runs():
            if run.id in without and run.status == "running" and run.elsewhere and not force:
                raise DataError(
                    f"run {run.id} was started on {run.host}, and this machine cannot see whether it still runs there; "
                    "if it has ended, add --force to drop it."
                )
            if run.id in without and run.status == "running" and not run.elsewhere:
                raise DataError(f"run {run.id} is still running; wait for it, or stop its process first.")
        with self._transaction() as index:
            if not dry_run:
                index.executemany("DELETE FROM runs WHERE id = ?", [(name,) for name in without])
            remaining = {row[0] for row in index.execute("SELECT id FROM runs")} - set(without)
        freed_by_store = [self._delete_responses_except(remaining, dry_run)]
        for path in sorted(self.root.glob(f"{MACHINES}/*/{INDEX}")):
            with Store.open(path.parent, create=False) as other:
                freed_by_store.append(other._delete_responses_except(remaining, dry_run))
        return sum(count for count, _ in freed_by_store), sum(freed for _, freed in freed_by_store)

    def _delete_responses_except(self, remaining: Collection[str], dry_run: bool) -> tuple[int, int]:
        """Delete the responses of all runs except these; returns their number and the bytes freed."""
        with self._transaction() as index:
            files = [
                path for path in (self.root / RESPONSES).glob("*.zz") if path.name.partition(".")[0] not in remaining
            ]
            statement = "SELECT count(*)" if dry_run else "DELETE"
            cursors = [index.execute(f"{statement} FROM responses WHERE file = ?", (path.name,)) for path in files]
            counts = [cursor.fetchone()[0] if dry_run else cursor.rowcount for cursor in cursors]
        freed = sum(path.stat().st_size for path in files)
        for path in [] if dry_run else files:
            path.unlink(missing_ok=True)
        return sum(counts), freed

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction."""
        with store_errors(self.root):
            self._index.execute("BEGIN IMMEDIATE")
            try:
                yield self._index
            except BaseException:
                if self._index.in_transaction:  # if the disk is full, SQLite has already rolled back
                    self._index.execute("ROLLBACK")
                raise
            self._index.execute("COMMIT")


class Writer:
    """Appends responses; each call of `add` writes one frame, completely or not at all."""

    def __init__(self, store: Store, run: str, path: Path) -> None:
        self._store, self._run, self._path = store, run, path
        self._file: FileIO | None = None

    def add(self, responses: Mapping[bytes, Any]) -> None:
        """Store these responses; one that is already stored stays as it is.

        Raises: DataError if the disk is full or cannot be written; responses stored before stay.
        """
        if not responses:
            return
        with store_errors(self._store.root):
            if self._file is None:
                self._file = self._path.open("ab", buffering=0)
            offset = record_file.append(self._file, responses)
        rows = [(key, self._path.name, offset, item, self._run) for item, key in enumerate(responses)]
        with self._store._transaction() as index:
            index.executemany("INSERT OR IGNORE INTO responses VALUES (?, ?, ?, ?, ?)", rows)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _enable_wal(index: sqlite3.Connection) -> None:
    """Turn on WAL. If several processes open a new store at once, SQLite does not let the others wait: retry."""
    end = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            index.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)


def _utf8(value: Any) -> Any:
    """The value; in a text, surrogates, which SQLite does not take, are spelled out."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _stored_run(row: Sequence[Any]) -> StoredRun:
    *values, pid, since = row
    try:
        run = StoredRun(*values[:4], dict(json.loads(values[4])), *values[5:])
        _ = time.localtime(run.started), time.localtime(run.finished or 0)
        texts = (run.status, run.host, run.results or "", run.error or "", run.settings.get("model") or "")
        inner = run.settings.get("settings", {})
        tasks = inner.get("tasks", [])
        _ = (
            (run.settings.get("answers") or {}).get("file"),
            run.settings.get("settings", {}).get("model_args", {}).keys(),
        )
        paths = inner.get("include_path") or []
        if not isinstance(tasks, list) or not isinstance(paths, list):
            raise TypeError("a list was expected")
        if not all(isinstance(text, str) for text in (*texts, *tasks, *paths)):
            raise TypeError("a text was expected")
    except (ValueError, TypeError, AttributeError, OverflowError, OSError, RecursionError) as error:
        message = f"the entry of run {values[0]} is damaged ({type(error).__name__}: {error})"
        return StoredRun(str(values[0]), 0.0, None, "damaged", {}, None, message, "")
    gone = run.status == "running" and run.host == socket.gethostname() and not _alive(pid, since)
    return replace(run, status="interrupted") if gone else run


def _alive(pid: int, since: str | None) -> bool:
    now = process_start_time(pid)
    return now is not None and since in (None, now)  # runs of the first version have no start time


@contextmanager
def store_errors(root: Path, again: str = "continue with `workbench eval resume`") -> Iterator[None]:
    """Turn errors of SQLite and the system into a DataError that says what to do."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        text = str(error)
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "disk is full" in text:
            raise DataError(
                f"the disk of {root} is full. All answers so far are saved; free some space, then {again}."
            ) from error
        if "malformed" in text or "not a database" in text:
            raise DataError(
                f"{root / INDEX} is damaged ({text}); move it away. "
                "The answers and results files next to it are not affected."
            ) from error
        raise DataError(f"the store in {root} cannot be used: {text}.") from error
