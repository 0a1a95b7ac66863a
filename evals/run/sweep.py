"""Many evaluations, one after the other: each of a plan, or what is left of it.

What is finished is not run again, what was stopped is taken up, and a run that fails does not stop the others. Knows
nothing of how one evaluation is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evals.models.response_cache import ENGINE
from evals.results.provenance import basis
from evals.results.runs import Run, read_run
from evals.run.evaluate import evaluate, request_of, resume, runnable
from evals.run.settings import OURS, Settings
from evals.run.sweep_config import Planned
from evals.runtime import distributed
from evals.store.store import INDEX, Store, StoredRun
from evals.tasks import presets
from workbench import provenance
from workbench.checkpoint import fingerprint
from workbench.checkpoint.files import find_layout
from workbench.errors import WorkbenchError
from workbench.text.tokenizer import find_tokenizer


@dataclass(frozen=True)
class Done:
    """What became of one: `status` is finished, finished before, running elsewhere, failed, or (of a dry run) planned
    or stopped. `note` says where it is running."""

    planned: Planned
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

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.planned.model_name,
            "tasks": list(self.planned.settings.tasks),
            "interventions": [change.to_dict() for change in self.planned.settings.interventions],
            "status": self.status,
            "error": self.error or None,
            "note": self.note or None,
            "path": str(self.run.path) if self.run else None,
            "scores": [vars(score) for score in self.run.scores] if self.run else [],
        }


def run(planned: Sequence[Planned], *, dry_run: bool = False) -> list[Done]:
    """Make the evaluations that are not made yet, one after the other.

    Raises: DataError for a task that does not exist, before the first of them.
    """
    from evals.tasks import registry

    for one in planned:
        registry.check(one.settings.tasks)
    return [_one(each, dry_run) for each in planned]


def table(done: Sequence[Done]) -> str:
    """A line for each score of each evaluation.

    Units: scores in per cent, with the 95% interval.
    """
    rows = [("model", "changed", "task", "metric", "n", "score", "95% interval", "status")]
    for one in done:
        begin = (one.planned.model_name, one.planned.change_name or "-")
        members = (
            {name for names in (one.run.data.get("group_subtasks") or {}).values() for name in names} if one.run else ()
        )
        scores = [score for score in one.run.scores if score.task not in members] if one.run else []
        for score in scores:
            interval = (
                "" if score.low is None or score.high is None else f"{100 * score.low:.1f} - {100 * score.high:.1f}"
            )
            rows.append(
                (*begin, score.task, score.label, str(score.n), f"{100 * score.value:.1f}", interval, one.status)
            )
        left = list(one.not_run) if one.run else [",".join(one.planned.settings.tasks)]
        rows += [(*begin, task, "", "", "", "", "not run" if one.run else one.status) for task in left]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _one(planned: Planned, dry_run: bool) -> Done:
    team = distributed.join()
    earlier = team.broadcast(lambda: _earlier(planned))
    if isinstance(earlier, Run):
        return Done(planned, "finished before", earlier)
    stopped = earlier if earlier and earlier.status != "running" else None
    if earlier and not stopped:
        go_on = f"workbench eval resume {earlier.id} --results {planned.settings.output}"
        note = f"run {earlier.id} is running on {earlier.host}; if that has ended, `{go_on}` takes it up."
        return Done(planned, "running elsewhere", note=note)
    if dry_run:
        return Done(planned, "stopped" if stopped else "planned")
    try:
        if stopped:
            found = resume(planned.settings.output, stopped.id, team=team)
        else:
            arguments = {"device": planned.device, "dtype": planned.dtype, "team": team}
            found = evaluate(planned.model, planned.settings, **arguments)
    except Exception as error:
        if team.size > 1:
            raise  # the others wait for this one
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Done(
            planned, "failed", error=said if isinstance(error, WorkbenchError) else f"{type(error).__name__}: {said}"
        )
    return Done(planned, "finished", found)


def _earlier(planned: Planned) -> Run | StoredRun | None:
    """The finished evaluation that asked the same on the same basis, else one that can be taken up, else none."""
    root = planned.settings.output
    if not (root / INDEX).is_file():
        return None
    request = request_of(planned.model, planned.settings, device=planned.device, dtype=planned.dtype)
    with Store.open(root, create=False) as store:
        alike = [found for found in store.runs() if _request(found, root) == request]
    for found in alike:
        if found.status == "finished" and found.results and (root / found.results).is_file():
            run = read_run(root / found.results)
            if basis(run.provenance) == _basis(planned):
                return run
    return next((found for found in alike if found.status != "finished"), None)


def _request(found: StoredRun, root: Path) -> dict[str, Any] | None:
    """What a stored run was asked, as it would be said today."""
    try:
        settings = replace(Settings.from_dict(found.settings["settings"]), output=root)
        return {**found.settings, "settings": settings.to_dict()}
    except (KeyError, TypeError, WorkbenchError):
        return None


def _basis(planned: Planned) -> dict[str, Any]:
    """What an evaluation would stand on if it were made now; the model's weights are not loaded."""
    from evals.run import run_records
    from evals.tasks import registry
    from evals.tasks.code_metrics import CodeGrader

    settings = planned.settings
    how = {name: getattr(settings, name) for name in ("preset", "chat", "samples", "online")}
    asked, _ = runnable(presets.tasks(settings.preset, settings.tasks, chat=settings.chat))
    loaded = registry.load(asked, root=settings.data, judge=CodeGrader(), **how)
    return basis(_files(planned) | run_records.hashes(loaded) | {"versions": provenance.versions("lm-eval")})


def _files(planned: Planned) -> dict[str, Any]:
    if planned.settings.backend == OURS:
        tokenizer = find_tokenizer(find_layout(planned.model).root)
        sha256 = tokenizer and hashlib.sha256(tokenizer.read_bytes()).hexdigest()
        return {"checkpoint_sha256": fingerprint(planned.model), "tokenizer_sha256": sha256, "engine": ENGINE}
    from evals.models.lm_eval_backend import digest

    folder = Path(planned.model) if planned.model else None
    return {"checkpoint_sha256": digest(folder) if folder and folder.is_dir() else None}
