"""What a plan is, beside it as `<plan>.json`: made from which ONNX, by which builder, for which GPUs and shapes."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from dq_deploy.artifacts import check_no_stream, sha256_of_bytes, sha256_of_file, with_files_beside, write_text_atomic
from dq_deploy.errors import FileProblemError
from dq_deploy.manifest.entries import Entries, EntryError
from dq_deploy.manifest.values import EngineManifest, PlanFacts, PlanManifest

_MANIFEST_SHA256 = "manifest_sha256"
_OF_ONNX_FILE = ("data_sha256", "content_sha256")
_SUFFIXES = (".plan", ".engine", ".trt")
_MAGIC = b"trt"  # bytes 1 to 3: `ftrt` of TensorRT, `vtrt` of TensorRT-RTX
_NEEDED = ("plan_sha256", "onnx_sha256", "runtime", "runtime_version", "compute_capabilities", "profiles", "inputs")


def plan_manifest_path(plan_path: Path) -> Path:
    """`unet.plan` -> `unet.plan.json`."""
    return Path(f"{with_files_beside(plan_path)}.json")  # a path such as "." has no name to be changed


def is_plan(path: str | Path) -> bool:
    """Whether a path names a plan and not an ONNX file: by its manifest, else by its first bytes or its name.

    Raises:
        FileProblemError: a pipe or a device.
    """
    path = Path(path)
    check_no_stream(path)
    side = _json_of(plan_manifest_path(path))
    if side is not None and side.get("format") == PlanManifest.FORMAT:
        return True
    try:
        with path.open("rb") as stream:
            head = stream.read(4)
    except OSError:
        return path.suffix in _SUFFIXES
    return head[1:4] == _MAGIC or path.suffix in _SUFFIXES


def plan_manifest_of(onnx_manifest: EngineManifest, facts: PlanFacts) -> PlanManifest:
    """A plan's manifest: every entry of the ONNX file's, and what the build added.

    Args:
        onnx_manifest: of the file the plan was built from; where it is a plan's, that plan's own facts are left out.
        facts: of the plan.
    """
    theirs = _values_of(onnx_manifest, EngineManifest)
    ours = _values_of(facts, PlanFacts)
    return PlanManifest(
        **{name: value for name, value in theirs.items() if name not in _OF_ONNX_FILE},
        **ours,
        nulls=(onnx_manifest.nulls - {*_OF_ONNX_FILE, *ours}) | facts.nulls,
        others={**onnx_manifest.others, **facts.others},
    )


def _values_of(value: Entries, kind: type[Entries]) -> dict[str, Any]:
    shared = {entry.name for entry in fields(Entries)}
    return {entry.name: getattr(value, entry.name) for entry in fields(kind) if entry.name not in shared}


def write_plan_manifest(plan_path: str | Path, manifest: PlanManifest) -> None:
    """Write `<plan>.json`, with the hash of what it says.

    Raises:
        FileProblemError: it cannot be written.
    """
    written = replace(manifest, manifest_sha256=_sha256_of_manifest(manifest.to_json()))
    text = json.dumps(written.to_json(), sort_keys=True, indent=1)
    write_text_atomic(plan_manifest_path(Path(plan_path)), text + "\n")


def read_plan_manifest(plan_path: str | Path, *, check_hash: bool = True) -> PlanManifest:
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
    value = _json_of(side)
    if value is None or value.get("format") != PlanManifest.FORMAT:
        raise FileProblemError(f"{side} is not the manifest of a plan; build the plan again with dq-build")
    if value.get("version") != PlanManifest.VERSION:
        raise FileProblemError(
            f"{side} has version {value.get('version')}, this release reads {PlanManifest.VERSION}; upgrade dq_deploy"
        )
    missing = [key for key in _NEEDED if key not in value]
    if missing:
        raise FileProblemError(f"{side} lacks {', '.join(missing)}; build the plan again with dq-build")
    try:
        manifest = PlanManifest.from_json(value)
    except EntryError as flaw:
        raise FileProblemError(
            f"{side} is incomplete or was edited: {flaw}; build the plan again with dq-build"
        ) from flaw
    if check_hash and (told := manifest.manifest_sha256) not in (None, found := _sha256_of_manifest(value)):
        raise FileProblemError(
            f"{side} is not what was written: its content hash is {found[:12]}, it says {str(told)[:12]}; copy it "
            "again, or build the plan again with dq-build"
        )
    if check_hash and (found := sha256_of_file(path)) != manifest.plan_sha256:
        raise FileProblemError(
            f"{side.name} belongs to a plan with SHA-256 {manifest.plan_sha256[:12]}..., {path} has "
            f"{found[:12]}...; the plan was replaced or damaged: build it again with dq-build"
        )
    return manifest


def _sha256_of_manifest(manifest: dict[str, Any]) -> str:
    """Of the JSON as it is stored, entries of other versions included, without this hash; its keys are sorted."""
    rest = {key: value for key, value in manifest.items() if key != _MANIFEST_SHA256}
    return sha256_of_bytes(json.dumps(rest, sort_keys=True).encode("utf-8"))


def _json_of(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
