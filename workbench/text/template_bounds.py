"""Bounds of one rendering of a chat template: its steps, its time, and the text that it makes.

Each check comes before the work: a call is refused by what it would make.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import Any

from workbench.errors import ChatError

MAX_CHARACTERS = 16_000_000  # of one value or of the whole output; a context of a million tokens is about a quarter
MAX_STEPS = 10_000_000  # rounds of loops, and calls
MAX_SECONDS = 5.0
MAX_SOURCE = 100_000  # published templates have at most a third
_MAX_PADDING = 10_000
_MAX_ITEMS = 1_000_000
MAX_BITS = 4_096
_CONTAINER = 100  # counted for a list or dict: the same list may be in another a thousand times

# Filters and string methods that take a number of characters or items to add.
PADDING = frozenset({"batch", "center", "expandtabs", "indent", "ljust", "rjust", "slice", "tojson", "zfill"})
_WIDE_FIELD = re.compile(r"%(\([^)]*\))?[-+ #0]*\d*\.?\d{5}|\{[^{}]*:[^{}]*\d{5}")


class Work:
    """What one rendering may still do."""

    def __init__(self) -> None:
        self.steps, self.characters, self.deadline = MAX_STEPS, 4 * MAX_CHARACTERS, time.monotonic() + MAX_SECONDS

    def step(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0 or time.monotonic() > self.deadline:
            raise ChatError(
                f"the chat template does too much work: more than {MAX_STEPS:,} steps or {MAX_SECONDS:g} seconds."
            )

    def write(self, count: int) -> None:
        self.characters -= count
        if count > MAX_CHARACTERS or self.characters < 0:
            raise too_long()


_current: ContextVar[Work] = ContextVar("work")


def work() -> Work:
    """What the rendering that runs now may still do."""
    return _current.get()


def too_long() -> ChatError:
    return ChatError(f"the chat template writes too much text: more than {MAX_CHARACTERS:,} characters.")


@contextmanager
def bounded() -> Iterator[None]:
    """Count the work of what is rendered in this block from zero."""
    token = _current.set(Work())
    try:
        yield
    finally:
        _current.reset(token)


def check_text_call(name: str, values: tuple[Any, ...]) -> None:
    """Refuse a call whose text is much longer than what it is made of, before it is made."""
    text, arguments = values[0], values[1:]
    if name in PADDING:
        check_padding(name, arguments)
    elif name in ("format", "format_map"):
        check_format(str(text), arguments)
    elif not arguments:
        return
    elif name == "replace" and isinstance(text, str) and len(arguments) > 1:
        check_length("", len(text) + text.count(str(arguments[0])) * size_of(arguments[1]))
    elif name == "translate":
        check_length("", len(text) * size_of(arguments))
    elif name == "join":
        # The text is the separator of the method, and the items of the filter.
        items, separator = (arguments[0], text) if isinstance(text, str) else (text, arguments[0])
        check_length("", size_of(items) + (len(items) if isinstance(items, Sized) else 1) * size_of(separator))
    if name in ("indent", "wordwrap"):
        longest = max((len(value) for value in arguments if isinstance(value, str)), default=0)
        check_length("", size_of(text) * (1 + longest))


def listed(values: Iterable[Any]) -> list[Any]:
    """The values with every generator as a list, so that its length is known."""
    return [_take(value) if isinstance(value, Iterator) else value for value in values]


def _take(items: Iterable[Any]) -> list[Any]:
    taken = list(islice(items, _MAX_ITEMS + 1))
    if len(taken) > _MAX_ITEMS:
        work().step(MAX_STEPS + 1)
    return taken


def check_padding(name: str, values: Iterable[Any]) -> None:
    if any(isinstance(value, int) and value > _MAX_PADDING for value in values):
        raise ChatError(f"the chat template calls {name!r} with a number over {_MAX_PADDING:,}.")


def check_format(pattern: str, values: Any) -> None:
    width_is_a_value = "*" in pattern or re.search(r"\{[^{}]*:[^{}]*\{", pattern)
    if _WIDE_FIELD.search(pattern) or (width_is_a_value and _has_wide_number(values)):
        raise ChatError("the chat template formats a field that is too wide.")
    check_length("", len(pattern) + (pattern.count("%") + pattern.count("{")) * size_of(values))


def _has_wide_number(values: Any) -> bool:
    if isinstance(values, Mapping | tuple | list):
        return any(map(_has_wide_number, values.values() if isinstance(values, Mapping) else values))
    return isinstance(values, int) and abs(values) > _MAX_PADDING


def check_length(value: Any, length: int) -> None:
    if length > (MAX_CHARACTERS if isinstance(value, str) else _MAX_ITEMS):
        raise too_long()
    work().write(length)


def size_of(value: Any) -> int:
    """Characters of a value as text, roughly; counting ends at too many, so that it takes no time itself."""
    size, waiting = 0, [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            size += len(part)
        elif isinstance(part, Mapping):
            size += _CONTAINER
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple | set | frozenset):
            size += _CONTAINER
            waiting += part
        else:
            size += 8
        if size + len(waiting) > MAX_CHARACTERS:
            raise too_long()
    return size


class Rounds:
    """What a loop goes over, counted; each round may take long, so the time is looked at again and again."""

    def __init__(self, items: Collection[Any]) -> None:
        self._items = items

    @classmethod
    def of(cls, items: Any) -> Rounds:
        if not isinstance(items, Sized):
            items = _take(items)
        work().step(1 + len(items))
        return cls(items)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        for number, item in enumerate(self._items):
            if number % 64 == 63:
                work().step(0)
            yield item
