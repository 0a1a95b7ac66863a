"""Where a run's numbers come from, and in what two runs differ. Knows only of `results`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evals.results.runs import Run

# Of our own account, what decides a score; what was asked for beside it stands in the scores themselves.
_OWN = ("checkpoint_sha256", "tokenizer_sha256", "dtype", "device", "seed", "limit", "interventions", "commit")
# Of lm-eval's, which is all there is for its own runs.
_THEIRS = ("model_args", "model_sha", "model_revision", "model_dtype", "device", "limit", "fewshot_seed", "gen_kwargs")


def origin(run: Run) -> dict[str, Any]:
    """Model, hashes, dtype, device, seed, interventions, chat template, commit, versions and tasks' data, flat.

    A name with a dot belongs to one package or task, as `versions.torch`. What a run does not say is left out.
    """
    own, config = run.provenance, run.data.get("config") or {}
    found: dict[str, Any] = {"model": run.model}
    found |= {name: own.get(name) for name in _OWN} if own else {name: config.get(name) for name in _THEIRS}
    found["commit"] = own.get("commit") or run.data.get("git_hash")
    found["chat_template"] = run.data.get("chat_template_sha") or run.data.get("chat_template") or None
    versions = own.get("versions") or {"lm-eval": run.data.get("lm_eval_version")}
    parts = (
        ("versions", versions),
        ("task_version", run.data.get("versions")),
        ("data_sha256", own.get("data_sha256")),
        ("examples_sha256", own.get("examples_sha256")),
    )
    for name, values in parts:
        found |= {f"{name}.{key}": value for key, value in (values or {}).items()}
    return {name: value for name, value in found.items() if value not in (None, [], {}, "")}


def basis(own: Mapping[str, Any]) -> dict[str, Any]:
    """Of our own account, what a score stands on beside what was asked: files, data, and the code that computed it.

    Two runs that were asked the same on the same basis, device and dtype have the same numbers.
    """
    names = ("checkpoint_sha256", "tokenizer_sha256", "data_sha256", "examples_sha256", "engine")
    return {name: own.get(name) for name in names} | {"lm-eval": (own.get("versions") or {}).get("lm-eval")}


def differences(a: Run, b: Run) -> tuple[tuple[str, Any, Any], ...]:
    """What the origins of two runs differ in: (name, that of a, that of b), None where a run does not say.

    Data and versions of tasks that only one of them has are not differences.
    """
    first, second = origin(a), origin(b)
    only = set(a.tasks) ^ set(b.tasks)
    names = [name for name in {**first, **second} if name.partition(".")[2] not in only]
    return tuple((name, first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name))
