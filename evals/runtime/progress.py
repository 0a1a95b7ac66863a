"""How far an evaluation is: a bar on stderr and, where the environment names one, a file for other programs to read.

Knows nothing of what is counted.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

FILE = "WORKBENCH_PROGRESS"
"""The environment variable that names the file."""


@dataclass(frozen=True)
class Progress:
    """Where an evaluation stands: `done` of `total` requests of one kind, `what`, as "scoring".

    Units: since and at in seconds since 1970; `first` requests were there at `since`, kept from before, and tell
    nothing of the pace.
    """

    what: str
    done: int
    total: int
    first: int
    since: float
    at: float

    @property
    def seconds_left(self) -> float | None:
        """At the pace so far; None while nothing was answered."""
        new = self.done - self.first
        return (self.at - self.since) / new * (self.total - self.done) if new > 0 else None


def read(path: Path) -> Progress | None:
    """What the file says; None where there is none, or it is not one of these."""
    try:
        return Progress(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


class Bar(tqdm):  # type: ignore[type-arg]
    """A bar that writes each step to the file, if one is named."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._first: tuple[int, float] | None = None

    def update(self, n: float | None = 1) -> bool | None:
        shown = super().update(n)
        if not self.disable and (name := os.environ.get(FILE)):
            now = time.time()
            # The first step tells what was kept from before.
            self._first = self._first or (int(self.n), now)
            told = Progress(str(self.desc).removesuffix(": "), int(self.n), int(self.total), *self._first, now)
            _write(Path(name), told)
        return shown


def bar(total: int, what: str, disable: bool) -> Bar:
    """Progress with the time left on stderr: a line that moves on a terminal, a new one now and then in a log."""
    often = 0.1 if sys.stderr.isatty() else 10.0
    return Bar(total=total, desc=what, file=sys.stderr, disable=disable, leave=False, mininterval=often)


def _write(path: Path, told: Progress) -> None:
    with suppress(OSError):  # a full disk is no reason to stop: the store says it, if it matters
        fresh = path.with_name(f"{path.name}.tmp")
        fresh.write_text(json.dumps(vars(told)), encoding="utf-8")
        os.replace(fresh, path)
