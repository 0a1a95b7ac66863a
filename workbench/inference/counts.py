"""Checks of whole numbers that a caller passes: counts and seeds."""

from __future__ import annotations

import operator

from workbench.errors import GenerationError, WorkbenchError


def whole_number(
    name: str, value: object, *, least: int | None = None, error: type[WorkbenchError] = GenerationError
) -> int:
    """The value as an int. Raises: `error` if it is not a whole number, or below `least`."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError, ValueError):
        number = None
    if number is None or isinstance(value, bool) or (least is not None and number < least):
        at_least = "" if least is None else f" of at least {least}"
        raise error(f"{name} must be a whole number{at_least}; found {value!r:.80}.")
    return number
