"""Parses option values that lm-eval's command line takes too: pairs, batch sizes, seeds, chosen questions."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from evals.runtime.printing import echo

SEED = 1234
_SEEDS = (3, 4)  # lm-eval: Python, NumPy, PyTorch and few-shot; the last may be missing


def key_values(text: str, option: str) -> dict[str, Any]:
    """Parse `key=value,key=value` or a JSON object. Values that are neither JSON nor Python literals are text.

    Commas inside brackets and quotes do not separate, as in lm-eval: `until=["Question:","a,b"],top_k=3`.
    Raises: BadParameter for anything else, and for a key with two values.
    """
    if text.lstrip().startswith("{"):
        try:
            values = json.loads(text)
        except ValueError as error:
            raise typer.BadParameter(f"is not JSON: {error}", param_hint=option) from error
        return dict(values)
    values = {}
    for part in filter(None, map(str.strip, _split(text))):
        key, equals, value = map(str.strip, part.partition("="))
        if not equals or not key:
            raise typer.BadParameter(f"expected key=value, found {part!r}", param_hint=option)
        parsed = _value(value)
        if isinstance(parsed, str) and value[:1] in "[{" and len(value) > 1:
            raise typer.BadParameter(f"{key}: expected a list or an object, found {value!r}", param_hint=option)
        if key in values and values[key] != parsed:
            raise typer.BadParameter(f"has two values for {key}: {values[key]!r} and {parsed!r}", param_hint=option)
        values[key] = parsed
    return values


def _split(text: str) -> list[str]:
    """Split at commas outside brackets and quotes; a quote that does not end is an ordinary character."""
    parts, depth, quote = [""], 0, ""
    for i, character in enumerate(text):
        if quote:
            quote = "" if character == quote and text[i - 1] != "\\" else quote
        elif (
            character in "\"'"
            and character in text[i + 1 :]
            and parts[-1].strip()[-1:] in ("=", "[", "(", "{", ",", ":")
        ):
            quote = character
        elif character in "[({":
            depth += 1
        elif character in "])}":
            depth = max(0, depth - 1)
        elif character == "," and not depth:
            parts.append("")
            continue
        parts[-1] += character
    return parts


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def batch_size(text: str, largest: int | None = None) -> int | None:
    """The batch size in sequences, at most `largest`; None to batch by tokens."""
    if text.startswith("auto"):
        return largest
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f'expected a number of sequences or "auto", found {text!r}', param_hint="--batch_size")
    return int(text) if largest is None else min(int(text), largest)


def seed(text: str) -> int:
    """The seed of few-shot examples and sampling: the only one, or the last of lm-eval's four.

    None is lm-eval's word for "do not set it"; the default is used instead, so that every run can be repeated.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() or part.lower() == "none" for part in parts) or len(parts) not in (1, *_SEEDS):
        raise typer.BadParameter(
            f"expected one seed, or four as in lm-eval (numbers or None); found {text!r}", param_hint="--seed"
        )
    if len(parts) == _SEEDS[0]:
        return SEED  # lm-eval's default for the seed that is missing
    if parts[-1].lower() == "none":
        echo(f"--seed {text}: the seed is {SEED}, because every run can be repeated.", err=True)
        return SEED
    return int(parts[-1])


def samples(text: str | None) -> tuple[int | None, dict[str, list[int]]]:
    """A number of programs per problem, or lm-eval's choice of questions: {"task": [0, 1]}, or a file of such JSON.

    Raises: BadParameter for anything else.
    """
    if text is None:
        return None, {}
    if text.isdecimal() and int(text) > 0:
        return int(text), {}
    try:
        chosen = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise typer.BadParameter(
            'expected a number of programs per problem, or questions as {"task": [0, 1]} or a file of such JSON; '
            f"found {text!r} ({error})",
            param_hint="--samples",
        ) from error
    if not isinstance(chosen, Mapping) or not chosen or not all(map(_numbers, chosen.values())):
        raise typer.BadParameter(
            f'expected the numbers of questions by task, as {{"task": [0, 1]}}; found {text!r}', param_hint="--samples"
        )
    return None, {str(task): sorted(set(numbers)) for task, numbers in chosen.items()}


def _numbers(value: Any) -> bool:
    """Whether a value is a list of question numbers, not empty."""
    return isinstance(value, list) and bool(value) and all(type(number) is int and number >= 0 for number in value)
