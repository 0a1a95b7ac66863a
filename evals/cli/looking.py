"""Commands that look at what there is: tasks, list, show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from evals.cli.given import AsJson, Results, need_lm_eval, print_run
from workbench.errors import DataError


def list_tasks() -> None:
    """List the benchmarks that can be run."""
    need_lm_eval()
    from evals import suites

    for name in suites.names():
        typer.echo(name)


def list_runs(results: Results = Path("results"), as_json: AsJson = False) -> None:
    """List finished runs, newest first."""
    from evals.results import scan

    runs, problems = scan(results)
    for problem in problems:
        typer.echo(problem, err=True)
    if not runs and not problems:
        raise DataError(f"no runs in {results}; `workbench eval run` makes some, --results looks elsewhere.")
    if as_json:
        rows = [{"run": r.name, "path": str(r.path), "model": r.model, "tasks": r.tasks} for r in runs]
        typer.echo(json.dumps(rows, indent=2))
        return
    for r in runs:
        typer.echo(f"{r.name}  {r.model}  {', '.join(r.tasks) if len(r.tasks) < 6 else f'{len(r.tasks)} tasks'}")


def show(
    run: Annotated[
        str | None, typer.Argument(help="A results file, a folder, or part of a run's name; default the newest.")
    ] = None,
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Print the scores of one run."""
    from evals.results import read_run, scan

    if run is not None and Path(run).is_file():
        print_run(read_run(Path(run)), as_json=as_json)
        return
    folder = Path(run) if run is not None and Path(run).is_dir() else results
    runs, problems = scan(folder)
    wanted = [r for r in runs if run is None or folder != results or run in r.name]
    if not wanted:
        found = f"found {', '.join(r.name for r in runs[:5])}" if runs else "found none"
        raise DataError(problems[0] if problems else f"no run matches {run or 'anything'!r} in {folder}; {found}.")
    print_run(wanted[0], as_json=as_json)


COMMANDS = (
    ("tasks", list_tasks, ""),
    ("list", list_runs, "--results results"),
    ("show", show, "results/demo"),
)
