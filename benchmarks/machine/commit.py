"""Which commit a measurement is of."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str:
    """Short name of the commit that is measured, "unknown" outside a repository."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
