"""Generation arguments: lm-eval's gen_kwargs translated for the model, and a seed for each answer.

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
from workbench.inference.sampling import SAMPLER


@dataclass(frozen=True)
class GenerationArgs:
    """A task's generation arguments in the model's terms. Units: `tokens` is the maximum number of new tokens."""

    tokens: int
    temperature: float
    top_p: float
    top_k: int
    stop: tuple[str, ...]
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def of(cls, arguments: Mapping[str, Any], max_length: int) -> GenerationArgs:
        """From arguments that lm-eval has normalized.

        Raises: DataError as `check` does.
        """
        cls.check(arguments)
        tokens = int(arguments["max_gen_toks"])
        if tokens >= max_length:
            # The task was written for longer contexts: use half for the prompt, half for the answer.
            tokens = math.ceil(max_length / 2)
        return cls(
            tokens=tokens,
            temperature=float(arguments.get("temperature", 0.0)) if arguments["do_sample"] else 0.0,
            top_p=float(arguments.get("top_p", 1.0)),
            top_k=int(arguments.get("top_k", 0)),
            stop=tuple(stop for stop in arguments["until"] if stop),
            min_p=float(arguments.get("min_p", 0.0)),
            repetition_penalty=float(arguments.get("repetition_penalty", 1.0)),
        )

    @property
    def key(self) -> dict[str, Any]:
        """What the answer to a prompt and seed depends on. Greedy answers do not depend on the sampler's version."""
        names = ["tokens", "temperature", "top_p", "top_k", "stop"]
        names += [name for name, off in (("min_p", 0.0), ("repetition_penalty", 1.0)) if getattr(self, name) != off]
        sampler = {"sampler": SAMPLER} if self.temperature else {}
        return {name: getattr(self, name) for name in names} | sampler

    @staticmethod
    def check(arguments: Mapping[str, Any]) -> None:
        """Return if the model supports all of these arguments (lm-eval's names) and their values.

        Raises: DataError for an argument that is not supported, or an invalid value.
        """
        if unknown := sorted(set(arguments) - set(_ARGUMENTS)):
            raise DataError(f"this model does not support the generation arguments {', '.join(unknown)}.")
        for name, value in arguments.items():
            what, fits = _ARGUMENTS[name]
            if not fits(value):
                raise DataError(f"the generation argument {name} must be {what}; found {value!r}.")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _texts(value: Any) -> bool:
    return value is None or all(
        isinstance(item, str) for item in (value if isinstance(value, list | tuple) else [value])
    )


DEFAULT_TOKENS = 256  # if a task sets no limit; lm-eval's default
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_STOPS = ("until", "stop")
_SAMPLING = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}  # each with the value that turns it off
_TOKENS = ("a number of tokens, at least 1", lambda value: _whole(value) and value > 0)
_ARGUMENTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(_STOPS, ("a string or a list of strings", _texts)),
    **dict.fromkeys(_LENGTHS, _TOKENS),
    "do_sample": ("true or false", lambda value: isinstance(value, bool)),
    "temperature": ("a number below 1e300, at least 0", lambda value: _number(value) and 0 <= value < 1e300),
    "top_p": ("a number above 0 and at most 1", lambda value: _number(value) and 0 < value <= 1),
    "top_k": ("an integer, at least 0 (0 means no limit)", lambda value: _whole(value) and value >= 0),
    "min_p": ("a number between 0 and 1", lambda value: _number(value) and 0 <= value <= 1),
    "repetition_penalty": ("a number above 0", lambda value: _number(value) and value > 0),
}


def canonical(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments with one name for each: `max_gen_toks` for the answer's length, `until` for stop strings.

    lm-eval reads `max_gen_toks` before its other names, so that `max_new_tokens` has no effect on a task that sets
    `max_gen_toks`, and has `stop` in its help text only.
    Raises: DataError if two names of one argument have different values.
    """
    renamed: dict[str, Any] = {}
    for name, value in arguments.items():
        main = next((names[0] for names in (_LENGTHS, _STOPS) if name in names), name)
        if main in renamed and renamed[main] != value:
            raise DataError(f"{name}={value!r} contradicts {main}={renamed[main]!r} in the generation arguments.")
        renamed[main] = value
    return renamed


def override(task: Mapping[str, Any], requested: Mapping[str, Any]) -> dict[str, Any]:
    """A task's generation arguments with `requested`, which `canonical` has made, in place of the task's own."""
    names = {other for main, *others in (_LENGTHS, _STOPS) if main in requested for other in others}
    return {name: value for name, value in task.items() if name not in names} | dict(requested)


def samples(arguments: Mapping[str, Any]) -> bool:
    """Whether answers are sampled. lm-eval's rule: if `do_sample` is not set, the temperature decides."""
    return arguments.get("do_sample") is not False and float(arguments.get("temperature") or 0) > 0


def notes(
    requested: Mapping[str, Any], arguments: Mapping[str, Any], *, context: int | None = None, repeats: int = 1
) -> list[str]:
    """What a task's answers do not do although the user may expect it, one sentence each.

    requested: the user's arguments. arguments: the task's, with the user's in their place. context: the context of a
    model that shortens answers which do not fit, in tokens. repeats: answers per question.
    """
    found = []
    if not samples(arguments):
        fixed = arguments.get("do_sample") is False
        unused = [n for n, off in _SAMPLING.items() if n in requested and requested[n] not in (off, None)]
        unused += ["do_sample"] if requested.get("do_sample") is True else []
        values = ", ".join(f"{name}={_shown(requested[name])}" for name in unused)
        reason = "do_sample is false" if fixed else "the temperature is 0"
        advice = "do_sample=true" if fixed and arguments.get("temperature") else "do_sample=true and a temperature"
        if unused:
            found.append(
                f"{values} {'has' if len(unused) == 1 else 'have'} no effect, because {reason}: the answers are "
                f"greedy. Add {advice if fixed else 'a temperature above 0'} to --gen_kwargs to sample."
            )
        if repeats > 1:
            found.append(
                f"the {repeats} answers to a question are the same, because {reason}; pass@k above 1 means nothing."
            )
    tokens = next((arguments[name] for name in _LENGTHS if arguments.get(name) is not None), DEFAULT_TOKENS)
    if context is not None and tokens >= context:
        found.append(
            f"max_gen_toks={tokens} does not fit into the context of {context} tokens: an answer has at most "
            f"{math.ceil(context / 2)}, the other half is for the prompt."
        )
    return found


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def sample_seeds(questions: Sequence[tuple[Any, Any, Any]], seed: int) -> list[int]:
    """A seed for each (task, doc_id, idx). It depends on the question and how often it came before."""
    seen: Counter[Hashable] = Counter()
    seeds = []
    for question in questions:
        _, doc_id, index = question
        text = f"{seed} {doc_id} {index} {seen[question]}"
        seeds.append(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big"))
        seen[question] += 1
    return seeds
