"""Float32 products in float32: TF32 keeps ten bits of each factor, and cuDNN takes it unless it is told not to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

EXACT = "ieee"

_lock = threading.Lock()
_inside = 0
_before: list[Any] = []


def _switches() -> list[tuple[Any, str, Any]]:
    """(owner, attribute, value that means no TF32) of every switch of this torch."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(cudnn, "conv"):  # from torch 2.9; the two of cuDNN must agree where somebody reads the older switch
        return [(owner, "fp32_precision", EXACT) for owner in (matmul, cudnn.conv, cudnn.rnn)]
    return [(owner, "allow_tf32", False) for owner in (matmul, cudnn)]


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Products of float32 within the block are not TF32's; what the program had set comes back behind it.

    The switches are the process's: the last of several threads that leaves sets them back. A captured graph keeps the
    kernels of its capture, so a block around the capture is enough for it.
    """
    global _inside
    with _lock:
        if _inside == 0:
            _before[:] = [getattr(owner, name) for owner, name, _ in _switches()]
            for owner, name, exact in _switches():
                setattr(owner, name, exact)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                for (owner, name, _), value in zip(_switches(), _before, strict=True):
                    setattr(owner, name, value)
