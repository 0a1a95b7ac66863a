"""Commands about questions: tasks, prepare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from evals.cli.options import AsJson, Data, need_lm_eval
from workbench.errors import DataError

NOT_WHOLE = 1
"""Exit code where data is missing or not what was prepared."""


def tasks(
    data: Data = None,
    suite: Annotated[Path | None, typer.Option(help="A folder of your own suites as JSON lines, or one file.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the benchmarks, and whether their questions are here.

    Every other task of lm-eval can be asked for by its name, where the data folder has a copy of its data set.
    """
    need_lm_eval()
    from evals.tasks import availability
    from evals.tasks import local_data as places

    root = places.folder(data)
    rows = [vars(row) for row in availability.benchmarks(root)]
    if suite is not None:
        rows += [vars(row) for row in availability.custom_suites(suite)]
    if as_json:
        typer.echo(json.dumps({"data": None if root is None else str(root), "tasks": rows}, indent=2))
        return
    typer.echo(f"data folder {root or f'{places.home()}, which does not exist'}\n", err=True)
    wide = max(len(row["name"]) for row in rows)
    for row in rows:
        typer.echo(f"{row['name']:<{wide}}  {row['data']:<8}  {row['source']}")


def prepare(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...",
            help="Folders, archives or files that hold MMLU, GSM8K or HumanEval; or ORG/NAME=FOLDER, a data set of the "
            "hub. Hendrycks' CSVs, JSON lines and parquet are recognised.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="The data folder to make or add to; default $WORKBENCH_DATA, else the platform's for a user."
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Compare every file with its checksum; changes nothing.")] = (
        False
    ),
    as_json: AsJson = False,
) -> None:
    """Bring benchmark files into one data folder, with a manifest of rows, checksums, licences and sources.

    Exit code 1 if something is missing, or with --check is not what was prepared.
    """
    from evals.tasks import local_data as places
    from evals.tasks import prepare as preparing

    folder = data or places.home()
    if bool(sources) == check:
        raise DataError("give the sources to prepare, or --check alone.")
    if check:
        problems = preparing.check(folder)
        manifest: dict[str, Any] = preparing.read_manifest(folder) or {}
    else:
        manifest = preparing.prepare(sources or [], folder)
        problems = [f"{name}: {what}" for name, entry in manifest["sets"].items() for what in entry["missing"]]
    if as_json:
        typer.echo(json.dumps({"data": str(folder), "problems": problems, **manifest}, indent=2))
    else:
        for name, entry in sorted(manifest["sets"].items()):
            held = ", ".join(f"{n} {split}" for split, n in entry.get("rows", {}).items())
            held = held or f"{len(entry['files'])} files"
            typer.echo(f"{name}: {held}; {entry['layout']}; licence {entry['licence']}")
        for problem in problems:
            typer.echo(problem, err=True)
        typer.echo(f"{folder} {'is not whole' if problems else 'is whole'}", err=True)
    if problems:
        raise typer.Exit(NOT_WHOLE)


COMMANDS = (
    ("tasks", tasks, ""),
    ("prepare", prepare, "~/mmlu/data.tar ~/grade_school_math/data ~/HumanEval.jsonl.gz"),
)
