"""The data files an ONNX file keeps its weights in: which, whether they are there, and whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import onnx

from dq_deploy.errors import FileProblemError


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A data file of an ONNX file.

    Attributes:
        path: where it must be: beside the ONNX file, under the name that stands in it.
        needed_bytes: the end of the last tensor in it.
    """

    path: Path
    needed_bytes: int


def data_files(path: Path, model: onnx.ModelProto) -> tuple[DataFile, ...]:
    """The data files a model names, in the order of their names; whether they exist is not looked at.

    Args:
        path: the ONNX file.
        model: its content, without its external data.

    Raises:
        FileProblemError: a name that leads out of the file's folder, or a place in it that is no number.
    """
    needed: dict[str, int] = {}
    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        pure = PurePosixPath(location)
        if not pure.name or pure.is_absolute() or ".." in pure.parts or "\0" in location:
            raise FileProblemError(
                f"{path} keeps weights in {location[:80]!r}, expected the name of a file beside it; export it again"
            )
        needed[location] = max(needed.get(location, 0), _end_of(path, tensor.name, entries))
    return tuple(DataFile(path=path.parent / name, needed_bytes=end) for name, end in sorted(needed.items()))


def check_data_files(path: Path, files: tuple[DataFile, ...]) -> None:
    """Refuse an ONNX file whose data files are not there, not files, not readable or too short.

    Args:
        path: the ONNX file, for messages.
        files: of `data_files`.

    Raises:
        FileProblemError: names the file and says what to do.
    """
    for file in files:
        name = file.path.name
        if file.path.is_dir():
            raise FileProblemError(f"{file.path} is a folder, expected the file with the weights of {path}; copy it")
        if not file.path.is_file():
            raise FileProblemError(
                f"{path} keeps its weights in {name}, which is not beside it; copy {name} into {path.parent} too"
            )
        try:
            with file.path.open("rb") as stream:
                found = stream.seek(0, 2)
        except OSError as error:
            raise FileProblemError(
                f"{file.path}, the weights of {path}, cannot be read: {error.strerror}; make it readable or copy it"
            ) from error
        if found < file.needed_bytes:
            raise FileProblemError(
                f"{file.path} has {found} bytes, {path.name} needs {file.needed_bytes}; it is truncated: export again, "
                "or copy it again"
            )


def _end_of(path: Path, name: str, entries: dict[str, str]) -> int:
    try:
        start, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
    except ValueError as error:
        raise FileProblemError(f"{path} has no number for where tensor {name} lies; export it again") from error
    if start < 0 or length < 0:
        raise FileProblemError(f"{path} has tensor {name} at {start}, {length} bytes long; export it again")
    return start + length


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a graph: initializers, constants, and those of the graphs inside nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _tensors(inner)
