"""The engine of a repository: what it says of itself, and its files as Triton wants them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dq_deploy.artifacts import with_files_beside
from dq_deploy.errors import OptionError
from dq_deploy.manifest.plan import is_plan, read_plan_manifest
from dq_deploy.open_engine import PROGRAM_SUFFIX, RECORD_SUFFIXES, checked_engine

if TYPE_CHECKING:
    from dq_deploy.manifest.values import EngineManifest
    from dq_deploy.record import Record

ONNX, PLAN = "model.onnx", "model.plan"
"""Names that Triton's backends look for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EngineSource:
    """An engine, read and not opened.

    Attributes:
        path: of its file.
        manifest: of the engine; of a record as it is exported.
        record: where the file is one.
    """

    path: Path
    manifest: EngineManifest
    record: Record | None = None

    @property
    def file(self) -> str:
        """Name of the engine in the repository."""
        return PLAN if is_plan(self.path) and self.record is None else ONNX

    @property
    def steps(self) -> int | None:
        """Sampling steps it was calibrated with: as the record says, else one for each step bucket."""
        options = {} if self.record is None else self.record.provenance.get("options")
        said = options.get("steps") if isinstance(options, dict) else None
        return said if isinstance(said, int) else len(self.manifest.timesteps) or None


def read_engine(path: Path, *, hash_check: bool) -> EngineSource:
    """Read what an engine is.

    Args:
        path: record, ONNX file or plan.
        hash_check: refuse a file whose content is not what was written.

    Raises:
        OptionError: an engine that none of Triton's backends runs.
        FileProblemError: missing, damaged or foreign file.
    """
    path = checked_engine(path)
    if path.suffix == PROGRAM_SUFFIX:
        raise OptionError(
            f"engine {path} is a program file of this project's own kernels, expected a record, an ONNX file or a "
            "plan: Triton has no backend for it; give its record"
        )
    if path.suffix in RECORD_SUFFIXES:
        from dq_deploy.record import load_record
        from dq_deploy.targets.manifest import manifest_of_record

        record = load_record(path, hash_check=hash_check)
        return EngineSource(path=path, manifest=manifest_of_record(record, target="onnxruntime"), record=record)
    path = with_files_beside(path)
    if is_plan(path):
        plan = read_plan_manifest(path, check_hash=hash_check)
        if plan.runtime != "tensorrt":
            raise OptionError(
                f"engine {path} is a plan of {plan.runtime}, expected one of tensorrt: Triton's backend loads no "
                "other; export with `target` tensorrt and build that"
            )
        return EngineSource(path=path, manifest=plan)
    from dq_deploy.graph.onnx_file import read_manifest

    manifest = read_manifest(path, hash_check=hash_check)
    layout = None if manifest.options is None else manifest.options.layout
    if manifest.target != "onnxruntime" or layout is not None:
        what = manifest.target if layout is None else f"the layout {layout}"
        how = "; build a plan of it" if manifest.target == "tensorrt" else "; export the record for it"
        raise OptionError(f"engine {path} is an ONNX file for {what}, expected one for onnxruntime{how}")
    return EngineSource(path=path, manifest=manifest)


def write_engine(source: EngineSource, folder: Path) -> EngineManifest:
    """Write the engine into the folder of a model's version; a record is exported for ONNX Runtime, mode exact.

    Args:
        source: the engine.
        folder: that is there.

    Returns:
        The manifest of what was written.
    """
    target = folder / source.file
    if source.record is not None:
        from dq_deploy.graph.onnx_file import read_manifest
        from dq_deploy.targets import export

        export(source.record, target, target="onnxruntime", mode="exact")
        target.with_name(f"{target.name}.json").unlink()  # the same manifest is inside the file
        return read_manifest(target)
    shutil.copyfile(source.path, target)
    if source.file == ONNX:
        _copy_data(source.path, folder)
    return source.manifest


def _copy_data(path: Path, folder: Path) -> None:
    """Copy the files of weights beside an ONNX file, under the names that it has for them."""
    import onnx

    from dq_deploy.graph.external_data import data_files

    for file in data_files(path, onnx.load(str(path), load_external_data=False)):
        place = folder / file.path.relative_to(path.parent)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.path, place)
