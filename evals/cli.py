"""`workbench eval`: run benchmarks, list what there is, show what was found.

Results go to stdout, progress to stderr. lm_eval is imported only when a command needs it.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from evals.results import Run

app = typer.Typer(
    help="Run benchmarks on a checkpoint, and read what they found.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Results = Annotated[Path, typer.Option("--results", help="The folder that runs are looked for in, at any depth.")]


@app.command(epilog="Example: workbench eval run --model demo --tasks demo_mmlu,demo_gsm8k --limit 20")
def run(
    tasks: Annotated[str, typer.Option(help="Benchmarks, with commas between; `workbench eval tasks` lists them.")],
    model: Annotated[str, typer.Option(help="A Meta or Hugging Face checkpoint folder, or 'demo'.")] = "demo",
    output: Annotated[Path, typer.Option(help="The folder that results are written to.")] = Path("results"),
    limit: Annotated[int | None, typer.Option(min=1, help="Only this many questions of each task.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of benchmark files: mmlu/{dev,test}/*.csv, gsm8k/*.jsonl, humaneval/*.jsonl.gz."),
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option("--num_fewshot", "--num-fewshot", min=0, help="Examples in each prompt; default the task's."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch_size", "--batch-size", min=1, help="Rows at once; default by tokens.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16, float32, or auto: the checkpoint's own.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the few-shot examples and of sampling.")] = 1234,
    chat: Annotated[bool, typer.Option("--chat", help="Ask in Llama 3's chat format.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run benchmarks, print their scores, and write results and samples as lm-eval does."""
    need_lm_eval()
    from evals.run import Settings, evaluate

    settings = Settings(
        tasks=tuple(name.strip() for name in tasks.split(",") if name.strip()),
        output=output,
        data=data,
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=batch_size,
        seed=seed,
        chat=chat,
    )
    finished = evaluate(model, settings, device=device, dtype=dtype)
    typer.echo(f"written to {finished.path}", err=True)
    print_run(finished, as_json=as_json)


@app.command(epilog="Example: workbench eval resume 20261121-0930 --results results")
def resume(
    run: Annotated[str, typer.Argument(help="A run's name, or its beginning; `workbench eval list` shows them.")],
    results: Annotated[Path, typer.Option("--results", help="The folder that the run writes to.")] = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Go on with a run that was stopped; what it has answered is not asked again."""
    need_lm_eval()
    from evals.run import resume as go_on

    finished = go_on(results, run)
    typer.echo(f"written to {finished.path}", err=True)
    print_run(finished, as_json=as_json)


@app.command(name="tasks", epilog="Example: workbench eval tasks")
def list_tasks() -> None:
    """List the benchmarks that can be run."""
    need_lm_eval()
    from evals import suites

    for name in suites.names():
        typer.echo(name)


@app.command(name="list", epilog="Example: workbench eval list --results results")
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


@app.command(epilog="Example: workbench eval show results/demo")
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


def print_run(run: Run, *, as_json: bool) -> None:
    from evals import table

    if not as_json:
        source = run.provenance
        if source:
            sha = str(source.get("checkpoint_sha256") or "no file")[:12]
            typer.echo(f"model {run.model} ({sha}), {source.get('dtype')} on {source.get('device')}\n")
        typer.echo(table.render(run))
        return
    report: dict[str, Any] = {
        "path": str(run.path),
        "model": run.model,
        "scores": [vars(score) for score in run.scores],
        "not_run": run.not_run,
        "provenance": run.provenance,
    }
    typer.echo(json.dumps(report, indent=2, default=str))


def need_lm_eval() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError("lm_eval", "eval")
