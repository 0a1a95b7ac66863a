"""The tables of the store's index, and the migrations of older versions."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from workbench.errors import DataError

# Entry n migrates version n to n + 1. Never change a released entry: stores of that version exist.
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
    "ALTER TABLE runs ADD COLUMN born TEXT;",  # the process start time: its pid may belong to another process by now
)


def migrate(index: sqlite3.Connection, path: Path) -> None:
    """Migrate an index to this version's tables.

    Raises: DataError if a newer version wrote it.
    """
    version = int(index.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise DataError(
            f"{path} has version {version}, but this workbench supports versions up to {len(MIGRATIONS)}; "
            "use a newer workbench."
        )
    while version < len(MIGRATIONS):
        index.execute("BEGIN IMMEDIATE")
        # Another process may have migrated it in the meantime.
        version = int(index.execute("PRAGMA user_version").fetchone()[0])
        if version < len(MIGRATIONS):
            for statement in filter(str.strip, MIGRATIONS[version].split(";")):
                index.execute(statement)
            version += 1
            index.execute(f"PRAGMA user_version = {version}")
        index.execute("COMMIT")
