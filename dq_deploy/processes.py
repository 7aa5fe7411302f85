"""How much memory a process has had, read from the kernel."""

from __future__ import annotations

from pathlib import Path


def peak_mib(process: int | None = None) -> float | None:
    """Highest resident memory so far, in MiB.

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
