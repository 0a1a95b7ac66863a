"""Commands for benchmark data: tasks, prepare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evals.cli.options import AsJson, Data, need_lm_eval
from evals.runtime.printing import echo
from workbench.errors import DataError

if TYPE_CHECKING:
    from evals.tasks.availability import ListedTask

EXIT_INCOMPLETE = 1
"""Exit code when data is missing or does not match its checksum."""


def tasks(
    data: Data = None,
    suite: Annotated[
        Path | None, typer.Option(help="A folder with your own suites (JSON Lines files), or one such file.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="List every task of lm-eval, with its number of examples and its dataset.")
    ] = False,
    search: Annotated[
        str, typer.Option(help="List every task of lm-eval that has this text in its name or dataset.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List the benchmarks and whether their data is available.

    Any other lm-eval task can be run by its name if the data folder has a copy of its dataset; --all and --search list
    them.
    """
    need_lm_eval()
    if every or search:
        _list_all(search, as_json=as_json)
        return
    from evals.tasks import availability
    from evals.tasks import local_data as places

    root = places.folder(data)
    rows = [vars(row) for row in availability.benchmarks(root)]
    if suite is not None:
        rows += [vars(row) for row in availability.custom_suites(suite)]
    if as_json:
        echo(json.dumps({"data": None if root is None else str(root), "tasks": rows}, indent=2))
        return
    echo(f"data folder {root or f'{places.home()}, which does not exist'}\n", err=True)
    wide = max(len(row["name"]) for row in rows)
    for row in rows:
        echo(f"{row['name']:<{wide}}  {row['data']:<8}  {row['source']}")


def _list_all(text: str, *, as_json: bool) -> None:
    from evals.tasks import availability

    rows = availability.all_tasks(text)
    if not rows:
        raise DataError(f"no task of lm-eval has {text!r} in its name or dataset.")
    if as_json:
        echo(json.dumps([vars(row) for row in rows], indent=2))
        return
    wide = max(len(row.name) for row in rows)
    for row in rows:
        shots = "" if row.shots is None else f"{row.shots} shots"
        echo(f"{row.name:<{wide}}  {row.kind:<5}  {shots:<8}  {_contents(row)}".rstrip())
    echo(f"{len(rows)} names", err=True)


def _contents(row: ListedTask) -> str:
    return row.dataset if row.members is None else f"{row.members} members"


def prepare(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...",
            help="Folders, archives or files with MMLU, GSM8K or HumanEval; or ORG/NAME=FOLDER for a local copy of a "
            "Hugging Face dataset. Supported formats: Hendrycks' CSV files, JSON Lines, Parquet.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Data folder to create or extend; default: $WORKBENCH_DATA, otherwise the platform's user data folder."
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only verify the checksum of every file; changes nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Copy benchmark files into one data folder, with a manifest of row counts, checksums, licences and sources.

    The exit code is 1 if files are missing, or with --check if a file was changed.
    """
    from evals.tasks import local_data as places
    from evals.tasks import prepare as preparing

    folder = data or places.home()
    if bool(sources) == check:
        raise DataError("pass either sources to prepare, or --check without sources.")
    if check:
        problems = preparing.check(folder)
        manifest: dict[str, Any] = preparing.read_manifest(folder) or {}
    else:
        manifest = preparing.prepare(sources or [], folder)
        problems = [f"{name}: {what}" for name, entry in manifest["sets"].items() for what in entry["missing"]]
    if as_json:
        echo(json.dumps({"data": str(folder), "problems": problems, **manifest}, indent=2))
    else:
        for name, entry in sorted(manifest["sets"].items()):
            contents = ", ".join(f"{n} {split}" for split, n in entry.get("rows", {}).items())
            contents = contents or f"{len(entry['files'])} files"
            echo(f"{name}: {contents}; {entry['layout']}; licence {entry['licence']}")
        for problem in problems:
            echo(problem, err=True)
        echo(f"{folder} {'is not complete' if problems else 'is complete'}", err=True)
    if problems:
        raise typer.Exit(EXIT_INCOMPLETE)


COMMANDS = (
    ("tasks", tasks, ""),
    ("prepare", prepare, "~/mmlu/data.tar ~/grade_school_math/data ~/HumanEval.jsonl.gz"),
)
