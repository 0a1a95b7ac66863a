"""A sweep's YAML file as a plan: every model, on every group of tasks, under every intervention.

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

Options bear the names of `workbench eval run`. Runs nothing.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evals.interventions import InterventionOptions, described
from evals.run.settings import OURS, Settings
from workbench.errors import DataError, WorkbenchError
from workbench.hooks.intervention import Intervention

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
    "limits": ((dict,), "limits"),
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
    return InterventionOptions(file=file, **texts).interventions(read_config(model["path"]))


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
