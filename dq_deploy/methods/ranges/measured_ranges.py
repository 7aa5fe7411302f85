"""One pass of the float model over the calibration inputs: ranges of its layers at each step, and of its modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dq_deploy.calibration import CalibrationInputs
from dq_deploy.methods.prepare.calibration_inputs import batch_of
from dq_deploy.methods.prepare.preparation import Prepared
from dq_deploy.methods.ranges.float_ranges import watch_outputs
from dq_deploy.methods.ranges.step_ranges import LayerRanges, check_finite, collect_ranges, merged_ranges
from dq_deploy.methods.run import Run

FLOAT_BATCH = 64
"""Inputs at a time, or fewer where the model's tensors are large."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasuredRanges:
    """What one pass saw.

    Attributes:
        layers: ranges of each layer's input and output at each step.
        modules: largest |output| of each module.
    """

    layers: Mapping[str, LayerRanges]
    modules: Mapping[str, float]


def measure_ranges(
    run: Run,
    prepared: Prepared,
    calibration: CalibrationInputs,
    *,
    draw_values: bool = False,
    seed: int = 0,
    momentum: float | None = None,
) -> MeasuredRanges:
    """Run the float model once over all calibration inputs; the arguments are those of `collect_ranges`.

    Raises:
        NonFiniteError: a layer or a module gives NaN or infinity; names it.
    """
    share, done = calibration.shared, run.workers.tally()
    batch = batch_of(run.denoiser, FLOAT_BATCH)

    def of_shard(shard: int) -> MeasuredRanges:
        before = 0

        def tell(now: int, _: int) -> None:
            nonlocal before
            run.tell("ranges", done.add(now - before), share.count)
            before = now

        with watch_outputs(prepared.module) as modules:
            layers = collect_ranges(
                prepared,
                calibration.inputs,
                steps=len(calibration.timesteps),
                draw_values=draw_values,
                seed=seed,
                batch=batch,
                momentum=momentum,
                progress=tell,
                shard=shard,
                share=share,
            )
        return MeasuredRanges(layers=layers, modules=modules)

    found = share.of_shards(of_shard)
    names = {name: None for one in found for name in one.modules}  # a shard without inputs has none
    merged = {name: merged_ranges([one.layers[name] for one in found]) for name in found[0].layers}
    check_finite(merged)
    return MeasuredRanges(
        layers=merged,
        modules={name: max(one.modules[name] for one in found if name in one.modules) for name in names},
    )
