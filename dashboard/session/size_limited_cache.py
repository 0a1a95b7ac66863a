"""The latest results, as many of them as fit in so many bytes."""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class SizeLimitedCache(Generic[T]):
    """Results by their keys, each computed once however many ask for it; those that nobody asked for longest go first.

    fits: bytes that all of them may hold; the latest is kept in any case. size: the bytes that one holds.
    """

    def __init__(self, max_bytes: int, size: Callable[[T], int]) -> None:
        self._fits, self._size = max_bytes, size
        self._guard = Lock()
        self._locks: dict[str, Lock] = {}  # of those that are being computed
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
        """Forget them all."""
        with self._guard:
            self._results.clear()

    def _store(self, key: str, result: T) -> None:
        with self._guard:
            self._results[key] = result
            held = sum(map(self._size, self._results.values()))
            while held > self._fits and len(self._results) > 1:
                held -= self._size(self._results.popitem(last=False)[1])
