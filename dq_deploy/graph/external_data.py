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
        name, start, length = _place_of(path, tensor)
        needed[name] = max(needed.get(name, 0), start + length)
    return tuple(DataFile(path=path.parent / name, needed_bytes=end) for name, end in sorted(needed.items()))


def bytes_with_data(path: Path) -> int:
    """Size of an ONNX file with the data files it names, of those that are there.

    Raises:
        FileProblemError: as of `data_files`.
    """
    beside = data_files(path, onnx.load(str(path), load_external_data=False))
    return sum(place.stat().st_size for place in (path, *(file.path for file in beside)) if place.is_file())


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


def with_values_inside(tensor: onnx.TensorProto, folder: Path) -> onnx.TensorProto:
    """A tensor with its values inside, from the data file where it is kept in one.

    The readers of onnx and onnx-ir refuse data files that are links or have a second name, as those in caches have.

    Args:
        tensor: of a model.
        folder: of the model's file.

    Raises:
        FileProblemError: the data file cannot be read, or ends before the tensor does.
    """
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return tensor
    name, start, length = _place_of(folder, tensor)
    file = folder / name
    try:
        with file.open("rb") as stream:
            stream.seek(start)
            raw = stream.read(length or -1)  # without a length it is the rest of the file
    except OSError as error:
        raise FileProblemError(f"{file}, which holds {tensor.name}, cannot be read: {error.strerror}") from error
    if len(raw) < length:
        raise FileProblemError(f"{file} ends before {tensor.name}, {length} bytes from {start}; copy it again")
    return onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=raw)


def _place_of(path: Path, tensor: onnx.TensorProto) -> tuple[str, int, int]:
    """Where an external tensor is kept: the file's name, its first byte there, and its length or 0."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    pure = PurePosixPath(location)
    if not pure.name or pure.is_absolute() or ".." in pure.parts or "\0" in location:
        raise FileProblemError(
            f"{path} keeps weights in {location[:80]!r}, expected the name of a file beside it; export it again"
        )
    try:
        start, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
    except ValueError as error:
        raise FileProblemError(f"{path} has no number for where tensor {tensor.name} lies; export it again") from error
    if start < 0 or length < 0:
        raise FileProblemError(f"{path} has tensor {tensor.name} at {start}, {length} bytes long; export it again")
    return location, start, length


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
