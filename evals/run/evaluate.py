"""One evaluation from beginning to end: load tasks and model, let lm-eval ask its questions, write down
what came.

Every answer is kept in the output folder's store as soon as it is there, so a run that was stopped goes on where it
was; processes that torchrun started share the questions. Offline unless it is told otherwise. Knows nothing of how
tasks are worded or how the model computes.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals import sandbox
from evals.results import runs
from evals.run import lm_eval_runner, run_records
from evals.run.settings import OURS, Settings
from evals.runtime import distributed
from evals.runtime.distributed import Team
from evals.store.store import MACHINES, Store, StoredRun
from evals.tasks import hub, presets
from workbench.errors import DataError, SandboxError

if TYPE_CHECKING:
    from evals.models.lm_eval_backend import Backend
    from evals.models.workbench_lm import WorkbenchLM
    from evals.results.runs import Run
    from evals.tasks.code_metrics import CodeGrader
    from workbench import Transformer


def resume(root: Path, name: str, *, team: Team | None = None) -> Run:
    """Go on with a run of this store that was stopped, as it was asked for; what it has answered is not asked again.

    team: as in `evaluate`; they need not be as many as before.

    Raises: DataError if there is no such run, it is finished, it is running, or its model was not loaded from a path.
    """
    team = distributed.join() if team is None else team

    def look() -> StoredRun:
        with Store.open(root, create=False) as store:
            return store.run(name)

    found = team.broadcast(look)
    if found.status == "finished":
        raise DataError(f"run {found.id} is finished; its results are in {root / str(found.results)}.")
    if found.status == "damaged":
        raise DataError(f"run {found.id} cannot go on: {found.error}. Ask for it again; its answers are kept.")
    if found.settings["model"] is None:
        raise DataError(f"run {found.id} was made on a model in memory; evaluate that model again.")
    settings = replace(Settings.from_dict(found.settings["settings"]), output=root)
    arguments = {key: found.settings[key] for key in ("device", "dtype")}
    return evaluate(found.settings["model"], settings, **arguments, again=found, team=team)


def evaluate(
    model: str | Path | Transformer,
    settings: Settings,
    *,
    device: str = "auto",
    dtype: str = "auto",
    again: StoredRun | None = None,
    team: Team | None = None,
) -> Run:
    """Run the tasks on a checkpoint ("demo" for the embedded one) or a loaded model, and write the results.

    again: the stopped run that this one takes up, which `resume` looks up.
    team: the processes that share the work; by default all that torchrun started, each with the whole model.
    Raises: DataError for unknown tasks or missing data, SandboxError if all that was asked for needs a
    sandbox and there is none, CheckpointError and others for a model that cannot be loaded.
    """
    hub.network(settings.online)
    check_place(settings.output)
    started = time.time()
    team = distributed.join() if team is None else team
    from evals.sandbox import Limits
    from evals.tasks import registry
    from evals.tasks.code_metrics import SECONDS, CodeGrader

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tasks = presets.tasks(settings.preset, settings.tasks, chat=settings.chat)
    registry.check(tasks)
    judge = CodeGrader(limits=Limits.of(settings.limits, seconds=SECONDS))
    asked, not_run = runnable(tasks)
    how = {name: getattr(settings, name) for name in ("preset", "chat", "samples", "online")}
    loaded = registry.load(asked, root=settings.data, judge=judge, **how)
    lm_eval_runner.prepare(loaded, settings)
    lm = _model(model, settings, device=device, dtype=dtype, team=team)
    request = request_of(model, settings, device=device, dtype=dtype)
    with Store.open(_place(settings.output, team)) as store, lm.changed(settings.interventions):
        name = team.broadcast(lambda: _register_run(store, request, again))
        with (
            _recording_failure(store, name, settings.output, team, request),
            _with_response_cache(lm, judge, store, name, team),
        ):
            found = lm_eval_runner.ask(lm, loaded, settings, team)

            def write() -> Run:
                rows = found.pop("samples")
                written = {task: list(run_records.samples(task, these, lm, judge)) for task, these in rows.items()}
                cut = {task: sum(bool(row["replay"].get("cut")) for row in these) for task, these in written.items()}
                _warn_truncated(cut, lm.max_length)
                about = run_records.account(lm, loaded, settings, judge, started=started)
                about[runs.PROVENANCE] |= {"run": name, "not_run": not_run, "cut_prompts": cut}
                about[runs.PROVENANCE] |= {"programs": run_records.programs(written)}
                # A run that was killed while it wrote writes the same files again.
                run = runs.write(settings.output, found | about, written, at=store.run(name).started)
                metrics, verdicts = run_records.metrics(run), run_records.verdicts(written)
                store.finish(name, results=run.path.name, metrics=metrics, samples=verdicts)
                return run

            return team.broadcast(write)


def _model(
    model: str | Path | Transformer, settings: Settings, *, device: str, dtype: str, team: Team
) -> WorkbenchLM | Backend:
    if settings.backend != OURS:
        from evals.models.lm_eval_backend import Backend

        options = {"batch_size": settings.batch_size, "seed": settings.seed, "device": device, "dtype": dtype}
        return Backend.of(settings.backend, model, settings.model_args, **options)
    from evals.models.workbench_lm import WorkbenchLM

    if settings.model_args:
        raise DataError("--model_args are for another --backend; the workbench's model has --device and --dtype.")
    return WorkbenchLM(
        model, batch_size=settings.batch_size, device=device, dtype=dtype, seed=settings.seed, progress=team.is_main
    )


def request_of(
    model: str | Path | Transformer, settings: Settings, *, device: str = "auto", dtype: str = "auto"
) -> dict[str, Any]:
    """What was asked for, so that it can be asked for again."""
    path: str | None = None
    if isinstance(model, str | Path):
        path = str(Path(model).absolute()) if str(model) and Path(model).exists() else str(model)
    return {"model": path, "device": device, "dtype": dtype, "settings": settings.to_dict()}


def _place(output: Path, team: Team) -> Path:
    """Where this process's store is. SQLite's log is for the processes of one machine: each other one has its own."""
    return output / MACHINES / socket.gethostname() if team.is_remote else output


def _register_run(store: Store, request: dict[str, Any], again: StoredRun | None) -> str:
    if again is None:
        return store.register(request)
    store.resume(again.id)
    return again.id


@contextmanager
def _recording_failure(store: Store, run: str, output: Path, team: Team, request: Mapping[str, Any]) -> Iterator[None]:
    """Enter in the store how a run ended that did not end well, and say how it goes on."""
    try:
        yield
    except BaseException as error:
        if team.is_main:
            with suppress(DataError):  # the store may be what failed
                interrupted = isinstance(error, KeyboardInterrupt)
                store.fail(run, str(error) or type(error).__name__, interrupted=interrupted)
            if request["model"] is not None:
                go_on = f"workbench eval resume {run} --results {output}"
                print(f"run {run} was stopped, its answers are kept; `{go_on}` goes on.", file=sys.stderr)
        raise


@contextmanager
def _with_response_cache(
    lm: WorkbenchLM | Backend, judge: CodeGrader, store: Store, run: str, team: Team
) -> Iterator[None]:
    """Let the model's answers, where it can be said whose they are, and programs' verdicts come from the store and go
    there."""
    from evals.models.response_cache import Kept, Recall
    from evals.tasks.code_metrics import Verdicts

    who = lm.identity(run)
    writer = store.writer(run, rank=team.rank) if team.writes_answers else None
    lm.recall = Recall(None if who is None else Kept(store, writer, who), team)
    judge.kept = Verdicts(store, writer) if writer else None
    try:
        yield
    finally:
        if writer:
            writer.close()
        lm.recall, judge.kept = Recall(), None


def _warn_truncated(cut: Mapping[str, int], context: int) -> None:
    for name, number in cut.items():
        if number:
            print(
                f"{name}: {number} prompts were longer than the context of {context} tokens and lost their beginning.",
                file=sys.stderr,
            )


def runnable(tasks: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """The tasks that can be run here, and why the others cannot."""
    from evals.tasks import registry

    needs = [name for name in tasks if registry.runs_code(name)]
    reason = sandbox.why_unavailable() if needs else None
    if reason is None:
        return list(tasks), {}
    rest = [name for name in tasks if name not in needs]
    if not rest:
        raise SandboxError(f"{', '.join(needs)} runs generated code, and there is no sandbox here: {reason}")
    return rest, dict.fromkeys(needs, reason)


def check_place(folder: Path) -> None:
    """Find out before the work, not after it, that the results have no place; make nothing yet."""
    folder = folder.absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        what = "is no folder" if not nearest.is_dir() else "is not writable"
        raise DataError(f"results cannot be written to {folder}: {nearest} {what}; choose another --output.")
