"""Response cache in front of the model; distributes uncached requests over processes.

Requests are computed in units of fixed size, cut from the whole list in its order, and the responses of a unit are
saved together. A run that is stopped loses only the unit that it works on. A resumed run therefore computes the same
units as an uninterrupted one and gets bit-identical numbers, although the sums in a batch depend on its other members.
Does not know what a request means.
"""

from __future__ import annotations

import hashlib
import math
import time
from array import array
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.runtime.distributed import ALONE, Team
from evals.runtime.printing import echo
from evals.store.store import Store, Writer, cache_key
from workbench.errors import CheckpointError
from workbench.hooks.intervention import active_interventions
from workbench.model import Transformer
from workbench.text.roles import meta_roles

# Increase this when the same weights would answer the same question differently, such as after a fix in scoring.
ENGINE = 2

SAVE_EVERY_S = 0.2  # a save takes about 10 ms, as long as a small model needs for some answers

Compute = Callable[[Sequence[int]], list[Any]]


def sha256_of_ids(ids: Sequence[int]) -> str:
    """SHA-256 of a list of token ids, as 64 hex digits."""
    return hashlib.sha256(array("q", ids).tobytes()).hexdigest()


def model_identity(model: Transformer) -> tuple[Any, ...] | None:
    """Everything about a model that its answers depend on; None if that cannot be described.

    That is: checkpoint, tokenizer and its stop tokens, dtype, device type, context length, active interventions. There
    is no identity, and so no caching, for weights that were not loaded from a file or were changed since, and for hooks
    with your own code.
    """
    changes, source, tokenizer = active_interventions(model), model.source, model.tokenizer
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    own_code = any(change is None or not change.has_json for change in changes)
    if source is None or tokenizer is None or own_code or hooked:
        return None
    about = (str(model.dtype), model.device.type, model.config.max_seq_len)
    interventions = [change.to_dict() for change in changes if change is not None]
    # Answers that were cached before the files of a checkpoint could name other stop tokens keep their keys.
    usual = tokenizer.stop_ids == meta_roles(tokenizer.special_tokens).stop_ids
    stops = () if usual else (sorted(tokenizer.stop_ids),)
    return (ENGINE, source.checkpoint_sha256, tokenizer.sha256, *about, interventions, *stops)


def overwritten_error(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} was written to while the model answered, so that its scores would be of two models. "
        "The answers from before are saved; put the file back to continue, or start a new run."
    )


@dataclass(frozen=True)
class CachedResponses:
    """The cached responses of one model in a store. `writer` stores new ones; None in a process that writes none.

    `check` is called after responses are computed and before they are stored; it raises an error if the model
    is no longer the one of `model`.
    """

    store: Store
    writer: Writer | None
    model: tuple[Any, ...]
    check: Callable[[], None] = lambda: None

    def read(self, keys: Sequence[bytes]) -> dict[Any, Any]:
        responses, problems = self.store.read(keys)
        for problem in problems:
            echo(problem, err=True)
        return dict(responses)


class _Saving:
    """Saves computed units: a unit that takes long at once, quick ones together, and on leaving all of them."""

    def __init__(self, cached: CachedResponses | None) -> None:
        self._cached, self._unsaved, self._saved_at = cached, dict[Any, Any](), time.monotonic()

    def add(self, responses: Mapping[Any, Any]) -> None:
        self._unsaved |= responses
        if time.monotonic() - self._saved_at >= SAVE_EVERY_S:
            self._save()

    def _save(self) -> None:
        unsaved, self._unsaved = self._unsaved, {}
        if self._cached and unsaved:
            self._cached.check()
            if self._cached.writer:
                self._cached.writer.add(unsaved)
        self._saved_at = time.monotonic()

    def __enter__(self) -> _Saving:
        return self

    def __exit__(self, *_: object) -> None:
        self._save()


@dataclass(frozen=True)
class ResponseCache:
    """Cached responses first, then this process with its team. Without `cached`, every request is computed."""

    cached: CachedResponses | None = None
    team: Team = ALONE

    def get_or_compute(
        self, requests: Sequence[Sequence[Any]], compute: Compute, *, unit: int, on_progress: Callable[[int], Any]
    ) -> list[Any]:
        """The responses in the order of the requests; `compute` is called with the indices of one unit at a time.

        A request is a list of JSON values: all that decides its response besides the model. `on_progress` is called
        with the number of requests that were just answered. Every process of a team must pass the same requests, and
        gets all responses.
        """
        team, cached = self.team, self.cached
        # Without an identity of the model, the key of a request is its index.
        keys: list[Hashable] = [
            cache_key(*cached.model, *question) if cached else i for i, question in enumerate(requests)
        ]
        # Cached responses are gathered: a process that reads a moment later might find more and choose different units.
        responses: dict[Hashable, Any] = {}
        if cached:
            for stored in team.all_gather(cached.read(keys) if team.reads_store else {}):  # type: ignore[arg-type]
                responses |= stored
        if team.size > 1:
            unit = min(unit, math.ceil(len(keys) / team.size))
        units = [range(first, min(first + unit, len(keys))) for first in range(0, len(keys), max(1, unit))]
        missing = [indices for indices in units if any(keys[i] not in responses for i in indices)]
        on_progress(sum(map(len, units)) - sum(map(len, missing)))
        computed: dict[Hashable, Any] = {}
        with _Saving(cached) as saving:
            for first in range(0, len(missing), team.size):
                round_units = missing[first : first + team.size]
                if team.rank < len(round_units):
                    indices = round_units[team.rank]
                    new = dict(zip((keys[i] for i in indices), compute(indices), strict=True))
                    new = {key: answer for key, answer in new.items() if key not in responses and key not in computed}
                    saving.add(new)
                    computed |= new
                on_progress(sum(map(len, round_units)))
        for others in reversed(team.all_gather(computed)):
            responses = {**responses, **others}
        return [responses[key] for key in keys]
