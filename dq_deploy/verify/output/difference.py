"""The denoiser's output: against the training simulation and the float model, and batched against one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dq_deploy.errors import NonFiniteError
from dq_deploy.models import call_of_record, denoiser_outputs, output_specs
from dq_deploy.numerics.arrays import Array
from dq_deploy.record import OUTPUT, Record
from dq_deploy.verify.inputs import Batch, Finals, run_all

if TYPE_CHECKING:
    import torch

    from dq_deploy.engines.base import Runner

DECIBEL_LIMIT = 200.0
"""What an error of zero is reported as; float32 numbers cannot come closer than about 150 dB without being equal."""

REQUIRED_MARGIN_DB = 20.0
"""How far the engine's error against the simulation must lie below the simulation's error against float."""


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """Errors of the denoiser's output at one step bucket.

    Attributes:
        bucket: step bucket.
        timestep: its calibrated timestep.
        samples: how many went in.
        engine_psnr_db: engine against the simulation inside the engine's own float graph, where there is one, else
            against the training simulation.
        training_psnr_db: engine against the training simulation, whose float operations differ in the last bit; a
            single code that flips for that spreads to the level of the activations' rounding.
        simulation_psnr_db: training simulation against the float model, None without one.
        output: name of the output that these are of.

    All three have the same peak.
    """

    bucket: int
    timestep: float
    samples: int
    engine_psnr_db: float
    training_psnr_db: float
    simulation_psnr_db: float | None
    output: str = OUTPUT

    @property
    def margin_db(self) -> float | None:
        """How far the first error lies below the second."""
        return None if self.simulation_psnr_db is None else self.engine_psnr_db - self.simulation_psnr_db


def decibels(mean_square: float, peak: float) -> float:
    """Peak signal-to-noise ratio, at most DECIBEL_LIMIT."""
    if mean_square <= 0 or peak <= 0:
        return DECIBEL_LIMIT
    return float(min(DECIBEL_LIMIT, 10 * np.log10(peak**2 / mean_square)))


def check_finite(outputs: Sequence[Mapping[str, Array]]) -> None:
    """Refuse outputs with NaN or infinity.

    Raises:
        NonFiniteError: naming the first.
    """
    for output in outputs:
        for name, value in output.items():
            if not np.isfinite(value).all():
                at = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
                raise NonFiniteError(
                    f"engine output {name} holds {value[at]} at {at}, expected finite numbers; export it again"
                )


def run_module(
    module: torch.nn.Module, batches: Sequence[Batch], constants: Mapping[str, Any] | None = None
) -> list[Finals]:
    """Outputs of a torch denoiser for the batches.

    Args:
        module: a float denoiser, or a simulation.
        batches: its inputs.
        constants: of the call; a simulation has them already.
    """
    import torch

    outputs = []
    with torch.inference_mode():
        for batch in batches:
            tensors = {name: torch.from_numpy(np.array(value)) for name, value in batch.feeds.items()}
            outputs.append(tuple(value.numpy() for value in denoiser_outputs(module, tensors, constants)))
    return outputs


def simulation(record: Record, *, requantized: bool) -> torch.nn.Module:
    """The training simulation; with the declared requantization behind each convolution where the engine has it."""
    from dq_deploy.simulation.fake_quant import simulate

    module = simulate(record)
    if requantized:
        _requantize_outputs(module, record)
    return module


def _requantize_outputs(module: torch.nn.Module, record: Record) -> None:
    import torch

    from dq_deploy.numerics import dequantize, requantize, step_bucket

    step: list[Array] = []

    def before(_module: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> None:
        step[:] = [step_bucket(kwargs["timestep"].numpy(), record.step_edges)]

    def behind(name: str) -> Any:
        layer = record.layers[name]

        def hook(_module: torch.nn.Module, _args: tuple[Any, ...], y: torch.Tensor) -> torch.Tensor:
            assert layer.out_scale is not None
            assert layer.out_zero_point is not None
            codes = requantize(y.numpy(), out_scale=layer.out_scale, out_zero_point=layer.out_zero_point, step=step[0])
            back = dequantize(codes, scale=layer.out_scale, zero_point=layer.out_zero_point, step=step[0])
            return torch.from_numpy(back)

        return hook

    module.register_forward_pre_hook(before, with_kwargs=True)
    for name, child in module.named_modules():
        layer_name = name.removeprefix("denoiser.")
        layer = record.layers.get(layer_name)
        if layer is not None and layer.kind == "conv2d" and layer.out_scale is not None:
            child.register_forward_hook(behind(layer_name))


def compare_outputs(
    record: Record,
    batches: Sequence[Batch],
    engine: Sequence[Finals],
    trained: Sequence[Finals],
    twin: Sequence[Finals] | None,
    floats: Sequence[Finals] | None,
) -> list[StepOutput]:
    """Errors by step bucket, over all samples at that bucket; of several outputs those of the worst.

    Args:
        record: for the timesteps.
        batches: the inputs.
        engine: the engine's outputs of each batch.
        trained: the training simulation's.
        twin: the same of the twin, or None without one.
        floats: the float model's, or None.
    """

    def one(finals: Sequence[Finals], output: int) -> list[Array]:
        return [values[output] for values in finals]

    found = [
        _compared(
            record,
            spec.name,
            batches,
            one(engine, output),
            one(trained, output),
            None if twin is None else one(twin, output),
            None if floats is None else one(floats, output),
        )
        for output, spec in enumerate(output_specs(call_of_record(record)))
    ]
    return [min(of_step, key=_closeness) for of_step in zip(*found, strict=True)]


def _closeness(step: StepOutput) -> float:
    """The margin, and without a float model, where no output has one, the engine's own error."""
    return step.engine_psnr_db if step.margin_db is None else step.margin_db


def _compared(
    record: Record,
    output: str,
    batches: Sequence[Batch],
    engine: Sequence[Array],
    trained: Sequence[Array],
    twin: Sequence[Array] | None,
    floats: Sequence[Array] | None,
) -> list[StepOutput]:
    """The same of one output, whose values these are."""
    places: dict[int, list[tuple[int, int]]] = {}
    for i, batch in enumerate(batches):
        for j, bucket in enumerate(batch.buckets.tolist()):
            places.setdefault(bucket, []).append((i, j))
    steps = []
    for bucket, where in sorted(places.items()):

        def at(outputs: Sequence[Array], where: list[tuple[int, int]] = where) -> Array:
            return np.concatenate([outputs[i][j].ravel() for i, j in where]).astype(np.float64)

        mine, training = at(engine), at(trained)
        peak = float(np.ptp(training if floats is None else at(floats)))
        training_db = decibels(float(np.mean((mine - training) ** 2)), peak)
        steps.append(
            StepOutput(
                bucket=bucket,
                timestep=float(record.timesteps[bucket]),
                samples=len(where),
                engine_psnr_db=training_db if twin is None else decibels(float(np.mean((mine - at(twin)) ** 2)), peak),
                training_psnr_db=training_db,
                simulation_psnr_db=None
                if floats is None
                else decibels(float(np.mean((training - at(floats)) ** 2)), peak),
                output=output,
            )
        )
    return steps


def batch_difference(
    runner: Runner, batch: Batch, output: Mapping[str, Array], first_dependent: Callable[[Batch, int], str]
) -> str:
    """Whether a batch of mixed steps and labels equals its samples run one by one, bit for bit.

    Args:
        runner: the engine.
        batch: the inputs.
        output: what it gave of them.
        first_dependent: the first thing in the engine that a sample's neighbours change, in words.

    Returns:
        An empty string, or which sample differs and where that begins.
    """
    for index in range(len(batch.buckets)):
        alone = run_all(runner, batch.one(index))
        for name, value in output.items():
            if alone[name].tobytes() != np.ascontiguousarray(value[index : index + 1]).tobytes():
                gap = float(np.abs(alone[name].astype(np.float64) - value[index : index + 1]).max())
                where = first_dependent(batch, index)
                return f"sample {index} of a mixed batch differs from itself alone by up to {gap:.3g}: {where}"
    return ""


def same_bits(a: Mapping[str, Array], b: Mapping[str, Array]) -> bool:
    """Whether two sets of tensors are equal bit for bit, for the names of the first."""
    return all(a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and a[n].tobytes() == b[n].tobytes() for n in a)
