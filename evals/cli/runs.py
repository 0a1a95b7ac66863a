"""Commands that look at what there is, and tidy it: list, show, export, gc."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evals.cli.find_run import find, not_finished, open_run, resume_command
from evals.cli.options import AsJson, Cluster, Device, Results, print_run
from evals.cli.samples import Checkpoint, Explain, Position, SampleName, Top, show_sample
from workbench.errors import DataError

if TYPE_CHECKING:
    from evals.store.store import UnfinishedRun

RunName = Annotated[
    str | None, typer.Argument(help="A results file, a folder, or part of a run's name; default the newest.")
]


def list_runs(results: Results = Path("results"), as_json: AsJson = False) -> None:
    """List runs, newest first: those that were stopped or are running, then those that are finished."""
    from evals.results.runs import scan
    from evals.store.store import unfinished

    open_runs, troubles = unfinished(results)
    runs, problems = scan(results)
    problems += troubles
    for problem in problems:
        typer.echo(problem, err=True)
    if not runs and not open_runs and not problems:
        raise DataError(f"no runs in {results}; `workbench eval run` makes some, --results looks elsewhere.")
    if as_json:
        rows: list[dict[str, Any]] = [_told(one) for one in open_runs]
        for r in runs:
            own = r.provenance.get("run")
            rows.append({"run": own or r.name, "status": "finished", "path": str(r.path), "model": r.model})
            rows[-1]["tasks"] = r.tasks
        typer.echo(json.dumps(rows, indent=2))
        return
    for one in open_runs:
        _print_open(one)
    for r in runs:
        what = ", ".join(r.tasks) if len(r.tasks) < 6 else f"{len(r.tasks)} tasks"
        own = r.provenance.get("run")
        typer.echo(f"{r.name}  {r.model}  {what}" + (f"  run {own}" if own else ""))


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
    """Print the scores of one run, or one sample; of a run that is not finished, how far it is, and no scores.

    With --explain the sample is run again under the interventions that the run had: where its answer parts from the
    right one, by layer and by part of the model, and whether the log-probabilities are still the stored ones.
    """
    if sample is not None:
        show_sample(
            find(run, results), sample,
            explained=explain, top=top, position=position, model=model, device=device, as_json=as_json,
        )  # fmt: skip
        return
    if explain or position is not None or model is not None:
        raise DataError("--explain, --position and --model go with --sample TASK/ID.")
    if run is not None and not Path(run).exists() and (one := open_run(run, results)):
        if as_json:
            typer.echo(json.dumps(_told(one), indent=2))
        else:
            _print_open(one)
            typer.echo("It is not finished: there are no scores, an average over its part would be none of the whole.")
        return
    print_run(find(run, results, cluster=cluster), as_json=as_json)


def export(
    run: RunName = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write to.")] = Path("exported"),
    results: Results = Path("results"),
) -> None:
    """Write a run's files elsewhere as lm-eval has them, and its samples as CSV and Parquet."""
    from evals.results.export import export as write

    if run is not None and not Path(run).exists() and (one := open_run(run, results)):
        raise not_finished(one)
    found = find(run, results)
    written = write(found, output)
    for path in written:
        typer.echo(path)
    names = {path.name for path in written}
    if bare := [task for task in found.tasks if f"samples_{task}_{found.stamp}.jsonl" not in names]:
        typer.echo(f"there are no samples of {', '.join(bare)} beside {found.path}; its scores alone went.", err=True)


def gc(
    results: Annotated[Path, typer.Option("--results", help="The folder of the store.")] = Path("results"),
    drop: Annotated[
        list[str] | None, typer.Option("--drop", help="First forget this run; may be repeated. Its results files stay.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
) -> None:
    """Delete the kept answers of runs that the store has forgotten."""
    from evals.store.store import Store

    with Store.open(results, create=False) as store:
        names = [store.run(name).id for name in drop or []]
        count, size = store.gc(without=names, dry_run=dry_run)
    said = f"{count:,} answers of {len(names)} dropped runs and of runs that are gone, {size / 2**20:.1f} MiB"
    typer.echo(f"would delete {said}" if dry_run else f"deleted {said}")


def _told(one: UnfinishedRun) -> dict[str, Any]:
    asked = one.run.settings
    return {
        "run": one.run.id,
        "status": one.run.status,
        "model": asked.get("model"),
        "tasks": asked.get("settings", {}).get("tasks", []),
        "answers_kept": one.answers,
        "error": one.run.error,
        "started": one.run.started,
        "resume": None if one.run.status == "running" else resume_command(one).strip("`"),
    }


def _print_open(one: UnfinishedRun) -> None:
    told = _told(one)
    tasks = told["tasks"]
    about = ", ".join(tasks) if len(tasks) < 6 else f"{len(tasks)} tasks"
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.run.started))
    typer.echo(f"[{one.run.status}] {one.run.id}  {told['model']}  {about}  started {started}")
    error = f"{one.run.error.splitlines()[0]}; " if one.run.error else ""
    go_on = "" if one.run.status == "running" else f"; {resume_command(one)} goes on"
    typer.echo(f"    {error}{one.answers:,} answers kept{go_on}")


COMMANDS = (
    ("list", list_runs, "--results results"),
    ("show", show, "results/demo --sample demo_mmlu/17 --explain"),
    ("export", export, "20261121-0930 --output exported"),
    ("gc", gc, "--results results --dry-run"),
)
