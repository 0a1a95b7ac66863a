"""JSON of results files, written so that every text and number can be read back, and read with limits.

JSON has no NaN and no infinity: they become null. Half of a surrogate pair, which UTF-8 does not have, is escaped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

_LONE = re.compile("[\ud800-\udfff]")
DEEPEST = 64  # levels of a file's lists and objects; lm-eval's files have less than ten


def dumps(value: Any, **options: Any) -> str:
    """As `json.dumps`, with null for numbers that are not finite."""
    try:
        text = json.dumps(value, allow_nan=False, **options)
    except ValueError:
        text = json.dumps(_finite(value), **options)
    return escaped(text)


def escaped(text: str) -> str:
    """The text with each lone surrogate as an escape such as \\ud800, which JSON reads back as the same."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def loads(data: bytes | str) -> Any:
    """The value of a JSON text, with valid text as of `with_valid_text`, so that it can be shown anywhere.

    Raises: ValueError if it is not JSON, or nested too deep.
    """
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise ValueError("it is nested too deep")
        level, depth = [part for outer in level for part in _parts(outer)], depth + 1
    may_have_surrogates = (rb"\ud" if isinstance(data, bytes) else r"\ud") in data.lower()  # type: ignore[operator]
    return with_valid_text(value) if may_have_surrogates else value


def _parts(value: Any) -> list[Any]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [part for part in parts if isinstance(part, dict | list)]


def with_valid_text(value: Any) -> Any:
    """The same JSON value with U+FFFD in place of lone surrogates, which JSON may spell but no file can hold.

    An emoji that was cut in two is such text. Returns the value itself if there is nothing to replace.
    """
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if _LONE.search(value) else value
    if isinstance(value, Mapping):
        pairs = {with_valid_text(key): with_valid_text(part) for key, part in value.items()}
        return value if all(pairs.get(key) is part for key, part in value.items()) else pairs
    if isinstance(value, list | tuple):
        parts = [with_valid_text(part) for part in value]
        return value if all(new is old for new, old in zip(parts, value, strict=True)) else parts
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value
