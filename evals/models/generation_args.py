"""How an answer is to be generated: lm-eval's arguments in the model's words, and a seed for each answer.

Knows nothing of models or tasks.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
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

        Raises: DataError as `check` does.
        """
        cls.check(asked)
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

    @staticmethod
    def check(asked: Mapping[str, Any]) -> None:
        """Return if the model has all of these arguments, by lm-eval's names, and can take their values.

        Raises: DataError for an argument that it does not have, or a value that means nothing.
        """
        if unknown := sorted(set(asked) - set(_ARGUMENTS)):
            raise DataError(f"generation arguments that this model does not have: {', '.join(unknown)}.")
        for name, value in asked.items():
            what, fits = _ARGUMENTS[name]
            if not fits(value):
                raise DataError(f"the generation argument {name} is {what}; found {value!r}.")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _texts(value: Any) -> bool:
    return value is None or all(isinstance(one, str) for one in (value if isinstance(value, list | tuple) else [value]))


_TOKENS = ("a number of tokens from 1 on", lambda value: _whole(value) and value > 0)
_ARGUMENTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "until": ("a text or a list of texts", _texts),
    **dict.fromkeys(("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"), _TOKENS),
    "do_sample": ("true or false", lambda value: isinstance(value, bool)),
    "temperature": ("a number from 0 on", lambda value: _number(value) and value >= 0),
    "top_p": ("a number above 0 and at most 1", lambda value: _number(value) and 0 < value <= 1),
    "top_k": ("a whole number from 0 on, 0 for all", lambda value: _whole(value) and value >= 0),
}


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
