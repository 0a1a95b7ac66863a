"""A least-recently-used cache that is limited by the size of its results in bytes."""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class SizeLimitedCache(Generic[T]):
    """Results by key, each computed once, even if several threads request it. The least recently used go first.

    max_bytes: limit for all results together; the latest is kept even if it is larger. size: bytes of one result.
    """

    def __init__(self, max_bytes: int, size: Callable[[T], int]) -> None:
        self._max_bytes, self._size = max_bytes, size
        self._guard = Lock()
        self._locks: dict[str, Lock] = {}  # one for each key that is being computed
        self._results: OrderedDict[str, T] = OrderedDict()

    def get(self, key: str, compute: Callable[[], T]) -> T:
        with self._guard:
            lock = self._locks.setdefault(key, Lock())
        with lock:
            try:
                with self._guard:
                    if key in self._results:
                        self._results.move_to_end(key)
                        return self._results[key]
                result = compute()
                self._store(key, result)
                return result
            finally:
                with self._guard:
                    self._locks.pop(key, None)

    def clear(self) -> None:
        """Drop all results."""
        with self._guard:
            self._results.clear()

    def _store(self, key: str, result: T) -> None:
        with self._guard:
            self._results[key] = result
            total = sum(map(self._size, self._results.values()))
            while total > self._max_bytes and len(self._results) > 1:
                total -= self._size(self._results.popitem(last=False)[1])
