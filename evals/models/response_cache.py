"""Between lm-eval and the model: what was answered before is not asked again, and processes share what is asked.

Questions are asked in units of fixed size, cut from the whole list in its order, and a unit's answers are kept
together. A run that was killed therefore asks the same units as one left alone, and gets the same numbers to the last
bit, although sums of a batch depend on who is in it. Knows nothing of what a question means.
"""

from __future__ import annotations

import hashlib
import math
import sys
from array import array
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from evals.runtime.distributed import ALONE, Team
from evals.store.store import Store, Writer, cache_key
from workbench.hooks.intervention import active_interventions
from workbench.model import Transformer

# Raised whenever the same weights would answer the same question otherwise: a mistake in scoring or generation mended.
ENGINE = 2

Ask = Callable[[Sequence[int]], list[Any]]


def digest(ids: Sequence[int]) -> str:
    """A list of token ids in 64 characters."""
    return hashlib.sha256(array("q", ids).tobytes()).hexdigest()


def identity(model: Transformer) -> tuple[Any, ...] | None:
    """Everything about a model that its answers depend on; None where that cannot be said.

    That is: checkpoint, tokenizer, dtype, kind of device, context, interventions in force. Weights that came from no
    file or were changed since, and changes that no intervention describes, have no name to keep answers under.
    """
    changes, source, tokenizer = active_interventions(model), model.source, model.tokenizer
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    if source is None or tokenizer is None or None in changes or hooked:
        return None
    about = (str(model.dtype), model.device.type, model.config.max_seq_len)
    described = [change.to_dict() for change in changes if change is not None]
    return (ENGINE, source.checkpoint_sha256, tokenizer.sha256, *about, described)


@dataclass(frozen=True)
class Kept:
    """The answers of one model in a store, and where new ones are put: None in a process that puts none."""

    store: Store
    writer: Writer | None
    model: tuple[Any, ...]

    def read(self, keys: Sequence[bytes]) -> dict[Any, Any]:
        found, problems = self.store.read(keys)
        for problem in problems:
            print(problem, file=sys.stderr)
        return dict(found)


@dataclass(frozen=True)
class Recall:
    """Who answers: what is kept, and this process with its team. With nothing kept, every question is asked."""

    kept: Kept | None = None
    team: Team = ALONE

    def answers(
        self, questions: Sequence[Sequence[Any]], ask: Ask, *, unit: int, done: Callable[[int], Any]
    ) -> list[Any]:
        """The answers in the order of the questions; `ask` is given places in that list, a unit at a time.

        Every question is a list of JSON values: all that decides its answer besides the model. `done` hears how many
        questions of a unit are answered. Every process of a team has to be asked the same, and gets all answers.
        """
        team, kept = self.team, self.kept
        # Without a name for the model, a question is only itself.
        keys: list[Hashable] = [
            cache_key(*kept.model, *question) if kept else i for i, question in enumerate(questions)
        ]
        # What is read is shared: a process that read a moment later might find more, and then ask other units.
        found: dict[Hashable, Any] = {}
        if kept:
            for known in team.all_gather(kept.read(keys) if team.reads_store else {}):  # type: ignore[arg-type]
                found |= known
        if team.size > 1:
            unit = min(unit, math.ceil(len(keys) / team.size))
        units = [range(first, min(first + unit, len(keys))) for first in range(0, len(keys), max(1, unit))]
        missing = [places for places in units if any(keys[i] not in found for i in places)]
        done(sum(map(len, units)) - sum(map(len, missing)))
        own: dict[Hashable, Any] = {}
        for first in range(0, len(missing), team.size):
            turn = missing[first : first + team.size]
            if team.rank < len(turn):
                places = turn[team.rank]
                new = dict(zip((keys[i] for i in places), ask(places), strict=True))
                new = {key: answer for key, answer in new.items() if key not in found and key not in own}
                if kept and kept.writer:
                    kept.writer.add(new)  # type: ignore[arg-type]
                own |= new
            done(sum(map(len, turn)))
        for theirs in reversed(team.all_gather(own)):
            found = {**found, **theirs}
        return [found[key] for key in keys]
