"""Decorators for results that are cached for the whole process, with their spinner in the page's head.

Streamlit draws the spinner of a cached function where it is called, which moves every later element by one place for
that run. The browser then builds these elements again, figures too, and a control that is built again no longer writes
its value to the URL. A fixed place for the spinner avoids this.
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
# By function name, not a list: Streamlit runs pages again and again, which decorates their functions again.
_clear_functions: dict[str, Callable[[], None]] = {}


def mount_spinner() -> None:
    """Create the place for spinners; a page does this once, before its first computation."""
    st.session_state[_PLACE] = st.container(key="busy")


def unmount_spinner() -> None:
    """Remove the place at the end of a page: callbacks run before the next page creates a new one."""
    st.session_state.pop(_PLACE, None)


def spinner_place() -> AbstractContextManager[object]:
    """A context whose elements are drawn in the page's head."""
    place: AbstractContextManager[object] = st.session_state.get(_PLACE) or nullcontext()
    return place


def process_cache(
    message: str, *, max_entries: int, ttl: float | None = None
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator: `st.cache_resource` with its spinner in the page's head. Results are shared by all sessions.

    message: text next to the spinner. max_entries: number of results that are cached. ttl: their lifetime in seconds,
    None for no limit. Arguments whose names begin with an underscore are not part of the key. `clear_all` drops the
    results.
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
    """As `process_cache`, limited by memory: the latest results that together take at most `max_bytes`.

    size: the bytes of one result. Only the first argument is the key.
    """

    def decorate(compute: Callable[Concatenate[str, P], T]) -> Callable[Concatenate[str, P], T]:
        cache = SizeLimitedCache(max_bytes, size)

        def run(key: str, *args: P.args, **options: P.kwargs) -> T:
            with spinner_place(), st.spinner(message):
                return compute(key, *args, **options)

        @wraps(compute)
        def call(key: str, *args: P.args, **options: P.kwargs) -> T:
            return cache.get(key, lambda: run(key, *args, **options))

        _clear_functions[f"{compute.__module__}.{compute.__qualname__}"] = cache.clear
        return call

    return decorate


def clear_all() -> None:
    """Drop all results of both decorators, and with them the models and captures that they hold."""
    for clear in list(_clear_functions.values()):
        clear()
