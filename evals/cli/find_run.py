"""Finds the run that a command names; for an unfinished run, the command that resumes it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from evals.store import foreign_code
from workbench.errors import DataError

if TYPE_CHECKING:
    from evals.results.runs import Run
    from evals.store.store import UnfinishedRun


def find(run: str | None, results: Path, *, cluster: str | None = None) -> Run:
    """Find a finished run by file, folder, part of its name, or its name in the store; of several, the newest.

    cluster: a field of the questions' documents; standard errors are clustered by it, see `evals.compare.clustered`.
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
    matches = [r for r in runs if not named or run in r.name or str(r.provenance.get("run", "")).startswith(str(run))]
    if not matches and run is None:
        raise DataError(
            problems[0] if problems else f"there is no finished run in {folder}; `workbench eval list` shows all runs."
        )
    if not matches:
        if named and (unfinished_run := find_unfinished(run, results)):
            raise unfinished_error(unfinished_run)
        available = f"found {', '.join(r.name for r in runs[:5])}" if runs else "found none"
        raise DataError(problems[0] if problems else f"no run matches {run!r} in {folder}; {available}.")
    return matches[0]


def find_unfinished(name: str, results: Path) -> UnfinishedRun | None:
    from evals.store.store import unfinished

    matches = [candidate for candidate in unfinished(results)[0] if candidate.run.id.startswith(name)]
    return matches[0] if len(matches) == 1 else None


def stopped_run(run: str, results: Path) -> tuple[str, Path]:
    """The name and the folder of a stopped run, given its name, or a folder with exactly one stopped run.

    Raises: DataError if `run` is a folder with none, or with several.
    """
    from evals.store.store import unfinished

    if not Path(run).is_dir():
        return run, results
    stopped = [candidate for candidate in unfinished(Path(run))[0] if candidate.run.status != "running"]
    if len(stopped) == 1:
        return stopped[0].run.id, stopped[0].root
    if not stopped:
        raise DataError(f"there is no stopped run in {run}; `workbench eval list --results {run}` shows its runs.")
    raise DataError(f"{len(stopped)} runs in {run} are stopped; name one: {resume_command(stopped[0])}.")


def unfinished_error(run: UnfinishedRun) -> DataError:
    advice = resume_advice(run) or "wait until it ends"
    return DataError(f"run {run.run.id} is {run.run.status}: it has no complete results yet; {advice}.")


def resume_command(run: UnfinishedRun) -> str:
    """The command that continues a run; answers of a file are scored again, because there is nothing to continue."""
    if answers := run.run.settings.get("answers"):
        task = ",".join(run.run.settings.get("settings", {}).get("tasks", []))
        command = ("workbench", "eval", "score", "--task", task, "--samples", str(answers.get("file")))
        return f"`{shlex.join([*command, '--output', str(run.root)])}`"
    return f"`workbench eval resume {run.run.id} --results {run.root}{foreign_code.options(run.run.settings)}`"


def resume_advice(run: UnfinishedRun) -> str:
    """The command that continues a run, with what to know first; empty for a run that is running on this machine."""
    if run.run.elsewhere:
        return f"recorded as running on {run.run.host}; if it has ended there, continue with {resume_command(run)}"
    if run.run.status == "running":
        return ""
    runs_code = foreign_code.summary(run.run.settings)
    trust = f", if you trust {runs_code}" if runs_code else ""
    return f"continue with {resume_command(run)}{trust}"
