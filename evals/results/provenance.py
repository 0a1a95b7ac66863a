"""Provenance of a run: the model, settings, data and versions behind its scores, and how two runs differ in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evals.results.runs import Run

# Fields of our provenance record that can change a score; the other settings are part of the scores themselves.
_OUR_FIELDS = ("checkpoint_sha256", "tokenizer_sha256", "dtype", "device", "seed", "limit", "interventions", "commit")
# Fields of lm-eval's config, used for runs made by lm-eval itself.
_LM_EVAL_FIELDS = (
    "model_args",
    "model_sha",
    "model_revision",
    "model_dtype",
    "device",
    "limit",
    "fewshot_seed",
    "gen_kwargs",
)


def origin(run: Run) -> dict[str, Any]:
    """Model, hashes, dtype, device, seed, interventions, chat template, commit, versions and task data, as a flat dict.

    A name with a dot belongs to one package or task, as `versions.torch`. Values that the run does not record are left
    out.
    """
    record, config = run.provenance, run.data.get("config") or {}
    flat: dict[str, Any] = {"model": run.model}
    flat |= (
        {name: record.get(name) for name in _OUR_FIELDS}
        if record
        else {name: config.get(name) for name in _LM_EVAL_FIELDS}
    )
    flat["commit"] = record.get("commit") or run.data.get("git_hash")
    flat["chat_template"] = run.data.get("chat_template_sha") or run.data.get("chat_template") or None
    versions = record.get("versions") or {"lm-eval": run.data.get("lm_eval_version")}
    parts = (
        ("versions", versions),
        ("task_version", run.data.get("versions")),
        ("data_sha256", record.get("data_sha256")),
        ("examples_sha256", record.get("examples_sha256")),
        ("definition_sha256", record.get("definition_sha256")),
    )
    for name, values in parts:
        flat |= {f"{name}.{key}": value for key, value in (values or {}).items()}
    return {name: value for name, value in flat.items() if value not in (None, [], {}, "")}


def basis(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of our provenance record that determines scores besides the settings: files, data and code versions.

    Two runs with the same settings, basis, device and dtype have the same scores.
    """
    names = (
        "checkpoint_sha256", "tokenizer_sha256", "chat_template_sha256", "data_sha256", "examples_sha256", "engine",
        "sampler",
    )  # fmt: skip
    own = {name: record[name] for name in ("definition_sha256",) if name in record}  # only runs of the user's own tasks
    return {name: record.get(name) for name in names} | own | {"lm-eval": (record.get("versions") or {}).get("lm-eval")}


def differences(a: Run, b: Run) -> tuple[tuple[str, Any, Any], ...]:
    """The values of `origin` that differ between two runs: (name, value in a, value in b), None if not recorded.

    Data and versions of tasks that only one run has are not counted as differences.
    """
    first, second = origin(a), origin(b)
    only = set(a.tasks) ^ set(b.tasks)
    names = [name for name in {**first, **second} if name.partition(".")[2] not in only]
    return tuple((name, first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name))
