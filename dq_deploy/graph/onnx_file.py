"""Write an ONNX model with its manifest, whole or not at all; read it back only if it is what was written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir

from dq_deploy.artifacts import atomic_path, check_no_stream, sha256_of_file, write_text_atomic
from dq_deploy.errors import FileProblemError, ModelError
from dq_deploy.graph.content_hash import check_content, check_file, content_sha256
from dq_deploy.graph.external_data import check_data_files, data_files
from dq_deploy.manifest.engine import (
    MANIFEST_KEY,
    manifest_inside,
    manifest_path,
    text_beside,
    text_inside,
    with_data_hash,
)
from dq_deploy.manifest.values import EngineManifest

__all__ = ["IR_VERSION", "MANIFEST_KEY", "manifest_path", "read_manifest", "read_manifest_if_any", "write_onnx"]

IR_VERSION = 10
EXTERNAL_DATA_BYTES = 1 << 28
"""Weights above this go to a file of their own beside the model."""


def write_onnx(
    model: ir.Model, path: Path, manifest: EngineManifest | None, *, external_above: int = EXTERNAL_DATA_BYTES
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
    inside: EngineManifest | None = None
    with atomic_path(path) as temporary:
        if size > external_above:
            with atomic_path(data) as temporary_data:
                proto = _with_external_data(model, temporary, temporary_data, data.name)
                inside = _write_with_manifest(proto, temporary, manifest, sha256_of_file(temporary_data))
        else:
            proto = _without_constants_types(ir.to_proto(model))
            _check(proto)
            inside = _write_with_manifest(proto, temporary, manifest, None)
    if size <= external_above:
        data.unlink(missing_ok=True)
    if inside is not None:
        write_text_atomic(manifest_path(path), text_beside(inside, sha256_of_file(path)))


def _write_with_manifest(
    proto: onnx.ModelProto, path: Path, manifest: EngineManifest | None, data_sha256: str | None
) -> EngineManifest | None:
    """Write a model with its manifest and the hashes inside; returns that manifest."""
    if manifest is None:
        path.write_bytes(proto.SerializeToString(deterministic=True))
        return None
    inside = with_data_hash(manifest, data_sha256)
    inside = replace(inside, content_sha256=content_sha256(proto.SerializeToString(deterministic=True), inside))
    proto.metadata_props.add(key=MANIFEST_KEY, value=text_inside(inside))
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
    return _without_constants_types(proto)


def _without_constants_types(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model without what is said of its constants' types a second time: a constant carries its own."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    others = [value for value in proto.graph.value_info if value.name not in constants]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(others)
    return proto


def _check(proto: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"exported graph is not valid ONNX: {reason}; please report this model") from error


def read_manifest(path: Path, *, hash_check: bool = False) -> EngineManifest:
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


def read_manifest_if_any(path: Path, *, hash_check: bool = False) -> EngineManifest | None:
    """As `read_manifest`, but None for an ONNX file of others, which has none.

    Raises:
        FileProblemError: as `read_manifest`.
    """
    if path.is_dir():
        raise FileProblemError(f"engine {path} is a folder, expected an ONNX file made by dq-export")
    check_no_stream(path)
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
    manifest = None if text is None else manifest_inside(path, text)
    files = data_files(path, proto)
    check_data_files(path, files)
    if hash_check:
        check_content(path, manifest, side, files)
    return manifest
