"""Recorded calibration inputs: files of named tensors, checked against what the model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dq_deploy.artifacts import sha256_of_file, utf8_name
from dq_deploy.calibration.sharding.share import Share
from dq_deploy.errors import FileProblemError, InputError, OptionError
from dq_deploy.models.conditions import condition_specs
from dq_deploy.numerics.arrays import F32, Array

if TYPE_CHECKING:
    from dq_deploy.calibration.recording import AskedPipeline

Arrays = dict[str, Array]

CALIBRATIONS = ("trajectory", "random", "latents")
"""Where calibration inputs come from: the model's own sampling, unit noise, or a file."""


class Spec(Protocol):
    """What is asked of an input: see `dq_deploy.models.TensorSpec`."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def dtype(self) -> str:
        """Its numpy type."""

    @property
    def shape(self) -> tuple[int | str, ...]:
        """Its shape, `"B"` for the batch."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationSource:
    """Where a method takes its calibration inputs from.

    Attributes:
        kind: one of `CALIBRATIONS`.
        conditions: rows by input name, used in turn; without them conditions are random.
        latents: for kind `latents`, every input by name, one row each.
        files: name and hash of each file they were read from, for the provenance.
        pipeline: for kind `trajectory`, the user's own that draws; None where the denoiser alone is sampled.
    """

    kind: str = "trajectory"
    conditions: Mapping[str, Array] = field(default_factory=dict)
    latents: Mapping[str, Array] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    pipeline: AskedPipeline | None = None

    def __post_init__(self) -> None:
        """Check that the parts belong together.

        Raises:
            OptionError: an unknown kind, latents missing, or latents and conditions at once.
        """
        if self.kind not in CALIBRATIONS:
            raise OptionError(f"calibration is {self.kind!r}, expected one of {', '.join(CALIBRATIONS)}")
        if (self.kind == "latents") != bool(self.latents):
            raise OptionError(
                f"calibration is {self.kind!r} with{'' if self.latents else 'out'} recorded latents; "
                "expected latents exactly with `latents` FILE"
            )
        if self.latents and self.conditions:
            raise OptionError("got `latents` and `conditions`, expected one: a file of latents holds its conditions")
        if self.pipeline is not None and (self.kind != "trajectory" or self.conditions):
            what = "conditions" if self.conditions else f"calibration {self.kind}"
            raise OptionError(f"got a pipeline and {what}, expected one: the pipeline draws, and encodes its prompts")


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationInputs:
    """What a method calibrates with.

    Attributes:
        inputs: [M, ...] by input name, and `step` [M] int64, the index of each one's timestep; steps mixed.
        timesteps: [T] float32, strictly increasing.
        provenance: how they came about, JSON values.
        share: which of all inputs they are, where several processes share them; None for all.
    """

    inputs: Mapping[str, Array]
    timesteps: F32
    provenance: Mapping[str, Any]
    share: Share | None = None

    @property
    def count(self) -> int:
        """Inputs of all processes."""
        return len(self.inputs["step"]) if self.share is None else self.share.count

    @property
    def shared(self) -> Share:
        """Which of all inputs they are."""
        return self.share or Share(step=np.asarray(self.inputs["step"]))


def read_source(
    specs: Sequence[Spec],
    *,
    kind: str | None = None,
    conditions: Path | None = None,
    latents: Path | None = None,
    scheduler_config: Mapping[str, Any] | None = None,
) -> CalibrationSource:
    """Read and check the files a calibration is made from.

    Args:
        specs: the denoiser's inputs.
        kind: one of `CALIBRATIONS`; None is `latents` where a file of them is given, else `trajectory`.
        conditions: safetensors file with the model's conditions but class labels, one row a prompt.
        latents: safetensors file with every input of the model, one row each.
        scheduler_config: of the model, whose training steps no recorded timestep may exceed; None where none is known.

    Raises:
        OptionError: options that contradict each other.
        FileProblemError: a file is missing or damaged.
        InputError: a tensor is missing, unknown, or has another type, shape or number of rows than it must; or a
            timestep lies beyond the scheduler's.
    """
    if kind is None:
        kind = "trajectory" if latents is None else "latents"
    if latents is not None and kind != "latents":
        raise OptionError(f"got `latents` and `kind` {kind}, expected one of the two")
    if latents is None and kind == "latents":
        raise OptionError('`kind="latents"` needs a file, expected `latents` FILE.safetensors')
    found: Arrays = {}
    files: dict[str, str] = {}
    if conditions is not None:
        wanted = condition_specs(specs)
        if not wanted:
            raise OptionError("got `conditions`, expected none: the model takes no embeddings")
        found = read_inputs(conditions, wanted)
        files["conditions"] = f"{conditions.name} {sha256_of_file(conditions)}"
    recorded = {} if latents is None else read_inputs(latents, specs)
    if latents is not None:
        _check_training_steps(latents, recorded, scheduler_config)
        files["latents"] = f"{latents.name} {sha256_of_file(latents)}"
    return CalibrationSource(kind=kind, conditions=found, latents=recorded, files=files)


def read_inputs(path: Path, specs: Sequence[Spec]) -> Arrays:
    """Named tensors of a safetensors file, each as its specification asks; floats become float32.

    Raises:
        FileProblemError: missing, truncated or damaged.
        InputError: a tensor is missing, unknown, or has another type, shape or number of rows than it must.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileProblemError(f"{path} does not exist; expected a safetensors file of named tensors")
    try:
        with utf8_name(path) as name, safe_open(name, framework="np") as stream:
            arrays = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, TypeError, AttributeError, KeyError, ValueError) as error:
        raise FileProblemError(
            f"{path} is damaged, not a safetensors file, or has a type numpy lacks ({error}); save it as float32"
        ) from error
    names = [spec.name for spec in specs]
    missing, unknown = [n for n in names if n not in arrays], sorted(set(arrays) - set(names))
    if missing or unknown:
        raise InputError(f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}, expected {', '.join(names)}")
    checked = {spec.name: _checked(path, spec, arrays[spec.name]) for spec in specs}
    rows = {name: len(value) for name, value in checked.items()}
    if len(set(rows.values())) != 1:
        text = ", ".join(f"{name} {count}" for name, count in rows.items())
        raise InputError(f"{path} has different numbers of rows ({text}), expected the same in each tensor")
    return checked


def _checked(path: Path, spec: Spec, value: Array) -> Array:
    whole = spec.dtype.startswith("int")
    numbers = spec.name in ("timestep", "time_ids")  # steps and sizes, often saved as integers
    if value.dtype.kind not in ("iu" if whole else "fiu" if numbers else "f"):
        raise InputError(f"{path}: {spec.name} is {value.dtype}, expected {spec.dtype}")
    fits = value.ndim == len(spec.shape) and all(
        isinstance(size, str) or size == have for size, have in zip(spec.shape, value.shape, strict=True)
    )
    if not fits or 0 in value.shape:
        expected = ", ".join(["N", *(str(size) for size in spec.shape[1:])])
        free = ["N", *(size for size in spec.shape[1:] if isinstance(size, str))]
        raise InputError(
            f"{path}: {spec.name} has shape {list(value.shape)}, expected [{expected}] with {' and '.join(free)} at "
            "least 1"
        )
    result = np.ascontiguousarray(value.astype(spec.dtype))
    if result.dtype.kind == "f" and not np.isfinite(result).all():
        raise InputError(f"{path}: {spec.name} holds NaN or infinity, expected finite float32 numbers")
    return result


def _check_training_steps(path: Path, latents: Arrays, scheduler_config: Mapping[str, Any] | None) -> None:
    """Refuse timesteps that the model's scheduler cannot visit: those outside of its table, or before a flow begins."""
    if scheduler_config is None or "timestep" not in latents:
        return
    from dq_deploy.calibration.schedulers import range_of_timesteps

    known = range_of_timesteps(scheduler_config)
    if known is None:
        return
    for value in (float(latents["timestep"].min()), float(latents["timestep"].max())):
        if not known[0] <= value <= known[1]:
            raise InputError(
                f"{path}: timestep holds {value:g}, expected {known[0]:g} to {known[1]:g}, which the model's scheduler "
                "has; record it with this model's own sampler"
            )


def rows_in_turn(conditions: Mapping[str, Array], count: int) -> Arrays:
    """`count` rows of each condition, from the first on and again where there are fewer."""
    return {name: np.take(value, np.arange(count), axis=0, mode="wrap") for name, value in conditions.items()}


def recorded_inputs(latents: Mapping[str, Array], *, memory_gib: float) -> tuple[Arrays, F32]:
    """Recorded inputs with their step buckets, in an order that takes the steps in turn.

    Args:
        latents: [M, ...] by input name.
        memory_gib: most memory they may take.

    Returns:
        The inputs with `step`, and the timesteps [T] they were recorded at.

    Raises:
        OptionError: they do not fit in `memory_gib`.
    """
    size = sum(value.nbytes for value in latents.values())
    if size > memory_gib * (1 << 30):
        raise OptionError(f"memory_gib is {memory_gib:g}, expected at least {size / (1 << 30):.3g} for these latents")
    timesteps, step = np.unique(latents["timestep"].astype(np.float32), return_inverse=True)
    step = step.reshape(-1).astype(np.int64)
    nth = np.zeros(len(step), np.int64)
    for bucket in range(len(timesteps)):
        mine = step == bucket
        nth[mine] = np.arange(int(mine.sum()))
    order = np.lexsort((step, nth))
    inputs: Arrays = {name: value[order] for name, value in latents.items()}
    inputs["step"] = step[order]
    return inputs, timesteps
