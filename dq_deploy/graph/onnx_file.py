"""Write an ONNX model with its manifest, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from dq_deploy.artifacts import atomic_path, sha256_of_file, write_text_atomic
from dq_deploy.errors import FileProblemError, ModelError
from dq_deploy.graph.manifest_check import ENGINE, flaw_of

MANIFEST_KEY = "dq_deploy.manifest"
EXTERNAL_DATA_BYTES = 1 << 28
"""Weights above this go to a file of their own beside the model."""


def manifest_path(path: Path) -> Path:
    """`unet.onnx` -> `unet.onnx.json`."""
    return path.with_name(path.name + ".json")


def write_onnx(
    model: ir.Model, path: Path, manifest: Mapping[str, Any] | None, *, external_above: int = EXTERNAL_DATA_BYTES
) -> None:
    """Check the model with onnx.checker and write it, its data and its manifest.

    Args:
        model: what to write; IR version 10.
        path: `.onnx` file.
        manifest: stored in the model's metadata and beside it with the file's hash; None writes neither.
        external_above: bytes of weights from which `<name>.data` holds them.

    Raises:
        FileProblemError: the files cannot be written.
        ModelError: the checker refuses the graph.
    """
    model.ir_version = 10
    if manifest is not None:
        model.metadata_props[MANIFEST_KEY] = json.dumps(manifest, sort_keys=True)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    data = path.with_name(path.name + ".data")
    with atomic_path(path) as temporary:
        if size > external_above:
            with atomic_path(data) as temporary_data:
                _save_external(model, temporary, temporary_data, data.name)
        else:
            proto = ir.to_proto(model)
            _check(proto)
            temporary.write_bytes(proto.SerializeToString(deterministic=True))
    if size <= external_above:
        data.unlink(missing_ok=True)
    if manifest is not None:
        side = {**manifest, "onnx_sha256": sha256_of_file(path)}
        write_text_atomic(manifest_path(path), json.dumps(side, sort_keys=True, indent=1) + "\n")


def _save_external(model: ir.Model, temporary: Path, temporary_data: Path, final_name: str) -> None:
    ir.save(model, temporary, external_data=temporary_data.name, size_threshold_bytes=256)
    onnx.checker.check_model(str(temporary))
    proto = onnx.load(str(temporary), load_external_data=False)
    for initializer in proto.graph.initializer:
        for entry in initializer.external_data:
            if entry.key == "location":
                entry.value = final_name
    temporary.write_bytes(proto.SerializeToString(deterministic=True))


def _check(proto: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"exported graph is not valid ONNX: {reason}; please report this model") from error


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest inside an ONNX file.

    Raises:
        FileProblemError: no such file, not ONNX, written by something else, or edited.
    """
    if path.is_dir():
        raise FileProblemError(f"engine {path} is a folder, expected an ONNX file made by dq-export")
    if not path.is_file():
        raise FileProblemError(f"engine {path} does not exist; expected an ONNX file made by dq-export")
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's errors share no base class with onnx's
        raise FileProblemError(f"{path} is not an ONNX file or is truncated; export it again") from error
    text = next((p.value for p in proto.metadata_props if p.key == MANIFEST_KEY), None)
    if text is None:
        raise FileProblemError(f"{path} has no dq_deploy manifest; expected an ONNX file made by dq-export")
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
