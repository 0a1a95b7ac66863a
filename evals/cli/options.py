"""Shared options of the commands, and the printing of a run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evals.runtime.printing import echo
from workbench.errors import MissingExtraError

if TYPE_CHECKING:
    from evals.results.runs import Run
    from evals.runtime.distributed import Team

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Results = Annotated[Path, typer.Option("--results", help="Folder to search for runs, including its subfolders.")]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-M",
        "-m",
        help="A checkpoint folder or GGUF file, 'demo', 'smollm2', or ORG/NAME in the Hugging Face cache.",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Folder with benchmark data, made by `workbench eval prepare`; default: $WORKBENCH_DATA, otherwise the "
        "platform's user data folder."
    ),
]
Dtype = Annotated[str, typer.Option(help="bfloat16, float16, float32, or auto (the checkpoint's dtype).")]
TensorParallel = Annotated[
    int, typer.Option("--tensor_parallel", min=1, help="Under torchrun: tensor parallel size, processes per model.")
]
Cluster = Annotated[
    str | None,
    typer.Option(help="Cluster standard errors by this field of the questions' documents, for example passage."),
]


def need_lm_eval() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError("lm_eval", "eval")


def print_run(run: Run, *, as_json: bool) -> None:
    from evals.report import headlines, terminal_table
    from evals.results import answer_counts, json_text

    if not as_json:
        source = run.provenance
        if source:
            sha = str(source.get("checkpoint_sha256") or "no file")[:12]
            echo(f"model {run.model} ({sha}), {source.get('dtype')} on {source.get('device')}\n")
        echo(terminal_table.render(run))
        if source.get("preset") == "meta":
            for score, rule in headlines.headlines(run):
                echo(f"{score.task}, this run's score by Meta's rule: {score.value:.1%} ({rule.source})")
        return
    report: dict[str, Any] = {
        "path": str(run.path),
        "model": run.model,
        "scores": [vars(score) for score in run.scores],
        "headlines": {score.task: vars(score) for score, _ in headlines.headlines(run)},
        "not_run": run.not_run,
        "not_finite": run.not_finite,
        **{kind: run.provenance.get(kind) or {} for kind in answer_counts.COLUMNS},
        "notes": answer_counts.notes(run),
        "provenance": run.provenance,
    }
    echo(json_text.dumps(report, indent=2, default=str))


def team_of(tensor_parallel: int) -> Team:
    """The group of processes started by torchrun that this process belongs to."""
    from evals.runtime.distributed import join

    return join(tensor_parallel)
