"""An exported file against what its record makes: exported again with the manifest's options, and compared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from dq_deploy.artifacts import sha256_of_file
from dq_deploy.errors import DqError
from dq_deploy.graph.content_hash import content_sha256
from dq_deploy.graph.external_data import data_files
from dq_deploy.manifest.engine import FILE_SHA256, json_beside, manifest_path, stored_json
from dq_deploy.manifest.values import EngineManifest, ManifestOptions
from dq_deploy.models import call_of_record
from dq_deploy.record import Record
from dq_deploy.targets import EngineGraph, engine_graph
from dq_deploy.targets.manifest import versions_used
from dq_deploy.targets.traced_graphs import traced_denoiser
from dq_deploy.verify.file.same_values import FileDifference, shown, value_differences

if TYPE_CHECKING:
    import onnx_ir as ir

DECIDING = ("dq_deploy", "torch", "diffusers", "onnx", "onnx-ir", "onnxscript")
"""Packages whose version decides which graph a record makes."""


_BY_THEMSELVES = ("versions", "data_sha256", "content_sha256")


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
            self._model = traced_denoiser(
                self.record.family, self.record.model_config, self.record, call_of_record(self.record), anew=True
            )
        return self._model

    def engine(self, manifest: EngineManifest) -> EngineGraph:
        """What the record makes with the options of a manifest; the same each time, not to be changed.

        Raises:
            OptionError: there are no such options.
            ModelError: torch cannot trace the denoiser.
        """
        options = manifest.options or ManifestOptions()
        target, mode, float_type, conv = manifest.target, manifest.mode, options.float_type, options.conv
        key = (target, mode, str(float_type), str(conv), str(options.layout))
        if key not in self._made:
            self._made[key] = engine_graph(
                self.record,
                target=target,
                mode=mode,
                float_type=float_type,
                conv=conv,
                layout=options.layout,
                traced=self(),
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


def compare_file(path: Path, manifest: EngineManifest, traced: TracedOnce) -> SameFile:
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


def _manifest_differences(manifest: EngineManifest, made: EngineManifest) -> list[FileDifference]:
    """What the manifest inside says and the record does not make; versions and hashes are looked at by themselves."""
    pair = (stored_json(manifest), json.loads(json.dumps(made.to_json())))
    got, expected = ({key: value for key, value in m.items() if key not in _BY_THEMSELVES} for m in pair)
    return value_differences("manifest", got, expected)


def _other_versions(manifest: EngineManifest) -> str:
    """The packages of other versions than those here, as `torch 2.3 (here 2.4)`, or an empty string."""
    said, mine = manifest.versions or {}, versions_used()
    return ", ".join(
        f"{name} {shown(said.get(name, 'of unknown version'))} (here {mine[name]})"
        for name in DECIDING
        if name in mine and said.get(name) != mine[name]
    )


def _hash_differences(path: Path, manifest: EngineManifest) -> list[FileDifference]:
    """The hashes of the manifests against the file and its data, and the manifest beside it against the one inside."""
    stored, side = stored_json(manifest), manifest_path(path)
    said = json_beside(path) if side.is_file() else stored
    if said is None:
        return [FileDifference(place=f"manifest {side.name}", got="unreadable", expected="the manifest of the file")]
    hashes = [(path.name, sha256_of_file(path), said[FILE_SHA256])] if FILE_SHA256 in said else []
    if manifest.content_sha256 is not None:
        mine = content_sha256(path.read_bytes(), manifest)
        hashes.append((f"the content of {path.name}", mine, manifest.content_sha256))
    if manifest.data_sha256 is not None:
        held = data_files(path, onnx.load(str(path), load_external_data=False))
        hashes += [(data.path.name, sha256_of_file(data.path), manifest.data_sha256) for data in held]
        if not held:
            hashes.append((f"the weights beside {path.name}", "missing", manifest.data_sha256))
    found = [
        FileDifference(place=f"sha256 of {what}", got=mine[:12], expected=f"{str(wanted)[:12]} as its manifest has it")
        for what, mine, wanted in hashes
        if wanted != mine  # also where it is null, or no text
    ]
    inside = {key: value for key, value in said.items() if key != FILE_SHA256}
    return found + value_differences(side.name, inside, stored)
