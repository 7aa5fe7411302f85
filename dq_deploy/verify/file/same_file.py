"""An exported file against what its record makes: exported again with the manifest's options, and compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.artifacts import sha256_of_file
from dq_deploy.errors import DqError
from dq_deploy.graph.content_hash import CONTENT_SHA256, DATA_SHA256, FILE_SHA256, content_sha256, manifest_path
from dq_deploy.record import Record
from dq_deploy.targets import EngineGraph, engine_graph
from dq_deploy.targets.manifest import versions_used
from dq_deploy.targets.traced_graphs import traced_denoiser
from dq_deploy.verify.file.same_values import FileDifference, shown, value_differences

if TYPE_CHECKING:
    import onnx_ir as ir

DECIDING = ("dq_deploy", "torch", "diffusers", "onnx", "onnx-ir", "onnxscript")
"""Packages whose version decides which graph a record makes."""


_BY_THEMSELVES = ("versions", DATA_SHA256, CONTENT_SHA256)


class TracedOnce:
    """A record's denoiser, traced at the first use: the file is made from it again, and so is the twin."""

    def __init__(self, record: Record) -> None:
        """Take the record; nothing is traced yet."""
        self.record = record
        self._model: ir.Model | None = None
        self._made: dict[tuple[str, ...], EngineGraph] = {}

    def __call__(self) -> ir.Model:
        """The traced graph; whoever changes it takes a clone.

        Raises:
            ModelError: torch cannot trace it.
        """
        if self._model is None:
            self._model = traced_denoiser(self.record.family, self.record.model_config, self.record)
        return self._model

    def engine(self, manifest: Mapping[str, Any]) -> EngineGraph:
        """What the record makes with the options of a manifest; the same each time, not to be changed.

        Raises:
            OptionError: there are no such options.
            ModelError: torch cannot trace the denoiser.
        """
        options = manifest.get("options") or {}
        target, mode = str(manifest["target"]), str(manifest["mode"])
        float_type, conv = options.get("float_type"), options.get("conv")
        key = (target, mode, str(float_type), str(conv))
        if key not in self._made:
            self._made[key] = engine_graph(
                self.record, target=target, mode=mode, float_type=float_type, conv=conv, traced=self()
            )
        return self._made[key]


@dataclass(frozen=True, kw_only=True)
class SameFile:
    """Whether a file is what its record makes.

    Attributes:
        differences: what is not, in the order of the file; empty where all is, and where it cannot be said.
        unknown: why it cannot be said, or an empty string.
    """

    differences: tuple[FileDifference, ...] = ()
    unknown: str = ""


def compare_file(path: Path, manifest: Mapping[str, Any], traced: TracedOnce) -> SameFile:
    """Export a record again and compare the file with that, its manifest and its hash included.

    Where they differ and the file was written by other versions, nobody can say which is right: that is `unknown`.

    Args:
        path: ONNX file with its manifest inside.
        manifest: the one inside.
        traced: the record it claims to be made from.
    """
    from dq_deploy.verify.onnx.same_graph import graph_differences

    try:
        made = traced.engine(manifest)
    except DqError as error:
        return SameFile(unknown=f"the record cannot be exported again with the manifest's options: {error}")
    found = [*_manifest_differences(manifest, made.manifest), *graph_differences(path, made.model)]
    others = _other_versions(manifest)
    if found and others:
        return SameFile(
            unknown=f"the file was written by {others} and differs from what this release makes of the record "
            f"({found[0].text()}); export it again to have it compared"
        )
    return SameFile(differences=(*found, *_hash_differences(path, manifest)))


def _manifest_differences(manifest: Mapping[str, Any], made: Mapping[str, Any]) -> list[FileDifference]:
    """What the manifest inside says and the record does not make; versions and hashes are looked at by themselves."""
    pair = (manifest, json.loads(json.dumps(made)))
    got, expected = ({key: value for key, value in m.items() if key not in _BY_THEMSELVES} for m in pair)
    return value_differences("manifest", got, expected)


def _other_versions(manifest: Mapping[str, Any]) -> str:
    """The packages of other versions than those here, as `torch 2.3 (here 2.4)`, or an empty string."""
    said, mine = manifest.get("versions") or {}, versions_used()
    return ", ".join(
        f"{name} {shown(said.get(name, 'of unknown version'))} (here {mine[name]})"
        for name in DECIDING
        if name in mine and said.get(name) != mine[name]
    )


def _hash_differences(path: Path, manifest: Mapping[str, Any]) -> list[FileDifference]:
    """The hashes of the manifests against the file and its data, and the manifest beside it against the one inside."""
    found, side = [], manifest_path(path)
    said: Any = dict(manifest)
    if side.is_file():
        try:
            said = json.loads(side.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            said = None
    if not isinstance(said, Mapping):
        return [FileDifference(place=f"manifest {side.name}", got="unreadable", expected="the manifest of the file")]
    hashes = [(path.name, FILE_SHA256, sha256_of_file(path), said)]
    if CONTENT_SHA256 in manifest:
        mine = content_sha256(path.read_bytes(), manifest)
        hashes.append((f"the content of {path.name}", CONTENT_SHA256, mine, manifest))
    if manifest.get(DATA_SHA256) is not None:
        data = path.with_name(f"{path.name}.data")
        mine = sha256_of_file(data) if data.is_file() else "missing"
        hashes.append((data.name, DATA_SHA256, mine, manifest))
    for what, key, mine, holder in hashes:
        if key in holder and holder[key] != mine:
            expected = f"{str(holder[key])[:12]} as its manifest has it"
            found.append(FileDifference(place=f"sha256 of {what}", got=mine[:12], expected=expected))
    inside = {key: value for key, value in said.items() if key != FILE_SHA256}
    return found + value_differences(side.name, inside, dict(manifest))
