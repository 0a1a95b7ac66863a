"""What was answered before, kept so that it is never asked twice and never served for anything else.

A folder holds `store.sqlite` (an index in WAL mode: runs, metrics, samples, and where each response lies) and
`responses/*.zz`, append-only files of compressed frames with a checksum each; every writer has a file of its own. A
frame is on the disk before the index names it, so a process may be killed at any moment: what the index names is whole.
Knows nothing of models, tasks or lm-eval.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import sqlite3
import struct
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from evals.processes import born
from workbench.errors import DataError

INDEX, RESPONSES = "store.sqlite", "responses"
HEAD = struct.Struct("<II")  # length and CRC-32 of a frame's compressed bytes
WAIT = 60.0  # seconds that one writer waits for another's transaction
KEYS_AT_ONCE = 500

# Entry n makes version n + 1 out of version n. A released entry is never changed: stores of that version exist.
MIGRATIONS = (
    """
    CREATE TABLE runs (
        id TEXT PRIMARY KEY, started REAL NOT NULL, finished REAL, status TEXT NOT NULL, host TEXT NOT NULL,
        pid INTEGER NOT NULL, settings TEXT NOT NULL, results TEXT, error TEXT
    );
    CREATE TABLE metrics (
        run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, task TEXT NOT NULL, metric TEXT NOT NULL,
        filter TEXT NOT NULL, average TEXT NOT NULL, n INTEGER NOT NULL, value REAL NOT NULL, stderr REAL,
        low REAL, high REAL
    );
    CREATE TABLE samples (
        run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, task TEXT NOT NULL, doc_id INTEGER NOT NULL,
        filter TEXT NOT NULL, metric TEXT, correct REAL, PRIMARY KEY (run, task, doc_id, filter)
    );
    CREATE TABLE responses (
        key BLOB PRIMARY KEY, file TEXT NOT NULL, offset INTEGER NOT NULL, item INTEGER NOT NULL, run TEXT NOT NULL
    ) WITHOUT ROWID;
    """,
    "ALTER TABLE runs ADD COLUMN born TEXT;",  # when the process began: its number may be another's by now
)


def key_of(*parts: Any) -> bytes:
    """A response's name: the SHA-256 of everything that decides it, in canonical JSON.

    Two lists of parts have the same key only if they are equal: JSON delimits every part.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).digest()


@dataclass(frozen=True)
class StoredRun:
    """A run as the index knows it. `status` is running, finished, failed or interrupted.

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
        found += [Unfinished(run, path.parent, counts.get(run.id, 0)) for run in runs]
    return sorted(found, key=lambda one: one.run.started, reverse=True), problems


class Store:
    """An open store. Several processes may have one open at once."""

    def __init__(self, root: Path, index: sqlite3.Connection) -> None:
        self.root, self._index = root, index

    @classmethod
    def open(cls, root: str | Path, *, create: bool = True) -> Store:
        """The store in a folder, brought to this version's schema.

        Raises: DataError if there is none and it may not be made, it is damaged, or a newer version wrote it.
        """
        root = Path(root)
        path = root / INDEX
        if not create and not path.is_file():
            raise DataError(f"{root} holds no {INDEX}; `workbench eval run --output {root}` makes one.")
        with _explained(root):
            (root / RESPONSES).mkdir(parents=True, exist_ok=True)
            index = sqlite3.connect(path, timeout=WAIT, isolation_level=None)
            index.execute("PRAGMA journal_mode = WAL")
            index.execute("PRAGMA synchronous = FULL")
            index.execute("PRAGMA foreign_keys = ON")
            _migrate(index, path)
        return cls(root, index)

    def close(self) -> None:
        self._index.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- runs

    def begin(self, settings: Mapping[str, Any]) -> str:
        """Enter a run that starts now; returns its name."""
        name = time.strftime("%Y%m%d-%H%M%S-") + uuid.uuid4().hex[:6]
        row = (name, time.time(), "running", socket.gethostname(), os.getpid(), json.dumps(settings, sort_keys=True))
        columns = "id, started, status, host, pid, settings, born"
        with self._writing() as index:
            index.execute(f"INSERT INTO runs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, born(os.getpid())))
        return name

    def again(self, run: str) -> None:
        """Enter that a run goes on, in this process.

        Raises: DataError if it is running on this machine; of another machine's processes nothing is known.
        """
        found = self.run(run)
        if found.status == "running" and found.host == socket.gethostname():
            raise DataError(f"run {found.id} is running still; wait for it, or stop its process first.")
        with self._writing() as index:
            index.execute(
                "UPDATE runs SET status = 'running', finished = NULL, error = NULL, host = ?, pid = ?, born = ? "
                "WHERE id = ?",
                (socket.gethostname(), os.getpid(), born(os.getpid()), run),
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

    def known(self, keys: Iterable[bytes]) -> set[bytes]:
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
                frame = _frame(self.root / RESPONSES / file, offset)
                found.update({key: frame[item] for key, item in wanted})
            except DataError as error:
                problems.append(str(error))
                self._forget(file, offset)
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

    def _forget(self, file: str, offset: int) -> None:
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

        A run's file goes whole, when the run is gone; files of running ones are never touched. without: runs to take
        out of the index first. dry_run: only count.
        Raises: DataError if one of these runs is running.
        """
        running = [run.id for run in self.runs() if run.id in without and run.status == "running"]
        if running:
            raise DataError(f"run {running[0]} is running still; wait for it, or stop its process first.")
        with self._writing() as index:
            if not dry_run:
                index.executemany("DELETE FROM runs WHERE id = ?", [(name,) for name in without])
            kept = {row[0] for row in index.execute("SELECT id FROM runs")} - set(without)
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
        data = zlib.compress(json.dumps(list(responses.values()), separators=(",", ":")).encode(), 6)
        with _explained(self._store.root):
            if self._file is None:
                self._file = self._path.open("ab", buffering=0)
            offset = self._file.seek(0, os.SEEK_END)
            frame = HEAD.pack(len(data), zlib.crc32(data)) + data
            if self._file.write(frame) != len(frame):
                raise OSError(errno.ENOSPC, "a frame was cut short")
            os.fsync(self._file.fileno())
        rows = [(key, self._path.name, offset, item, self._run) for item, key in enumerate(responses)]
        with self._store._writing() as index:
            index.executemany("INSERT OR IGNORE INTO responses VALUES (?, ?, ?, ?, ?)", rows)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _migrate(index: sqlite3.Connection, path: Path) -> None:
    version = int(index.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise DataError(f"{path} has version {version}, this workbench knows {len(MIGRATIONS)}; use the newer one.")
    while version < len(MIGRATIONS):
        index.execute("BEGIN IMMEDIATE")
        # Another process may have been quicker.
        version = int(index.execute("PRAGMA user_version").fetchone()[0])
        if version < len(MIGRATIONS):
            for statement in filter(str.strip, MIGRATIONS[version].split(";")):
                index.execute(statement)
            version += 1
            index.execute(f"PRAGMA user_version = {version}")
        index.execute("COMMIT")


def _stored(row: Sequence[Any]) -> StoredRun:
    *shown, pid, since = row
    run = StoredRun(*shown[:4], json.loads(shown[4]), *shown[5:])
    gone = run.status == "running" and run.host == socket.gethostname() and not _alive(pid, since)
    return replace(run, status="interrupted") if gone else run


def _alive(pid: int, since: str | None) -> bool:
    now = born(pid)
    return now is not None and since in (None, now)  # a run of the first version has no beginning


def _frame(path: Path, offset: int) -> list[Any]:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            head = file.read(HEAD.size)
            length, check = HEAD.unpack(head) if len(head) == HEAD.size else (0, 1)
            data = file.read(length)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); its answers will be asked again.") from error
    if len(data) != length or zlib.crc32(data) != check:
        raise DataError(f"{path}: the frame at byte {offset} is damaged; its answers will be asked again.")
    frame: list[Any] = json.loads(zlib.decompress(data))
    return frame


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
                f"{root / INDEX} is damaged ({text}); move it away, the results files beside it are whole."
            ) from error
        raise DataError(f"the store in {root} cannot be used: {text}.") from error
