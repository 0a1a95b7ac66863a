"""Many evaluations from one YAML file: every model, on every group of tasks, under every intervention.

    output: results/sweep
    defaults: {limit: 200, seed: 1}
    models:
      - demo
      - {path: checkpoints/Llama-3.2-1B, name: 1B, dtype: bfloat16, device: cuda}
    tasks:
      - mmlu
      - {tasks: [gsm8k_cot], num_fewshot: 8, gen_kwargs: {max_gen_toks: 256}}
    interventions:
      - none
      - {name: without the head, ablate: L5H3}

What is finished is not run again, what was stopped is taken up, and a run that fails does not stop the others. Options
bear the names of `workbench eval run`. Knows nothing of how one evaluation is made.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evals import processes
from evals.interventions import Changes, described
from evals.results import Run, read_run
from evals.run import OURS, Settings, evaluate, request_of, resume
from evals.store import INDEX, Store, StoredRun
from workbench.errors import DataError, WorkbenchError
from workbench.intervene import Intervention

# Options of the file -> their types and the names they have in `Settings`.
_OPTIONS: dict[str, tuple[tuple[type, ...], str]] = {
    "data": ((str,), "data"),
    "limit": ((int, float), "limit"),
    "num_fewshot": ((int,), "num_fewshot"),
    "batch_size": ((int,), "batch_size"),
    "seed": ((int,), "seed"),
    "apply_chat_template": ((bool,), "chat"),
    "fewshot_as_multiturn": ((bool,), "multiturn"),
    "system_instruction": ((str,), "system"),
    "gen_kwargs": ((dict,), "gen_kwargs"),
    "preset": ((str,), "preset"),
    "samples": ((int,), "samples"),
    "online": ((bool,), "online"),
}
_MODEL: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "path": (str,),
    "device": (str,),
    "dtype": (str,),
    "backend": (str,),
    "model_args": (dict,),
}
_CHANGE: dict[str, tuple[type, ...]] = dict.fromkeys(("name", "intervene", "ablate", "scale", "rope_scaling"), (str,))
_FILE: dict[str, tuple[type, ...]] = {
    "output": (str,),
    "models": (list,),
    "tasks": (list,),
    "interventions": (list,),
    "defaults": (dict,),
}
_ONE_OPTION = {name: kinds for name, (kinds, _) in _OPTIONS.items()}


@dataclass(frozen=True)
class Planned:
    """One evaluation of a sweep."""

    model_name: str
    change_name: str
    model: str
    settings: Settings
    device: str = "auto"
    dtype: str = "auto"

    @property
    def name(self) -> str:
        changed = f", {self.change_name}" if self.change_name else ""
        return f"{self.model_name} on {','.join(self.settings.tasks)}{changed}"


@dataclass(frozen=True)
class Done:
    """What became of one: `status` is finished, finished before, running elsewhere, failed, or (of a dry run) planned
    or stopped."""

    planned: Planned
    status: str
    run: Run | None = None
    error: str = ""

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
            "path": str(self.run.path) if self.run else None,
            "scores": [vars(score) for score in self.run.scores] if self.run else [],
        }


def read(path: Path) -> list[Planned]:
    """The evaluations that a file asks for, in its order: models, in each the tasks, in each the interventions.

    Raises: DataError that names the place, for a file that is no sweep; others for a model or an intervention that
            does not exist.
    """
    import yaml

    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    try:
        return expand(given)
    except WorkbenchError as error:
        raise type(error)(f"{path}: {error}") from error


def expand(given: Any) -> list[Planned]:
    """The evaluations of a sweep that is read already."""
    whole = _checked(given, "the file", _FILE)
    for name in ("output", "models", "tasks"):
        if not whole.get(name):
            raise DataError(f"{name} is missing; a sweep has output, models and tasks, and may have interventions.")
    defaults = _checked(whole.get("defaults", {}), "defaults", _ONE_OPTION)
    models = [_model(one, f"models[{i}]") for i, one in enumerate(whole["models"])]
    groups = [_tasks(one, f"tasks[{i}]") for i, one in enumerate(whole["tasks"])]
    changes = [_change(one, f"interventions[{i}]") for i, one in enumerate(whole.get("interventions") or [{}])]
    planned = []
    for model in models:
        for tasks, options in groups:
            for change_name, change in changes:
                settings = _settings(tasks, {**defaults, **options}, Path(whole["output"]), model)
                asked = _interventions(model, change)
                planned.append(
                    Planned(
                        model_name=model.get("name") or Path(model.get("path") or model["backend"]).name,
                        change_name=change_name or (described(asked) if asked else ""),
                        model=model.get("path", ""),
                        settings=replace(settings, interventions=asked),
                        device=model.get("device", "auto"),
                        dtype=model.get("dtype", "auto"),
                    )
                )
    return planned


def run(planned: Sequence[Planned], *, dry_run: bool = False) -> list[Done]:
    """Make the evaluations that are not made yet, one after the other.

    Raises: DataError for a task that does not exist, before the first of them.
    """
    from evals import suites

    for one in planned:
        suites.check(one.settings.tasks)
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
    team = processes.join()
    earlier = team.tell(lambda: _earlier(planned))
    if isinstance(earlier, Run):
        return Done(planned, "finished before", earlier)
    stopped = earlier if earlier and earlier.status != "running" else None
    if earlier and not stopped:
        return Done(planned, "running elsewhere")
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
    """The finished evaluation of the same settings and files, else one that can be taken up, else none."""
    root = planned.settings.output
    if not (root / INDEX).is_file():
        return None
    request = request_of(planned.model, planned.settings, device=planned.device, dtype=planned.dtype)
    with Store.open(root, create=False) as store:
        alike = [found for found in store.runs() if _request(found, root) == request]
    for found in alike:
        if found.status == "finished" and found.results and (root / found.results).is_file():
            run = read_run(root / found.results)
            if run.provenance.get("checkpoint_sha256") == _fingerprint(planned):
                return run
    return next((found for found in alike if found.status != "finished"), None)


def _request(found: StoredRun, root: Path) -> dict[str, Any] | None:
    """What a stored run was asked, as it would be said today."""
    try:
        settings = replace(Settings.from_dict(found.settings["settings"]), output=root)
        return {**found.settings, "settings": settings.to_dict()}
    except (KeyError, TypeError, WorkbenchError):
        return None


def _fingerprint(planned: Planned) -> str | None:
    from workbench.checkpoint import fingerprint

    if planned.settings.backend == OURS:
        return fingerprint(planned.model)
    from evals.backend import digest

    return digest(Path(planned.model)) if planned.model and Path(planned.model).is_dir() else None


def _model(given: Any, where: str) -> dict[str, Any]:
    model = {"path": given} if isinstance(given, str) else _checked(given, where, _MODEL)
    if not model.get("path") and "model_args" not in model:
        raise DataError(f"{where} has neither path nor model_args.")
    return {"backend": OURS, **model}


def _tasks(given: Any, where: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    options = given if isinstance(given, dict) else {"tasks": given}
    options = _checked(options, where, {"tasks": (str, list), **_ONE_OPTION})
    names = options.pop("tasks", ())
    names = (names,) if isinstance(names, str) else tuple(names)
    if not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where} names no tasks; give a name, a list of names, or {{tasks: [...], num_fewshot: 5}}.")
    return names, options


def _change(given: Any, where: str) -> tuple[str, dict[str, str]]:
    change = {} if given in (None, "none") else _checked(given, where, _CHANGE)
    return change.pop("name", ""), change


def _interventions(model: Mapping[str, Any], change: Mapping[str, str]) -> tuple[Intervention, ...]:
    if not change:
        return ()
    if model["backend"] != OURS:
        raise DataError(f"interventions change the workbench's own model; {model['backend']!r} cannot have any.")
    from workbench.checkpoint import read_config

    texts = {key: value for key, value in change.items() if key != "intervene"}
    file = Path(change["intervene"]) if "intervene" in change else None
    return Changes(file=file, **texts).interventions(read_config(model["path"]))


def _settings(tasks: tuple[str, ...], options: Mapping[str, Any], output: Path, model: Mapping[str, Any]) -> Settings:
    values = {_OPTIONS[name][1]: value for name, value in options.items()}
    if "data" in values:
        values["data"] = Path(os.path.expanduser(values["data"]))
    return Settings(tasks, output, **values, backend=model["backend"], model_args=model.get("model_args", {}))


def _checked(given: Any, where: str, known: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """A mapping whose keys are known and whose values have their types; null stands for what was not given."""
    if not isinstance(given, dict):
        raise DataError(f"{where} should have {', '.join(known)}; found {given!r}.")
    for key, value in given.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it may have {', '.join(known)}."
            raise DataError(f"{where} has an unknown key {key!r}; {hint}")
        kinds = known[key]
        if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise DataError(f"{where}: {key} should be {wanted}; found {value!r}.")
    return {key: value for key, value in given.items() if value is not None}
