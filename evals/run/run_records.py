"""Run metadata, samples in lm-eval's format, and rows for the store's index.

Does not know how questions are answered.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from evals import sandbox
from evals.results import answer_counts, runs
from evals.run import lm_eval_record
from evals.run.settings import OURS
from evals.sandbox.packages import PACKAGES
from workbench import provenance
from workbench.inference.sampling import SAMPLER
from workbench.text.chat import BUILTIN

if TYPE_CHECKING:
    from evals.models.lm_eval_backend import Backend
    from evals.models.workbench_lm import WorkbenchLM
    from evals.results.runs import Run
    from evals.run.settings import Settings
    from evals.tasks.code_metrics import CodeGrader
    from evals.tasks.registry import LoadedTasks


@dataclass(frozen=True)
class Began:
    """When a run began. The system's clock may be set while it runs, so its duration is measured by another one.

    Units: `at` in seconds since 1970
    """

    at: float = field(default_factory=time.time)
    _clock: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """How long the run has taken so far."""
        return time.monotonic() - self._clock


def run_metadata(
    lm: WorkbenchLM | Backend, loaded: LoadedTasks, settings: Settings, grader: CodeGrader, *, began: Began
) -> dict[str, Any]:
    """Metadata of a run for its results file: lm-eval's own keys, and the provenance."""
    used = PACKAGES if loaded.runs_code() else ()
    versions = provenance.versions("lm-eval", "datasets", "tiktoken", "llama-workbench", *lm.packages, *used)
    origin = lm.provenance()
    name = str(origin["path"] or "unnamed")
    dtype, device, limit = lm.dtype_name, str(lm.device), settings.limit
    template = chat_template(lm, settings)
    return {
        "config": {
            **lm_eval_record.config(lm, settings),
            "model": settings.backend,
            "model_args": {"pretrained": name, "dtype": dtype, **settings.model_args},
            "model_dtype": dtype,
            "model_num_parameters": lm.parameters,
            "device": device,
            "gen_kwargs": dict(settings.gen_kwargs) or None,
        },
        **lm_eval_record.general(lm, settings),
        "git_hash": origin["commit"],
        "date": began.at,
        "lm_eval_version": versions.get("lm-eval"),
        "model_source": settings.backend,
        "model_name": name,
        "model_name_sanitized": "".join(c if c.isalnum() or c in "-_." else "_" for c in name),
        "max_length": lm.max_length,
        "eot_token_id": lm.eot_token_id,
        **template,
        "total_evaluation_time_seconds": str(began.seconds),
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
            # Another model's files are hashed as a whole.
            "chat_template_sha256": template["chat_template_sha"] if settings.backend == OURS else None,
            "samples": settings.samples,
            **({} if settings.adapter is None else {"adapter": str(settings.adapter)}),
            **data_hashes(loaded),
            **sampler(loaded, settings),
            "sandbox": None if settings.predict_only else sandbox_info(grader, loaded),
            **({"questions": dict(settings.questions)} if settings.questions else {}),
            **({"predict_only": True} if settings.predict_only else {}),
        },
    }


def chat_template(lm: WorkbenchLM | Backend, settings: Settings) -> dict[str, str | None]:
    """The chat template of a run and its SHA-256, as lm-eval records them; the built-in format has a name only."""
    text = lm.chat_template(settings.chat_template) or None
    has_source = text is not None and text != BUILTIN
    return {
        "chat_template": text,
        "chat_template_sha": sha256(text.encode()).hexdigest() if text and has_source else None,
    }


def data_hashes(loaded: LoadedTasks) -> dict[str, dict[str, str | None]]:
    """The SHA-256 of each task's questions and of its examples; None where there are none or they are unknown.

    Also of the definitions of the user's own tasks, if there are any.
    """
    kinds = ("data_sha256", "examples_sha256")
    hashes = {kind: {name: getattr(task, kind, None) for name, task in loaded.tasks.items()} for kind in kinds}
    own = {name: getattr(task, "definition_sha256", None) for name, task in loaded.tasks.items()}
    if any(own.values()):
        hashes["definition_sha256"] = {name: sha for name, sha in own.items() if sha}
    return hashes


def sampler(loaded: LoadedTasks, settings: Settings) -> dict[str, int]:
    """The version of the sampler, if an answer of these tasks is sampled by the workbench's model; else nothing."""
    from evals.models.workbench_lm import generation_args

    if settings.backend != OURS:
        return {}
    for task in loaded.tasks.values():
        if task.OUTPUT_TYPE == "generate_until":
            arguments = {**(task.get_config("generation_kwargs") or {}), **settings.gen_kwargs}
            if generation_args(arguments, sys.maxsize).temperature:
                return {"sampler": SAMPLER}
    return {}


def sandbox_info(grader: CodeGrader, loaded: LoadedTasks) -> dict[str, Any] | None:
    """The sandbox of the generated programs and its limits; None if no task runs code."""
    if not loaded.runs_code():
        return None
    return {"engine": (grader.engine or sandbox.require()).name, **grader.limits.to_dict()}


def samples(
    task: str, rows: list[dict[str, Any]], lm: WorkbenchLM | Backend, grader: CodeGrader
) -> Iterator[dict[str, Any]]:
    """Samples in lm-eval's format, each with the token ids to replay it and the results of its programs."""
    for row in sorted(rows, key=lambda row: row["doc_id"]):
        arguments = row["arguments"]
        extra: dict[str, Any] = {"replay": lm.replay(task, row)}
        executions = [grader.runs.get((code, str(row["target"]))) for code in _programs(row)]
        if any(run is not None for run in executions):
            extra["execution"] = [asdict(run) for run in executions if run is not None]
        if (task, row["doc_id"]) in lm.not_finite:
            extra["not_finite"] = True
        yield {
            **row,
            "resps": as_texts(row["resps"]),
            "filtered_resps": as_texts(row["filtered_resps"]),
            "arguments": {
                f"gen_args_{i}": {f"arg_{j}": value for j, value in enumerate(argument)}
                for i, argument in enumerate(arguments)
            },
            "target": str(row["target"]),
            **extra,
        }


def not_finite_counts(written: Mapping[str, list[dict[str, Any]]]) -> dict[str, int]:
    """For each task that has some: how many questions are not scored because their logits were not finite."""
    counts = {task: len({row["doc_id"] for row in rows if row.get("not_finite")}) for task, rows in written.items()}
    return {task: count for task, count in counts.items() if count}


def as_texts(value: Any) -> Any:
    """Nested lists of answers with every answer as text, as in lm-eval's sample files."""
    return [as_texts(part) for part in value] if isinstance(value, list | tuple) else str(value)


def metrics(run: Run) -> Iterator[tuple[Any, ...]]:
    """A run's scores as rows of the store."""
    for s in run.scores:
        yield s.task, s.metric, s.filter, s.average, s.n, s.value, s.stderr, s.low, s.high


def program_counts(written: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[list[int]]]:
    """For each code task: how many judged problems have n samples of which c are correct; for a second filter of it,
    under "task,filter".

    Shapes: [distinct (n, c)] of (samples, correct samples, problems)
    """
    counts_by_task = {}
    for task, rows in written.items():
        counts: dict[str, Counter[tuple[int, int]]] = {}
        for row in rows:
            if "execution" in row and not answer_counts.is_not_judged(row):
                passed = [run["verdict"] == "passed" for run in row["execution"]]
                counts.setdefault(str(row.get("filter", "none")), Counter())[len(passed), sum(passed)] += 1
        for i, (name, outcomes) in enumerate(counts.items()):
            key = f"{task},{name}" if i else task
            counts_by_task[key] = [[*outcome, number] for outcome, number in sorted(outcomes.items())]
    return counts_by_task


def verdicts(written: Mapping[str, list[dict[str, Any]]]) -> Iterator[tuple[Any, ...]]:
    """A run's samples as rows of the store: correct, wrong, or the metric's value."""
    for task, rows in written.items():
        for row in rows:
            metric = row["metrics"][0] if row.get("metrics") else None
            # A metric that is not a mean over questions, as F1, has a pair here.
            correct = float(row[metric]) if metric and isinstance(row[metric], int | float) else None
            yield task, row["doc_id"], row.get("filter", "none"), metric, correct


def _programs(row: Mapping[str, Any]) -> list[str]:
    """The programs that a sample's filter made: a list of texts per request."""
    return [code for codes in row["filtered_resps"] if isinstance(codes, list) for code in codes]
