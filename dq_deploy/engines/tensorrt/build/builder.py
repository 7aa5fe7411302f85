"""From an ONNX file to a plan: a TensorRT or TensorRT-RTX engine, built in a process of its own."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dq_deploy.artifacts import atomic_path, check_writable, file_for_several, sha256_of_file, with_files_beside
from dq_deploy.engines.tensorrt.build.messages import BuildProgress, BuildRequest, Built
from dq_deploy.engines.tensorrt.build.process import build_in_a_process
from dq_deploy.engines.tensorrt.build.intake import check_onnx, external_data_of
from dq_deploy.manifest.plan import plan_manifest_of
from dq_deploy.engines.tensorrt.build.shapes import Profile, profile_from_texts
from dq_deploy.engines.tensorrt.library import RUNTIMES, check_runtime, rtx_library, tensorrt_library
from dq_deploy.errors import MissingDependencyError, OptionError
from dq_deploy.graph.onnx_file import read_manifest
from dq_deploy.manifest.values import BuildFacts, EngineManifest, PlanFacts, PlanManifest

PORTABLE = ("8.0", "8.6", "8.9", "12.0")
"""What TensorRT-RTX builds for where no compute capability is given, by its documentation; it adds: and later."""

_BLOCK = 4096
_PIECE = _BLOCK << 12


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How a plan is built.

    Attributes:
        runtime: `tensorrt` or `tensorrt-rtx`; None is what the ONNX manifest's target says.
        compute_capabilities: as `8.9`. For TensorRT-RTX those of the plan, by default its portable set; for TensorRT,
            which builds for the GPU present, at most one, which that GPU must have.
        shapes: texts such as `sample:1x4x64x64..2x4x64x64..8x4x96x96`; see `dq_deploy.engines.tensorrt.build.shapes`.
        timing_cache: file of measured kernels to read and update; TensorRT only.
        workspace_mib: limit of the builder's workspace pool.
        time_limit_s: seconds after which the build is stopped.
        log: file that gets all the builder says.
        hash_check: refuse an ONNX file whose content, or whose data's, is not what was written.
    """

    runtime: str | None = None
    compute_capabilities: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    timing_cache: Path | None = None
    workspace_mib: int | None = None
    time_limit_s: float | None = None
    log: Path | None = None
    hash_check: bool = True

    def __post_init__(self) -> None:
        if self.runtime is not None:
            check_runtime(self.runtime)
        for capability in self.compute_capabilities:
            if not re.fullmatch(r"\d{1,2}\.\d", capability):
                raise OptionError(
                    f"`compute_capabilities` got {capability!r}, expected numbers such as 8.9 or 8.0,8.9,12.0"
                )
        if len(set(self.compute_capabilities)) < len(self.compute_capabilities):
            raise OptionError(
                f"`compute_capabilities` names one twice in {','.join(self.compute_capabilities)}; name each once"
            )
        if self.workspace_mib is not None and not 0 < self.workspace_mib < 1 << 30:
            raise OptionError(f"`workspace_mib` got {self.workspace_mib}, expected 1 to {(1 << 30) - 1} MiB")
        if self.time_limit_s is not None and not 0 < self.time_limit_s < math.inf:
            raise OptionError(f"`time_limit_s` got {self.time_limit_s}, expected a positive number of seconds")


def runtime_of(options: BuildOptions, target: str) -> str:
    """The runtime a file is built with: the one asked for, else the file's target.

    Raises:
        OptionError: the file was exported for another engine.
    """
    if target not in RUNTIMES:
        wanted = options.runtime or "tensorrt-rtx"
        raise OptionError(
            f"the ONNX file was exported for {target}, whose integer operators TensorRT refuses; export the record "
            f'with dq-export `target="{wanted}"`'
        )
    return options.runtime or target


def check_options(options: BuildOptions, runtime: str) -> None:
    """Refuse before any work what the runtime cannot do, or where it is not installed.

    Raises:
        OptionError: an option this runtime does not have.
        MissingDependencyError: the library or polygraphy is not installed.
    """
    capabilities = options.compute_capabilities
    if runtime == "tensorrt":
        tensorrt_library(runtime)
        if len(capabilities) > 1:
            raise OptionError(
                f"`compute_capabilities` got {','.join(capabilities)}; TensorRT builds for the GPU present: give none, "
                'or one as a check, or use `runtime="tensorrt-rtx"`'
            )
    else:
        allowed = _allowed_capabilities()
        for capability in capabilities:
            if capability not in allowed:
                raise OptionError(
                    f"`compute_capabilities` got {capability}, TensorRT-RTX builds for {', '.join(allowed)}; "
                    'for other GPUs use `runtime="tensorrt"` on a machine that has one'
                )
        if options.timing_cache is not None:
            raise OptionError(
                "`timing_cache` is for TensorRT; TensorRT-RTX times no kernels when it builds, it chooses them on the "
                "machine that runs the plan; leave the option out"
            )
    if importlib.util.find_spec("polygraphy") is None:
        raise MissingDependencyError(f"polygraphy is not installed; install it: pip install 'dq-deploy[{runtime}]'")


def _allowed_capabilities() -> list[str]:
    names = [name for name in rtx_library().ComputeCapability.__members__ if name.startswith("SM")]
    return [f"{name[2:-1]}.{name[-1]}" for name in sorted(names, key=lambda name: int(name[2:]))]


def build_plan(
    onnx_path: str | Path,
    plan_path: str | Path,
    options: BuildOptions | None = None,
    *,
    manifest: EngineManifest | None = None,
    progress: Callable[[BuildProgress], None] | None = None,
    inspect: Callable[[Path, PlanManifest], PlanManifest] | None = None,
) -> PlanManifest:
    """Build a plan.

    The builder runs in a process of its own, which ends with this one. The plan appears under its name only when it is
    complete; its manifest is returned, not written: attest the plan, add `layers_built`, then `write_plan_manifest`.

    Args:
        onnx_path: file to build from.
        plan_path: file to write.
        options: defaults where None.
        manifest: of the ONNX file where it has none inside, as a float baseline; None reads it.
        progress: called with each phase of the builder.
        inspect: called with the finished plan under its temporary name and its manifest; gives the manifest with what the
            layers became. What it raises leaves the old plan in place.

    Returns:
        The plan's manifest, with `layers_built` where `inspect` gave it.

    Raises:
        FileProblemError: the ONNX file is missing, foreign or truncated, or the plan cannot be written.
        OptionError: an option the runtime or the model does not have.
        MissingDependencyError: the runtime is not installed.
        BuildError: the builder refused the model, crashed, or ran out of memory or time.
    """
    onnx_path, options = with_files_beside(Path(onnx_path)), options or BuildOptions()
    plan_path = file_for_several(Path(plan_path), "the manifest")
    if manifest is None:
        manifest = read_manifest(onnx_path, hash_check=options.hash_check)
    runtime = runtime_of(options, manifest.target)
    check_options(options, runtime)
    profile = profile_from_texts(options.shapes, manifest)
    for path in (plan_path, options.timing_cache, options.log):
        if path is not None:
            check_writable(path)
    check_onnx(onnx_path, manifest)
    with atomic_path(plan_path) as temporary:
        request = BuildRequest(
            runtime=runtime,
            onnx=str(onnx_path),
            plan=str(temporary),
            compute_capabilities=options.compute_capabilities,
            profile={name: sizes.to_json() for name, sizes in profile.items()},
            timing_cache=None if options.timing_cache is None else str(options.timing_cache),
            workspace_mib=options.workspace_mib,
        )
        started = time.monotonic()
        built = build_in_a_process(
            request, manifest, time_limit_s=options.time_limit_s, log=options.log, progress=progress
        )
        seconds = round(time.monotonic() - started, 3)
        facts = _facts(request, profile, built, options, seconds=seconds, text=text_bytes(temporary))
        plan_manifest = plan_manifest_of(manifest, facts)
        if inspect is not None:
            plan_manifest = inspect(temporary, plan_manifest)
    return plan_manifest


def text_bytes(plan: Path) -> int:
    """About how much of a plan is readable text, counted in blocks of 4 KiB.

    TensorRT-RTX stores the source of each kernel it will compile where the plan runs, with 130 KB of headers each; two
    plans are compared by what is left, their weights.
    """
    readable = np.zeros(256, bool)
    readable[[9, 10, 13]] = True
    readable[32:127] = True
    data = np.memmap(plan, np.uint8, mode="r")
    found = 0
    for start in range(0, data.size, _PIECE):
        piece = data[start : start + _PIECE]
        blocks = readable[piece[: piece.size // _BLOCK * _BLOCK]].reshape(-1, _BLOCK)
        found += int(blocks.all(axis=1).sum()) * _BLOCK
    return found


def _facts(
    request: BuildRequest, profile: Profile, built: Built, options: BuildOptions, *, seconds: float, text: int
) -> PlanFacts:
    """What the build adds to the ONNX file's manifest."""
    onnx_path = Path(request.onnx)
    portable = request.runtime == "tensorrt-rtx" and not options.compute_capabilities
    return PlanFacts(
        onnx=onnx_path.name,
        onnx_sha256=sha256_of_file(onnx_path),
        onnx_data_sha256={path.name: sha256_of_file(path) for path in external_data_of(onnx_path)},
        plan_sha256=built.plan_sha256,
        runtime=request.runtime,
        runtime_version=built.runtime_version,
        compute_capabilities=PORTABLE if portable else built.compute_capabilities,
        portable=portable,
        profiles=(profile,),
        build=BuildFacts(
            seconds=seconds,
            parse_seconds=built.parse_seconds,
            build_seconds=built.build_seconds,
            peak_mib=built.peak_mib,
            workspace_mib=options.workspace_mib,
            timing_cache=None if options.timing_cache is None else options.timing_cache.name,
            network_layers=built.network_layers,
            plan_bytes=built.plan_bytes,
            text_bytes=text,
        ),
    )
