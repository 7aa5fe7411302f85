"""Builds the stand-in for libcuda and runs scenes on it, each in a process of its own.

The loader takes the library by its name, `libcuda.so.1`, so that the real cuda-core and the real pycuda call it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[3]
NAME = "libcuda.so.1"
KINDS = {"device": b"d", "pinned": b"p", "pool": b"o", "streams": b"s", "events": b"e", "graphs": b"g", "modules": b"m"}
PACKAGES = {"cuda-core": "cuda.core", "pycuda": "pycuda"}


@functools.cache
def library() -> Path:
    """The compiled stand-in, in a folder of this process."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    target = Path(tempfile.mkdtemp(prefix="standin-")) / NAME
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", f"-Wl,-soname,{NAME}"]
    command = [compiler, *options, "-o", str(target), str(FOLDER / "libcuda.c"), "-ldl", "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return target


def has(backend: str) -> bool:
    """Whether a backend's package is installed."""
    package = PACKAGES[backend]
    return importlib.util.find_spec(package.split(".")[0]) is not None


def play(scene: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a function of `scenes` with the stand-in in the driver's place."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library().parent), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tests.engines.cuda.standin.scenes", scene, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT, timeout=60)


class StandIn:
    """What the stand-in of this process has seen."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(NAME)
        self._library.standin_faults.restype = ctypes.c_char_p
        self._library.standin_journal.restype = ctypes.c_char_p
        self._library.standin_live.restype = ctypes.c_long

    @property
    def faults(self) -> list[str]:
        """What a driver would have refused, or crashed on later."""
        return self._library.standin_faults().decode().splitlines()

    @property
    def journal(self) -> list[str]:
        """Waits, captures and launches, in order."""
        return self._library.standin_journal().decode().splitlines()

    def live(self, kind: str) -> int:
        """How many of a kind are there: `device`, `pinned`, `pool`, `streams`, `events`, `graphs`, `modules`."""
        return int(self._library.standin_live(KINDS[kind]))

    @property
    def pool_bytes(self) -> int:
        """Bytes that the driver's memory pool holds, freed or not."""
        return int(self._library.standin_live(b"r"))

    @property
    def contexts_of_thread(self) -> int:
        """Contexts on the calling thread's stack."""
        return int(self._library.standin_live(b"t"))

    def touch(self, *addresses: int) -> None:
        """Addresses that the next kernel reads."""
        self._library.standin_touch(len(addresses), (ctypes.c_uint64 * 8)(*addresses))

    def forget(self) -> None:
        """Begin a new list of faults and a new journal."""
        self._library.standin_forget()
