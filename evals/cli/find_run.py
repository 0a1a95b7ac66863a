"""Finds the run that a command names, and says how an unfinished one is continued."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import DataError

if TYPE_CHECKING:
    from evals.results.runs import Run
    from evals.store.store import UnfinishedRun


def find(run: str | None, results: Path, *, cluster: str | None = None) -> Run:
    """The finished run of a file, a folder, part of a name, or the name it has in its store; the newest of several.

    cluster: a field of the questions' documents; errors are clustered by it, see `evals.compare.clustered`.
    Raises: DataError if there is no such run, or no task has the field.
    """
    from evals.compare.clustered import clustered

    match = _newest(run, results)
    return match if cluster is None else clustered(match, cluster)


def _newest(run: str | None, results: Path) -> Run:
    from evals.results.runs import read_run, scan

    if run is not None and Path(run).is_file():
        return read_run(Path(run))
    folder = Path(run) if run is not None and Path(run).is_dir() else results
    runs, problems = scan(folder)
    named = run is not None and folder == results
    wanted = [r for r in runs if not named or run in r.name or str(r.provenance.get("run", "")).startswith(str(run))]
    if not wanted and run is None:
        raise DataError(problems[0] if problems else f"there is no finished run in {folder}; `workbench eval list`.")
    if not wanted:
        if named and (one := open_run(run, results)):
            raise not_finished(one)
        found = f"found {', '.join(r.name for r in runs[:5])}" if runs else "found none"
        raise DataError(problems[0] if problems else f"no run matches {run!r} in {folder}; {found}.")
    return wanted[0]


def open_run(name: str, results: Path) -> UnfinishedRun | None:
    from evals.store.store import unfinished

    found = [one for one in unfinished(results)[0] if one.run.id.startswith(name)]
    return found[0] if len(found) == 1 else None


def not_finished(one: UnfinishedRun) -> DataError:
    then = "wait for it" if one.run.status == "running" else f"{resume_command(one)} goes on"
    return DataError(f"run {one.run.id} is {one.run.status}: there is nothing whole of it yet; {then}.")


def resume_command(one: UnfinishedRun) -> str:
    return f"`workbench eval resume {one.run.id} --results {one.root}`"
