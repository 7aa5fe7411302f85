"""Starts processes by torchrun, for the measurements of work that is shared."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def torchrun(count: int, module: str, *arguments: Any, more: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """A module run by so many processes of one thread each; what they print comes in one pipe."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", module]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **(more or {})}
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
