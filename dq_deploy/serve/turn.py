"""Whose turn it is to compute with torch."""

from __future__ import annotations

import threading
from collections import deque


class Turn:
    """One thread at a time computes with torch: text encoder, scheduler, VAE; a context manager.

    So each runs alone, on the same number of threads, whatever else is being served, and gives the same bytes. Threads
    get it in the order in which they asked. One that waits for something else gives it back, and who knows that the
    wait is over asks for it in the thread's name: so the thread wakes once, and has the turn.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held = False
        self._waiting: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        """Wait for the turn."""
        mine = threading.Event()
        self.grant(mine)
        mine.wait()

    def __exit__(self, *error: object) -> None:
        """Let the next one."""
        self.give_back()

    def give_back(self) -> None:
        """Do without the turn, which the calling thread has."""
        with self._lock:
            following = self._waiting.popleft() if self._waiting else None
            self._held = following is not None
        if following is not None:
            following.set()

    def grant(self, wake: threading.Event) -> None:
        """Set an event as soon as the turn is there, which then belongs to the thread that waits for the event."""
        with self._lock:
            if self._held:
                self._waiting.append(wake)
                return
            self._held = True
        wake.set()
