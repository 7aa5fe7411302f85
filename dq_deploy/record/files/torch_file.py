"""The `.pt` form of a record: what `torch.load(weights_only=True)` reads, written by torch, read without it.

Reading interprets the pickle inside with a machine that knows the opcodes torch writes for a dict of tensors
and calls nothing, checks every declared size against the file, and verifies the checksums torch skips.
"""

from __future__ import annotations

import io
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dq_deploy.errors import FileProblemError
from dq_deploy.record.files.arrays import FORMAT, Arrays

PICKLE_LIMIT = 64 * 2**20
"""Bytes of pickle, header included, that a record may hold."""

COPIED_BYTES = 1 << 20
"""Arrays smaller than this are copied before torch writes them."""

_START_MARK = b"PK\x03\x04"
"""Of the first entry of a zip archive."""

_END_MARK, _END_BYTES = b"PK\x05\x06", 22
"""Of the last record of a zip archive, behind which only the archive's comment may stand."""

_STORAGES = {
    "torch FloatStorage": "float32",
    "torch DoubleStorage": "float64",
    "torch HalfStorage": "float16",
    "torch CharStorage": "int8",
    "torch ByteStorage": "uint8",
    "torch ShortStorage": "int16",
    "torch IntStorage": "int32",
    "torch LongStorage": "int64",
    "torch BoolStorage": "bool",
}
_REBUILD = "torch._utils _rebuild_tensor_v2"
_ORDERED = "collections OrderedDict"


@dataclass(frozen=True)
class _Name:
    """A global the pickle mentions; never imported."""

    name: str


@dataclass(frozen=True)
class _Stored:
    """Where a tensor lies: entry of the archive, element type, declared number of elements."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class _Placed:
    """A tensor as the pickle describes it."""

    stored: _Stored
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _RefusedError(ValueError):
    """The pickle holds something else than a dict of texts and tensors."""


def write_arrays(path: Path, header: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write the file; the same content gives the same bytes under any name.

    Raises:
        OSError: the file cannot be written.
    """
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # torch.save only reads
        # small arrays are copied, so that no two of another type ever share an address, which torch refuses
        tensors = {
            key: torch.from_numpy(np.array(value) if value.nbytes < COPIED_BYTES else _plain(value))
            for key, value in arrays.items()
        }
    try:
        with path.open("wb") as stream:  # torch would write the name of a path into the archive
            torch.save({FORMAT: header, **tensors}, stream)
    except RuntimeError as error:  # torch hides the OSError of the stream
        raise OSError("torch could not write the file to its end") from error


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """A view with the usual strides, on axes of length 1 too: torch writes them into the file."""
    return array.reshape(-1).reshape(array.shape)


def check_archive(stream: BinaryIO, path: Path) -> zipfile.ZipFile:
    """Open a torch archive whose declared sizes fit in the file that holds them.

    Raises:
        FileProblemError: truncated or no archive, compressed entries, or more bytes declared than there are.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    start = stream.read(4)
    if start[:2] == b"\x80\x02" or start[:1] in (b"\x80", b"(", b"c"):
        raise FileProblemError(
            f"{path} is a bare Python pickle, expected a record from dq-quantize; nothing in it was executed"
        )
    stream.seek(0)
    try:
        archive = zipfile.ZipFile(stream)
        entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError) as error:
        what = "is truncated" if start == _START_MARK else "is not a torch file"
        raise FileProblemError(f"{path} {what}; expected a record from dq-quantize, copy it again") from error
    stream.seek(max(0, size - len(archive.comment) - _END_BYTES))
    # zipfile passes over what stands before and behind
    if start != _START_MARK:
        raise FileProblemError(
            f"{path} does not begin as a torch file; expected a record from dq-quantize, copy it again"
        )
    if stream.read(len(_END_MARK)) != _END_MARK:
        raise FileProblemError(f"{path} has bytes behind the end of its archive; copy the file again")
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise FileProblemError(f"{path} holds an archive entry twice; expected a record from dq-quantize")
    declared = sum(entry.file_size for entry in entries)
    squeezed = [e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size]
    if squeezed or declared > size:
        raise FileProblemError(
            f"{path} declares {declared} bytes of content in a file of {size}, or compresses it; "
            "expected a record from dq-quantize, which is stored plainly; nothing was unpacked"
        )
    return archive


def _read_entry(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    try:
        return archive.read(name)
    except KeyError as error:
        raise FileProblemError(f"{path} lacks the archive entry {name}; expected a record from dq-quantize") from error
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
        raise FileProblemError(f"{path} is damaged at {name} ({error}); copy the file again") from error


def arrays_from_file(path: Path) -> tuple[str, Arrays]:
    """Header and arrays of a `.pt` record. Nothing in the file is executed.

    Raises:
        FileProblemError: missing, truncated, damaged, holding Python objects, or not a record.
    """
    try:
        with path.open("rb") as stream:
            return _read(stream, path)
    except FileNotFoundError as error:
        raise FileProblemError(f"{path} does not exist; expected a record from dq-quantize") from error
    except OSError as error:
        raise FileProblemError(f"cannot read {path}: {error.strerror or error}") from error


def _read(stream: BinaryIO, path: Path) -> tuple[str, Arrays]:
    archive = check_archive(stream, path)
    pickles = [e for e in archive.infolist() if e.filename.count("/") == 1 and e.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise FileProblemError(f"{path} is an archive without data.pkl, expected a record from dq-quantize")
    if pickles[0].file_size > PICKLE_LIMIT:
        raise FileProblemError(f"{path} has a pickle above {PICKLE_LIMIT} bytes, expected a record from dq-quantize")
    root = pickles[0].filename.removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and _read_entry(archive, f"{root}byteorder", path) != b"little":
        raise FileProblemError(f"{path} was written big-endian, expected little-endian; save it again")
    try:
        content = _content_of(_read_entry(archive, pickles[0].filename, path))
    except _RefusedError as error:
        raise FileProblemError(f"{path} {error}; expected a record from dq-quantize, nothing was executed") from error
    header = content.pop(FORMAT, None)
    if not isinstance(header, str):
        raise FileProblemError(
            f"{path} is a torch file but not a record (no {FORMAT!r} entry); make one by dq-quantize"
        )
    arrays: Arrays = {}
    sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    total = sum(_bytes_of(value) for value in content.values())
    if total > sum(sizes.values()):
        raise FileProblemError(f"{path} declares {total} bytes of tensors, more than it holds; nothing was unpacked")
    for key, value in content.items():
        if not isinstance(value, _Placed):
            raise FileProblemError(f"{path}: entry {key} is no tensor, expected one; the file is not a record")
        arrays[key] = _array_of(key, value, archive, root, path)
    return header, arrays


def _bytes_of(value: Any) -> int:
    return prod(value.shape) * np.dtype(value.stored.dtype).itemsize if isinstance(value, _Placed) else 0


def _array_of(key: str, placed: _Placed, archive: zipfile.ZipFile, root: str, path: Path) -> NDArray[Any]:
    dtype = np.dtype(placed.stored.dtype).newbyteorder("<")
    data = _read_entry(archive, f"{root}data/{placed.stored.key}", path)
    count = prod(placed.shape)
    dense, step = [], 1
    for length in reversed(placed.shape):
        dense.append(step)
        step *= length
    # a stride says nothing where an axis has one entry
    contiguous = all(n <= 1 or s == d for n, s, d in zip(placed.shape, placed.stride, reversed(dense), strict=True))
    end = (placed.offset + count) * dtype.itemsize
    if len(data) != placed.stored.count * dtype.itemsize or placed.offset < 0 or end > len(data) or not contiguous:
        raise FileProblemError(
            f"{path}: tensor {key} of shape {placed.shape} does not match its {len(data)} stored bytes; "
            "the file is damaged"
        )
    return np.frombuffer(data, dtype, count, placed.offset * dtype.itemsize).reshape(placed.shape)


def _content_of(data: bytes) -> dict[str, Any]:
    """What a pickle of a dict of texts and tensors describes; every other pickle is refused."""
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            machine.step(opcode.name, argument)
        value = machine.result
    except _RefusedError:
        raise
    except Exception as error:
        raise _RefusedError(f"holds a damaged pickle ({type(error).__name__})") from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _RefusedError("holds no dict of named tensors")
    return value


class _Machine:
    """A stack machine for torch's pickles; globals are names, calls are looked up and never made."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.result: Any = None

    def step(self, name: str, argument: Any) -> None:
        """Do one opcode."""
        if name in ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"):
            self.stack.append(argument)
        elif name in ("NEWTRUE", "NEWFALSE", "NONE"):
            self.stack.append({"NEWTRUE": True, "NEWFALSE": False, "NONE": None}[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in ("EMPTY_DICT", "EMPTY_TUPLE"):
            self.stack.append({} if name == "EMPTY_DICT" else ())
        elif name == "MARK":
            self.marks.append(self.stack)
            self.stack = []
        elif name == "GLOBAL":
            if argument not in (*_STORAGES, _REBUILD, _ORDERED):
                raise _RefusedError(f"asks for the Python object {'.'.join(argument.split())[:80]!r}")
            self.stack.append(_Name(argument))
        elif name.startswith("TUPLE"):
            self._tuple(name)
        elif name in ("SETITEM", "SETITEMS"):
            self._set_items(name)
        elif name == "BINPERSID":
            self._place_storage()
        elif name == "REDUCE":
            self._look_up_call()
        elif name == "BUILD":
            self.stack.pop()  # attributes of a state dict; of no use here
        elif name == "STOP":
            self.result = self.stack.pop()
        elif name != "PROTO":
            raise _RefusedError(f"holds Python objects (pickle opcode {name})")

    def _pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def _tuple(self, name: str) -> None:
        if name == "TUPLE":
            items = self._pop_mark()
        else:
            count = int(name[-1])
            items = self.stack[-count:]
            del self.stack[-count:]
        self.stack.append(tuple(items))

    def _set_items(self, name: str) -> None:
        items = self._pop_mark() if name == "SETITEMS" else [self.stack.pop(-2), self.stack.pop()]
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _place_storage(self) -> None:
        kind, storage, key, _, count = self.stack.pop()
        if kind != "storage" or not isinstance(storage, _Name) or storage.name not in _STORAGES:
            raise _RefusedError("holds a tensor of a type records do not use")
        if not isinstance(key, str) or not isinstance(count, int):
            raise _RefusedError("holds a damaged pickle (storage)")
        self.stack.append(_Stored(key, _STORAGES[storage.name], count))

    def _look_up_call(self) -> None:
        arguments = self.stack.pop()
        called = self.stack.pop()
        if called == _Name(_ORDERED) and arguments == ():
            self.stack.append({})
        elif called == _Name(_REBUILD):
            stored, offset, shape, stride = arguments[:4]
            numbers = (offset, *shape, *stride)
            if not isinstance(stored, _Stored) or not all(type(n) is int and n >= 0 for n in numbers):
                raise _RefusedError("holds a damaged pickle (tensor)")
            self.stack.append(_Placed(stored, offset, tuple(shape), tuple(stride)))
        else:
            raise _RefusedError("holds a call that records do not use")
