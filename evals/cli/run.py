"""Commands that ask a model: run, resume, batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evals.cli.find_run import find
from evals.cli.options import AsJson, Data, Device, Dtype, Model, TensorParallel, need_lm_eval, print_run, team_of
from evals.cli.samples import print_difference

if TYPE_CHECKING:
    from evals.results.runs import Run

EXIT_PARTIAL = 3
"""Exit code of a run some of whose tasks could not be run here."""


def run(
    tasks: Annotated[
        str,
        typer.Option(help="Benchmarks, with commas between; `workbench eval tasks` lists them. Or a file of your own."),
    ] = "",
    suite: Annotated[
        list[Path] | None, typer.Option(help="A folder of your own suites as JSON lines, or one such file.")
    ] = None,
    model: Model = "demo",
    output: Annotated[
        Path, typer.Option("--output", "--output_path", help="The folder that results are written to.")
    ] = Path("results"),
    limit: Annotated[
        float | None, typer.Option(help="Only this many questions of each task; below 1, that fraction of them.")
    ] = None,
    data: Data = None,
    online: Annotated[
        bool, typer.Option("--online/--offline", help="Let the hub give the data sets that the data folder has not.")
    ] = False,
    preset: Annotated[
        str, typer.Option(help="Whose way of asking: lm-eval's, or meta's, for the figures of the model cards.")
    ] = "lm-eval",
    samples: Annotated[
        int | None, typer.Option(min=1, help="Programs for each problem; pass@1, 10 and 100 follow, unbiased.")
    ] = None,
    limits: Annotated[
        str, typer.Option(help="Of each program: seconds=20,memory=1073741824, ... in bytes, or JSON.")
    ] = "",
    num_fewshot: Annotated[
        int | None,
        typer.Option("--num_fewshot", "--num-fewshot", min=0, help="Examples in each prompt; default the task's."),
    ] = None,
    batch_size: Annotated[
        str, typer.Option("--batch_size", "--batch-size", help="Rows at once; auto goes by tokens.")
    ] = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Annotated[
        str, typer.Option(help="Seed of the few-shot examples and of sampling; of lm-eval's four, the last.")
    ] = "1234",
    chat: Annotated[bool, typer.Option("--apply_chat_template", "--chat", help="Ask in the model's chat format.")] = (
        False
    ),
    multiturn: Annotated[
        bool | None,
        typer.Option(
            "--fewshot_as_multiturn/--no_fewshot_as_multiturn",
            help="In a chat, each example is a turn of its own; so by default.",
        ),
    ] = None,
    system: Annotated[str | None, typer.Option("--system_instruction", help="The system prompt.")] = None,
    gen_kwargs: Annotated[
        str, typer.Option("--gen_kwargs", help="Of generation: temperature=0.6,top_p=0.9,max_gen_toks=512, or JSON.")
    ] = "",
    backend: Annotated[
        str, typer.Option(help="Another of lm-eval's models: hf, vllm, local-completions, ...")
    ] = "workbench",
    model_args: Annotated[
        str, typer.Option("--model_args", help="What that model is made with: base_url=http://...,model=name, or JSON.")
    ] = "",
    intervene: Annotated[Path | None, typer.Option(help="Interventions on the model, from a JSON file.")] = None,
    ablate: Annotated[str, typer.Option(help="Heads and sublayers set to zero: L5H3,L2.mlp.")] = "",
    scale: Annotated[str, typer.Option(help="Heads and sublayers multiplied: L5H3=0.5,L2.mlp=2.")] = "",
    rope_scaling: Annotated[
        str,
        typer.Option("--rope_scaling", "--rope-scaling", help="Another rotation: interpolation=2, ntk=4, yarn=4, ..."),
    ] = "",
    against: Annotated[
        str | None,
        typer.Option(help="A run to compare with; under interventions, by default the plain one in --output."),
    ] = None,
    tensor_parallel: TensorParallel = 1,
    as_json: AsJson = False,
) -> None:
    """Run benchmarks, print their scores, and write results and samples as lm-eval does.

    Exit code 0 if all was run, 1 after a failure, 2 for a mistake in what was asked, 3 if some tasks could not be run
    here, 130 if it was interrupted; a stopped run is taken up by `workbench eval resume`. Under torchrun, the
    processes share the questions.
    """
    settings: dict[str, Any] = {
        "tasks": (
            *(name.strip() for name in tasks.split(",") if name.strip()),
            *(str(path.expanduser().absolute()) for path in suite or ()),
        ),
        "preset": preset,
        "samples": samples,
        "limits": pairs(limits, "--limits"),
        "online": online,
        "output": output,
        "data": data,
        "limit": limit if limit is None or limit < 1 else _whole(limit),
        "num_fewshot": num_fewshot,
        "batch_size": _batch_size(batch_size),
        "seed": _seed(seed),
        "chat": chat,
        "multiturn": multiturn,
        "system": system,
        "gen_kwargs": pairs(gen_kwargs, "--gen_kwargs"),
        "backend": backend,
        "model_args": pairs(model_args, "--model_args"),
    }
    need_lm_eval()
    from evals.run.evaluate import evaluate
    from evals.run.settings import OURS, Settings

    if any((intervene, ablate, scale, rope_scaling)):
        from evals.interventions import Changes
        from workbench.checkpoint import read_config

        changes = Changes(intervene, ablate, scale, rope_scaling)
        settings["interventions"] = changes.interventions(read_config(model))
    other = None if against is None else find(against, output)
    # lm-eval's models know no demo; theirs stands in --model_args
    path = "" if backend != OURS and model == "demo" else model
    team = team_of(tensor_parallel)
    finished = evaluate(path, Settings(**settings), device=device, dtype=dtype, team=team)
    deliver(finished, team, as_json=as_json, against=other)


def resume(
    run: Annotated[str, typer.Argument(help="A run's name, or its beginning; `workbench eval list` shows them.")],
    results: Annotated[Path, typer.Option("--results", help="The folder that the run writes to.")] = Path("results"),
    tensor_parallel: TensorParallel = 1,
    as_json: AsJson = False,
) -> None:
    """Go on with a run that was stopped; what it has answered is not asked again."""
    need_lm_eval()
    from evals.run.evaluate import resume as go_on

    team = team_of(tensor_parallel)
    deliver(go_on(results, run, team=team), team, as_json=as_json)


def batch(
    file: Annotated[Path, typer.Argument(help="A YAML file of models, tasks and interventions.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the runs, and what is done of them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run every model on every group of tasks under every intervention that a file names.

    The file has an output folder and lists of models and tasks, and may have interventions and defaults: {output:
    results/sweep, models: [demo, {path: FOLDER, dtype: float32}], tasks: [mmlu, {tasks: [gsm8k_cot], num_fewshot: 8}],
    interventions: [none, {ablate: L5H3}], defaults: {limit: 200}}. Options bear the names that `run` gives them.

    What is finished is not run again, what was stopped is taken up, and a run that fails does not stop the others; the
    exit code is then 1; it is 3 where something was not run here, or is running in another process.
    """
    need_lm_eval()
    from evals.run import sweep, sweep_config

    team = team_of(1)
    done = sweep.run(sweep_config.read(file), dry_run=dry_run)
    failed = [one for one in done if one.error]
    if team.is_main:
        typer.echo(json.dumps([one.to_dict() for one in done], indent=2) if as_json else sweep.table(done))
        for one in failed:
            typer.echo(f"{one.name} failed: {one.error}", err=True)
        for one in filter(lambda one: one.note, done):
            typer.echo(f"{one.name}: {one.note}", err=True)
    team.close()
    if failed:
        raise typer.Exit(1)
    if any(one.not_run or one.note for one in done):
        raise typer.Exit(EXIT_PARTIAL)


def deliver(finished: Run, team: Any, *, as_json: bool, against: Run | None = None) -> None:
    """Say what a run found, in the one process that speaks; of one under interventions, also what they changed."""
    if team.is_main:
        typer.echo(f"written to {finished.path}", err=True)
        print_run(finished, as_json=as_json)
        print_difference(finished, against, err=as_json)
    team.close()
    if finished.not_run:
        raise typer.Exit(EXIT_PARTIAL)


def pairs(text: str, option: str) -> dict[str, Any]:
    """`key=value,key=value`, or a JSON object; values are JSON where they can be, else text.

    Raises: BadParameter for anything else.
    """
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise typer.BadParameter(f"is not JSON: {error}", param_hint=option) from error
        return dict(found)
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise typer.BadParameter(f"expected key=value, found {part!r}", param_hint=option)
        found[key.strip()] = _value(value.strip())
    return found


def _value(text: str) -> Any:
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except ValueError:
        return text


def _whole(limit: float) -> float:
    return int(limit) if limit.is_integer() else limit  # settings refuse the rest


def _batch_size(text: str) -> int | None:
    if text.startswith("auto"):
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"expected a number of rows or auto, found {text!r}", param_hint="--batch_size")
    return int(text)


def _seed(text: str) -> int:
    last = text.split(",")[-1].strip()
    if not last.isdecimal() or text.count(",") not in (0, 3):
        raise typer.BadParameter(f"expected one number, or lm-eval's four, found {text!r}", param_hint="--seed")
    return int(last)


COMMANDS = (
    ("run", run, "--model demo --tasks demo_mmlu,demo_gsm8k --limit 20"),
    ("resume", resume, "20261121-0930 --results results"),
    ("batch", batch, "sweep.yaml"),
)
