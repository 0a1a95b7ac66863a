"""The size-limited cache: which results are dropped first, and that each is computed once."""

import threading
from collections.abc import Callable

import pytest

from dashboard.session.size_limited_cache import SizeLimitedCache


def made(names: list[str], value: str) -> Callable[[], str]:
    def compute() -> str:
        names.append(value)
        return value

    return compute


def test_what_was_not_asked_for_longest_goes_first() -> None:
    cache, computed = SizeLimitedCache[str](10, len), list[str]()
    for value in ("aaaa", "bbbb", "aaaa", "cccc", "aaaa", "bbbb"):  # of 8 bytes there is room for one more b or c
        assert cache.get(value, made(computed, value)) == value
    assert computed == ["aaaa", "bbbb", "cccc", "bbbb"]


def test_the_latest_is_kept_even_where_it_does_not_fit() -> None:
    cache, computed = SizeLimitedCache[str](3, len), list[str]()
    for value in ("aa", "bbbb", "bbbb", "aa"):
        cache.get(value, made(computed, value))
    assert computed == ["aa", "bbbb", "aa"]


def test_nothing_is_left_after_clearing() -> None:
    cache, computed = SizeLimitedCache[str](10, len), list[str]()
    cache.get("a", made(computed, "a"))
    cache.clear()
    cache.get("a", made(computed, "a"))
    assert computed == ["a", "a"]


def test_what_fails_is_tried_again() -> None:
    cache, computed = SizeLimitedCache[str](10, len), list[str]()

    def fail() -> str:
        raise ValueError

    with pytest.raises(ValueError):
        cache.get("a", fail)
    assert cache.get("a", made(computed, "a")) == "a"


def test_who_asks_meanwhile_waits_for_that_result_alone() -> None:
    cache, computed = SizeLimitedCache[str](10, len), list[str]()
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        assert go_on.wait(10)
        return made(computed, "slow")()

    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(cache.get("slow", slow))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    assert cache.get("other", made(computed, "other")) == "other"  # while the slow one is not there yet
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert results == ["slow"] * 4 and computed == ["other", "slow"]
