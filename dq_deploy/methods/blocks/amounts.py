"""How much memory the blocks' inputs and outputs take, and which calibration inputs are used where not all fit.

N is the number of calibration inputs, b the most bytes that one takes in blocks at a time (`Flow.peak_bytes`), m the
bytes of `memory_gib`, i those of the calibration inputs in memory, w what a block's turn takes beside them::

    N * b + i + w <= m          the blocks' tensors are in memory
    otherwise                   they are in temporary files, of N * b bytes together

Of inputs that do not fit on the disk either, equal shares of every step are left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dq_deploy.calibration.recording.rows import free_disk_bytes
from dq_deploy.errors import OptionError
from dq_deploy.methods.blocks.storage import GIB
from dq_deploy.numerics.arrays import I64, Array


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """What is used of the calibration inputs, and where the blocks' tensors are.

    Attributes:
        count: inputs that are used.
        dropped: inputs that are not.
        on_disk: whether the blocks' tensors are in files.
        bytes: of the blocks' tensors, for all inputs that are used.
    """

    count: int
    dropped: int
    on_disk: bool
    bytes: int

    @property
    def words(self) -> str:
        """What the user is to know, or an empty string."""
        if self.dropped:
            return (
                f"{self.count} of {self.count + self.dropped} calibration inputs are used, as many of each step: the "
                f"temporary folder {tempfile.gettempdir()} has room for no more"
            )
        if self.on_disk:
            return f"what blocks are given and give, {self.bytes / GIB:.3g} GiB, is kept in {tempfile.gettempdir()}"
        return ""


def bytes_in_memory(inputs: Mapping[str, Array]) -> int:
    """Of arrays, but for those that stand for files."""
    held = [value for value in inputs.values() if not isinstance(value, np.memmap)]
    return sum(value.nbytes if value.strides[0] else value[0].nbytes for value in held)


def amounts_of(inputs: Mapping[str, Array], each: int, memory_gib: float, *, work_bytes: int = 0) -> Amounts:
    """How many inputs are used, and where the blocks' tensors go.

    Args:
        inputs: calibration inputs by name, with `step`.
        each: bytes that one input takes in blocks.
        memory_gib: of blocks' tensors, calibration inputs and work together.
        work_bytes: beside them.

    Raises:
        OptionError: neither memory nor disk holds one input of every step.
    """
    count = len(inputs["step"])
    room = int(memory_gib * GIB) - bytes_in_memory(inputs) - work_bytes
    if count * each <= room:
        return Amounts(count=count, dropped=0, on_disk=False, bytes=count * each)
    fit = min(count, free_disk_bytes() // max(each, 1))
    steps = len(np.unique(inputs["step"]))
    if fit < steps:
        raise OptionError(
            f"memory_gib is {memory_gib:g} and the temporary folder has room for {fit} inputs of blocks, expected "
            f"{steps * each / GIB:.3g} GiB of either, for one of each of {steps} steps; give more `memory_gib`, set "
            "TMPDIR to a folder with room, or use fewer `steps`"
        )
    return Amounts(count=fit, dropped=count - fit, on_disk=True, bytes=fit * each)


def inputs_in_shares(step: I64, most: int) -> I64:
    """Indices of at most so many inputs, in their order: of each step the same share, and at least one.

    Args:
        step: [M] step bucket of each input.
        most: inputs, as many as there are steps or more.
    """
    if most >= len(step):
        return np.arange(len(step), dtype=np.int64)
    _, slot, counts = np.unique(step, return_inverse=True, return_counts=True)
    wanted = counts * most / len(step)
    quota = np.maximum(np.floor(wanted), 1).astype(np.int64)
    # what rounding left goes to the steps that lost most by it; what "at least one" took comes from the largest
    for bucket in np.argsort(quota - wanted, kind="stable"):
        if quota.sum() < most and quota[bucket] < counts[bucket]:
            quota[bucket] += 1
    while quota.sum() > most:
        quota[np.argmax(quota)] -= 1
    nth = np.empty(len(step), np.int64)
    order = np.argsort(slot, kind="stable")
    nth[order] = np.arange(len(step)) - np.concatenate([[0], np.cumsum(counts)])[slot[order]]
    return np.flatnonzero(nth < quota[slot])
