"""What can be said of a plan before it is loaded: whether it fits this library and this GPU, and which shapes it takes.

Nothing here imports TensorRT or talks to a driver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dq_deploy.errors import FileProblemError, InputError
from dq_deploy.manifest.values import PlanManifest, SizeRange

VALIDITY_REASONS = {
    1: "it was built by another version of TensorRT-RTX",
    2: "it was not built for this GPU's compute capability",
    4: "the NVIDIA driver is too old for it",
    8: "the CUDA runtime is too old for it",
    16: "the GPU has not enough memory for it",
    32: "it is not a plan, or a damaged one",
    64: "the driver or the CUDA runtime is not installed properly",
}
"""Bits of TensorRT-RTX's `EngineInvalidityDiagnostics`."""

NAMES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}


def check_runtime_version(manifest: PlanManifest, found: str, plan: Path) -> None:
    """Refuse a plan of another version: TensorRT loads those of its own version only.

    Args:
        manifest: of the plan.
        found: version of the library installed here.
        plan: for the message.

    Raises:
        FileProblemError: another version.
    """
    built = manifest.runtime_version
    if built != found:
        name = NAMES.get(manifest.runtime, manifest.runtime)
        raise FileProblemError(
            f"plan {plan} was built by {name} {built}, {found} is installed here, expected the same: build it again "
            f"with dq-build, or install {name} {built}"
        )


def check_compute_capability(manifest: PlanManifest, found: str, gpu: str, plan: Path) -> None:
    """Refuse a plan for other GPUs; one for TensorRT-RTX's portable set also runs on later ones, its library decides.

    Args:
        manifest: of the plan.
        found: compute capability of the GPU here, as `8.9`.
        gpu: its name.
        plan: for the message.

    Raises:
        FileProblemError: the plan was not built for it.
    """
    built = manifest.compute_capabilities
    if manifest.portable and _number(found) >= min(_number(capability) for capability in built):
        return
    if found not in built:
        raise FileProblemError(
            f"plan {plan} was built for compute capability {', '.join(built)}, {gpu} has {found}, expected one of the "
            f"plan's: build it again with dq-build `compute_capabilities` {found}"
        )


def _number(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))


def check_size(manifest: PlanManifest, plan: Path) -> None:
    """Refuse a file that is shorter or longer than the plan that was written.

    Raises:
        FileProblemError: another size.
    """
    wanted, found = None if manifest.build is None else manifest.build.plan_bytes, plan.stat().st_size
    if wanted is not None and wanted != found:
        raise FileProblemError(
            f"plan {plan} has {found} bytes, expected {wanted} as its manifest says; it was cut off or replaced: copy "
            "it again, or build it again with dq-build"
        )


def validity_text(diagnostics: int) -> str:
    """TensorRT-RTX's reasons against a plan, joined; empty where it names none it documents."""
    return " and ".join(text for bit, text in VALIDITY_REASONS.items() if diagnostics & bit)


@dataclass(frozen=True, kw_only=True)
class ShapeRange:
    """Shapes of one input: smallest, best and largest, of one length."""

    least: tuple[int, ...]
    best: tuple[int, ...]
    most: tuple[int, ...]

    def __contains__(self, shape: Sequence[int]) -> bool:
        """Whether every size lies between the smallest and the largest."""
        return len(shape) == len(self.least) and all(
            low <= size <= high for low, size, high in zip(self.least, shape, self.most, strict=True)
        )

    def __str__(self) -> str:
        """`1x4x64x64 to 8x4x96x96`."""
        return f"{_text(self.least)} to {_text(self.most)}"


Profile = dict[str, ShapeRange]


def profiles_of(manifest: PlanManifest, plan: Path) -> tuple[Profile, ...]:
    """The optimization profiles of a plan, in the order of their index.

    Raises:
        FileProblemError: the manifest's profiles are broken, or lack an input.
    """
    names = [tensor.name for tensor in manifest.inputs]
    try:
        found = tuple({name: _range(entry[name]) for name in names} for entry in manifest.profiles)
    except (KeyError, ValueError) as error:
        raise FileProblemError(
            f"the manifest of {plan} has profiles that cannot be read ({error!r}), expected min, opt and max of "
            f"{', '.join(names)}; build it again with dq-build"
        ) from error
    if not found:
        raise FileProblemError(f"the manifest of {plan} has no profile, expected at least one; build it again")
    return found


def _range(entry: SizeRange) -> ShapeRange:
    least, best, most = entry.min, entry.opt, entry.max
    if not len(least) == len(best) == len(most) or not all(
        0 < a <= b <= c for a, b, c in zip(least, best, most, strict=True)
    ):
        raise ValueError(f"min {least}, opt {best}, max {most}")
    return ShapeRange(least=least, best=best, most=most)


def profile_for(profiles: Sequence[Profile], shapes: Mapping[str, Sequence[int]]) -> int:
    """Index of the profile that holds these shapes: the one whose best shapes are nearest, else the first.

    Raises:
        InputError: none does; names the input, its smallest and its largest shape.
    """
    fitting = [i for i, profile in enumerate(profiles) if all(shapes[name] in profile[name] for name in profile)]
    if fitting:
        return min(fitting, key=lambda i: (_distance(profiles[i], shapes), i))
    for name in profiles[0]:
        if not any(shapes[name] in profile[name] for profile in profiles):
            ranges = ", or ".join(dict.fromkeys(str(profile[name]) for profile in profiles))
            raise InputError(
                f"input {name} has shape {_text(shapes[name])}, the plan takes {ranges}: build it with `shapes` for it"
            )
    asked = ", ".join(f"{name} {_text(shape)}" for name, shape in shapes.items())
    raise InputError(
        f"no profile of the plan holds {asked} together, each fits one of {len(profiles)}: build it with `shapes`"
    )


def _distance(profile: Profile, shapes: Mapping[str, Sequence[int]]) -> int:
    return sum(
        abs(size - best) for name, entry in profile.items() for size, best in zip(shapes[name], entry.best, strict=True)
    )


def largest_batch(profiles: Sequence[Profile]) -> int:
    """The largest batch any profile takes: the first size of its inputs."""
    return max(min(entry.most[0] for entry in profile.values() if entry.most) for profile in profiles)


def largest_shapes(profiles: Sequence[Profile]) -> dict[str, tuple[int, ...]]:
    """The largest shape of each input over all profiles, size by size: what buffers are made for."""
    return {
        name: tuple(max(sizes) for sizes in zip(*(profile[name].most for profile in profiles), strict=True))
        for name in profiles[0]
    }


def _text(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape) or "a single value"
