"""What a plan is, beside it as `<plan>.json`: made from which ONNX, by which builder, for which GPUs and shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dq_deploy.artifacts import sha256_of_bytes, sha256_of_file, with_files_beside, write_text_atomic
from dq_deploy.errors import FileProblemError
from dq_deploy.manifest.checks import PLAN, flaw_of

PLAN_FORMAT = "dq_deploy.plan"
PLAN_VERSION = 1
MANIFEST_SHA256 = "manifest_sha256"
"""Of the manifest itself without this entry, as JSON with sorted keys; manifests of earlier versions have none."""
_OF_ONNX_FILE = ("format", "version", "data_sha256", "content_sha256")
_SUFFIXES = (".plan", ".engine", ".trt")
_MAGIC = b"trt"  # bytes 1 to 3: `ftrt` of TensorRT, `vtrt` of TensorRT-RTX
_NEEDED = ("plan_sha256", "onnx_sha256", "runtime", "runtime_version", "compute_capabilities", "profiles", "inputs")


def plan_manifest_path(plan_path: Path) -> Path:
    """`unet.plan` -> `unet.plan.json`."""
    return Path(f"{with_files_beside(plan_path)}.json")  # a path such as "." has no name to be changed


def is_plan(path: str | Path) -> bool:
    """Whether a path names a plan and not an ONNX file: by its manifest, else by its first bytes or its name."""
    path = Path(path)
    side = _json_of(plan_manifest_path(path))
    if side is not None and side.get("format") == PLAN_FORMAT:
        return True
    try:
        with path.open("rb") as stream:
            head = stream.read(4)
    except OSError:
        return path.suffix in _SUFFIXES
    return head[1:4] == _MAGIC or path.suffix in _SUFFIXES


def plan_manifest_of(onnx_manifest: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """A plan's manifest: every key of the ONNX file's, and what the build added.

    Args:
        onnx_manifest: of the file the plan was built from.
        facts: `plan_sha256`, `runtime` and the other keys of a plan.
    """
    rest = {key: value for key, value in onnx_manifest.items() if key not in _OF_ONNX_FILE}
    return {"format": PLAN_FORMAT, "version": PLAN_VERSION, **rest, **facts}


def write_plan_manifest(plan_path: str | Path, manifest: Mapping[str, Any]) -> None:
    """Write `<plan>.json`.

    Raises:
        FileProblemError: it cannot be written.
    """
    written = {**manifest, MANIFEST_SHA256: _sha256_of_manifest(manifest)}
    text = json.dumps(written, sort_keys=True, indent=1)
    write_text_atomic(plan_manifest_path(Path(plan_path)), text + "\n")


def read_plan_manifest(plan_path: str | Path, *, check_hash: bool = True) -> dict[str, Any]:
    """The manifest of a plan, which is checked to be of exactly this file.

    Args:
        plan_path: the plan.
        check_hash: False trusts the name and what the manifest says; reading a plan of 1 GB takes half a second.

    Raises:
        FileProblemError: no plan, no manifest, another format or version, an edited one, or that of another plan.
    """
    path = Path(plan_path)
    side = plan_manifest_path(path)
    if path.is_dir():
        raise FileProblemError(f"plan {path} is a folder, expected a file made by dq-build")
    if not path.is_file():
        raise FileProblemError(f"plan {path} does not exist; expected a file made by dq-build")
    if not side.is_file():
        raise FileProblemError(
            f"plan {path} has no manifest {side.name} beside it; copy it along, or build the plan again with dq-build"
        )
    manifest = _json_of(side)
    if manifest is None or manifest.get("format") != PLAN_FORMAT:
        raise FileProblemError(f"{side} is not the manifest of a plan; build the plan again with dq-build")
    if manifest.get("version") != PLAN_VERSION:
        raise FileProblemError(
            f"{side} has version {manifest.get('version')}, this release reads {PLAN_VERSION}; upgrade dq_deploy"
        )
    missing = [key for key in _NEEDED if key not in manifest]
    if missing:
        raise FileProblemError(f"{side} lacks {', '.join(missing)}; build the plan again with dq-build")
    if flaw := flaw_of(manifest, PLAN):
        raise FileProblemError(f"{side} is incomplete or was edited: {flaw}; build the plan again with dq-build")
    if check_hash and (told := manifest.get(MANIFEST_SHA256)) not in (None, found := _sha256_of_manifest(manifest)):
        raise FileProblemError(
            f"{side} is not what was written: its content hash is {found[:12]}, it says {str(told)[:12]}; copy it "
            "again, or build the plan again with dq-build"
        )
    if check_hash and (found := sha256_of_file(path)) != manifest["plan_sha256"]:
        raise FileProblemError(
            f"{side.name} belongs to a plan with SHA-256 {str(manifest['plan_sha256'])[:12]}..., {path} has "
            f"{found[:12]}...; the plan was replaced or damaged: build it again with dq-build"
        )
    return manifest


def _sha256_of_manifest(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != MANIFEST_SHA256}
    return sha256_of_bytes(json.dumps(rest, sort_keys=True).encode("utf-8"))


def _json_of(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
