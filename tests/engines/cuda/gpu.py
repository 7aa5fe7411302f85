"""Whether this machine has an NVIDIA GPU, and the marks of tests that need one or must not have one."""

from __future__ import annotations

import ctypes
from functools import cache

import pytest


@cache
def has_driver() -> bool:
    """Whether libcuda can be loaded and started."""
    try:
        return int(ctypes.CDLL("libcuda.so.1").cuInit(0)) == 0
    except OSError:
        return False


def needs_gpu(what: str):
    """Marks of a test that needs a GPU and this besides."""
    skip = pytest.mark.skipif(not has_driver(), reason=f"needs an NVIDIA driver and {what}")

    def mark(test):
        return pytest.mark.gpu(skip(test))

    return mark


without_driver = pytest.mark.skipif(has_driver(), reason="says what a machine without an NVIDIA driver is told")
