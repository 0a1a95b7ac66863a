"""Commands that ask a model: run, resume."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evals.cli.given import AsJson, Data, Device, Dtype, Model, need_lm_eval, print_run


def run(
    tasks: Annotated[str, typer.Option(help="Benchmarks, with commas between; `workbench eval tasks` lists them.")],
    model: Model = "demo",
    output: Annotated[Path, typer.Option(help="The folder that results are written to.")] = Path("results"),
    limit: Annotated[int | None, typer.Option(min=1, help="Only this many questions of each task.")] = None,
    data: Data = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option("--num_fewshot", "--num-fewshot", min=0, help="Examples in each prompt; default the task's."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch_size", "--batch-size", min=1, help="Rows at once; default by tokens.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
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


COMMANDS = (
    ("run", run, "--model demo --tasks demo_mmlu,demo_gsm8k --limit 20"),
    ("resume", resume, "20261121-0930 --results results"),
)
