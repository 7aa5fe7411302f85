"""How bytes lie in a program file: a JSON header behind its own hash, then aligned blocks.

0    8 bytes   DQNATIV1
8    8 bytes   length of the header, little-endian
16   32 bytes  SHA-256 of the header
48             the header: JSON in ASCII without spaces; zeros to the next multiple of 64
then           blocks, each at a multiple of 64 with zeros in between; the file ends with the last one
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dq_deploy.artifacts import atomic_path, check_no_stream
from dq_deploy.errors import FileProblemError, words_of

MAGIC = b"DQNATIV1"
ALIGNMENT = 64
LARGEST_HEADER = 1 << 28
DTYPES = ("float32", "float16", "int64", "int32", "int8", "uint8", "bool")
"""Of blocks; all little-endian."""
_START = len(MAGIC) + 8 + 32
_BLOCK_KEYS = {"dtype", "shape", "offset", "sha256"}
_MOST_THREADS = 8
_ADVICE = "copy the file again, or export the record again"


@dataclass(frozen=True, kw_only=True)
class MappedFile:
    """An opened file.

    Attributes:
        header: its JSON values but for the list of blocks.
        blocks: read-only arrays over the mapped file, by name.
        hashes: SHA-256 of each, as the header says.
        path: of the file.
    """

    header: Mapping[str, Any]
    blocks: Mapping[str, NDArray[Any]]
    hashes: Mapping[str, str]
    path: Path


def write_file(path: Path, header: Mapping[str, Any], blocks: Mapping[str, NDArray[Any]]) -> None:
    """Write a file, whole or not at all; the same content gives the same bytes.

    Args:
        path: to write.
        header: JSON values; `blocks` is no key of it.
        blocks: by name, in the order of the names.

    Raises:
        FileProblemError: it cannot be written.
    """
    arrays = {name: np.ascontiguousarray(blocks[name]).reshape(blocks[name].shape) for name in sorted(blocks)}
    entries, end = {}, 0
    for name, array in arrays.items():
        digest = hashlib.sha256(_bytes_of(array)).hexdigest()
        entries[name] = {"dtype": array.dtype.name, "shape": list(array.shape), "offset": end, "sha256": digest}
        end = _aligned(end + array.nbytes)
    text = json.dumps({**header, "blocks": entries}, separators=(",", ":"), allow_nan=False).encode()
    start = _START + len(text)
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        stream.write(MAGIC + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + text)
        for array in arrays.values():
            stream.write(bytes(_aligned(start) - start))
            stream.write(_bytes_of(array))
            start = _aligned(start) + array.nbytes


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def read_file(path: Path) -> MappedFile:
    """Map a file and check its form: the header by its hash, and blocks inside the file that do not overlap.

    What is in the blocks is compared by `HashCheck`.

    Args:
        path: of the file.

    Raises:
        FileProblemError: missing, truncated, damaged, or another kind of file.
    """
    check_no_stream(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileProblemError(f"{path} {what}; expected a program file of dq-export")
    if not path.stat().st_size:  # which cannot be mapped
        raise FileProblemError(f"{path} is empty; copy the file again, or export the record again")
    try:
        held: NDArray[np.uint8] = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    except (OSError, ValueError) as error:
        raise FileProblemError(f"{path} cannot be read: {words_of(error)}") from error
    try:
        header, start = _header_of(held)
        blocks = _blocks_of(header.pop("blocks", None), held, start)
    except FileProblemError as error:
        raise FileProblemError(f"{path}: {error}; {_ADVICE}") from error
    return MappedFile(
        header=header,
        blocks={name: array for name, (array, _) in blocks.items()},
        hashes={name: digest for name, (_, digest) in blocks.items()},
        path=path,
    )


def _header_of(held: NDArray[np.uint8]) -> tuple[dict[str, Any], int]:
    """The header, and where blocks begin."""
    head = held[:_START].tobytes()
    if head[: len(MAGIC)] != MAGIC[: len(head)] or len(head) < _START:
        raise FileProblemError("it does not begin as a program file does")
    length = int.from_bytes(head[len(MAGIC) : len(MAGIC) + 8], "little")
    if not 2 <= length <= min(LARGEST_HEADER, held.size - _START):
        raise FileProblemError(f"its header has {length} bytes, the file {held.size}")
    text = held[_START : _START + length].tobytes()
    if hashlib.sha256(text).digest() != head[-32:]:
        raise FileProblemError("its header is not what was written, by its hash")
    try:
        header = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FileProblemError(f"its header is no JSON: {words_of(error)}") from error
    if not isinstance(header, dict):
        raise FileProblemError("its header is no JSON object")
    start = _aligned(_START + length)
    if held[_START + length : start].any():
        raise FileProblemError("there is something behind its header")
    return header, start


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _blocks_of(entries: Any, held: NDArray[np.uint8], start: int) -> dict[str, tuple[NDArray[Any], str]]:
    """Arrays with their hashes: one behind the other, to the end of the file."""
    if not isinstance(entries, dict):
        raise FileProblemError("its header lists no blocks")
    found, end, last = {}, 0, start
    for name in sorted(entries):
        entry = entries[name]
        if not isinstance(entry, dict) or entry.keys() != _BLOCK_KEYS or entry["dtype"] not in DTYPES:
            raise FileProblemError(f"block {name} is {str(entry)[:80]}, expected dtype, shape, offset and sha256")
        shape = entry["shape"]
        good = isinstance(shape, list) and len(shape) <= 8 and all(type(n) is int and 0 <= n < 1 << 40 for n in shape)
        if not good or entry["offset"] != end:
            raise FileProblemError(f"block {name} lies at {entry['offset']!r} with the shape {shape!r}, expected {end}")
        nbytes = math.prod(shape) * np.dtype(entry["dtype"]).itemsize
        if held[last : start + end].any():
            raise FileProblemError(f"there is something between blocks, in front of {name}")
        at = held[start + end : start + end + nbytes]
        if at.size != nbytes:
            raise FileProblemError(f"block {name} ends behind the file, which is truncated")
        if entry["dtype"] == "bool" and (at > 1).any():
            raise FileProblemError(f"block {name} holds bytes that are neither true nor false")
        found[name] = (at.view(entry["dtype"]).reshape(shape), str(entry["sha256"]))
        last, end = start + end + nbytes, _aligned(end + nbytes)
    if not found or last != held.size:
        raise FileProblemError(f"the file has {held.size} bytes, expected {last if found else 'blocks'}")
    return found


class HashCheck:
    """Compares blocks with their hashes, several at a time, while the caller does something else.

    Memory is shared with the file, so nothing is read twice.
    """

    def __init__(self, mapped: MappedFile) -> None:
        """Begin, the largest blocks first."""
        self._mapped = mapped
        self._pool = ThreadPoolExecutor(min(_MOST_THREADS, len(os.sched_getaffinity(0))))
        names = sorted(mapped.blocks, key=lambda name: -mapped.blocks[name].nbytes)
        self._found = {name: self._pool.submit(self._differs, name) for name in names}

    def _differs(self, name: str) -> bool:
        return hashlib.sha256(_bytes_of(self._mapped.blocks[name])).hexdigest() != self._mapped.hashes[name]

    def finish(self) -> None:
        """Wait for the last.

        Raises:
            FileProblemError: a block is not what was written.
        """
        with self._pool:
            wrong = [name for name, differs in self._found.items() if differs.result()]
        if wrong:
            words = f"block {min(wrong)} is not what was written, by its hash"
            raise FileProblemError(f"{self._mapped.path}: {words}; {_ADVICE}")
