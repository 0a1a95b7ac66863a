"""Typed reading of a dictionary that came from a JSON file, with one error per wrong value."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from workbench.errors import ConfigError

# No model is larger; a damaged or hostile file must not make anything that grows with these.
LARGEST = {
    "dim": 2**17,
    "n_layers": 1_024,
    "n_heads": 4_096,
    "n_kv_heads": 4_096,
    "ffn_dim": 2**20,
    "vocab_size": 2**23,
    "max_seq_len": 2**27,
    "head_dim": 2**14,
}
_LARGEST_NUMBER = 2**40  # much larger integers cannot be converted to a float
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
_SHORT.maxdict = _SHORT.maxlist = 3
_SHORT.maxlevel = 2


def short(value: Any) -> str:
    """A value for an error message: its `repr`, of bounded length."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**18:
        return f"a number of {int(value.bit_length() * math.log10(2)) + 1} digits"
    return _SHORT.repr(value)[:140]


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Put the file's name before a ConfigError that does not have it: that of a value, which knows no file."""
    try:
        yield
    except ConfigError as error:
        if str(error).startswith(source):
            raise
        raise ConfigError(f"{source}: {error}") from None


class Keys:
    """A dictionary that records which keys were read."""

    def __init__(self, values: dict[str, Any], source: str) -> None:
        self.values, self.source, self.seen = values, source, set[str]()

    def take(self, name: str, default: Any = None) -> Any:
        """The value, or the default if the key is absent or null."""
        self.seen.add(name)
        value = self.values.get(name)
        return default if value is None else value

    def whole(self, name: str, default: int | None = None, *, integral_float: bool = False) -> int:
        """A whole number; with `integral_float`, 8192.0 is one too."""
        value = self.take(name, default)
        if value is None:
            raise ConfigError(f"{self.source}: {name} is missing.")
        if integral_float and isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(f"{self.source}: {name} must be a whole number, found {short(value)}.")
        if abs(value) > _LARGEST_NUMBER:
            raise ConfigError(f"{self.source}: {name} is {short(value)}, which no model has.")
        return value

    def size(self, field: str, name: str, default: int | None = None, *, integral_float: bool = False) -> int:
        """A whole number that a model can have for this field of ModelConfig."""
        value = self.whole(name, default, integral_float=integral_float)
        if value > LARGEST[field]:
            raise ConfigError(f"{self.source}: {name} is {short(value)}; the largest supported is {LARGEST[field]:,}.")
        if value < (0 if default == 0 else 1):
            raise ConfigError(f"{self.source}: {name} must be a positive whole number, found {short(value)}.")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.take(name, default)
        if value is None:
            raise ConfigError(f"{self.source}: {name} is missing.")
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30:  # NaN is not
            return float(value)
        raise ConfigError(f"{self.source}: {name} must be a number below 1e30, found {short(value)}.")

    def group(self, name: str) -> dict[str, Any] | None:
        value = self.take(name)
        if value is not None and not isinstance(value, dict):
            raise ConfigError(f"{self.source}: {name} must be an object, found {short(value)}.")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.source}: {name} must be true or false, found {short(value)}.")
        return value

    def ignore(self, *names: str) -> None:
        self.seen.update(names)

    def unread(self) -> dict[str, Any]:
        """Keys that nobody read and that are not null, in alphabetical order."""
        names = sorted(name for name, value in self.values.items() if name not in self.seen and value is not None)
        return {name: self.values[name] for name in names}
