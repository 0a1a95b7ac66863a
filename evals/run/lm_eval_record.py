"""The keys of lm-eval's results file that say how a run was made, filled as lm-eval fills them.

Keys of what the workbench does not have are null: its answers are not cached in lm-eval's way, and Python's and NumPy's
seeds are not used.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from workbench import provenance

if TYPE_CHECKING:
    from evals.models.lm_eval_backend import Backend
    from evals.models.workbench_lm import WorkbenchLM
    from evals.run.settings import Settings

_BOOTSTRAP_ITERS = 100_000  # lm-eval's default, with which its standard errors are computed
_NOT_INSTALLED = "N/A"


def config(lm: WorkbenchLM | Backend | None, settings: Settings) -> dict[str, Any]:
    """Keys of the part `config`; lm: None for answers from a file."""
    info = getattr(getattr(lm, "lm", None), "get_model_info", dict)()  # of a model of lm-eval's own
    return {
        "batch_size": settings.batch_size,
        "batch_sizes": list(getattr(getattr(lm, "lm", None), "batch_sizes", {}).values()),
        "model_revision": None,
        "model_sha": None,
        **info,
        "use_cache": None,
        "limit": settings.limit,
        "bootstrap_iters": _BOOTSTRAP_ITERS,
        "random_seed": None,
        "numpy_seed": None,
        "torch_seed": settings.seed,
        "fewshot_seed": settings.seed,
    }


def general(lm: WorkbenchLM | Backend | None, settings: Settings) -> dict[str, Any]:
    """Keys beside `config`; lm: None for answers from a file."""
    versions = provenance.versions("transformers", "lm-eval", "llama-workbench")
    lines = [f"{name} {version}" for name, version in versions.items()]
    system = settings.system
    return {
        "pretty_env_info": "\n".join([*lines, platform.platform()]),
        "transformers_version": versions.get("transformers", _NOT_INSTALLED),
        "upper_git_hash": None,
        **_tokens(lm),
        "system_instruction": system,
        "system_instruction_sha": None if system is None else sha256(system.encode()).hexdigest(),
        "fewshot_as_multiturn": settings.chats_in_turns,
    }


def _tokens(lm: WorkbenchLM | Backend | None) -> dict[str, list[str | None]]:
    """The padding, end and begin token, each as its text and its id."""
    ours = getattr(getattr(lm, "model", None), "tokenizer", None)
    theirs = None
    with suppress(Exception):  # a property of other libraries, which may look for files on the hub
        theirs = getattr(getattr(lm, "lm", None), "tokenizer", None)
    entries = {}
    for kind in ("pad", "eos", "bos"):
        text, token = None, None
        if theirs is not None:
            text, token = getattr(theirs, f"{kind}_token", None), getattr(theirs, f"{kind}_token_id", None)
        elif hasattr(ours, f"{kind}_id"):
            token = getattr(ours, f"{kind}_id")
            text = None if token is None else ours.name(token)
        entries[f"tokenizer_{kind}_token"] = [text, str(token)]
    return entries


def task_hashes(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """A hash of each task's questions, prompts and targets, by lm-eval's rule; samples as lm-eval returned them."""
    return {task: _hash(_hashes(rows)) for task, rows in samples.items()}


def _hashes(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows)


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()
