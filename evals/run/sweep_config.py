"""A sweep's YAML file: every model, on every group of tasks, with every intervention.

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

Options have the names of `workbench eval run`. Runs nothing.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evals.run.settings import OURS, Settings
from workbench.errors import DataError, WorkbenchError
from workbench.hooks.intervention import Intervention
from workbench.hooks.intervention_options import InterventionOptions, described

# Options of the file: their types, and their names in `Settings`.
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
    "limits": ((dict,), "limits"),
    "online": ((bool,), "online"),
    "include_path": ((str, list), "include_path"),
}
_MODEL: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "path": (str,),
    "device": (str,),
    "dtype": (str,),
    "adapter": (str,),
    "backend": (str,),
    "model_args": (dict,),
}
_INTERVENTION: dict[str, tuple[type, ...]] = dict.fromkeys(
    ("name", "intervene", "ablate", "scale", "rope_scaling"), (str,)
)
_FILE: dict[str, tuple[type, ...]] = {
    "output": (str,),
    "models": (list,),
    "tasks": (list,),
    "interventions": (list,),
    "defaults": (dict,),
}
_ONE_OPTION = {name: kinds for name, (kinds, _) in _OPTIONS.items()}


@dataclass(frozen=True)
class PlannedRun:
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


def read(path: Path) -> list[PlannedRun]:
    """The evaluations of a file in its order: by model, then by tasks, then by intervention.

    Raises: DataError that names the place, for a file that is not a sweep; others for a model or an intervention that
            does not exist.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    try:
        return expand(content)
    except WorkbenchError as error:
        raise type(error)(f"{path}: {error}") from error


def expand(content: Any) -> list[PlannedRun]:
    """The evaluations of a sweep, from the parsed content of its file."""
    sweep = _validated(content, "the file", _FILE)
    for name in ("output", "models", "tasks"):
        if not sweep.get(name):
            raise DataError(f"{name} is missing; a sweep needs output, models and tasks, and may have interventions.")
    defaults = _validated(sweep.get("defaults", {}), "defaults", _ONE_OPTION)
    models = [_model(entry, f"models[{i}]") for i, entry in enumerate(sweep["models"])]
    groups = [_tasks(entry, f"tasks[{i}]") for i, entry in enumerate(sweep["tasks"])]
    changes = [
        _intervention_entry(entry, f"interventions[{i}]") for i, entry in enumerate(sweep.get("interventions") or [{}])
    ]
    planned = []
    for model in models:
        for tasks, options in groups:
            for change_name, change in changes:
                settings = _settings(tasks, {**defaults, **options}, Path(sweep["output"]), model)
                interventions = _interventions(model, change)
                planned.append(
                    PlannedRun(
                        model_name=model.get("name") or Path(model.get("path") or model["backend"]).name,
                        change_name=change_name or (described(interventions) if interventions else ""),
                        model=model.get("path", ""),
                        settings=replace(settings, interventions=interventions, adapter=model.get("adapter")),
                        device=model.get("device", "auto"),
                        dtype=model.get("dtype", "auto"),
                    )
                )
    return planned


def _model(entry: Any, where: str) -> dict[str, Any]:
    model = {"path": entry} if isinstance(entry, str) else _validated(entry, where, _MODEL)
    if not model.get("path") and "model_args" not in model:
        raise DataError(f"{where} needs a path or model_args.")
    return {"backend": OURS, **model}


def _tasks(entry: Any, where: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    options = entry if isinstance(entry, dict) else {"tasks": entry}
    options = _validated(options, where, {"tasks": (str, list), **_ONE_OPTION})
    names = options.pop("tasks", ())
    names = (names,) if isinstance(names, str) else tuple(names)
    if not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where} has no tasks; give a name, a list of names, or {{tasks: [...], num_fewshot: 5}}.")
    return names, options


def _intervention_entry(entry: Any, where: str) -> tuple[str, dict[str, str]]:
    change = {} if entry in (None, "none") else _validated(entry, where, _INTERVENTION)
    return change.pop("name", ""), change


def _interventions(model: Mapping[str, Any], change: Mapping[str, str]) -> tuple[Intervention, ...]:
    if not change:
        return ()
    if model["backend"] != OURS:
        raise DataError(
            f"interventions work with the workbench's own model only, not with the backend {model['backend']!r}."
        )
    from workbench.checkpoint import read_config

    texts = {key: value for key, value in change.items() if key != "intervene"}
    file = Path(change["intervene"]) if "intervene" in change else None
    return InterventionOptions(file=file, **texts).interventions(read_config(model["path"]))


def _settings(tasks: tuple[str, ...], options: Mapping[str, Any], output: Path, model: Mapping[str, Any]) -> Settings:
    values = {_OPTIONS[name][1]: value for name, value in options.items()}
    if "data" in values:
        values["data"] = Path(os.path.expanduser(values["data"]))
    return Settings(tasks, output, **values, backend=model["backend"], model_args=model.get("model_args", {}))


def _validated(mapping: Any, where: str, known: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """The mapping without null values, after a check of its keys and of the types of its values."""
    if not isinstance(mapping, dict):
        raise DataError(f"{where} must be a mapping with {', '.join(known)}; found {mapping!r}.")
    for key, value in mapping.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(known)}."
            raise DataError(f"{where} has an unknown key {key!r}; {hint}")
        kinds = known[key]
        if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise DataError(f"{where}: {key} must be {expected}; found {value!r}.")
    return {key: value for key, value in mapping.items() if value is not None}
