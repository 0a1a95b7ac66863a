"""Commands for stored runs: list, show, export, gc."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evals.cli.find_run import find, find_unfinished, resume_advice, resume_command, unfinished_error
from evals.cli.options import AsJson, Cluster, Results, print_run
from evals.cli.samples import Checkpoint, Explain, Position, SampleName, Top, show_sample
from evals.runtime.printing import echo
from workbench.command_options import Device
from workbench.errors import DataError

if TYPE_CHECKING:
    from evals.store.store import UnfinishedRun

RunName = Annotated[
    str | None, typer.Argument(help="A results file, a folder, or part of a run's name; default: the newest run.")
]


def list_runs(results: Results = Path("results"), as_json: AsJson = False) -> None:
    """List runs, newest first: stopped and running ones, then finished ones."""
    from evals.results.runs import scan
    from evals.store.store import unfinished

    open_runs, store_problems = unfinished(results)
    runs, problems = scan(results)
    problems += store_problems
    for problem in problems:
        echo(problem, err=True)
    if not runs and not open_runs and not problems:
        raise DataError(
            f"no runs in {results}; make one with `workbench eval run`, or name another folder with --results."
        )
    if as_json:
        rows: list[dict[str, Any]] = [_unfinished_json(unfinished_run) for unfinished_run in open_runs]
        for finished in runs:
            store_name = finished.provenance.get("run")
            rows.append(
                {
                    "run": store_name or finished.name,
                    "status": "finished",
                    "path": str(finished.path),
                    "model": finished.model,
                }
            )
            rows[-1]["tasks"] = finished.tasks
        echo(json.dumps(rows, indent=2))
        return
    for unfinished_run in open_runs:
        _print_unfinished(unfinished_run)
    for finished in runs:
        task_names = ", ".join(finished.tasks) if len(finished.tasks) < 6 else f"{len(finished.tasks)} tasks"
        store_name = finished.provenance.get("run")
        echo(f"{finished.name}  {finished.model}  {task_names}" + (f"  run {store_name}" if store_name else ""))


def show(
    run: RunName = None,
    sample: SampleName = None,
    explain: Explain = False,
    top: Top = 5,
    position: Position = None,
    model: Checkpoint = None,
    device: Device = "auto",
    cluster: Cluster = None,
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Print the scores of a run, or one sample. For an unfinished run, print its progress without scores.

    With --explain the sample is run again with the interventions of the run. The output shows the token where the given
    and the right answer diverge, the contribution of each layer and part of the model at that token, and whether the
    log-probabilities match the stored ones.
    """
    if sample is not None:
        show_sample(
            find(run, results), sample,
            explained=explain, top=top, position=position, model=model, device=device, as_json=as_json,
        )  # fmt: skip
        return
    if explain or position is not None or model is not None:
        raise DataError("--explain, --position and --model need --sample TASK/ID.")
    if run is not None and not Path(run).exists() and (unfinished_run := find_unfinished(run, results)):
        if as_json:
            echo(json.dumps(_unfinished_json(unfinished_run), indent=2))
        else:
            _print_unfinished(unfinished_run)
            echo("The run is not finished: it has no scores yet.")
        return
    print_run(find(run, results, cluster=cluster), as_json=as_json)


def export(
    run: RunName = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("exported"),
    results: Results = Path("results"),
) -> None:
    """Copy a run's files in lm-eval's format to another folder, and write its samples as CSV and Parquet."""
    from evals.results.export import export as write

    if run is not None and not Path(run).exists() and (unfinished_run := find_unfinished(run, results)):
        raise unfinished_error(unfinished_run)
    finished = find(run, results)
    written = write(finished, output)
    for path in written:
        echo(path)
    names = {path.name for path in written}
    if without_samples := [task for task in finished.tasks if f"samples_{task}_{finished.stamp}.jsonl" not in names]:
        echo(
            f"there are no sample files of {', '.join(without_samples)} next to {finished.path}; only the scores were "
            "exported.",
            err=True,
        )


def gc(
    results: Annotated[Path, typer.Option("--results", help="Results folder of the store.")] = Path("results"),
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", help="First remove this run from the store, not its results files; can be repeated."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be deleted.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also drop a run that is recorded as running on another machine.")
    ] = False,
) -> None:
    """Delete stored answers of runs that are no longer in the store."""
    from evals.store.store import Store

    with Store.open(results, create=False) as store:
        names = [store.run(name).id for name in drop or []]
        count, size = store.gc(without=names, dry_run=dry_run, force=force)
    summary = f"{count:,} answers of {len(names)} dropped runs and of deleted runs, {size / 2**20:.1f} MiB"
    echo(f"would delete {summary}" if dry_run else f"deleted {summary}")


def _unfinished_json(unfinished_run: UnfinishedRun) -> dict[str, Any]:
    request = unfinished_run.run.settings
    return {
        "run": unfinished_run.run.id,
        "status": unfinished_run.run.status,
        "model": request.get("model"),
        "tasks": request.get("settings", {}).get("tasks", []),
        "answers_kept": unfinished_run.answers,
        "error": unfinished_run.run.error,
        "started": unfinished_run.run.started,
        "resume": resume_command(unfinished_run).strip("`") if resume_advice(unfinished_run) else None,
    }


def _print_unfinished(unfinished_run: UnfinishedRun) -> None:
    summary = _unfinished_json(unfinished_run)
    tasks = summary["tasks"]
    task_names = ", ".join(tasks) if len(tasks) < 6 else f"{len(tasks)} tasks"
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(unfinished_run.run.started))
    echo(f"[{unfinished_run.run.status}] {unfinished_run.run.id}  {summary['model']}  {task_names}  started {started}")
    error = f"{unfinished_run.run.error.splitlines()[0]}; " if unfinished_run.run.error else ""
    advice = resume_advice(unfinished_run)
    echo(f"    {error}{unfinished_run.answers:,} answers saved" + (f"; {advice}" if advice else ""))


COMMANDS = (
    ("list", list_runs, "--results results"),
    ("show", show, "results/demo --sample demo_mmlu/17 --explain"),
    ("export", export, "20261121-0930 --output exported"),
    ("gc", gc, "--results results --dry-run"),
)
