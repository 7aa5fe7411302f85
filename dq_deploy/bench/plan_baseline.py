"""What a plan is timed against: a plan of the same model with float16 in all layers, for the same GPUs and shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dq_deploy.errors import OptionError
from dq_deploy.manifest.values import PlanManifest

if TYPE_CHECKING:
    from dq_deploy.record import Record

FLOAT_TYPE = "float16"


def float_plan(plan: Path, folder: Path, record: Record | None) -> Path:
    """Build the baseline of a plan; minutes for a large model.

    Args:
        plan: the quantized one, with its manifest.
        folder: where to.
        record: gives the weights; without it they are random, which costs the same time.

    Returns:
        The float plan, with its manifest beside it.

    Raises:
        BuildError: the builder fails.
    """
    from dq_deploy.engines.tensorrt.build.builder import BuildOptions, build_plan
    from dq_deploy.manifest.plan import read_plan_manifest, write_plan_manifest
    from dq_deploy.targets import float_graph

    manifest = read_plan_manifest(plan, check_hash=False)
    onnx, target = folder / "float.onnx", folder / "float.plan"
    float_graph(manifest, onnx, record=record, float_type=FLOAT_TYPE)
    profile = manifest.profiles[0]
    options = BuildOptions(
        runtime=manifest.runtime,
        compute_capabilities=() if manifest.portable else manifest.compute_capabilities,
        shapes=tuple(f"{name}:{sizes.text()}" for name, sizes in profile.items()),
        workspace_mib=None if manifest.build is None else manifest.build.workspace_mib,
    )
    unquantized = replace(manifest, layers=(), float_precision=None, record_sha256=None)
    built = build_plan(onnx, target, options, manifest=unquantized)
    write_plan_manifest(target, built)
    return target


def check_batches(manifest: PlanManifest, batches: Sequence[int], plan: Path) -> None:
    """Refuse batch sizes that a plan was not built for.

    Raises:
        OptionError: naming the smallest and the largest it takes.
    """
    from dq_deploy.engines.tensorrt.plan.checks import profiles_of

    ranges = [
        (min(entry.least[0] for entry in profile.values()), max(entry.most[0] for entry in profile.values()))
        for profile in profiles_of(manifest, plan)
    ]
    for batch in batches:
        if not any(low <= batch <= high for low, high in ranges):
            text = " and ".join(f"{low} to {high}" for low, high in ranges)
            raise OptionError(
                f"`batches` got {batch}, plan {plan} was built for batches of {text}; give others, or build it again "
                "with `shapes`"
            )
