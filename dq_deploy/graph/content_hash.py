"""Whether an ONNX file is what was written: SHA-256 of its bytes, beside it and inside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx

from dq_deploy.artifacts import sha256_of_file
from dq_deploy.errors import FileProblemError
from dq_deploy.graph.external_data import DataFile

MANIFEST_KEY = "dq_deploy.manifest"
FILE_SHA256 = "onnx_sha256"
"""In the manifest beside the file: of the whole file."""
DATA_SHA256 = "data_sha256"
"""In both manifests: of the data file, null where there is none."""
CONTENT_SHA256 = "content_sha256"
"""In the manifest inside the file: of all that is outside it, and of itself without this entry."""

_METADATA_FIELD = 14
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types


def manifest_path(path: Path) -> Path:
    """`unet.onnx` -> `unet.onnx.json`."""
    return Path(f"{path}.json")  # a path such as "." has no name to be changed


def content_sha256(serialized: bytes, manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a serialized model without its manifest, then of the manifest without its own hash.

    Args:
        serialized: an ONNX file's bytes, with or without the manifest.
        manifest: the manifest inside it.

    Raises:
        ValueError: the bytes are no protobuf message.
    """
    digest, view = hashlib.sha256(), memoryview(serialized)
    for number, start, inside, end in _fields(serialized):
        if number == _METADATA_FIELD and _is_manifest(bytes(view[inside:end])):
            continue
        digest.update(view[start:end])
    rest = {key: value for key, value in manifest.items() if key != CONTENT_SHA256}
    digest.update(json.dumps(rest, sort_keys=True).encode("utf-8"))
    return digest.hexdigest()


def check_file(path: Path, *, ours: bool) -> dict[str, Any] | None:
    """Refuse an ONNX file that is not the one its manifest beside it is of.

    Args:
        path: the ONNX file.
        ours: whether it has a manifest inside; what lies beside a file of others may be anything.

    Returns:
        The manifest beside it, or None where there is none.

    Raises:
        FileProblemError: names the file.
    """
    side = _side_manifest(path, ours)
    if side is not None:
        _compare(path, sha256_of_file(path), side[FILE_SHA256], manifest_path(path).name)
    return side


def check_content(
    path: Path, manifest: Mapping[str, Any] | None, side: Mapping[str, Any] | None, data: tuple[DataFile, ...]
) -> None:
    """Refuse what `check_file` could not see: a file without its manifest beside it, and another data file.

    Files of earlier versions have no hash inside, and none of their data: what they have is checked.

    Args:
        path: the ONNX file.
        manifest: the one inside it, or None.
        side: what `check_file` returned.
        data: its data files.

    Raises:
        FileProblemError: names the file.
    """
    if side is None and manifest is not None and CONTENT_SHA256 in manifest:
        try:
            found = content_sha256(path.read_bytes(), manifest)
        except ValueError as error:
            raise FileProblemError(f"{path} is not an ONNX file or is truncated; export it again") from error
        _compare(path, found, manifest[CONTENT_SHA256], "inside it")
    wanted = next((m[DATA_SHA256] for m in (manifest, side) if m is not None and DATA_SHA256 in m), None)
    for file in data if wanted is not None else ():
        _compare(file.path, sha256_of_file(file.path), wanted, f"in {path.name}")


def _compare(path: Path, found: str, wanted: Any, where: str) -> None:
    if found != wanted:
        raise FileProblemError(
            f"{path} is not what was written: its content hash is {found[:12]}, its manifest {where} says "
            f"{str(wanted)[:12]}; copy it again with what lies beside it, or export it again"
        )


def _side_manifest(path: Path, ours: bool) -> dict[str, Any] | None:
    """The manifest beside a file; None where there is none, or something of others beside a file of others.

    Raises:
        FileProblemError: it cannot be read, or is damaged.
    """
    side = manifest_path(path)
    if not side.exists():
        return None
    try:
        value = json.loads(side.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if not ours:
            return None
        raise FileProblemError(
            f"{side} cannot be read as the manifest of {path.name}; copy it again, or remove it or export again"
        ) from error
    known = isinstance(value, dict) and value.get("format") == MANIFEST_KEY and isinstance(value.get(FILE_SHA256), str)
    if known:
        return dict(value)
    if not ours:
        return None
    raise FileProblemError(
        f"{side} is not the manifest of {path.name} or was edited: it has no {FILE_SHA256}; copy it again, or export "
        "the file again"
    )


def _is_manifest(payload: bytes) -> bool:
    try:
        return bool(onnx.StringStringEntryProto.FromString(payload).key == MANIFEST_KEY)
    except Exception:  # protobuf's errors share no base class; what is no entry is no manifest
        return False


def _fields(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Top-level fields of a protobuf message: number, start, start of what is inside, end."""
    position = 0
    while position < len(data):
        start = position
        tag, position = _varint(data, position)
        kind, inside = tag & 7, position
        if kind == _VARINT:
            _, position = _varint(data, position)
        elif kind == _LENGTH:
            length, inside = _varint(data, position)
            position = inside + length
        elif kind in (_FIXED64, _FIXED32):
            position += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {start}")
        if position > len(data):
            raise ValueError(f"field at byte {start} ends behind the file")
        yield tag >> 3, start, inside, position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value, shift = 0, 0
    while position < len(data) and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position
    raise ValueError(f"number that does not end at byte {position}")
