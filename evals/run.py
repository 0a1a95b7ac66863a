"""One evaluation from beginning to end: load tasks and model, let lm-eval ask its questions, write down
what came.

Every answer is kept in the output folder's store as soon as it is there, so a run that was stopped goes on where it
was. Offline throughout. Knows nothing of how tasks are worded or how the model computes.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from evals import results, sandbox
from evals.store import Store, StoredRun
from workbench import intervene, provenance
from workbench.errors import DataError, SandboxError
from workbench.intervene import Intervention

if TYPE_CHECKING:
    from evals.code import Judge
    from evals.lm import WorkbenchLM
    from evals.results import Run
    from evals.suites import Suites
    from workbench import Transformer


@dataclass(frozen=True)
class Settings:
    """What is evaluated, on what, and how. `limit` takes the first questions of each task; None takes all.

    `interventions` change the model for the whole run.
    """

    tasks: tuple[str, ...]
    output: Path
    data: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int | None = None
    seed: int = 1234
    chat: bool = False
    interventions: tuple[Intervention, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; `from_dict` gives the same settings back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        paths = {"output": str(self.output), "data": None if self.data is None else str(self.data.absolute())}
        return values | paths | {"interventions": [change.to_dict() for change in self.interventions]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        changes = intervene.from_json(json.dumps(values["interventions"]))
        data = None if values["data"] is None else Path(values["data"])
        given = {**values, "tasks": tuple(values["tasks"]), "output": Path(values["output"]), "data": data}
        return cls(**{**given, "interventions": changes})


def resume(root: Path, name: str) -> Run:
    """Go on with a run of this store that was stopped, as it was asked for; what it has answered is not asked again.

    Raises: DataError if there is no such run, it is finished, it is running, or its model was not loaded from a path.
    """
    with Store.open(root, create=False) as store:
        found = store.run(name)
    if found.status == "finished":
        raise DataError(f"run {found.id} is finished; its results are in {root / str(found.results)}.")
    if found.settings["model"] is None:
        raise DataError(f"run {found.id} was made on a model in memory; evaluate that model again.")
    settings = replace(Settings.from_dict(found.settings["settings"]), output=root)
    arguments = {key: found.settings[key] for key in ("device", "dtype")}
    return evaluate(found.settings["model"], settings, **arguments, again=found)


def evaluate(
    model: str | Path | Transformer,
    settings: Settings,
    *,
    device: str = "auto",
    dtype: str = "auto",
    again: StoredRun | None = None,
) -> Run:
    """Run the tasks on a checkpoint ("demo" for the embedded one) or a loaded model, and write the results.

    again: the stopped run that this one takes up, which `resume` looks up.
    Raises: DataError for unknown tasks or missing data, SandboxError if all that was asked for needs a
    sandbox and there is none, CheckpointError and others for a model that cannot be loaded.
    """
    # Read by the libraries when they are first imported: nothing here may ask a hub.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    started = time.time()
    from evals import suites
    from evals.code import Judge

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    suites.check(settings.tasks)
    asked, not_run = _runnable(settings.tasks)
    judge = Judge()
    loaded = suites.load(asked, root=settings.data, judge=judge)
    from evals.lm import WorkbenchLM

    lm = WorkbenchLM(model, batch_size=settings.batch_size, device=device, dtype=dtype, seed=settings.seed)
    _check_place(settings.output)
    with Store.open(settings.output) as store, lm.model.intervene(*settings.interventions):
        name = again.id if again else store.begin(_request(model, settings, device=device, dtype=dtype))
        if again:
            store.again(name)
        with _told(store, name), _remembering(lm, store, name):
            found = _ask(lm, loaded, settings)
            samples = found.pop("samples")
            written = {name: list(_written(name, rows, lm, judge)) for name, rows in samples.items()}
            cut = {name: sum(bool(row["replay"].get("cut")) for row in rows) for name, rows in written.items()}
            _say_cut(cut, lm.max_length)
            found |= _account(lm, loaded, settings, started=started)
            found[results.PROVENANCE] |= {"run": name, "not_run": not_run, "cut_prompts": cut}
            run = results.write(settings.output, found, written)
            store.finish(name, results=run.path.name, metrics=_metrics(run), samples=_verdicts(written))
    return run


def _request(model: str | Path | Transformer, settings: Settings, *, device: str, dtype: str) -> dict[str, Any]:
    """What was asked for, so that it can be asked for again."""
    path: str | None = None
    if isinstance(model, str | Path):
        path = str(Path(model).absolute()) if Path(model).exists() else str(model)
    return {"model": path, "device": device, "dtype": dtype, "settings": settings.to_dict()}


@contextmanager
def _told(store: Store, run: str) -> Iterator[None]:
    """Enter in the store how a run ended that did not end well."""
    try:
        yield
    except BaseException as error:
        with suppress(DataError):  # the store may be what failed
            store.fail(run, str(error) or type(error).__name__)
        raise


@contextmanager
def _remembering(lm: WorkbenchLM, store: Store, run: str) -> Iterator[None]:
    """Let the model's answers come from the store and go there, where it can be said whose answers they are."""
    from evals import recall

    who = recall.identity(lm.model)
    writer = store.writer(run)
    lm.recall = None if who is None else recall.Recall(store, writer, who)
    try:
        yield
    finally:
        writer.close()
        lm.recall = None


def _metrics(run: Run) -> Iterator[tuple[Any, ...]]:
    for s in run.scores:
        yield s.task, s.metric, s.filter, s.average, s.n, s.value, s.stderr, s.low, s.high


def _verdicts(written: Mapping[str, list[dict[str, Any]]]) -> Iterator[tuple[Any, ...]]:
    for task, rows in written.items():
        for row in rows:
            metric = row["metrics"][0] if row.get("metrics") else None
            correct = None if metric is None else float(row[metric])
            yield task, row["doc_id"], row.get("filter", "none"), metric, correct


def _say_cut(cut: Mapping[str, int], context: int) -> None:
    for name, number in cut.items():
        if number:
            print(
                f"{name}: {number} prompts were longer than the context of {context} tokens and lost their beginning.",
                file=sys.stderr,
            )


def _runnable(tasks: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """The tasks that can be run here, and why the others cannot."""
    from evals import suites

    needs = [name for name in tasks if suites.runs_code(name)]
    reason = sandbox.why_unavailable() if needs else None
    if reason is None:
        return list(tasks), {}
    rest = [name for name in tasks if name not in needs]
    if not rest:
        raise SandboxError(f"{', '.join(needs)} runs generated code, and there is no sandbox here: {reason}")
    return rest, dict.fromkeys(needs, reason)


def _check_place(folder: Path) -> None:
    """Find out before the work, not after it, that the results have no place; make nothing yet."""
    folder = folder.absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        what = "is no folder" if not nearest.is_dir() else "is not writable"
        raise DataError(f"results cannot be written to {folder}: {nearest} {what}; choose another --output.")


def _ask(lm: WorkbenchLM, loaded: Suites, settings: Settings) -> dict[str, Any]:
    from lm_eval.api import task as lm_eval_task
    from lm_eval.evaluator import evaluate as lm_eval_evaluate

    # Its bar is for one task's prompts, which take a moment, and MMLU has 57 tasks.
    lm_eval_task.tqdm = partial(tqdm, disable=True)
    for name, task in loaded.tasks.items():
        fixed = task.get_config("num_fewshot")
        if settings.num_fewshot is None:
            task.set_config("num_fewshot", fixed or 0)
        elif fixed == 0 and settings.num_fewshot:
            # lm-eval's rule: a task that says 0 has no examples to give.
            print(f"{name} has no few-shot examples; --num_fewshot is not applied to it.", file=sys.stderr)
        else:
            task.set_config("num_fewshot", settings.num_fewshot)
        task.set_fewshot_seed(settings.seed)
    found = lm_eval_evaluate(
        lm=lm,
        task_dict=loaded.as_dict(),
        limit=settings.limit,
        log_samples=True,
        apply_chat_template=settings.chat,
        fewshot_as_multiturn=settings.chat,
        confirm_run_unsafe_code=True,
    )
    assert found is not None, "only the first of several processes gets results"
    return dict(found)


def _account(lm: WorkbenchLM, loaded: Suites, settings: Settings, *, started: float) -> dict[str, Any]:
    """Where the numbers come from: lm-eval's own keys, and ours."""
    versions = provenance.versions("lm-eval", "datasets", "tiktoken", "llama-workbench")
    origin = provenance.describe(lm.model.source)
    dtype = str(lm.model.dtype).removeprefix("torch.")
    name = str(origin["path"] or "unnamed")
    return {
        "config": {
            "model": "workbench",
            "model_args": {"pretrained": name, "dtype": dtype},
            "model_dtype": dtype,
            "model_num_parameters": sum(parameter.numel() for parameter in lm.model.parameters()),
            "batch_size": settings.batch_size,
            "device": str(lm.device),
            "limit": settings.limit,
            "fewshot_seed": settings.seed,
        },
        "git_hash": origin["commit"],
        "date": started,
        "lm_eval_version": versions.get("lm-eval"),
        "model_source": "workbench",
        "model_name": name,
        "model_name_sanitized": "".join(c if c.isalnum() or c in "-_." else "_" for c in name),
        "max_length": lm.max_length,
        "eot_token_id": lm.eot_token_id,
        "chat_template": lm.chat_template(settings.chat),
        "total_evaluation_time_seconds": str(time.time() - started),
        results.PROVENANCE: {
            **origin,
            "versions": versions,
            "dtype": dtype,
            "device": str(lm.device),
            "seed": settings.seed,
            "limit": settings.limit,
            "tasks": list(settings.tasks),
            "interventions": [change.to_dict() for change in settings.interventions],
            "data_sha256": {task: getattr(loaded.tasks[task], "data_sha256", None) for task in loaded.tasks},
            "sandbox": {"timeout_s": 10.0},
        },
    }


def _written(task: str, rows: list[dict[str, Any]], lm: WorkbenchLM, judge: Judge) -> Iterator[dict[str, Any]]:
    """Samples in the form of lm-eval's own file, each with the ids that replay it and what became of its code."""
    from lm_eval.utils import sanitize_list

    for row in sorted(rows, key=lambda row: row["doc_id"]):
        arguments = row["arguments"]
        extra: dict[str, Any] = {"replay": _replay(task, row, lm)}
        runs = [judge.runs.get((code, str(row["target"]))) for code in _programs(row)]
        if any(run is not None for run in runs):
            extra["execution"] = [asdict(run) for run in runs if run is not None]
        yield {
            **row,
            "resps": sanitize_list(row["resps"]),
            "filtered_resps": sanitize_list(row["filtered_resps"]),
            "arguments": {
                f"gen_args_{i}": {f"arg_{j}": value for j, value in enumerate(argument)}
                for i, argument in enumerate(arguments)
            },
            "target": str(row["target"]),
            **extra,
        }


def _programs(row: Mapping[str, Any]) -> list[str]:
    """The programs of a sample whose filter made some: a list of texts a request."""
    return [code for codes in row["filtered_resps"] if isinstance(codes, list) for code in codes]


def _replay(task: str, row: Mapping[str, Any], lm: WorkbenchLM) -> dict[str, Any]:
    arguments = row["arguments"]
    if isinstance(arguments[0][1], str):
        context = lm.contexts[arguments[0][0]]
        ids = [lm.answers[context_text, answer] for context_text, answer in arguments]
        return {"prompt_ids": list(context.ids), "choice_ids": [list(answer) for answer in ids], "cut": context.cut}
    done = lm.continued[task, row["doc_id"]]
    return {
        "prompt_ids": list(done[0].prompt),
        "generated_ids": [list(one.tokens) for one in done],
        "logprobs": [[round(value, 6) for value in one.logprobs] for one in done],
        "finish_reason": [one.finish_reason for one in done],
        "cut": done[0].cut,
    }
