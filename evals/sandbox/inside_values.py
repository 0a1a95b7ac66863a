"""Values on their way between program and tests: plain data as JSON that preserves Python's types.

Numbers of `fractions`, `decimal` and `numpy`, and the dates of `datetime`, are rebuilt from plain data on the other
side. Anything else becomes an `Opaque`. Standard library only.
"""

from __future__ import annotations

import builtins

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SHARED_OBJECTS: list[Any] = []  # the objects that the other process has an `Opaque` of
_DATES = ("date", "time", "datetime")
_NUMPY_KINDS = "biufcSU"
_LONGEST_NAME = 100


class Opaque:
    """A placeholder for a value of the other process that is not plain data; equal only to itself.

    Passed back to that process, it becomes the value again.
    """

    received: list[str] = []  # the last one's text, for a message

    def __init__(self, text: str, number: int) -> None:
        self.text, self.number = text, number
        Opaque.received[:] = [text]

    def __repr__(self) -> str:
        return self.text


def pack(value: Any) -> Any:
    """Plain data as JSON that preserves Python's types; anything else as a description."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [pack(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[pack(key), pack(item)] for key, item in value.items()]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, Opaque):
        return {"held": value.number}
    name = f"{type(value).__module__}.{type(value).__name__}"
    if name == "fractions.Fraction":
        return {"Fraction": [int(value.numerator), int(value.denominator)]}
    if name == "decimal.Decimal":
        return {"Decimal": str(value)}
    if name == "datetime.timedelta":
        return {"timedelta": [value.days, value.seconds, value.microseconds]}
    if name.startswith("datetime.") and name[9:] in _DATES:
        return {name[9:]: value.isoformat()}
    if name.startswith("numpy.") and getattr(getattr(value, "dtype", None), "kind", "O") in _NUMPY_KINDS:
        return {"numpy": [value.dtype.str, list(value.shape), value.tobytes().hex()]}
    SHARED_OBJECTS.append(value)
    return {"opaque": [f"<{type(value).__name__} object, not visible to the tests>", len(SHARED_OBJECTS) - 1]}


def unpack(data: Any) -> Any:
    """The value that `pack` described, built from exact types only.

    Raises: LookupError, TypeError, ValueError, AttributeError, ArithmeticError or ImportError for anything else.
    """
    if not isinstance(data, dict):
        return data
    ((kind, body),) = data.items()
    if kind == "dict":
        return {unpack(key): unpack(item) for key, item in body}
    if kind in ("list", "tuple", "set", "frozenset"):
        return getattr(builtins, kind)(unpack(item) for item in body)
    if kind == "bytes":
        return bytes.fromhex(body)
    if kind == "complex":
        return complex(*body)
    if kind == "range":
        return range(*body)
    if kind == "held":
        return SHARED_OBJECTS[body]
    if kind == "Fraction":
        from fractions import Fraction

        return Fraction(int(body[0]), int(body[1]))
    if kind == "Decimal":
        from decimal import Decimal

        return Decimal(str(body))
    if kind == "timedelta" or kind in _DATES:
        import datetime

        return datetime.timedelta(*body) if kind == "timedelta" else getattr(datetime, kind).fromisoformat(body)
    if kind == "numpy":
        return numpy_value(*body)
    return Opaque(str(body[0])[:_LONGEST_NAME], int(body[1]))


def numpy_value(dtype: str, shape: list[int], data: str) -> Any:
    """An array of numbers or texts from its bytes; a scalar if it has no axes."""
    if not (dtype[0] in "<>|=" and dtype[1] in _NUMPY_KINDS and dtype[2:].isdigit() and int(dtype[2:])):
        raise ValueError(f"{dtype!r} is not a type of numbers or texts")
    import numpy

    return numpy.ndarray(shape, dtype, bytes.fromhex(data)).copy()[()]


def write_back(old: Any, new: Any) -> None:
    """Copy the program's changes of an argument into the caller's own list, dict, set or array."""
    if type(old) is not type(new):
        return
    if isinstance(old, list):
        old[:] = new
    elif isinstance(old, (dict, set)):
        old.clear()
        old.update(new)
    elif type(old).__name__ == "ndarray" and old.shape == new.shape:
        old[...] = new
