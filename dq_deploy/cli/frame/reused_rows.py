"""What a command says where a file of conditions has fewer rows than are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dq_deploy.cli.frame import warn

if TYPE_CHECKING:
    from dq_deploy.calibration import CalibrationSource


def warn_of_reuse(source: CalibrationSource, count: int, what: str) -> None:
    """Say in one line that the rows of --conditions are taken again.

    Args:
        source: what was read.
        count: rows that are used.
        what: has a row each, in words.
    """
    rows = min((len(value) for value in source.conditions.values()), default=count)
    if rows < count:
        warn(f"--conditions has {rows} row{'s' if rows > 1 else ''} for {count} {what}: they are used again in turn")
