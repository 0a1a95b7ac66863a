"""Commands that run a model: run, resume, batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evals.cli import option_values, task_names
from evals.cli.data import tasks as list_tasks
from evals.cli.find_run import find, stopped_run
from evals.cli.model_choice import choose
from evals.cli.options import (
    AsJson,
    Data,
    Dtype,
    Model,
    TensorParallel,
    need_lm_eval,
    print_run,
    team_of,
)
from evals.cli.samples import print_difference
from evals.runtime.printing import echo
from workbench.command_options import Ablate, Adapter, Device, Intervene

if TYPE_CHECKING:
    from evals.results.runs import Run

EXIT_PARTIAL = 3
"""Exit code of a run if some tasks could not be run here, some questions could not be scored, or all are tied."""
EXIT_NO_SCORE = 1
"""Exit code of a run if no question of a task could be scored, because the logits were not finite."""


def run(
    tasks: Annotated[
        str,
        typer.Option(
            "--tasks",
            "-t",
            help="Benchmarks, separated by commas or spaces, or patterns such as 'mmlu_*'; `workbench eval tasks` "
            "lists them. Also allowed: your own JSON Lines file, YAML file with a task of lm-eval, or folder of them.",
        ),
    ] = "",
    suite: Annotated[
        list[Path] | None,
        typer.Option(help="A folder with your own suites (JSON Lines files), or one such file; can be repeated."),
    ] = None,
    include_path: Annotated[
        list[Path] | None,
        typer.Option(
            "--include_path",
            "--include-path",
            help="Folder with your own task definitions: lm-eval's YAML files and the Python code next to them, which "
            "runs on this machine; can be repeated.",
        ),
    ] = None,
    model: Model = "demo",
    output: Annotated[Path, typer.Option("--output", "--output_path", "-o", help="Folder to write results to.")] = Path(
        "results"
    ),
    limit: Annotated[
        float | None,
        typer.Option(
            "--limit", "-L", help="Number of questions per task; a value below 1 is a fraction of the questions."
        ),
    ] = None,
    data: Data = None,
    online: Annotated[
        bool,
        typer.Option(
            "--online/--offline",
            help="Download datasets from the Hugging Face hub if the data folder lacks them, and the model by name.",
        ),
    ] = False,
    preset: Annotated[
        str,
        typer.Option(help='Prompt preset: "lm-eval", or "meta" to reproduce Meta\'s model-card numbers.'),
    ] = "lm-eval",
    samples: Annotated[
        str | None,
        typer.Option(
            "--samples",
            "-E",
            help="Programs sampled per problem, with unbiased pass@k for every k of 1, 2, 5, 10, ... up to it; or, as "
            """in lm-eval, the questions to ask: '{"demo_mmlu": [0, 7]}', or a file of such JSON.""",
        ),
    ] = None,
    predict_only: Annotated[
        bool,
        typer.Option(
            "--predict_only",
            "-x",
            help="Write the answers without scores; needs no sandbox. `workbench eval score` scores them later.",
        ),
    ] = False,
    limits: Annotated[
        str,
        typer.Option(
            help="Limits of each generated program: seconds=20,memory=1073741824 (sizes in bytes), ..., or JSON."
        ),
    ] = "",
    num_fewshot: Annotated[
        int | None,
        typer.Option(
            "--num_fewshot",
            "--num-fewshot",
            "-f",
            min=0,
            help="Few-shot examples in each prompt; default: the task's number.",
        ),
    ] = None,
    batch_size: Annotated[
        str,
        typer.Option(
            "--batch_size", "--batch-size", "-b", help='Batch size in sequences; "auto" batches by token count.'
        ),
    ] = "auto",
    max_batch_size: Annotated[
        int | None, typer.Option("--max_batch_size", min=1, help="The largest batch size in sequences.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    adapter: Adapter = None,
    seed: Annotated[
        str,
        typer.Option(
            help="Seed of few-shot examples and sampling; if four seeds are given as in lm-eval, the last is used."
        ),
    ] = "1234",
    chat: Annotated[
        str,
        typer.Option(
            "--apply_chat_template",
            "--chat",
            metavar="[NAME]",
            help="Format prompts with the model's chat template; NAME is one of several templates.",
        ),
    ] = "",
    multiturn: Annotated[
        bool | None,
        typer.Option(
            "--fewshot_as_multiturn/--no_fewshot_as_multiturn",
            help="With a chat template: each few-shot example is a separate turn (default), or all are in one message.",
        ),
    ] = None,
    system: Annotated[str | None, typer.Option("--system_instruction", help="The system prompt.")] = None,
    gen_kwargs: Annotated[
        str,
        typer.Option(
            "--gen_kwargs",
            help="Generation arguments: do_sample=true,temperature=0.6,max_gen_toks=512, or "
            "JSON. Most tasks are greedy until do_sample is true.",
        ),
    ] = "",
    backend: Annotated[
        str,
        typer.Option(help='Model backend: "workbench", or a model type of lm-eval: hf, vllm, local-completions, ...'),
    ] = "workbench",
    model_args: Annotated[
        str,
        typer.Option(
            "--model_args", "-a", help="Arguments of an lm-eval backend: base_url=http://...,model=name, or JSON."
        ),
    ] = "",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust_remote_code", help="Let another --backend run code of the checkpoint.")
    ] = False,
    intervene: Intervene = None,
    ablate: Ablate = "",
    scale: Annotated[str, typer.Option(help="Heads and sublayers to multiply by a factor: L5H3=0.5,L2.mlp=2.")] = "",
    rope_scaling: Annotated[
        str,
        typer.Option(
            "--rope_scaling",
            "--rope-scaling",
            help="RoPE scaling instead of the model's own: interpolation=2, ntk=4, yarn=4, ...",
        ),
    ] = "",
    against: Annotated[
        str | None,
        typer.Option(
            help="Run to compare with; default with interventions: the same run without interventions in --output."
        ),
    ] = None,
    tensor_parallel: TensorParallel = 1,
    as_json: AsJson = False,
) -> None:
    """Run benchmarks, print their scores, and write results and samples in lm-eval's format.

    Exit codes: 0 if all tasks were run and all questions scored, 1 after a failure or if the model's logits were not
    finite for all questions of a task, 2 for invalid options, 3 if some tasks could not be run here or the logits were
    not finite for some questions, which are not scored, or all choices of all questions of a task are tied, 130 if the
    run was interrupted, 143 if it was terminated.

    `workbench eval resume` continues a stopped run. Under torchrun the questions are distributed over the processes.
    """
    if tasks.strip() == "list":
        list_tasks(data=data)
        return
    need_lm_eval()
    if output.suffix == ".json" and not output.is_dir():
        echo(f"--output_path {output}: results files have the time in their names; the folder is used.", err=True)
        output = output.parent
    choice = choose(
        model, backend, option_values.key_values(model_args, "--model_args"), trust_remote_code=trust_remote_code
    )
    programs, questions = option_values.samples(samples)
    settings: dict[str, Any] = {
        "tasks": (
            *task_names.expanded(tasks, include_path or ()),
            *(str(path.expanduser().absolute()) for path in suite or ()),
        ),
        "include_path": tuple(include_path or ()),
        "preset": preset,
        "samples": programs,
        "questions": questions,
        "predict_only": predict_only,
        "limits": option_values.key_values(limits, "--limits"),
        "online": online,
        "output": output,
        "data": data,
        "limit": limit if limit is None or limit < 1 else _whole(limit),
        "num_fewshot": num_fewshot,
        "batch_size": option_values.batch_size(batch_size, max_batch_size),
        "seed": option_values.seed(seed),
        "chat": bool(chat),
        "template": None if chat in ("", "true") else chat,
        "multiturn": multiturn,
        "system": system,
        "gen_kwargs": option_values.key_values(gen_kwargs, "--gen_kwargs"),
        "backend": choice.backend,
        "model_args": choice.args,
        "adapter": Path(choice.options["peft"]) if "peft" in choice.options else adapter,
    }
    from evals.run.evaluate import evaluate
    from evals.run.settings import Settings

    if any((intervene, ablate, scale, rope_scaling)):
        from workbench.checkpoint import read_config
        from workbench.hooks.intervention_options import InterventionOptions

        changes = InterventionOptions(intervene, ablate, scale, rope_scaling)
        settings["interventions"] = changes.interventions(read_config(choice.path))
    baseline = None if against is None else find(against, output)
    team = team_of(tensor_parallel)
    where = {name: choice.options.get(name, value) for name, value in (("device", device), ("dtype", dtype))}
    finished = evaluate(choice.path, Settings(**settings), **where, team=team)
    report_finished(finished, team, as_json=as_json, against=baseline)


def resume(
    run: Annotated[
        str,
        typer.Argument(
            help="Name of the run, or its start, as `workbench eval list` shows it; or the folder of a stopped run."
        ),
    ],
    results: Annotated[Path, typer.Option("--results", help="Results folder of the run.")] = Path("results"),
    backend: Annotated[
        str, typer.Option(help="The run's backend; it can run code, so it is not taken from the results folder.")
    ] = "workbench",
    model_args: Annotated[
        str, typer.Option("--model_args", help="The arguments of that backend, as in the run that was stopped.")
    ] = "",
    include_path: Annotated[
        list[Path] | None,
        typer.Option(
            "--include_path",
            "--include-path",
            help="Files or folders of task definitions that the run may use; needed if it uses any, because they can "
            "run any code.",
        ),
    ] = None,
    tensor_parallel: TensorParallel = 1,
    as_json: AsJson = False,
) -> None:
    """Continue a run that was stopped; questions that it has answered are not asked again."""
    arguments = option_values.key_values(model_args, "--model_args")
    need_lm_eval()
    from evals.run.evaluate import resume as go_on

    team = team_of(tensor_parallel)
    name, folder = team.broadcast(lambda: stopped_run(run, results))
    finished = go_on(folder, name, backend=backend, model_args=arguments, include_path=include_path or (), team=team)
    report_finished(finished, team, as_json=as_json)


def batch(
    file: Annotated[Path, typer.Argument(help="YAML file with models, tasks and interventions.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the runs and their status.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a sweep: every model on every group of tasks with every intervention of a YAML file.

    The file has an output folder and lists of models and tasks; interventions and defaults are optional. Example:
    {output: results/sweep, models: [demo, {path: FOLDER, dtype: float32}], tasks: [mmlu, {tasks: [gsm8k_cot],
    num_fewshot: 8}], interventions: [none, {ablate: L5H3}], defaults: {limit: 200}}. The options have the same names as
    those of `run`.

    Finished runs are skipped, stopped runs are continued, and a failed run does not stop the others. Exit codes: 1 if a
    run failed or has a task without a score; 3 if some tasks could not be run here, some questions were not scored
    because the model's logits were not finite, or a run is in progress in another process.
    """
    need_lm_eval()
    from evals.results import json_text
    from evals.run import sweep, sweep_config

    team = team_of(1)
    results = sweep.run(sweep_config.read(file), dry_run=dry_run)
    failed = [result for result in results if result.error]
    if team.is_main:
        rows = [result.to_dict() for result in results]
        echo(json_text.dumps(rows, indent=2) if as_json else sweep.table(results))
        for result in failed:
            echo(f"{result.name} failed: {result.error}", err=True)
        for result in filter(lambda result: result.note, results):
            echo(f"{result.name}: {result.note}", err=True)
        for result in results:
            for name in result.not_finite:
                assert result.run is not None
                echo(f"{result.name}: {result.run.not_finite_note(name)}", err=True)
    team.close()
    if failed:
        raise typer.Exit(1)
    code = exit_code([result.run for result in results if result.run])
    if code or any(result.note for result in results):
        raise typer.Exit(code or EXIT_PARTIAL)


def report_finished(finished: Run, team: Any, *, as_json: bool, against: Run | None = None) -> None:
    """Print the scores of a run in the main process; with interventions, also the difference to the baseline."""
    if team.is_main:
        echo(f"written to {finished.path}", err=True)
        print_run(finished, as_json=as_json)
        print_difference(finished, against, err=as_json)
    team.close()
    if code := exit_code([finished]):
        raise typer.Exit(code)


def exit_code(finished: Sequence[Run]) -> int:
    """1 if a task has no score, 3 if a task was not run or a question was left out, else 0."""
    if any(run.without_score for run in finished):
        return EXIT_NO_SCORE
    from evals.results.answer_counts import all_tied

    incomplete = any(run.not_run or run.not_finite or run.not_judged or all_tied(run) for run in finished)
    return EXIT_PARTIAL if incomplete else 0


def _whole(limit: float) -> float:
    return int(limit) if limit.is_integer() else limit  # `Settings` rejects other values


COMMANDS = (
    ("run", run, "--model demo --tasks demo_mmlu,demo_gsm8k --limit 20"),
    ("resume", resume, "20261121-0930 --results results"),
    ("batch", batch, "sweep.yaml"),
)
