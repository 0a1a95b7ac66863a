"""JSON without NaN and infinity, which JSON does not have: they become null."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

_LONE = re.compile("[\ud800-\udfff]")


def dumps(value: Any, **options: Any) -> str:
    """As `json.dumps`, with null for numbers that are not finite."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(value), **options)


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
