"""What a plan is timed against: a plan of the same model with float16 in all layers, for the same GPUs and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import OptionError

if TYPE_CHECKING:
    from dq_deploy.record import Record

FLOAT_TYPE = "float16"
_OF_LAYERS = ("layers", "layers_built", "float_precision", "record_sha256")
"""Keys of the manifest that say what was quantized, which the baseline is not."""


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
    from dq_deploy.engines.tensorrt.build.shapes import text_of
    from dq_deploy.manifest.plan import read_plan_manifest, write_plan_manifest
    from dq_deploy.targets import float_graph

    manifest = read_plan_manifest(plan, check_hash=False)
    onnx, target = folder / "float.onnx", folder / "float.plan"
    float_graph(manifest, onnx, record=record, float_type=FLOAT_TYPE)
    profile = manifest["profiles"][0]
    options = BuildOptions(
        runtime=manifest["runtime"],
        compute_capabilities=() if manifest.get("portable") else tuple(manifest["compute_capabilities"]),
        shapes=tuple(f"{name}:{text_of(profile, name)}" for name in profile),
        workspace_mib=manifest.get("build", {}).get("workspace_mib"),
    )
    rest = {key: value for key, value in manifest.items() if key not in _OF_LAYERS}
    built = build_plan(onnx, target, options, manifest={**rest, "layers": []})
    write_plan_manifest(target, built)
    return target


def check_batches(manifest: Mapping[str, Any], batches: Sequence[int], plan: Path) -> None:
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
