"""The configuration of the denoiser's model: one step, batched over requests where the engine allows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dq_deploy.errors import OptionError
from dq_deploy.manifest.values import PlanManifest
from dq_deploy.models.sizes import BATCH, sized
from dq_deploy.serve.triton.config_text import TYPES, TensorText, block, parameters, quoted, remark, tensors
from dq_deploy.version import __version__

if TYPE_CHECKING:
    from dq_deploy.manifest.values import EngineManifest, TensorEntry

QUEUE_DELAY_US = 500
"""How long a step waits for others, where several processes draw side by side; it is a fraction of a step's time."""


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How many samples one call takes.

    Attributes:
        most: samples of a call; 0 where the engine has an input or output without a batch.
        dynamic: whether Triton may put the samples of several requests into one call.
        reason: why not, in words; empty where it may.
    """

    most: int
    dynamic: bool
    reason: str = ""


def batching_of(manifest: EngineManifest, asked: int) -> Batching:
    """What an engine takes.

    Args:
        manifest: of the engine.
        asked: samples of a call at most, from 1.

    Raises:
        OptionError: a plan that takes no batch of 1.
    """
    whole = [e.name for e in (*manifest.inputs, *manifest.outputs) if not e.shape or e.shape[0] != BATCH]
    if whole:
        return Batching(most=0, dynamic=False, reason=f"{', '.join(whole)} has no batch, so requests cannot be joined")
    most = asked
    if isinstance(manifest, PlanManifest):
        ranges = [sizes for profile in manifest.profiles[:1] for sizes in profile.values()]
        least = max((sizes.min[0] for sizes in ranges), default=1)
        if least > 1:
            raise OptionError(f"the plan takes batches from {least}, expected from 1; build it with such a profile")
        most = min(asked, *(sizes.max[0] for sizes in ranges)) if ranges else asked
    if manifest.single_step_batch:
        return Batching(
            most=most,
            dynamic=False,
            reason="this engine (mode fast) takes one step bucket a batch, and requests stand at different steps; "
            "export with mode exact to have them joined",
        )
    return Batching(most=most, dynamic=most > 1, reason="" if most > 1 else "one sample a call was asked for")


def as_column(entry: TensorEntry, most: int) -> bool:
    """Whether Triton is given a column [B, 1] for one number a sample: its configuration knows no empty shape."""
    return most > 0 and len(entry.shape) == 1


def facts_of(manifest: EngineManifest) -> dict[str, str]:
    """What the manifest says of the engine, as the parameters of a model."""
    facts = {
        "dq_record_sha256": str(manifest.record_sha256),
        "dq_target": manifest.target,
        "dq_mode": manifest.mode,
        "dq_steps": str(len(manifest.timesteps)),
        "dq_version": __version__,
    }
    if manifest.content_sha256 is not None:
        facts["dq_content_sha256"] = manifest.content_sha256
    if manifest.macs is not None:
        integer = sum(manifest.macs.layers.get(layer.name, 0) for layer in manifest.layers if layer.integer)
        facts["dq_declared_integer_mac_share"] = f"{integer / manifest.macs.of_all:.6f}"
    if isinstance(manifest, PlanManifest):
        facts["dq_plan_sha256"] = manifest.plan_sha256
        facts["dq_runtime_version"] = manifest.runtime_version
        facts["dq_compute_capabilities"] = ", ".join(manifest.compute_capabilities)
    return facts | {f"dq_made_by_{name}": version for name, version in (manifest.versions or {}).items()}


def denoiser_config(name: str, manifest: EngineManifest, batching: Batching, *, instances: int) -> str:
    """The text of config.pbtxt.

    Args:
        name: of the model.
        manifest: of the engine.
        batching: of `batching_of`.
        instances: processes that ask for steps side by side.

    Raises:
        OptionError: an input or output of a type that Triton has no name for.
    """
    plan = isinstance(manifest, PlanManifest)
    platform, backend, kind = (
        ("tensorrt_plan", "tensorrt", "KIND_GPU") if plan else ("onnxruntime_onnx", "onnxruntime", "KIND_CPU")
    )
    lines = [
        remark(f"One denoising step of {manifest.model_config.get('_class_name', manifest.family)}."),
        f"name: {quoted(name)}",
        f"platform: {quoted(platform)}",
        f"backend: {quoted(backend)}",
        f"max_batch_size: {batching.most}",
        *tensors("input", [_tensor(entry, batching.most) for entry in manifest.inputs]),
        *tensors("output", [_tensor(entry, batching.most) for entry in manifest.outputs]),
        *_dynamic(batching, instances),
        *block("instance_group", ["count: 1", f"kind: {kind}"]),
        "version_policy: { latest: { num_versions: 1 } }",
        *_warmup(manifest, batching),
        *parameters(facts_of(manifest)),
    ]
    return "\n".join(lines) + "\n"


def _tensor(entry: TensorEntry, most: int) -> TensorText:
    if entry.dtype not in TYPES:
        raise OptionError(f"{entry.name} is {entry.dtype}, expected one of {', '.join(TYPES)}")
    dims = tuple(size if isinstance(size, int) else -1 for size in (entry.shape[1:] if most else entry.shape))
    if as_column(entry, most):
        return TensorText(name=entry.name, dtype=entry.dtype, dims=(1,), reshape=())
    return TensorText(name=entry.name, dtype=entry.dtype, dims=dims)


def _dynamic(batching: Batching, instances: int) -> list[str]:
    if not batching.dynamic:
        return [remark(f"No dynamic batching: {batching.reason}.")]
    delay = QUEUE_DELAY_US if instances > 1 else 0
    why = "" if delay else " One process draws, so nothing is waited for."
    return [
        remark(f"Samples of several requests are joined, at whatever step each stands.{why}"),
        *block(
            "dynamic_batching",
            [f"preferred_batch_size: [ {batching.most} ]", f"max_queue_delay_microseconds: {delay}"],
        ),
    ]


def _warmup(manifest: EngineManifest, batching: Batching) -> list[str]:
    """A call with zeros of the sizes that the model was quantized with, when it is loaded."""
    sizes = dict(manifest.sizes or {})
    inputs: list[str] = []
    for entry in manifest.inputs:
        known = all(isinstance(size, int) or size == BATCH or size in sizes for size in entry.shape)
        if not known:
            return [remark("No warm-up: the engine does not say its usual sizes.")]
        shape: Sequence[int] = sized(entry.shape, 1, sizes)
        dims = (1,) if as_column(entry, batching.most) else tuple(shape[1:] if batching.most else shape)
        value = [
            f"data_type: {TYPES[entry.dtype]}",
            f"dims: [ {', '.join(map(str, dims))} ]",
            "zero_data: true",
        ]
        inputs += block("inputs", [f"key: {quoted(entry.name)}", *block("value", value)])
    first = [f"name: {quoted('one call with zeros')}", f"batch_size: {min(batching.most, 1)}"]
    return block("model_warmup", [*first, *inputs])
