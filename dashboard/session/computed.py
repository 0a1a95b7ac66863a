"""The selected model, its captures, and cached results of probes on them.

Models, captures and results are cached for the whole process and shared by its users. The keys are made of content (the
checkpoint's hash and the token ids), never of a session, so a user only gets results for the tokens that this user
sent. A session stores only the values of its own widgets.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

import streamlit as st
import torch

from dashboard.session import captures, models, shared_cache
from dashboard.session.models import ServedModel
from dashboard.session.shared_cache import process_cache, size_limited
from dashboard.token_text import plain
from workbench.errors import WorkbenchError
from workbench.hooks.capture import Capture
from workbench.hooks.interventions import from_json
from workbench.model import Transformer
from workbench.provenance import ModelSource

T = TypeVar("T")

MAX_TOKENS = 4096
"""The longest input that a page captures. Use a script for longer ones."""

NO_CHANGES = "[]"
"""No interventions, as JSON."""

CAPTURE_BYTES, CAPTURES_BYTES = 2 << 30, 4 << 30
"""Limits in bytes: of one capture, and of all cached captures of all users together."""


@dataclass(frozen=True)
class CaptureRef:
    """A capture and its id: a hash of checkpoint, dtype, device, token ids and interventions, and the hook names."""

    id: str
    capture: Capture


def selected_model() -> ServedModel:
    """The session's model: the one named in the URL, otherwise the first one that the server was started with."""
    served = models.served()
    named = st.session_state.get("model", st.query_params.get("model"))
    return next((model for model in served if model.id == named), served[0])


def model() -> Transformer:
    """The session's model, loaded once for all sessions."""
    return load(selected_model())


def load(served: ServedModel) -> Transformer:
    """A model of this server, loaded once for all sessions."""
    path, pool = served.path, models.pool()
    if path in pool.loaded_bytes():
        return pool.get(path)
    with shared_cache.spinner_place():
        bar = st.empty()
    name = Path(path).name
    loaded = pool.get(path, lambda fraction: bar.progress(fraction, plain(f"Loading {name} …")))
    bar.empty()
    return loaded


def model_path() -> str:
    """The path of the session's model, as `workbench.load_model` takes it."""
    return selected_model().path


def unload(served: ServedModel) -> None:
    """Free the memory of a model, and of all cached captures and results, which hold its tensors."""
    shared_cache.clear_all()
    models.unload(served.path)


def capture(model: Transformer, ids: tuple[int, ...], hooks: tuple[str, ...], changes: str = NO_CHANGES) -> CaptureRef:
    """A capture of these tokens with these hooks: from the open file or the cache if one has them, else from a new run.

    changes: interventions active during the run, as `workbench.hooks.interventions.to_json` writes them.
    Raises: WorkbenchError for token ids, hook names or targets the model does not have, or a capture over its budget.
    """
    stored = open_capture(model, ids, hooks, changes)
    if stored is not None:
        return stored
    identity = [fingerprint(model), str(model.dtype), str(model.device), ids, changes]
    run = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    cached = ((names, cap) for (other, names), cap in list(_RUNS.items()) if other == run)
    hooks = next((names for names, cap in cached if captures.covers(cap, hooks)), hooks)
    capture_id = f"{run} {sorted(hooks)}"
    result = _RUNS[run, hooks] = _run(capture_id, model, ids, hooks, changes)
    return CaptureRef(capture_id, result)


_RUNS: WeakValueDictionary[tuple[str, tuple[str, ...]], Capture] = WeakValueDictionary()
"""Captures still in the cache of `_run`, by run and hooks. Used to find a capture that has more hooks than needed."""


def open_capture(model: Transformer, ids: tuple[int, ...], hooks: tuple[str, ...], changes: str) -> CaptureRef | None:
    """The session's open capture file, if it has the same weights, dtype, tokens and interventions, and all hooks."""
    names = (st.session_state.get(key) for key in ("_last_capture", "_last_b_capture"))
    matches = (_matching_capture(name, model, ids, hooks, changes) for name in names if name is not None)
    return next((match for match in matches if match is not None), None)


def _matching_capture(
    name: str, model: Transformer, ids: tuple[int, ...], hooks: tuple[str, ...], changes: str
) -> CaptureRef | None:
    try:
        stored = captures.find(name)
        capture = captures.load(stored, model.device)
        run = tuple(capture.tokens[0].tolist()), [*map(json.loads, stored.interventions)]
        if run != (ids, json.loads(changes)) or why_capture_unusable(model, name, hooks):
            return None
    except WorkbenchError:  # the page shows this error
        return None
    return CaptureRef(f"stored {stored.path} {stored.path.stat().st_mtime_ns} {sorted(hooks)}", capture)


def why_capture_unusable(model: Transformer, name: str, hooks: tuple[str, ...]) -> str:
    """Why a saved capture cannot replace a run of the model with these hooks; empty if it can.

    Raises: WorkbenchError if the file is missing or damaged.
    """
    stored, dtype = captures.find(name), str(model.dtype).removeprefix("torch.")
    if stored.checkpoint != fingerprint(model):
        return "the file does not record the hash of this model's checkpoint"
    if stored.dtype != dtype:
        return f"the file is in {stored.dtype}, the model in {dtype}"
    missing = captures.missing_hooks(captures.load(stored, model.device), hooks)
    return f"the file does not contain {', '.join(missing)}" if missing else ""


def model_source(model: Transformer) -> ModelSource | None:
    """The source of a model's weights; None if they were not loaded from a file.

    Cached, because `model.source` takes milliseconds to check the weights, and pages never change them.
    """
    if model not in _SOURCES:
        _SOURCES[model] = model.source
    return _SOURCES[model]


_SOURCES: WeakKeyDictionary[Transformer, ModelSource | None] = WeakKeyDictionary()


def fingerprint(model: Transformer) -> str:
    """The checkpoint's hash; for weights that were not loaded from a file, the identity of the model object."""
    source = model_source(model)
    return f"object {id(model)}" if source is None else source.checkpoint_sha256


def cached_probe(
    probe: Callable[..., T],
    *args: Any,
    model: Transformer | None = None,
    capture: CaptureRef | None = None,
    **options: Any,
) -> T:
    """`probe(model, capture, *args, **options)`, computed once for each capture (or checkpoint) and arguments.

    model, capture: passed first, in this order; one that is not given is left out. Results must be read-only.
    """
    if capture is not None:
        source, inputs = capture.id, [capture.capture] if model is None else [model, capture.capture]
    elif model is not None:
        source, inputs = fingerprint(model), [model]
    else:
        raise TypeError("cached_probe needs a model or a capture")
    key = f"{source}/{_name(probe)}{args}{sorted(options.items())}"
    return _computed(key, lambda: probe(*inputs, *args, **options))


def cached_pair_probe(
    probe: Callable[..., T], *args: Any, model: Transformer, before: CaptureRef, after: CaptureRef
) -> T:
    """`probe(model, before's capture, after's capture, *args)`, computed once for each pair and arguments."""
    key = f"{before.id}/{after.id}/{_name(probe)}{args}"
    return _computed(key, lambda: probe(model, before.capture, after.capture, *args))


@size_limited("Running the model …", max_bytes=CAPTURES_BYTES, size=lambda cap: cap.n_bytes)
def _run(capture_id: str, model: Transformer, ids: tuple[int, ...], hooks: tuple[str, ...], changes: str) -> Capture:
    with torch.no_grad(), model.intervene(*from_json(changes)):
        _, cap = model.run_with_capture(
            torch.tensor([ids], device=model.device), hooks, logits=None, budget=CAPTURE_BYTES
        )
    return cap


@process_cache("Computing …", max_entries=256)
def _computed(key: str, _compute: Callable[[], Any]) -> Any:
    with torch.no_grad():
        return _compute()


def _name(probe: Callable[..., Any]) -> str:
    return f"{probe.__module__}.{probe.__qualname__}"
