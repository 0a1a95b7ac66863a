"""What was answered before, kept so that it is never asked twice and never served for anything else.

A folder holds `store.sqlite` (an index in WAL mode: runs, metrics, samples, and where each response lies) and
`responses/*.zz`, append-only files of compressed frames with a checksum each; every writer has a file of its own. A
frame is on the disk before the index names it, so a process may be killed at any moment: what the index names is whole.
Frames say what they hold, so that a lost index costs no answer. On several machines each but the first has a store of
its own below `machines/`. Knows nothing of models, tasks or lm-eval.
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
WAIT = 60.0  # seconds that one writer waits for another's transaction
KEYS_AT_ONCE = 500


def cache_key(*parts: Any) -> bytes:
    """A response's name: the SHA-256 of everything that decides it, in canonical JSON.

    Two lists of parts have the same key only if they are equal: JSON delimits every part.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).digest()


@dataclass(frozen=True)
class StoredRun:
    """A run as the index knows it. `status` is running, finished, failed, interrupted, or damaged: no more is known.

    Units: started and finished in seconds since 1970. `results` is the path of its results file below the store.
    """

    id: str
    started: float
    finished: float | None
    status: str
    settings: dict[str, Any]
    results: str | None
    error: str | None
    host: str


@dataclass(frozen=True)
class Unfinished:
    """A run that is running or was stopped, the store it is in, and how many answers it has left there."""

    run: StoredRun
    root: Path
    answers: int


def unfinished(root: str | Path) -> tuple[list[Unfinished], list[str]]:
    """Every run below a folder that is not finished, newest first, and what was wrong with each store."""
    found, problems = [], []
    for path in Path(root).rglob(INDEX):
        try:
            with Store.open(path.parent, create=False) as store:
                counts = store.answered()
                runs = [run for run in store.runs() if run.status != "finished"]
        except DataError as error:
            problems.append(str(error))
            continue
        problems += [f"{path}: {run.error}" for run in runs if run.status == "damaged"]
        runs = [run for run in runs if run.status != "damaged"]
        found += [Unfinished(run, path.parent, counts.get(run.id, 0)) for run in runs]
    return sorted(found, key=lambda one: one.run.started, reverse=True), problems


class Store:
    """An open store. Several processes may have one open at once."""

    def __init__(self, root: Path, index: sqlite3.Connection) -> None:
        self.root, self._index = root, index

    @classmethod
    def open(cls, root: str | Path, *, create: bool = True) -> Store:
        """The store in a folder, brought to this version's schema; an empty index takes in the answers beside it.

        Raises: DataError if there is none and it may not be made, it is damaged, or a newer version wrote it.
        """
        root = Path(root)
        path = root / INDEX
        if not create and not path.is_file():
            raise DataError(f"{root} holds no {INDEX}; `workbench eval run --output {root}` makes one.")
        with _explained(root):
            (root / RESPONSES).mkdir(parents=True, exist_ok=True)
            index = sqlite3.connect(path, timeout=WAIT, isolation_level=None)
            _log_ahead(index)
            index.execute("PRAGMA synchronous = FULL")
            index.execute("PRAGMA foreign_keys = ON")
            migrate(index, path)
            made = cls(root, index)
            if index.execute("SELECT 1 FROM runs UNION SELECT 1 FROM responses LIMIT 1").fetchone() is None:
                made._rebuild_index(sorted((root / RESPONSES).glob("*.zz")))
        return made

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
        """Enter a run that starts now; returns its name."""
        name = time.strftime("%Y%m%d-%H%M%S-") + uuid.uuid4().hex[:6]
        row = (name, time.time(), "running", socket.gethostname(), os.getpid(), json.dumps(settings, sort_keys=True))
        columns = "id, started, status, host, pid, settings, born"
        with self._writing() as index:
            index.execute(
                f"INSERT INTO runs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, process_start_time(os.getpid()))
            )
        return name

    def resume(self, run: str) -> None:
        """Enter that a run goes on, in this process.

        Raises: DataError if it is running on this machine; of another machine's processes nothing is known.
        """
        with self._writing() as index:  # two that look at the same time do not both find it stopped
            found = self.run(run)
            if found.status == "running" and found.host == socket.gethostname():
                raise DataError(f"run {found.id} is running still; wait for it, or stop its process first.")
            index.execute(
                "UPDATE runs SET status = 'running', finished = NULL, error = NULL, host = ?, pid = ?, born = ? "
                "WHERE id = ?",
                (socket.gethostname(), os.getpid(), process_start_time(os.getpid()), run),
            )

    def finish(
        self, run: str, *, results: str, metrics: Iterable[Sequence[Any]] = (), samples: Iterable[Sequence[Any]] = ()
    ) -> None:
        """Enter a run's end, with its metrics (task, metric, filter, average, n, value, stderr, low, high) and samples
        (task, doc_id, filter, metric, correct), all or nothing."""
        with self._writing() as index:
            index.execute("DELETE FROM metrics WHERE run = ?", (run,))
            index.execute("DELETE FROM samples WHERE run = ?", (run,))
            index.executemany(
                "INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", ((run, *row) for row in metrics)
            )
            index.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?)", ((run, *row) for row in samples))
            index.execute(
                "UPDATE runs SET status = 'finished', finished = ?, results = ?, error = NULL WHERE id = ?",
                (time.time(), results, run),
            )

    def fail(self, run: str, error: str, *, interrupted: bool = False) -> None:
        """Enter that a run ended with an error, or because somebody stopped it; what it answered stays."""
        row = ("interrupted" if interrupted else "failed", time.time(), error, run)
        with self._writing() as index:
            index.execute("UPDATE runs SET status = ?, finished = ?, error = ? WHERE id = ?", row)

    def runs(self) -> list[StoredRun]:
        """Every run, newest first; one whose process is gone is "interrupted"."""
        with _explained(self.root):
            rows = self._index.execute(
                "SELECT id, started, finished, status, settings, results, error, host, pid, born FROM runs "
                "ORDER BY started DESC, id DESC"
            ).fetchall()
        return [_stored(row) for row in rows]

    def run(self, name: str) -> StoredRun:
        """The run of this name, or of its beginning.

        Raises: DataError if there is none, or several.
        """
        found = [run for run in self.runs() if run.id.startswith(name)]
        exact = [run for run in found if run.id == name]
        if len(exact or found) != 1:
            what = "several runs begin with" if found else "there is no run"
            known = ", ".join(run.id for run in (found or self.runs())[:5]) or "none"
            raise DataError(f"{what} {name!r} in {self.root}; found {known}.")
        return (exact or found)[0]

    def answered(self) -> dict[str, int]:
        """How many of the kept responses each run made."""
        with _explained(self.root):
            return dict(self._index.execute("SELECT run, count(*) FROM responses GROUP BY run").fetchall())

    # --- responses

    def writer(self, run: str, *, rank: int = 0) -> Writer:
        """Where one process of a run puts its responses: a file of its own, another each time."""
        return Writer(self, run, self.root / RESPONSES / f"{run}.{rank}.{uuid.uuid4().hex[:8]}.zz")

    def contains(self, keys: Iterable[bytes]) -> set[bytes]:
        """Which of these responses are there."""
        return {key for key, *_ in self._places(keys)}

    def read(self, keys: Iterable[bytes]) -> tuple[dict[bytes, Any], list[str]]:
        """The responses that are there, and what is wrong with each frame that is damaged: those are left out."""
        places: dict[tuple[str, int], list[tuple[bytes, int]]] = {}
        for key, file, offset, item in self._places(keys):
            places.setdefault((file, offset), []).append((key, item))
        found: dict[bytes, Any] = {}
        problems: list[str] = []
        for (file, offset), wanted in sorted(places.items()):
            try:
                values = record_file.read(self.root / RESPONSES / file, offset)
                found.update({key: values[item] for key, item in wanted})
            except DataError as error:
                problems.append(str(error))
                self._drop(file, offset)
            except (IndexError, TypeError):
                problems.append(f"{self.root / INDEX} is wrong about {file}; those answers will be asked again.")
                self._drop(file, offset)
        return found, problems

    def _places(self, keys: Iterable[bytes]) -> Iterator[tuple[bytes, str, int, int]]:
        wanted = list(dict.fromkeys(keys))
        with _explained(self.root):
            for first in range(0, len(wanted), KEYS_AT_ONCE):
                some = wanted[first : first + KEYS_AT_ONCE]
                marks = ",".join("?" * len(some))
                yield from self._index.execute(
                    f"SELECT key, file, offset, item FROM responses WHERE key IN ({marks})", some
                )

    def _rebuild_index(self, files: Iterable[Path]) -> None:
        """Enter the answers of files that the index does not know."""
        for path in files:
            rows = [
                (key, path.name, offset, item, path.name.partition(".")[0])
                for offset, keys in record_file.scan(path)
                for item, key in enumerate(keys)
            ]
            with self._writing() as index:
                index.executemany("INSERT OR IGNORE INTO responses VALUES (?, ?, ?, ?, ?)", rows)

    def _drop(self, file: str, offset: int) -> None:
        """A damaged frame's answers will be asked again; the file stays for whoever wants to look into it."""
        with self._writing() as index:
            index.execute("DELETE FROM responses WHERE file = ? AND offset = ?", (file, offset))

    # --- tidying

    def remove(self, run: str) -> None:
        """Take a run out of the index. Its responses stay, for others that share them, until `gc`."""
        with self._writing() as index:
            index.execute("DELETE FROM runs WHERE id = ?", (self.run(run).id,))

    def gc(self, *, without: Sequence[str] = (), dry_run: bool = False) -> tuple[int, int]:
        """Delete the responses that no run in the index made: their number, and the bytes freed.

        A run's file goes whole, when the run is gone; files of running ones are never touched. The stores of other
        machines go by this one's runs. without: runs to take out of the index first. dry_run: only count.
        Raises: DataError if one of these runs is running, or this is another machine's store.
        """
        main = self.root.absolute().parent.parent
        if self.root.absolute().parent.name == MACHINES and (main / INDEX).is_file():
            raise DataError(f"{self.root} is one machine's part of the store in {main}; name that one.")
        running = [run.id for run in self.runs() if run.id in without and run.status == "running"]
        if running:
            raise DataError(f"run {running[0]} is running still; wait for it, or stop its process first.")
        with self._writing() as index:
            if not dry_run:
                index.executemany("DELETE FROM runs WHERE id = ?", [(name,) for name in without])
            kept = {row[0] for row in index.execute("SELECT id FROM runs")} - set(without)
        done = [self._free(kept, dry_run)]
        for path in sorted(self.root.glob(f"{MACHINES}/*/{INDEX}")):
            with Store.open(path.parent, create=False) as other:
                done.append(other._free(kept, dry_run))
        return sum(count for count, _ in done), sum(freed for _, freed in done)

    def _free(self, kept: Collection[str], dry_run: bool) -> tuple[int, int]:
        """Delete the answers of all runs but these: their number, and the bytes freed."""
        with self._writing() as index:
            gone = [path for path in (self.root / RESPONSES).glob("*.zz") if path.name.partition(".")[0] not in kept]
            what = "SELECT count(*)" if dry_run else "DELETE"
            done = [index.execute(f"{what} FROM responses WHERE file = ?", (path.name,)) for path in gone]
            counts = [cursor.fetchone()[0] if dry_run else cursor.rowcount for cursor in done]
        freed = sum(path.stat().st_size for path in gone)
        for path in [] if dry_run else gone:
            path.unlink(missing_ok=True)
        return sum(counts), freed

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it, or nothing."""
        with _explained(self.root):
            self._index.execute("BEGIN IMMEDIATE")
            try:
                yield self._index
            except BaseException:
                if self._index.in_transaction:  # a full disk has rolled back already
                    self._index.execute("ROLLBACK")
                raise
            self._index.execute("COMMIT")


class Writer:
    """Appends responses; each call of `add` is one frame, all of it or nothing."""

    def __init__(self, store: Store, run: str, path: Path) -> None:
        self._store, self._run, self._path = store, run, path
        self._file: FileIO | None = None

    def add(self, responses: Mapping[bytes, Any]) -> None:
        """Keep these responses; one that is there already stays as it is.

        Raises: DataError if the disk is full or cannot be written; what was kept before stays.
        """
        if not responses:
            return
        with _explained(self._store.root):
            if self._file is None:
                self._file = self._path.open("ab", buffering=0)
            offset = record_file.append(self._file, responses)
        rows = [(key, self._path.name, offset, item, self._run) for item, key in enumerate(responses)]
        with self._store._writing() as index:
            index.executemany("INSERT OR IGNORE INTO responses VALUES (?, ?, ?, ?, ?)", rows)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _log_ahead(index: sqlite3.Connection) -> None:
    """Turn on WAL. Of several that open a new store at once one does it, and SQLite lets the others not wait for it."""
    end = time.monotonic() + WAIT
    while True:
        try:
            index.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)


def _stored(row: Sequence[Any]) -> StoredRun:
    *shown, pid, since = row
    try:
        run = StoredRun(*shown[:4], dict(json.loads(shown[4])), *shown[5:])
        _ = time.localtime(run.started), time.localtime(run.finished or 0)
    except (ValueError, TypeError, OverflowError) as error:
        told = f"the entry of run {shown[0]} is damaged ({type(error).__name__}: {error})"
        return StoredRun(str(shown[0]), 0.0, None, "damaged", {}, None, told, "")
    gone = run.status == "running" and run.host == socket.gethostname() and not _alive(pid, since)
    return replace(run, status="interrupted") if gone else run


def _alive(pid: int, since: str | None) -> bool:
    now = process_start_time(pid)
    return now is not None and since in (None, now)  # a run of the first version has no beginning


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    """What SQLite and the system say about a store, in words that help."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        text = str(error)
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "disk is full" in text:
            raise DataError(
                f"the disk that holds {root} is full; what was answered is kept. "
                "Make room, then `workbench eval resume`."
            ) from error
        if "malformed" in text or "not a database" in text:
            raise DataError(
                f"{root / INDEX} is damaged ({text}); move it away: the answers and results files beside it are kept."
            ) from error
        raise DataError(f"the store in {root} cannot be used: {text}.") from error
