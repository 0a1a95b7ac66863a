"""How an answer is to be generated: lm-eval's arguments in the model's words, and a seed for each answer.

Knows nothing of models or tasks.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import DataError


@dataclass(frozen=True)
class Decoding:
    """What a task's generation arguments mean for the model. Units: tokens generated at most."""

    tokens: int
    temperature: float
    top_p: float
    top_k: int
    stop: tuple[str, ...]

    @classmethod
    def of(cls, asked: Mapping[str, Any], max_length: int) -> Decoding:
        """Of arguments that lm-eval has made complete.

        Raises: DataError that names those that the model does not have.
        """
        known = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"}
        if unknown := sorted(set(asked) - known):
            raise DataError(f"generation arguments that this model does not have: {', '.join(unknown)}.")
        tokens = int(asked["max_gen_toks"])
        if tokens >= max_length:
            # A task written for long contexts: half for the prompt, half for the answer.
            tokens = math.ceil(max_length / 2)
        return cls(
            tokens=tokens,
            temperature=float(asked.get("temperature", 0.0)) if asked["do_sample"] else 0.0,
            top_p=float(asked.get("top_p", 1.0)),
            top_k=int(asked.get("top_k", 0)),
            stop=tuple(stop for stop in asked["until"] if stop),
        )


def seeds_of(questions: Sequence[tuple[Any, Any, Any]], seed: int) -> list[int]:
    """A seed for each (task, doc_id, idx): by its question and how often that came before, wherever it stands."""
    seen: Counter[Hashable] = Counter()
    found = []
    for which in questions:
        _, doc_id, index = which
        text = f"{seed} {doc_id} {index} {seen[which]}"
        found.append(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big"))
        seen[which] += 1
    return found
