"""Whether an ONNX file is what was written: SHA-256 of its bytes, beside it and inside it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import onnx

from dq_deploy.artifacts import sha256_of_file
from dq_deploy.errors import FileProblemError
from dq_deploy.graph.external_data import DataFile
from dq_deploy.manifest.engine import MANIFEST_KEY, HashesBeside, hashed_bytes, hashes_beside, manifest_path
from dq_deploy.manifest.values import EngineManifest

_METADATA_FIELD = 14
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types


def content_sha256(serialized: bytes, manifest: EngineManifest) -> str:
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
    digest.update(hashed_bytes(manifest))
    return digest.hexdigest()


def check_file(path: Path, *, ours: bool) -> HashesBeside | None:
    """Refuse an ONNX file that is not the one its manifest beside it is of.

    Args:
        path: the ONNX file.
        ours: whether it has a manifest inside; what lies beside a file of others may be anything.

    Returns:
        What the manifest beside it says, or None where there is none.

    Raises:
        FileProblemError: names the file.
    """
    side = hashes_beside(path, ours=ours)
    if side is not None:
        _compare(path, sha256_of_file(path), side.file_sha256, manifest_path(path).name)
    return side


def check_content(
    path: Path, manifest: EngineManifest | None, side: HashesBeside | None, data: tuple[DataFile, ...]
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
    written = None if manifest is None else manifest.content_sha256
    if side is None and manifest is not None and written is not None:
        try:
            found = content_sha256(path.read_bytes(), manifest)
        except ValueError as error:
            raise FileProblemError(f"{path} is not an ONNX file or is truncated; export it again") from error
        _compare(path, found, written, "inside it")
    wanted = None if side is None else side.data_sha256
    if manifest is not None and (manifest.data_sha256 is not None or "data_sha256" in manifest.nulls):
        wanted = manifest.data_sha256
    if wanted is None:
        return
    for file in data:
        _compare(file.path, sha256_of_file(file.path), wanted, f"in {path.name}")


def _compare(path: Path, found: str, wanted: str, where: str) -> None:
    if found != wanted:
        raise FileProblemError(
            f"{path} is not what was written: its content hash is {found[:12]}, its manifest {where} says "
            f"{wanted[:12]}; copy it again with what lies beside it, or export it again"
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
