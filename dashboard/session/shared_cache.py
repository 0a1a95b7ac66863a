"""What is computed once for all users, with its spinner always in the same place: the page's head.

Where Streamlit puts the spinner of a cached function, everything behind it moves by one for that run. Its browser half
then makes these elements anew, figures too, and a control that was made anew no longer writes its value into the
address.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import streamlit as st

from dashboard.session.size_limited_cache import SizeLimitedCache

P = ParamSpec("P")
T = TypeVar("T")

_PLACE = "_busy"
_clear_functions: dict[
    str, Callable[[], None]
] = {}  # what clears each function's results, by its name: pages are run anew


def mount_spinner() -> None:
    """Make the place for spinners; a page does this once, before anything can be computed."""
    st.session_state[_PLACE] = st.container(key="busy")


def unmount_spinner() -> None:
    """Behind a page's end there is no place: callbacks run before the next one begins."""
    st.session_state.pop(_PLACE, None)


def spinner_place() -> AbstractContextManager[object]:
    """What is drawn in here stands in the page's head."""
    found: AbstractContextManager[object] = st.session_state.get(_PLACE) or nullcontext()
    return found


def process_cache(
    message: str, *, max_entries: int, ttl: float | None = None
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator: `st.cache_resource` of the `most` latest results, kept for `seconds`, with its spinner in the head.

    Arguments whose name begins with an underscore are no part of the key. `forget` drops the results of all of them.
    """

    def decorate(compute: Callable[P, T]) -> Callable[P, T]:
        cached = st.cache_resource(compute, max_entries=max_entries, ttl=ttl, show_spinner=message)

        @wraps(compute)
        def call(*args: P.args, **options: P.kwargs) -> T:
            with spinner_place():
                return cached(*args, **options)

        _clear_functions[f"{compute.__module__}.{compute.__qualname__}"] = cached.clear
        return call

    return decorate


def size_limited(
    message: str, *, max_bytes: int, size: Callable[[T], int]
) -> Callable[[Callable[Concatenate[str, P], T]], Callable[Concatenate[str, P], T]]:
    """As `once_for_all`, of the latest results that together hold `fits` bytes. The first argument alone is the key."""

    def decorate(compute: Callable[Concatenate[str, P], T]) -> Callable[Concatenate[str, P], T]:
        kept = SizeLimitedCache(max_bytes, size)

        def run(key: str, *args: P.args, **options: P.kwargs) -> T:
            with spinner_place(), st.spinner(message):
                return compute(key, *args, **options)

        @wraps(compute)
        def call(key: str, *args: P.args, **options: P.kwargs) -> T:
            return kept.get(key, lambda: run(key, *args, **options))

        _clear_functions[f"{compute.__module__}.{compute.__qualname__}"] = kept.clear
        return call

    return decorate


def clear_all() -> None:
    """Drop every result that is kept for all users, whoever keeps it: they hold models, captures and their numbers."""
    for clear in list(_clear_functions.values()):
        clear()
