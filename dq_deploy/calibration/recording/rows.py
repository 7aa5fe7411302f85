"""Rows of a denoiser's named inputs as they are recorded: in memory up to a limit, beyond it in temporary files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from typing import IO

import numpy as np

from dq_deploy.errors import FileProblemError, InputError
from dq_deploy.numerics.arrays import I64, Array

CHUNK_BYTES = 1 << 24
"""Copied at a time from one file into another."""

SPARE = 0.95
"""Share of the free disk space that may be used."""


def free_disk_bytes() -> int:
    """What temporary files may take: most of the free space where the system keeps them."""
    return int(SPARE * shutil.disk_usage(tempfile.gettempdir()).free)


class InputRows:
    """Named inputs, a row each, in the order in which they are added.

    Beyond the limit the rows go into files of the system's temporary folder (`TMPDIR`). These have no name: nothing is
    left of them when the last array that reads them is gone, however the process ends.

    Attributes:
        count: rows so far.
    """

    def __init__(self, limit_bytes: float) -> None:
        """Hold so many bytes in memory."""
        self.count = 0
        self._limit, self._held = limit_bytes, 0
        self._chunks: dict[str, list[Array]] = {}
        self._shared: dict[str, Array] = {}
        self._files: dict[str, IO[bytes]] = {}

    @property
    def on_disk(self) -> bool:
        """Whether the rows are in files."""
        return bool(self._files)

    def add(self, rows: Mapping[str, Array], shared: Mapping[str, Array]) -> None:
        """Take in some rows.

        Args:
            rows: [R, ...] by input name, the same names, types and shapes of a row each time.
            shared: whole inputs without an axis of samples, the same values each time.

        Raises:
            InputError: a shared input has other values than before.
            FileProblemError: the disk is full.
        """
        for name, value in shared.items():
            if not np.array_equal(self._shared.setdefault(name, np.array(value)), value):
                raise InputError(
                    f"the denoiser's input {name} has no axis of samples and changes from call to call, expected the "
                    "same values in each; calibrate with pictures of one size and prompts of one length"
                )
        self.count += len(next(iter(rows.values())))
        for name, value in rows.items():
            chunks = self._chunks.setdefault(name, [])
            if chunks and (chunks[0].shape[1:], chunks[0].dtype) != (value.shape[1:], value.dtype):
                mine, first = (f"{one.dtype} {list(one.shape[1:])}" for one in (value, chunks[0]))
                raise InputError(
                    f"the denoiser's input {name} is {mine} a sample, expected {first} as in the first call; calibrate "
                    "with calls of one kind"
                )
            if name in self._files:
                self._write(name, value)
            else:
                chunks.append(np.array(value))
                self._held += value.nbytes
        if self._held > self._limit:
            self._spill()

    def _spill(self) -> None:
        """Move what is held into files, where everything goes from now on."""
        for name, chunks in self._chunks.items():
            self._files[name] = tempfile.TemporaryFile(prefix="dq-calibration-")  # noqa: SIM115 - kept while rows come
            for chunk in chunks:
                self._write(name, chunk)
            del chunks[:]
            chunks.append(np.empty((0, *chunk.shape[1:]), chunk.dtype))  # type and shape of a row
        self._held = 0

    def _write(self, name: str, value: Array) -> None:
        _write(self._files[name], value)

    def ordered(self, order: I64) -> dict[str, Array]:
        """The rows by name in another order, [len(order), ...]; rows may be left out.

        Arrays that stand for files read them when they are read. Shared inputs are [len(order), ...] views of one.
        """
        found: dict[str, Array] = {}
        for name, chunks in self._chunks.items():
            if name in self._files:
                found[name] = _reordered(self._files[name], chunks[0], self.count, order)
            else:
                found[name] = np.concatenate(chunks)[order]
        for name, value in self._shared.items():
            found[name] = np.broadcast_to(value, (len(order), *value.shape))
        return found


def _write(file: IO[bytes], value: Array) -> None:
    try:
        file.write(value.tobytes())
    except OSError as error:
        raise FileProblemError(
            f"calibration inputs cannot be written to {tempfile.gettempdir()}: {error.strerror}; make room there, set "
            "TMPDIR to another folder, or give fewer `samples`"
        ) from error


def _mapped(file: IO[bytes], like: Array, count: int) -> Array:
    file.flush()
    # private to this process: writing to it changes no file
    return np.memmap(file, dtype=like.dtype, mode="c", shape=(count, *like.shape[1:]))


def _reordered(file: IO[bytes], like: Array, count: int, order: I64) -> Array:
    source = _mapped(file, like, count)
    row = int(np.prod(like.shape[1:], dtype=np.int64)) * like.dtype.itemsize
    each = max(1, CHUNK_BYTES // max(1, row))
    with tempfile.TemporaryFile(prefix="dq-calibration-") as target:
        for start in range(0, len(order), each):
            _write(target, source[order[start : start + each]])
        return _mapped(target, like, len(order))
