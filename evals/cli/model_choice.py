"""Which model a command line means: a checkpoint for the workbench's own model, or one of lm-eval's backends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from evals.runtime.printing import echo
from workbench.errors import DataError

OURS = "workbench"
_OF_OURS = ("pretrained", "dtype", "device", "revision", "peft")
_HUGGING_FACE = "hf"


class ModelChoice(NamedTuple):
    """The checkpoint ("" if only `args` name it), the backend with its arguments, and options of our own model."""

    path: str
    backend: str
    args: dict[str, Any]
    options: dict[str, str]


def choose(model: str, backend: str, args: Mapping[str, Any], *, trust_remote_code: bool = False) -> ModelChoice:
    """The model that --model, --backend and --model_args name, as in lm_eval or as here.

    lm_eval's `--model hf --model_args pretrained=X` runs on that backend. Without the name of a backend, `pretrained`
    and a few others are for the workbench's own model.
    Raises: DataError for arguments that do not fit.
    """
    arguments = dict(args)
    default = model == "demo"
    if backend == OURS and model == OURS:
        model, default = "demo", True
    elif backend == OURS and _is_backend(model):
        echo(
            f"--model {model} is a backend of lm-eval: the run uses --backend {model}. For the workbench's own model, "
            "leave it out and give the checkpoint as --model.",
            err=True,
        )
        if model.startswith(_HUGGING_FACE) and "pretrained" not in arguments:
            raise DataError(f"--model {model} needs the checkpoint: --model_args pretrained=FOLDER.")
        model, backend, default = "", model, True
    if backend != OURS:
        if trust_remote_code:
            arguments["trust_remote_code"] = True
        return ModelChoice("" if default else model, backend, arguments, {})
    if trust_remote_code or arguments.pop("trust_remote_code", False):
        echo("--trust_remote_code is ignored: the workbench's own model runs no code of a checkpoint.", err=True)
    if unknown := sorted(set(arguments) - set(_OF_OURS)):
        raise DataError(
            f"--model_args {', '.join(unknown)}: the workbench's own model has only {', '.join(_OF_OURS)}; the others "
            "need a --backend of lm-eval, such as --backend hf."
        )
    texts = {name: str(value) for name, value in arguments.items()}
    path = texts.pop("pretrained", model)
    if not default and path != model:
        raise DataError(f"--model {model} and --model_args pretrained={path} are two models; give one.")
    if revision := texts.pop("revision", ""):
        path = f"{path}@{revision}"
    return ModelChoice(path, OURS, {}, texts)


def _is_backend(name: str) -> bool:
    """Whether a name is one of lm-eval's models, and not a checkpoint."""
    if "/" in name or name in ("demo", "smollm2") or Path(name).exists():
        return False
    from evals.models.workbench_lm import backends

    return name in backends()
