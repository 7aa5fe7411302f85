"""Whose turn it is to use an engine: threads that share one, its end, and the children of a fork."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from types import TracebackType
from typing import Any

from dq_deploy.errors import InputError

_LIVE: weakref.WeakSet[Turns] = weakref.WeakSet()
"""Those a forked child must renew, as `threading` renews its own locks."""


class Turns:
    """Lets threads into an engine until it is closed; a context manager, entered again by a thread that is inside.

    A forked child begins with its own thread inside alone, whatever the parent's other threads were doing.

    Attributes:
        pinned: a library's objects that a child must never free: freeing waits for threads that a fork does not copy.
        forked: whether this process is a child of the one that made this.
    """

    def __init__(self, what: str, *, side_by_side: bool = False) -> None:
        """Nobody is inside.

        Args:
            what: is used, for messages, as `onnxruntime`.
            side_by_side: all threads may be inside at once; else one after another.
        """
        self.pinned: list[Any] = []
        self.forked = False
        self._what, self._side_by_side = what, side_by_side
        self._closed = False
        self._depths: dict[int, int] = {}
        self._changed = threading.Condition(threading.Lock())
        _LIVE.add(self)

    def __enter__(self) -> None:
        """Wait for a turn.

        Raises:
            InputError: closed, before or while this thread waited.
        """
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._side_by_side or not self._others(me))
            if self._closed and me not in self._depths:
                raise InputError(f"the engine is closed ({self._what}), expected an open one; open its file again")
            self._depths[me] = self._depths.get(me, 0) + 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the next in."""
        me = threading.get_ident()
        with self._changed:
            self._depths[me] -= 1
            if not self._depths[me]:
                del self._depths[me]
                self._changed.notify_all()

    @property
    def moment(self) -> threading.Condition:
        """A lock for what takes a moment: counting."""
        return self._changed

    def _others(self, me: int) -> bool:
        return bool(self._depths.keys() - {me})

    def close(self) -> bool:
        """Let nobody in any more and wait until the other threads are out.

        Returns:
            Whether this call is the one that closed it: the caller then frees the engine.
        """
        me = threading.get_ident()
        with self._changed:
            first, self._closed = not self._closed, True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._others(me))
        return first

    def renew(self) -> None:
        """In a forked child: forget the parent's other threads, and keep what they would have to free."""
        me = threading.get_ident()
        self.forked = True
        self._changed = threading.Condition(threading.Lock())
        self._depths = {thread: depth for thread, depth in self._depths.items() if thread == me}
        for value in self.pinned:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))  # a reference that nothing gives back
        self.pinned = []


def _renew_all() -> None:
    for turns in list(_LIVE):
        turns.renew()


os.register_at_fork(after_in_child=_renew_all)
