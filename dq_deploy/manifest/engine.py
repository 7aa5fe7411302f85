"""The manifest of an exported ONNX file: the text inside the file, and the one beside it with the file's hash."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dq_deploy.errors import FileProblemError
from dq_deploy.manifest.entries import EntryError
from dq_deploy.manifest.values import EngineManifest

MANIFEST_KEY = EngineManifest.FORMAT
"""Name of the manifest in an ONNX file's metadata."""
FILE_SHA256 = "onnx_sha256"
"""In the manifest beside the file: of the whole file."""
_DATA_SHA256 = "data_sha256"


def manifest_path(path: Path) -> Path:
    """`unet.onnx` -> `unet.onnx.json`."""
    return Path(f"{path}.json")  # a path such as "." has no name to be changed


def text_inside(manifest: EngineManifest) -> str:
    """The text in an ONNX file's metadata."""
    return json.dumps(manifest.to_json(), sort_keys=True)


def stored_json(manifest: EngineManifest) -> dict[str, Any]:
    """JSON values as the file holds them: names sorted, also inside; of an ONNX file's manifest or a plan's."""
    return dict(json.loads(text_inside(manifest)))


def text_beside(manifest: EngineManifest, file_sha256: str) -> str:
    """The text of the file beside an ONNX file.

    Args:
        manifest: the one inside.
        file_sha256: of the whole ONNX file.
    """
    return json.dumps({**manifest.to_json(), FILE_SHA256: file_sha256}, sort_keys=True, indent=1) + "\n"


def hashed_bytes(manifest: EngineManifest) -> bytes:
    """What goes into the content hash: the manifest without that hash, entries of other versions included."""
    return text_inside(replace(manifest, content_sha256=None, nulls=manifest.nulls - {"content_sha256"})).encode()


def with_data_hash(manifest: EngineManifest, data_sha256: str | None) -> EngineManifest:
    """The manifest with the hash of the data file; None, where there is none, is written as null."""
    return replace(manifest, data_sha256=data_sha256, nulls=manifest.nulls | {_DATA_SHA256})


def manifest_inside(path: Path, text: str) -> EngineManifest:
    """Read the text in an ONNX file's metadata.

    Args:
        path: the ONNX file, for messages.
        text: JSON.

    Raises:
        FileProblemError: not JSON, of something else, of another version, incomplete or edited.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", error)
        raise FileProblemError(f"manifest inside {path} is not JSON ({reason}); export the file again") from error
    if not isinstance(value, dict) or value.get("format") != MANIFEST_KEY:
        raise FileProblemError(f"manifest inside {path} is not of this project; expected one made by dq-export")
    if value.get("version") != EngineManifest.VERSION:
        raise FileProblemError(
            f"manifest inside {path} has version {value.get('version')}, this release reads {EngineManifest.VERSION}; "
            "upgrade dq_deploy"
        )
    try:
        return EngineManifest.from_json(value)
    except EntryError as flaw:
        raise FileProblemError(
            f"manifest inside {path} is incomplete or was edited: {flaw}; export the file again"
        ) from flaw


def json_beside(path: Path) -> dict[str, Any] | None:
    """The manifest beside an ONNX file as it stands there, to be compared; None where it is no JSON object.

    Args:
        path: the ONNX file.
    """
    try:
        value = json.loads(manifest_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


@dataclass(frozen=True, kw_only=True)
class HashesBeside:
    """What the manifest beside an ONNX file says of the files.

    Attributes:
        file_sha256: of the whole ONNX file.
        data_sha256: of its data file; None where there is none, or nothing is said.
    """

    file_sha256: str
    data_sha256: str | None


def hashes_beside(path: Path, *, ours: bool) -> HashesBeside | None:
    """What the manifest beside a file says; None where there is none, or something of others beside a file of others.

    Args:
        path: the ONNX file.
        ours: whether it has a manifest inside; what lies beside a file of others may be anything.

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
    if isinstance(value, dict) and value.get("format") == MANIFEST_KEY and isinstance(value.get(FILE_SHA256), str):
        data = value.get(_DATA_SHA256)
        return HashesBeside(file_sha256=value[FILE_SHA256], data_sha256=None if data is None else str(data))
    if not ours:
        return None
    raise FileProblemError(
        f"{side} is not the manifest of {path.name} or was edited: it has no {FILE_SHA256}; copy it again, or export "
        "the file again"
    )
