"""Sweep: runs the planned evaluations one after the other.

Finished runs are not repeated, stopped runs are resumed, and a failed run does not stop the others. Does not know how
one evaluation works.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evals.models.response_cache import ENGINE
from evals.results.provenance import basis
from evals.results.runs import Run, not_finite_count, read_run
from evals.run.evaluate import evaluate, request_of, resume, runnable
from evals.run.settings import OURS, Settings
from evals.run.sweep_config import PlannedRun
from evals.runtime import distributed
from evals.store.store import INDEX, Store, StoredRun
from evals.tasks import presets
from workbench import provenance
from workbench.checkpoint import fingerprint
from workbench.checkpoint.files import find_layout
from workbench.errors import ChatError, TokenizerError, WorkbenchError
from workbench.text.chat import template_source
from workbench.text.tokenizer import Tokenizer
from workbench.text.tokenizer_files import tokenizer_sha256

_REQUEST = ("model", "device", "dtype")  # of a stored run, besides its settings


@dataclass(frozen=True)
class SweepResult:
    """The result of one planned run: `status` is finished, finished before, running elsewhere, failed, or (in a dry
    run) planned or stopped. `note` says where it is running."""

    planned: PlannedRun
    status: str
    run: Run | None = None
    error: str = ""
    note: str = ""

    @property
    def name(self) -> str:
        return self.planned.name

    @property
    def not_run(self) -> dict[str, str]:
        return self.run.not_run if self.run else {}

    @property
    def not_finite(self) -> dict[str, int]:
        return self.run.not_finite if self.run else {}

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.planned.model_name,
            "tasks": list(self.planned.settings.tasks),
            "interventions": [change.to_dict() for change in self.planned.settings.interventions],
            "status": self.status,
            "error": self.error or None,
            "note": self.note or None,
            "path": str(self.run.path) if self.run else None,
            **({"not_finite": self.not_finite} if self.not_finite else {}),
            "scores": [vars(score) for score in self.run.scores] if self.run else [],
        }


def run(planned: Sequence[PlannedRun], *, dry_run: bool = False) -> list[SweepResult]:
    """Run the evaluations that are not finished yet, one after the other.

    Raises: DataError for a task that does not exist, before the first run.
    """
    from evals.tasks import registry

    for planned_run in planned:
        registry.check(planned_run.settings.tasks, planned_run.settings.include_path)
    return [_run_one(planned_run, dry_run) for planned_run in planned]


def table(results: Sequence[SweepResult]) -> str:
    """A text table with one line for each score of each evaluation.

    Units: scores in percent, with the 95% interval.
    """
    rows = [("model", "changed", "task", "metric", "n", "score", "95% interval", "status")]
    for result in results:
        first_cells = (result.planned.model_name, result.planned.change_name or "-")
        members = (
            {name for names in (result.run.data.get("group_subtasks") or {}).values() for name in names}
            if result.run
            else ()
        )
        scores = [score for score in result.run.scores if score.task not in members] if result.run else []
        for score in scores:
            interval = (
                "" if score.low is None or score.high is None else f"{100 * score.low:.1f} - {100 * score.high:.1f}"
            )
            rows.append(
                (
                    *first_cells,
                    score.task,
                    score.label,
                    str(score.n),
                    f"{100 * score.value:.1f}",
                    interval,
                    _status(result, score.task),
                )
            )
        if result.run:
            without = [task for task in result.run.without_score if task not in members]
            rows += [(*first_cells, task, "no score", "0", "", "", _status(result, task)) for task in without]
        left = list(result.not_run) if result.run else [",".join(result.planned.settings.tasks)]
        rows += [(*first_cells, task, "", "", "", "", "not run" if result.run else result.status) for task in left]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _status(result: SweepResult, task: str) -> str:
    count = not_finite_count(result.run, task) if result.run else 0
    return f"{result.status}, {count} not finite" if count else result.status


def _run_one(planned: PlannedRun, dry_run: bool) -> SweepResult:
    team = distributed.join()
    earlier = team.broadcast(lambda: _previous_run(planned))
    if isinstance(earlier, Run):
        return SweepResult(planned, "finished before", earlier)
    stopped = earlier if earlier and earlier.status != "running" else None
    if earlier and not stopped:
        command = f"workbench eval resume {earlier.id} --results {planned.settings.output}"
        note = f"run {earlier.id} is running on {earlier.host}; if it has ended there, continue it with `{command}`."
        return SweepResult(planned, "running elsewhere", note=note)
    if dry_run:
        return SweepResult(planned, "stopped" if stopped else "planned")
    try:
        if stopped:
            chosen = {"backend": planned.settings.backend, "model_args": planned.settings.model_args}
            chosen["include_path"] = planned.settings.definitions  # the sweep's file names all of these
            run = resume(planned.settings.output, stopped.id, team=team, **chosen)
        else:
            arguments = {"device": planned.device, "dtype": planned.dtype, "team": team}
            run = evaluate(planned.model, planned.settings, **arguments)
    except Exception as error:
        if team.size > 1:
            raise  # the other processes wait for this one
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return SweepResult(
            planned,
            "failed",
            error=first_line if isinstance(error, WorkbenchError) else f"{type(error).__name__}: {first_line}",
        )
    return SweepResult(planned, "finished", run)


def _previous_run(planned: PlannedRun) -> Run | StoredRun | None:
    """The finished run with the same request and the same basis, else one that can be resumed, else None."""
    root = planned.settings.output
    if not (root / INDEX).is_file():
        return None
    request = request_of(planned.model, planned.settings, device=planned.device, dtype=planned.dtype)
    with Store.open(root, create=False) as store:
        same_request = [stored for stored in store.runs() if _request(stored, root) == request]
    for stored in same_request:
        if stored.status == "finished" and stored.results and (root / stored.results).is_file():
            run = read_run(root / stored.results)
            if basis(run.provenance) == _current_basis(planned):
                return run
    return next((stored for stored in same_request if stored.status != "finished"), None)


def _request(stored: StoredRun, root: Path) -> dict[str, Any] | None:
    """The request of a stored run, in this version's format; None if it cannot be read."""
    try:
        settings = replace(Settings.from_dict(stored.settings["settings"]), output=root)
        return {key: stored.settings[key] for key in _REQUEST} | {"settings": settings.to_dict()}
    except (KeyError, TypeError, ValueError, AttributeError, WorkbenchError):
        return None


def _current_basis(planned: PlannedRun) -> dict[str, Any]:
    """The basis (hashes and versions) that an evaluation would have now; the model's weights are not loaded."""
    from evals.run import run_records
    from evals.tasks import registry
    from evals.tasks.code_metrics import CodeGrader

    settings = planned.settings
    load_options = {name: getattr(settings, name) for name in ("preset", "chat", "samples", "online")}
    task_names, _ = runnable(presets.tasks(settings.preset, settings.tasks, chat=settings.chat), settings.include_path)
    load_options |= {"include": settings.include_path, "partial": True}
    loaded = registry.load(task_names, root=settings.data, grader=CodeGrader(), **load_options)
    return basis(
        _model_hashes(planned)
        | run_records.data_hashes(loaded)
        | run_records.sampler(loaded, settings)
        | {"versions": provenance.versions("lm-eval")}
    )


def _chat_template_sha256(planned: PlannedRun) -> str | None:
    try:
        source = template_source(Tokenizer.from_file(find_layout(planned.model).root))
    except (ChatError, TokenizerError):  # the run itself will say so
        return None
    return source and hashlib.sha256(source.encode()).hexdigest()


def _model_hashes(planned: PlannedRun) -> dict[str, Any]:
    if planned.settings.backend == OURS:
        return {
            "checkpoint_sha256": fingerprint(planned.model, adapter=planned.settings.adapter),
            "tokenizer_sha256": tokenizer_sha256(find_layout(planned.model).root),
            "chat_template_sha256": _chat_template_sha256(planned) if planned.settings.chat else None,
            "engine": ENGINE,
        }
    from evals.models.lm_eval_backend import folder_sha256, pretrained

    folder = Path(pretrained(planned.model)) if planned.model else None
    return {"checkpoint_sha256": folder_sha256(folder) if folder and folder.is_dir() else None}
