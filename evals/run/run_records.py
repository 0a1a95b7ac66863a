"""What a run writes down: where its numbers come from, its samples in lm-eval's form, and rows for the store's index.

Knows nothing of how questions are answered.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from evals import sandbox
from evals.results import runs
from workbench import provenance

if TYPE_CHECKING:
    from evals.models.lm_eval_backend import Backend
    from evals.models.workbench_lm import WorkbenchLM
    from evals.results.runs import Run
    from evals.run.settings import Settings
    from evals.tasks.code_metrics import CodeGrader
    from evals.tasks.registry import Suites


def account(
    lm: WorkbenchLM | Backend, loaded: Suites, settings: Settings, judge: CodeGrader, *, started: float
) -> dict[str, Any]:
    """Where the numbers come from: lm-eval's own keys, and ours."""
    versions = provenance.versions("lm-eval", "datasets", "tiktoken", "llama-workbench", *lm.packages)
    origin = lm.origin()
    name = str(origin["path"] or "unnamed")
    dtype, device, limit = lm.dtype_name, str(lm.device), settings.limit
    return {
        "config": {
            "model": settings.backend,
            "model_args": {"pretrained": name, "dtype": dtype, **settings.model_args},
            "model_dtype": dtype,
            "model_num_parameters": lm.parameters,
            "batch_size": settings.batch_size,
            "device": device,
            "limit": limit,
            "gen_kwargs": dict(settings.gen_kwargs) or None,
            "fewshot_seed": settings.seed,
        },
        "git_hash": origin["commit"],
        "date": started,
        "lm_eval_version": versions.get("lm-eval"),
        "model_source": settings.backend,
        "model_name": name,
        "model_name_sanitized": "".join(c if c.isalnum() or c in "-_." else "_" for c in name),
        "max_length": lm.max_length,
        "eot_token_id": lm.eot_token_id,
        "chat_template": lm.chat_template(settings.chat),
        "system_instruction": settings.system,
        "fewshot_as_multiturn": settings.chats_in_turns,
        "total_evaluation_time_seconds": str(time.time() - started),
        runs.PROVENANCE: {
            **origin,
            "versions": versions,
            "dtype": dtype,
            "device": device,
            "seed": settings.seed,
            "limit": limit,
            "tasks": list(settings.tasks),
            "backend": settings.backend,
            "gen_kwargs": dict(settings.gen_kwargs),
            "preset": settings.preset,
            "chat": settings.chat,
            "samples": settings.samples,
            **hashes(loaded),
            "sandbox": sandboxed(judge, loaded),
        },
    }


def hashes(loaded: Suites) -> dict[str, dict[str, str | None]]:
    """Of each task's questions and of its examples, the SHA-256; None where there are none or they are not known."""
    kinds = ("data_sha256", "examples_sha256")
    return {kind: {name: getattr(task, kind, None) for name, task in loaded.tasks.items()} for kind in kinds}


def sandboxed(judge: CodeGrader, loaded: Suites) -> dict[str, Any] | None:
    """What held the generated programs, and the limits they had; None where no task has any."""
    if not loaded.runs_code():
        return None
    return {"engine": (judge.engine or sandbox.require()).name, **judge.limits.to_dict()}


def samples(
    task: str, rows: list[dict[str, Any]], lm: WorkbenchLM | Backend, judge: CodeGrader
) -> Iterator[dict[str, Any]]:
    """Samples in the form of lm-eval's own file, each with the ids that replay it and what became of its code."""
    for row in sorted(rows, key=lambda row: row["doc_id"]):
        arguments = row["arguments"]
        extra: dict[str, Any] = {"replay": lm.replay(task, row)}
        executions = [judge.runs.get((code, str(row["target"]))) for code in _programs(row)]
        if any(run is not None for run in executions):
            extra["execution"] = [asdict(run) for run in executions if run is not None]
        yield {
            **row,
            "resps": texts(row["resps"]),
            "filtered_resps": texts(row["filtered_resps"]),
            "arguments": {
                f"gen_args_{i}": {f"arg_{j}": value for j, value in enumerate(argument)}
                for i, argument in enumerate(arguments)
            },
            "target": str(row["target"]),
            **extra,
        }


def texts(value: Any) -> Any:
    """Lists of answers with every answer as text, which is how lm-eval's sample files have them."""
    return [texts(part) for part in value] if isinstance(value, list | tuple) else str(value)


def metrics(run: Run) -> Iterator[tuple[Any, ...]]:
    """A run's scores as rows of the store."""
    for s in run.scores:
        yield s.task, s.metric, s.filter, s.average, s.n, s.value, s.stderr, s.low, s.high


def programs(written: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[list[int]]]:
    """Of each task whose answers are programs, how many problems have so many samples and so many right ones.

    Shapes: [kind of problem] of (samples, right ones, problems)
    """
    found = {}
    for task, rows in written.items():
        verdicts = [[run["verdict"] == "passed" for run in row["execution"]] for row in rows if "execution" in row]
        if counts := Counter((len(passed), sum(passed)) for passed in verdicts):
            found[task] = [[*kind, number] for kind, number in sorted(counts.items())]
    return found


def verdicts(written: Mapping[str, list[dict[str, Any]]]) -> Iterator[tuple[Any, ...]]:
    """A run's samples as rows of the store: right, wrong, or the metric's value."""
    for task, rows in written.items():
        for row in rows:
            metric = row["metrics"][0] if row.get("metrics") else None
            correct = None if metric is None else float(row[metric])
            yield task, row["doc_id"], row.get("filter", "none"), metric, correct


def _programs(row: Mapping[str, Any]) -> list[str]:
    """The programs of a sample whose filter made some: a list of texts a request."""
    return [code for codes in row["filtered_resps"] if isinstance(codes, list) for code in codes]
