"""A plan with the attestation of its layers: built from an ONNX file, or from a record that is exported for it."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dq_deploy.engines.tensorrt.build.builder import BuildOptions, build_plan, check_options
from dq_deploy.engines.tensorrt.build.shapes import profile_from_texts
from dq_deploy.engines.tensorrt.plan.inspector import store_layers
from dq_deploy.errors import OptionError
from dq_deploy.manifest.plan import write_plan_manifest
from dq_deploy.manifest.values import ManifestOptions
from dq_deploy.record import load_record
from dq_deploy.targets import check_target, export
from dq_deploy.targets.manifest import manifest_of
from dq_deploy.verify.plan.attestation import PlanAttestation, attest_plan

if TYPE_CHECKING:
    from dq_deploy.engines.tensorrt.build.messages import BuildProgress
    from dq_deploy.manifest.values import PlanManifest

DEFAULT_RUNTIME = "tensorrt-rtx"
"""Of a plan that is built from a record."""


def build_attested(
    onnx: Path, out: Path, options: BuildOptions, *, progress: Callable[[BuildProgress], None] | None = None
) -> tuple[PlanManifest, PlanAttestation]:
    """Build a plan, look at what each layer became, and write the plan with its manifest.

    Args:
        onnx: file made by an export for TensorRT or TensorRT-RTX.
        out: plan to write; its manifest goes beside it.
        options: of the builder.
        progress: called while the builder is at work.

    Raises:
        DqError: as `build_plan`.
    """
    found: list[PlanAttestation] = []

    def inspect(plan: Path, manifest: PlanManifest) -> PlanManifest:
        found.append(attest_plan(plan, manifest))
        return replace(manifest, layers_built=found[0].layers_built())

    manifest = build_plan(onnx, out, options, progress=progress, inspect=inspect)
    write_plan_manifest(out, manifest)
    if manifest.runtime == "tensorrt":  # read where the engine's GPU is not at hand
        store_layers(out)
    return manifest, found[0]


@contextmanager
def exported_onnx(
    ckpt: Path,
    out: Path,
    options: BuildOptions,
    *,
    float_type: str | None = None,
    conv: str | None = None,
    keep_onnx: Path | None = None,
    on_export: Callable[[float], None] = lambda seconds: None,
) -> Iterator[Path]:
    """A record's ONNX file for the runtime of a plan, beside the plan while it is built, or kept.

    Args:
        ckpt: the record's file.
        out: plan that will be built from it.
        options: of the builder; checked before any work.
        float_type: of the export, see `export`.
        conv: likewise.
        keep_onnx: where the file is kept; None removes it at the end.
        on_export: called with the seconds the export took.

    Raises:
        OptionError: options that the export or the builder refuses.
        DqError: as `load_record` and `export`.
    """
    runtime = options.runtime or DEFAULT_RUNTIME
    check_target(runtime, "exact", float_type=float_type, conv=conv)
    check_options(options, runtime)
    if keep_onnx is not None and keep_onnx.suffix != ".onnx":
        raise OptionError(f"`keep_onnx` got {keep_onnx}, expected a name that ends in .onnx")
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        path = keep_onnx or Path(folder) / f"{out.stem}.onnx"
        started = time.perf_counter()
        record = load_record(ckpt, hash_check=options.hash_check)
        if options.shapes:  # a wrong one is said before the export
            exported_for = ManifestOptions(target=runtime, mode="exact")
            profile_from_texts(options.shapes, manifest_of(record, layers=(), notes=(), options=exported_for))
        export(record, path, target=runtime, float_type=float_type, conv=conv)
        del record
        gc.collect()  # the model's memory is the builder's now
        on_export(time.perf_counter() - started)
        yield path
