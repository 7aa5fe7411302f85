"""How many threads may be asked for."""

from __future__ import annotations

from dq_deploy.errors import OptionError

MOST_THREADS = 1024
"""Libraries start whatever they are told: 100,000 threads take all that the system has, and nothing else can start."""


def check_threads(threads: int | None, name: str = "threads") -> None:
    """Refuse a number of threads that no engine can honour; some take 0 and -1 for a choice of their own.

    Args:
        threads: asked for; None is the engine's choice.
        name: of the option, for the message.

    Raises:
        OptionError: no whole number, or out of range.
    """
    if threads is None:
        return
    if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= MOST_THREADS:
        raise OptionError(f"{name} is {threads!r}, expected a whole number from 1 to {MOST_THREADS}")
