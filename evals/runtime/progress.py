"""Progress of an evaluation: a bar on stderr and, if WORKBENCH_PROGRESS names one, a file for other programs.

Does not know what is counted.
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
"""The environment variable with the path of the progress file."""


@dataclass(frozen=True)
class Progress:
    """Progress of an evaluation: `done` of `total` requests of one kind, `what`, such as "scoring".

    Units: since and at in seconds since 1970; `first` requests came from the cache at `since` and do not count for
    the speed.
    """

    what: str
    done: int
    total: int
    first: int
    since: float
    at: float

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the speed so far; None while no new request is done."""
        new = self.done - self.first
        return (self.at - self.since) / new * (self.total - self.done) if new > 0 else None


def read(path: Path) -> Progress | None:
    """The content of the progress file; None if there is none, or it is not a progress file."""
    try:
        return Progress(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


class Bar(tqdm):  # type: ignore[type-arg]
    """A bar that also writes each step to the progress file, if there is one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._first: tuple[int, float] | None = None

    def update(self, n: float | None = 1) -> bool | None:
        shown = super().update(n)
        if not self.disable and (name := os.environ.get(FILE)):
            now = time.time()
            # The first step is the number of cached requests.
            self._first = self._first or (int(self.n), now)
            progress = Progress(str(self.desc).removesuffix(": "), int(self.n), int(self.total), *self._first, now)
            _write(Path(name), progress)
        return shown


def bar(total: int, what: str, disable: bool) -> Bar:
    """A bar with the time left on stderr: updated in place on a terminal, a new line every 10 seconds in a log."""
    often = 0.1 if sys.stderr.isatty() else 10.0
    return Bar(total=total, desc=what, file=sys.stderr, disable=disable, leave=False, mininterval=often)


def _write(path: Path, progress: Progress) -> None:
    with suppress(OSError):  # a full disk must not stop the run here; the store reports it if it matters
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_text(json.dumps(vars(progress)), encoding="utf-8")
        os.replace(temporary, path)
