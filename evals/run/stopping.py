"""What happens if a run is stopped or fails: the store has the reason, and the user the command that continues it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from evals.runtime.distributed import Team
from evals.runtime.printing import echo
from evals.store import foreign_code
from evals.store.store import Store
from workbench.errors import DataError


@contextmanager
def recording_failure(store: Store, run: str, output: Path, team: Team, request: Mapping[str, Any]) -> Iterator[None]:
    """Record in the store that a run failed or was interrupted, and print how to continue it."""
    try:
        with _terminate_as_exception(team):
            yield
    except BaseException as error:
        if team.is_main:
            with suppress(DataError):  # the store may be what failed
                interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
                store.fail(run, str(error) or type(error).__name__, interrupted=interrupted)
            if request["model"] is not None:
                command = f"workbench eval resume {run} --results {output}{foreign_code.options(request)}"
                echo(f"Run {run} was stopped. Its answers are saved; continue with `{command}`.", err=True)
        raise


@contextmanager
def _terminate_as_exception(team: Team) -> Iterator[None]:
    """SIGTERM ends the block as SystemExit, with the shell's exit code for it, so that computed answers are saved.

    Not in a team, whose processes wait for each other, and not if the program has a handler of its own.
    """

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    usable = team.size == 1 and threading.current_thread() is threading.main_thread()
    if not usable or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
