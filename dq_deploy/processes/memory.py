"""How much memory a process has had, and what it does not need any more."""

from __future__ import annotations

import ctypes
from pathlib import Path

from dq_deploy.errors import DqError


def peak_mib(process: int | None = None) -> float | None:
    """Highest resident memory so far, in MiB.

    getrusage is no good here: its peak survives exec, so a child starts with its parent's.

    Args:
        process: its id; None is this one.

    Returns:
        None where the process is gone or the system has no /proc.
    """
    try:
        text = Path(f"/proc/{process or 'self'}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == "VmHWM":
            return int(value.split()[0]) / 1024
    return None


def own_peak_mib() -> float:
    """As `peak_mib`, of this process.

    Raises:
        DqError: the system does not tell.
    """
    found = peak_mib()
    if found is None:
        raise DqError("/proc/self/status has no VmHWM, expected Linux; memory cannot be measured here")
    return found


def give_back_freed() -> None:
    """Hand memory that was freed back to the system.

    The C library keeps what lies between pieces still in use, which piles up where large tensors of many sizes come and
    go. A library that knows no `malloc_trim` (glibc's) keeps it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
