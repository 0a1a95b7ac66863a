"""What the pages share: the model, captures and what was computed from them, and widget values that live in the URL.

Models, captures and results are kept for the whole process and shared by its users. They are keyed by content (the
checkpoint's hash and the token ids), never by a session, so a user is only ever given what was made from the very
tokens that this user sent. What a session itself remembers is its own widgets' values.
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
"""The longest input that a page captures; longer ones are for scripts."""

NO_CHANGES = "[]"
"""The model as it is: no interventions."""

CAPTURE_BYTES, CAPTURES_BYTES = 2 << 30, 4 << 30
"""Bytes that one capture may hold, and that all may that are kept: what all users together make the server hold."""


@dataclass(frozen=True)
class CaptureRef:
    """A capture and its id: a hash over the checkpoint, dtype, device, token ids and changes, and its hooks' names."""

    id: str
    capture: Capture


def selected_model() -> ServedModel:
    """The model that this session looks at: the one its address names, else the one the server was started with."""
    known = models.served()
    named = st.session_state.get("model", st.query_params.get("model"))
    return next((one for one in known if one.id == named), known[0])


def model() -> Transformer:
    """The model that this session looks at, loaded once for all who do."""
    path, shelf = selected_model().path, models.pool()
    if path in shelf.loaded_bytes():
        return shelf.get(path)
    with shared_cache.spinner_place():
        bar = st.empty()
    name = Path(path).name
    found = shelf.get(path, lambda share: bar.progress(share, plain(f"Loading {name} …")))
    bar.empty()
    return found


def model_path() -> str:
    """What `workbench.load_model` takes for the model that this session looks at."""
    return selected_model().path


def unload(known: ServedModel) -> None:
    """Free a model's memory, and that of every capture and result: they hold its numbers."""
    shared_cache.clear_all()
    models.unload(known.path)


def capture(model: Transformer, ids: tuple[int, ...], hooks: tuple[str, ...], changes: str = NO_CHANGES) -> CaptureRef:
    """One run of the model on these tokens with these hooks, or one that is already held and has them.

    changes: interventions in force during the run, as `workbench.hooks.interventions.to_json` writes them.
    Raises: WorkbenchError for token ids, hook names or targets the model does not have, or a capture over its budget.
    """
    found = open_capture(model, ids, hooks, changes)
    if found is not None:
        return found
    identity = [fingerprint(model), str(model.dtype), str(model.device), ids, changes]
    run = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    hooks = next((made for (of, made), cap in list(_RUNS.items()) if of == run and captures.covers(cap, hooks)), hooks)
    capture_id = f"{run} {sorted(hooks)}"
    made = _RUNS[run, hooks] = _run(capture_id, model, ids, hooks, changes)
    return CaptureRef(capture_id, made)


_RUNS: WeakValueDictionary[tuple[str, tuple[str, ...]], Capture] = WeakValueDictionary()
"""What `_run` still holds, by the run's identity and its hooks: a page finds a capture that holds more than it asks."""


def open_capture(model: Transformer, ids: tuple[int, ...], hooks: tuple[str, ...], changes: str) -> CaptureRef | None:
    """A capture on disk that the session has open, where it answers: same weights, type, tokens, changes; all hooks."""
    names = (st.session_state.get(key) for key in ("_last_capture", "_last_b_capture"))
    answers = (_matching_capture(name, model, ids, hooks, changes) for name in names if name is not None)
    return next((answer for answer in answers if answer is not None), None)


def _matching_capture(
    name: str, model: Transformer, ids: tuple[int, ...], hooks: tuple[str, ...], changes: str
) -> CaptureRef | None:
    try:
        found = captures.find(name)
        capture = captures.load(found, model.device)
        made = tuple(capture.tokens[0].tolist()), [*map(json.loads, found.interventions)]
        if made != (ids, json.loads(changes)) or why_capture_unusable(model, name, hooks):
            return None
    except WorkbenchError:  # the page has said so
        return None
    return CaptureRef(f"stored {found.path} {found.path.stat().st_mtime_ns} {sorted(hooks)}", capture)


def why_capture_unusable(model: Transformer, name: str, hooks: tuple[str, ...]) -> str:
    """Why a capture on disk does not spare a run on its tokens that needs these hooks; empty where it does.

    Raises: WorkbenchError if it is gone or damaged.
    """
    found, dtype = captures.find(name), str(model.dtype).removeprefix("torch.")
    if found.checkpoint != fingerprint(model):
        return "the file does not say that it is of these weights"
    if found.dtype != dtype:
        return f"the file is in {found.dtype}, the model in {dtype}"
    missing = captures.missing_hooks(captures.load(found, model.device), hooks)
    return f"the file lacks {', '.join(missing)}" if missing else ""


def model_source(model: Transformer) -> ModelSource | None:
    """Where a model's weights came from; None if from no file.

    A model is asked once: no page changes weights, and to look whether they are their file's takes milliseconds.
    """
    if model not in _ORIGINS:
        _ORIGINS[model] = model.source
    return _ORIGINS[model]


_ORIGINS: WeakKeyDictionary[Transformer, ModelSource | None] = WeakKeyDictionary()


def fingerprint(model: Transformer) -> str:
    """The checkpoint's hash; weights that came from no file are told apart by the object that holds them."""
    found = model_source(model)
    return f"object {id(model)}" if found is None else found.checkpoint_sha256


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
        _, cap = model.run_with_capture(torch.tensor([ids], device=model.device), hooks, budget=CAPTURE_BYTES)
    return cap


@process_cache("Computing …", max_entries=256)
def _computed(key: str, _compute: Callable[[], Any]) -> Any:
    with torch.no_grad():
        return _compute()


def _name(probe: Callable[..., Any]) -> str:
    return f"{probe.__module__}.{probe.__qualname__}"
