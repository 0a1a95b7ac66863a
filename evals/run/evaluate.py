"""One evaluation from start to end: load tasks and model, run lm-eval, write results.

Every answer is saved in the output folder's store as soon as it is computed, so a stopped run can be continued.
Processes that torchrun started share the questions. Offline, unless the settings allow the network. Does not know how
tasks word their prompts or how the model computes.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals import sandbox, stats
from evals.results import answer_counts, runs
from evals.run import lm_eval_record, lm_eval_runner, run_records, task_notes
from evals.run.settings import OURS, Settings
from evals.run.stopping import recording_failure
from evals.runtime import distributed
from evals.runtime.distributed import Team
from evals.runtime.printing import echo
from evals.store import foreign_code
from evals.store.store import MACHINES, Store, StoredRun, store_errors
from evals.tasks import hub, presets
from workbench.errors import CheckpointError, DataError, SandboxError, WorkbenchError

if TYPE_CHECKING:
    from evals.models.lm_eval_backend import Backend
    from evals.models.workbench_lm import WorkbenchLM
    from evals.results.runs import Run
    from evals.tasks.code_metrics import CodeGrader
    from workbench import Transformer


def resume(
    root: Path,
    name: str,
    *,
    backend: str = OURS,
    model_args: Mapping[str, Any] | None = None,
    include_path: Sequence[Path] = (),
    team: Team | None = None,
) -> Run:
    """Continue a stopped run of this store with its own settings; saved answers are not computed again.

    backend, model_args: those of the run. They can choose code to run, and a store may come from anywhere, so they are
    not taken from it. include_path: files and folders with the task definitions of the run, which can run code too.
    team: as in `evaluate`; the number of processes may differ from before.

    Raises: DataError if there is no such run, it is finished, it is running, its model was not loaded from a path, or
    it has another backend or other arguments.
    """
    team = distributed.join() if team is None else team

    def look() -> StoredRun:
        with Store.open(root, create=False) as store:
            return store.run(name)

    stored = team.broadcast(look)
    if stored.status == "finished":
        raise DataError(f"run {stored.id} is finished; its results are in {root / str(stored.results)}.")
    if stored.status == "damaged":
        raise DataError(f"run {stored.id} cannot be continued: {stored.error}. Start it again; its answers are saved.")
    if stored.settings["model"] is None:
        raise DataError(f"run {stored.id} used a model in memory; call evaluate() with that model again.")
    chosen = foreign_code.chosen(stored.settings) or (OURS, {})
    if chosen != (backend, dict(model_args or {})):
        raise DataError(
            f"run {stored.id} uses {foreign_code.described(*chosen)}, which may run code that its folder names. If you "
            f"trust it, add{foreign_code.command(*chosen)}, with the same arguments."
        )
    settings = _settings(stored, root)
    trusted = [Path(path).expanduser().resolve() for path in include_path]
    strange = [path for path in settings.definitions if not any(path.resolve().is_relative_to(t) for t in trusted)]
    if strange:
        raise DataError(
            f"run {stored.id} uses the task definitions {', '.join(map(str, strange))}, which can run any code. If you "
            f"trust them, add{foreign_code.definitions_option(strange)}."
        )
    arguments = {key: stored.settings[key] for key in ("device", "dtype")}
    return evaluate(stored.settings["model"], settings, **arguments, resumed=stored, team=team)


def _settings(stored: StoredRun, root: Path) -> Settings:
    try:
        return replace(Settings.from_dict(stored.settings["settings"]), output=root)
    except (KeyError, TypeError, ValueError, AttributeError, WorkbenchError) as error:
        raise DataError(
            f"the settings of run {stored.id} cannot be read ({type(error).__name__}: {error}). Start it again; its "
            "answers are saved."
        ) from error


def evaluate(
    model: str | Path | Transformer,
    settings: Settings,
    *,
    device: str = "auto",
    dtype: str = "auto",
    resumed: StoredRun | None = None,
    team: Team | None = None,
) -> Run:
    """Run the tasks on a checkpoint ("demo" for the embedded one) or a loaded model, and write the results.

    resumed: the stopped run to continue; `resume` looks it up.
    team: the processes that share the work; by default all that torchrun started, each with the whole model.
    Raises: DataError for unknown tasks or missing data, SandboxError if all tasks need a
    sandbox and there is none, CheckpointError and others for a model that cannot be loaded.
    """
    hub.allow_network(settings.online)
    check_output(settings.output)
    began = run_records.Began()
    team = distributed.join() if team is None else team
    from evals.sandbox import Limits
    from evals.sandbox.limits import BENCHMARK_SECONDS
    from evals.tasks import registry
    from evals.tasks.code_metrics import CodeGrader

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tasks = presets.tasks(settings.preset, settings.tasks, chat=settings.chat)
    registry.check(tasks, settings.include_path)
    ks = () if settings.samples is None else stats.ks(settings.samples)
    grader = CodeGrader(k=ks, limits=Limits.of(settings.limits, seconds=BENCHMARK_SECONDS))
    include = settings.include_path
    runnable_tasks, not_run = (list(tasks), {}) if settings.predict_only else runnable(tasks, include)
    load_options = {name: getattr(settings, name) for name in ("preset", "chat", "samples", "online")}
    load_options |= {"include": include, "partial": True}
    loaded = registry.load(runnable_tasks, root=settings.data, grader=grader, **load_options)
    not_run |= loaded.not_run
    for name, why in not_run.items() if team.is_main else ():
        echo(f"{name} is not run: {why}", err=True)
    lm_eval_runner.prepare(loaded, settings)
    lm = _model(model, settings, device=device, dtype=dtype, team=team)
    if team.is_main:
        task_notes.warn(loaded, settings, lm)
    lm.chat_template(settings.chat_template)  # a checkpoint without one is refused before anything is asked
    request = request_of(model, settings, device=device, dtype=dtype)
    with Store.open(_store_folder(settings.output, team)) as store, lm.apply_interventions(settings.interventions):
        checkpoint = lm.checkpoint_sha256
        name = team.broadcast(lambda: _register_run(store, request | {"checkpoint_sha256": checkpoint}, resumed))
        with (
            recording_failure(store, name, settings.output, team, request),
            _with_response_cache(lm, grader, store, name, team, from_files=isinstance(model, str | Path)),
        ):
            results = lm_eval_runner.ask(lm, loaded, settings, team)
            if lm.response_cache.cached:
                lm.response_cache.cached.check()

            def write() -> Run:
                rows, failed = results.pop("samples"), results.pop("failed")
                results["task_hashes"] = lm_eval_record.task_hashes(rows)
                sample_rows = {
                    task: list(run_records.samples(task, task_rows, lm, grader)) for task, task_rows in rows.items()
                }
                counts = answer_counts.of_samples(sample_rows)
                _warn_truncated(counts["cut_prompts"], lm.max_length)
                metadata = run_records.run_metadata(lm, loaded, settings, grader, began=began)
                metadata[runs.PROVENANCE] |= {"run": name, "not_run": not_run | failed, **counts}
                metadata[runs.PROVENANCE] |= task_notes.record(loaded, settings, lm)
                metadata[runs.PROVENANCE] |= {"programs": run_records.program_counts(sample_rows)}
                if not_finite := run_records.not_finite_counts(sample_rows):
                    metadata[runs.PROVENANCE] |= {"not_finite": not_finite}
                # The start time names the files: a run that was killed while writing overwrites its own files.
                with store_errors(settings.output):
                    run = runs.write(settings.output, results | metadata, sample_rows, at=store.run(name).started)
                metrics, verdicts = run_records.metrics(run), run_records.verdicts(sample_rows)
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
    from workbench.checkpoint.sources.fetch import fetch_if

    if isinstance(model, str):
        fetch_if(settings.online, model)
    if settings.model_args:
        raise DataError(
            "--model_args needs a --backend other than workbench; for the workbench's model use --device and --dtype."
        )
    return WorkbenchLM(
        model,
        batch_size=settings.batch_size,
        device=device,
        dtype=dtype,
        adapter=settings.adapter,
        seed=settings.seed,
        progress=team.is_main,
    )


def request_of(
    model: str | Path | Transformer, settings: Settings, *, device: str = "auto", dtype: str = "auto"
) -> dict[str, Any]:
    """The request of a run, stored so that the run can be resumed or recognized."""
    path: str | None = None
    if isinstance(model, str | Path):
        path = str(Path(model).absolute()) if str(model) and Path(model).exists() else str(model)
    return {"model": path, "device": device, "dtype": dtype, "settings": settings.to_dict()}


def _store_folder(output: Path, team: Team) -> Path:
    """The folder of this process's store. SQLite's WAL works on one machine only, so every other machine has a store of
    its own."""
    return output / MACHINES / socket.gethostname() if team.is_remote else output


def _register_run(store: Store, request: dict[str, Any], resumed: StoredRun | None) -> str:
    if resumed is None:
        return store.register(request)
    before, now = resumed.settings.get("checkpoint_sha256"), request["checkpoint_sha256"]
    if before and now and before != now:
        echo(
            f"{request['model']} is not the checkpoint that run {resumed.id} began with ({str(before)[:12]}, now "
            f"{now[:12]}): all its questions are asked again.",
            err=True,
        )
    store.resume(resumed.id)
    return resumed.id


@contextmanager
def _with_response_cache(
    lm: WorkbenchLM | Backend, grader: CodeGrader, store: Store, run: str, team: Team, *, from_files: bool
) -> Iterator[None]:
    """Read the model's answers and the programs' verdicts from the store, and write new ones to it.

    Answers are stored only for a model that has an identity, and as long as its files stay as they are.
    Raises: CheckpointError if a model that was just loaded from files has none: they changed in the meantime.
    """
    from evals.models.response_cache import CachedResponses, ResponseCache
    from evals.tasks.code_metrics import VerdictCache

    identity = lm.identity(run)
    if identity is None and from_files:
        raise CheckpointError("the model's files changed while they were loaded; start the run again.")
    writer = store.writer(run, rank=team.rank) if team.writes_answers else None
    lm.response_cache = ResponseCache(
        None if identity is None else CachedResponses(store, writer, identity, lm.check_unchanged), team
    )
    grader.verdict_cache = VerdictCache(store, writer) if writer else None
    try:
        yield
    finally:
        if writer:
            writer.close()
        lm.response_cache, grader.verdict_cache = ResponseCache(), None


def _warn_truncated(truncated: Mapping[str, int], context: int) -> None:
    for name, number in truncated.items():
        if number:
            echo(
                f"{name}: {number} prompts were longer than the context of {context} tokens "
                "and were truncated on the left.",
                err=True,
            )


def runnable(tasks: tuple[str, ...], include: Sequence[Path] = ()) -> tuple[list[str], dict[str, str]]:
    """The tasks that can run here, and for each other task the reason why not."""
    from evals.tasks import registry

    code_tasks = [name for name in tasks if registry.runs_code(name, include)]
    reason = sandbox.why_unavailable() if code_tasks else None
    if reason is None:
        return list(tasks), {}
    other_tasks = [name for name in tasks if name not in code_tasks]
    if not other_tasks:
        raise SandboxError(f"{', '.join(code_tasks)} runs generated code, and no sandbox is available: {reason}")
    return other_tasks, dict.fromkeys(code_tasks, reason)


def check_output(folder: Path) -> None:
    """Check before the work starts that results can be written to a folder; creates nothing.

    Raises: DataError if they cannot.
    """
    folder = folder.absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        problem = "is not a folder" if not nearest.is_dir() else "is not writable"
        raise DataError(f"results cannot be written to {folder}: {nearest} {problem}; choose another --output.")
