"""The last few results of something slow, by all that decides them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Results by key; the one used longest ago goes first. Whoever takes one does not change it."""

    def __init__(self, count: int) -> None:
        """Keep `count` results at most."""
        self._count, self._lock = count, threading.Lock()
        self._found: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The result of a key, or what `make` gives, which is kept. Two threads may make one at the same time."""
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        made = make()
        with self._lock:
            self._found[key] = made
            while len(self._found) > self._count:
                self._found.popitem(last=False)
        return made
