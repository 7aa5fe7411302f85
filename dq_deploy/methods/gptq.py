"""GPTQ (arXiv 2210.17323): ranges as minmax finds them, weights rounded by second-order statistics, block by block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from dq_deploy.calibration import CalibrationInputs
from dq_deploy.errors import OptionError
from dq_deploy.methods.blocks.in_turn import DivergedError, FinishedBlock, blocks_in_turn
from dq_deploy.methods.blocks.measures import relative_error_at
from dq_deploy.methods.blocks.storage import GIB
from dq_deploy.methods.blocks.walk import BlockWalk, Reached
from dq_deploy.methods.options import GptqOptions
from dq_deploy.methods.prepare.assembly import build_record
from dq_deploy.methods.prepare.initial_layers import initial_layers
from dq_deploy.methods.prepare.preparation import Prepared, prepare
from dq_deploy.methods.prepare.starting_point import inputs_of
from dq_deploy.methods.progress import Progress
from dq_deploy.methods.ranges.measured_ranges import measure_ranges
from dq_deploy.methods.ranges.step_ranges import LayerRanges, compared_inputs
from dq_deploy.methods.run import Run
from dq_deploy.methods.second_order.block_rounding import BlockRounding
from dq_deploy.methods.second_order.rounding import SecondOrder
from dq_deploy.methods.second_order.statistics import statistics_bytes
from dq_deploy.methods.training.resume import state_of_run
from dq_deploy.record import Record

STAGE = "rounding"

COMPARED_INPUTS = 64
"""Inputs on which a rounded block is compared with the float one."""


def quantize_gptq(run: Run, options: GptqOptions) -> Record:
    """Calibrate by ranges, then round block by block; see `dq_deploy.methods.quantize`.

    1. Activation ranges and weight scales as `minmax` has them.
    2. Block by block: sums over rows of what the integer layers would multiply in the float model, then codes, scales
       and bias from them.
    """
    prepared = prepare(run.denoiser, options)
    state = state_of_run(run, options)
    calibration = inputs_of(run, options, state)
    ranges = measure_ranges(run, prepared, calibration)
    rounding = _Rounding(run, prepared, calibration, options, ranges.layers)
    advice = "check the model and its calibration inputs"
    rounded = blocks_in_turn(
        rounding.walk, rounding.treat, state, doing="rounding", passed=rounding.tell, advice=advice
    )
    history = [{"stage": "ranges", "inputs": calibration.count}, *rounded.history]
    return build_record(
        run.denoiser, prepared, rounded.layers, calibration, options, history, float_ranges=ranges.modules
    )


class _Rounding:
    """What becomes of each block."""

    def __init__(
        self,
        run: Run,
        prepared: Prepared,
        calibration: CalibrationInputs,
        options: GptqOptions,
        ranges: Mapping[str, LayerRanges],
    ) -> None:
        settings = second_order_of(options)
        self.run, self.prepared, self.ranges, self.options = run, prepared, ranges, options
        exact = run.workers.shards > 1
        most = max((statistics_bytes(layer, exact=exact) for layer in prepared.layers.values()), default=0)
        if most > options.memory_gib * GIB:
            raise OptionError(
                f"memory_gib is {options.memory_gib:g}, expected at least {most / GIB:.2g}: the statistics of the "
                "widest layer take that"
            )
        work = max(most, int(options.memory_gib * GIB / 2))
        self.walk = BlockWalk(
            prepared,
            list(prepared.layers),
            calibration.inputs,
            options,
            quantized_prefix=False,
            work_bytes=work,
            share=calibration.share,
        )
        if self.walk.amounts.words:
            run.progress(Progress(stage=STAGE, done=0, total=1, note=self.walk.amounts.words))
        self.compared = compared_inputs(self.walk.share, len(calibration.timesteps), COMPARED_INPUTS)
        outputs = {name: found.largest_output for name, found in ranges.items()}
        self.rounding = BlockRounding(self.walk, settings, seed=options.seed, limit_bytes=work, outputs=outputs)

    def treat(self, reached: Reached) -> FinishedBlock:
        """Round a block's layers, whose starts are made in its turn: those of a whole model are a byte a weight.

        Raises:
            DivergedError: its output is not finite.
        """
        own = replace(self.prepared, layers={name: self.prepared.layers[name] for name in reached.layers})
        start = initial_layers(own, self.ranges, self.options, search=False, workers=self.run.workers)
        layers = self.rounding.layers(reached, start)
        block = self.walk.quantized_block(reached.block)
        block.place(layers, self.walk.context)
        error = relative_error_at(
            lambda shard: self.walk.outputs_at(block.module, reached.given, self.compared[shard]),
            reached.target,
            self.walk.share,
            self.compared.__getitem__,
        )
        if not math.isfinite(error):
            raise DivergedError("its quantized output is not finite")
        self.tell(reached)
        note = {"block": reached.block.name, "layers": reached.layers, "relative_error": error}
        return FinishedBlock(layers=layers, output=reached.target, note=note)

    def tell(self, reached: Reached) -> None:
        """Report that a block is finished."""
        done, total = reached.index + 1, len(self.walk.blocks)
        self.run.progress(Progress(stage=STAGE, done=done, total=total, block=reached.block.name))


def second_order_of(options: GptqOptions) -> SecondOrder:
    """What the options say of rounding."""
    return SecondOrder(
        damping=options.damping,
        rows_a_column=options.rows_a_column,
        feedback=options.uses("feedback"),
        float_targets=options.uses("float-targets"),
        bias=options.uses("bias"),
        rescale=options.uses("scale-refit"),
    )
