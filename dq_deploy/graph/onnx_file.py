"""Write an ONNX model with its manifest, whole or not at all; read it back only if it is what was written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from dq_deploy.artifacts import atomic_path, sha256_of_file, write_text_atomic
from dq_deploy.errors import FileProblemError, ModelError
from dq_deploy.graph.content_hash import (
    CONTENT_SHA256,
    DATA_SHA256,
    FILE_SHA256,
    MANIFEST_KEY,
    check_content,
    check_file,
    content_sha256,
    manifest_path,
)
from dq_deploy.graph.external_data import check_data_files, data_files
from dq_deploy.manifest.checks import ENGINE, flaw_of

__all__ = ["IR_VERSION", "MANIFEST_KEY", "manifest_path", "read_manifest", "read_manifest_if_any", "write_onnx"]

IR_VERSION = 10
EXTERNAL_DATA_BYTES = 1 << 28
"""Weights above this go to a file of their own beside the model."""


def write_onnx(
    model: ir.Model, path: Path, manifest: Mapping[str, Any] | None, *, external_above: int = EXTERNAL_DATA_BYTES
) -> None:
    """Check the model with onnx.checker and write it, its data and its manifest.

    Args:
        model: what to write; IR version 10.
        path: `.onnx` file.
        manifest: stored in the model's metadata with the hashes of its content and data, and beside it with the
            file's; None writes neither.
        external_above: bytes of weights from which `<name>.data` holds them.

    Raises:
        FileProblemError: the files cannot be written.
        ModelError: the checker refuses the graph.
    """
    model.ir_version = IR_VERSION
    model.metadata_props.pop(MANIFEST_KEY, None)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    data = path.with_name(path.name + ".data")
    inside: dict[str, Any] = {}
    with atomic_path(path) as temporary:
        if size > external_above:
            with atomic_path(data) as temporary_data:
                proto = _with_external_data(model, temporary, temporary_data, data.name)
                inside = _write_with_manifest(proto, temporary, manifest, sha256_of_file(temporary_data))
        else:
            proto = ir.to_proto(model)
            _check(proto)
            inside = _write_with_manifest(proto, temporary, manifest, None)
    if size <= external_above:
        data.unlink(missing_ok=True)
    if manifest is not None:
        side = {**inside, FILE_SHA256: sha256_of_file(path)}
        write_text_atomic(manifest_path(path), json.dumps(side, sort_keys=True, indent=1) + "\n")


def _write_with_manifest(
    proto: onnx.ModelProto, path: Path, manifest: Mapping[str, Any] | None, data_sha256: str | None
) -> dict[str, Any]:
    """Write a model with its manifest and the hashes inside; returns that manifest."""
    if manifest is None:
        path.write_bytes(proto.SerializeToString(deterministic=True))
        return {}
    inside = {**manifest, DATA_SHA256: data_sha256}
    inside[CONTENT_SHA256] = content_sha256(proto.SerializeToString(deterministic=True), inside)
    proto.metadata_props.add(key=MANIFEST_KEY, value=json.dumps(inside, sort_keys=True))
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return inside


def _with_external_data(model: ir.Model, temporary: Path, temporary_data: Path, final_name: str) -> onnx.ModelProto:
    """Write the data file and give the model that names it."""
    ir.save(model, temporary, external_data=temporary_data.name, size_threshold_bytes=256)
    onnx.checker.check_model(str(temporary))
    proto = onnx.load(str(temporary), load_external_data=False)
    for initializer in proto.graph.initializer:
        for entry in initializer.external_data:
            if entry.key == "location":
                entry.value = final_name
    return proto


def _check(proto: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"exported graph is not valid ONNX: {reason}; please report this model") from error


def read_manifest(path: Path, *, hash_check: bool = False) -> dict[str, Any]:
    """The manifest inside an ONNX file.

    Args:
        path: ONNX file.
        hash_check: also refuse a file, or a data file of it, that is not what was written; else only data files that
            are missing or cut off are.

    Raises:
        FileProblemError: no such file, not ONNX, written by something else, edited, damaged, or without its data.
    """
    manifest = read_manifest_if_any(path, hash_check=hash_check)
    if manifest is None:
        raise FileProblemError(f"{path} has no dq_deploy manifest; expected an ONNX file made by dq-export")
    return manifest


def read_manifest_if_any(path: Path, *, hash_check: bool = False) -> dict[str, Any] | None:
    """As `read_manifest`, but None for an ONNX file of others, which has none.

    Raises:
        FileProblemError: as `read_manifest`.
    """
    if path.is_dir():
        raise FileProblemError(f"engine {path} is a folder, expected an ONNX file made by dq-export")
    if not path.is_file():
        raise FileProblemError(f"engine {path} does not exist; expected an ONNX file made by dq-export")
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise FileProblemError(f"engine {path} cannot be read: {error.strerror}; make it readable") from error
    except Exception as error:  # protobuf's errors share no base class with onnx's
        raise FileProblemError(f"{path} is not an ONNX file or is truncated; export it again") from error
    text = next((p.value for p in proto.metadata_props if p.key == MANIFEST_KEY), None)
    side = check_file(path, ours=text is not None) if hash_check else None
    manifest = None if text is None else _manifest_of(path, text)
    files = data_files(path, proto)
    check_data_files(path, files)
    if hash_check:
        check_content(path, manifest, side, files)
    return manifest


def _manifest_of(path: Path, text: str) -> dict[str, Any]:
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", error)
        raise FileProblemError(f"manifest inside {path} is not JSON ({reason}); export the file again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_KEY:
        raise FileProblemError(f"manifest inside {path} is not of this project; expected one made by dq-export")
    if manifest.get("version") != 1:
        raise FileProblemError(
            f"manifest inside {path} has version {manifest.get('version')}, this release reads 1; upgrade dq_deploy"
        )
    if flaw := flaw_of(manifest, ENGINE):
        raise FileProblemError(f"manifest inside {path} is incomplete or was edited: {flaw}; export the file again")
    return manifest
