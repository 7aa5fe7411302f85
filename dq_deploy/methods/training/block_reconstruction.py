"""Block reconstruction: one block after another is trained behind the quantized blocks before it (BRECQ, 2102.05426).

Each learns to give behind the quantized prefix what the float block gives behind the float prefix. What is trained
on which loss are settings: see `reconstruction`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dq_deploy.calibration.sharding import Share
from dq_deploy.methods.blocks.in_turn import DivergedError, FinishedBlock, Reconstructed, blocks_in_turn
from dq_deploy.methods.blocks.measures import all_finite, relative_error, relative_error_at
from dq_deploy.methods.blocks.shard_gradients import BatchDraws, most_at_once, sum_gradients
from dq_deploy.methods.blocks.storage import GIB
from dq_deploy.methods.blocks.walk import BlockWalk, QuantizedBlock, Reached
from dq_deploy.methods.options import SharedOptions
from dq_deploy.methods.prepare.initial_record import held_weight
from dq_deploy.methods.prepare.preparation import Prepared, PreparedLayer
from dq_deploy.methods.progress import Progress, ProgressCallback
from dq_deploy.methods.ranges.step_ranges import (
    LayerRanges,
    StepRange,
    compared_inputs,
    steps_of,
)
from dq_deploy.methods.second_order.block_rounding import BlockRounding
from dq_deploy.methods.training.block_loss import BlockLoss, TrainedBlock
from dq_deploy.methods.training.pieces import Kept, Pieces, kept_by, pieces_that_fit
from dq_deploy.methods.training.reconstruction import Reconstruction
from dq_deploy.methods.training.resume import ResumeFolder
from dq_deploy.methods.training.trainable import TrainableLayer
from dq_deploy.numerics.arrays import Array
from dq_deploy.record import Layer

COMPARED_INPUTS = 256
"""Inputs on which a trained block is compared with the untrained one."""

REPORT_EVERY = 10
EPSILON = 1e-12
"""Adam's, far below any gradient of a relative loss."""

_LOWER_RATES = "lower the learning rates (lr_weight, lr_scale, lr_rounding) in a preset and run again"


class BlockReconstruction:
    """Trains the blocks of one model in order.

    Args:
        prepared: the folded float model.
        start: its untrained integer layers.
        ranges: of its layers.
        inputs: calibration inputs by name, with `step`.
        options: groups of steps, memory, seed, output tables.
        settings: what is trained.
        progress: called every few iterations.
        share: which of all inputs they are, where several processes share them.

    Raises:
        OptionError: memory and disk are too little for one input of every step.
    """

    def __init__(
        self,
        prepared: Prepared,
        start: Mapping[str, Layer],
        ranges: Mapping[str, LayerRanges],
        inputs: Mapping[str, Array],
        options: SharedOptions,
        settings: Reconstruction,
        progress: ProgressCallback,
        share: Share | None = None,
    ) -> None:
        self.prepared = prepared
        self.start = start
        self.ranges = ranges
        self.options = options
        self.settings = settings
        self.progress = progress
        self.steps = steps_of(ranges)
        self.groups = options.groups_of_steps(self.steps)
        both = settings.needs_float_inputs
        self.walk = BlockWalk(prepared, list(start), inputs, options, both_inputs=both, share=share)
        if self.walk.amounts.words:
            progress(Progress(stage="distill", done=0, total=1, note=self.walk.amounts.words))
        self.step, self.context = self.walk.step, self.walk.context
        self.rounding: BlockRounding | None = None
        if settings.start is not None:
            limit = int(options.memory_gib * GIB / 2)
            self.rounding = BlockRounding(self.walk, settings.start, seed=options.seed, limit_bytes=limit)
        self.trained = [i for i, block in enumerate(self.walk.blocks) if self.walk.layers_of(block)]
        self.total = len(self.trained) * settings.iterations

    def _done(self, reached: Reached) -> int:
        """Iterations of all blocks before one."""
        return self.trained.index(reached.index) * self.settings.iterations if reached.layers else 0

    def run(self, state: ResumeFolder | None) -> Reconstructed:
        """Train every block, or take it from the state of an earlier run.

        Raises:
            NonFiniteError: a block's training gives NaN or infinity; names it, the last good one, and what is kept.
        """
        return blocks_in_turn(
            self.walk, self._reconstruct, state, doing="training", passed=self._passed, advice=_LOWER_RATES
        )

    def _passed(self, reached: Reached) -> None:
        done = self._done(reached) + self.settings.iterations
        self.progress(Progress(stage="distill", done=done, total=self.total))

    def _reconstruct(self, reached: Reached) -> FinishedBlock:
        """Train a block, and leave it untrained where that made it worse."""
        untrained = {name: self.start[name] for name in reached.layers}
        if self.rounding is not None:
            untrained = self.rounding.layers(reached, untrained)
        block = self.walk.quantized_block(reached.block)
        note: dict[str, Any] = {"block": reached.block.name, "layers": reached.layers}
        if not self.settings.iterations:
            return self._finish(reached, block, untrained, note)
        compared = compared_inputs(self.walk.share, self.steps, COMPARED_INPUTS)
        block.place(untrained, self.context)
        before = self._error_at(
            compared, reached, lambda shard: self.walk.outputs_at(block.module, reached.given, compared[shard])
        )
        finished = self._finish(reached, block, self._train(reached, block, untrained), note)
        rooms = finished.output.of_samples()
        after = self._error_at(
            compared,
            reached,
            lambda shard: [room.take(compared[shard]) for room in rooms] if len(compared[shard]) else [],
        )
        if after > before * self.settings.worse_allowed:
            words = f"left untrained: its relative error was {before:.3g}, and {after:.3g} after training"
            self.progress(
                Progress(
                    stage="distill",
                    done=self._done(reached) + self.settings.iterations,
                    total=self.total,
                    block=reached.block.name,
                    note=f"block {reached.block.name} is {words}",
                )
            )
            return self._finish(reached, block, untrained, {**note, "note": words})
        return finished

    def _error_at(
        self,
        compared: Mapping[int, torch.Tensor],
        reached: Reached,
        outputs: Callable[[int], Sequence[torch.Tensor]],
    ) -> float:
        return relative_error_at(outputs, reached.target, self.walk.share, compared.__getitem__)

    def _train(self, reached: Reached, block: QuantizedBlock, start: Mapping[str, Layer]) -> dict[str, Layer]:
        """Train a block from these layers, and round it."""
        settings, name = self.settings, reached.block.name
        done_before = self._done(reached)
        seed = self.options.seed * 100_003 + done_before
        generator = torch.Generator().manual_seed(seed + 1)
        layers = {}
        for layer_name in reached.layers:
            layers[layer_name] = TrainableLayer(
                self._held(layer_name, start[layer_name]),
                start[layer_name],
                _spread(self.ranges[layer_name].output),
                self.context,
                weights=settings.weights,
                groups=self.groups,
                drop=settings.activation_drop,
                generator=generator,
            )
            block.put(layer_name, layers[layer_name])

        def report(done: int, loss: float) -> None:
            self.progress(Progress(stage="distill", done=done_before + done, total=self.total, block=name, loss=loss))

        trained = TrainedBlock(
            module=block.module,
            float_module=self.prepared.module.get_submodule(name),
            layers={layer_name[len(name) + 1 :]: layer for layer_name, layer in layers.items()},
            given=reached.given,
            float_given=reached.float_given,
            target=reached.target,
            step=self.step,
            share=self.walk.share,
            context=self.context,
        )
        pieces = self._pieces(trained, name, generator)
        train_block(trained, settings, seed=seed, generator=generator, report=report, pieces=pieces)
        workers = self.walk.share.workers
        return workers.first(lambda: {layer_name: layer.harvest() for layer_name, layer in layers.items()})

    def _held(self, name: str, start: Layer) -> PreparedLayer:
        """A layer whose float weights, where training begins, round to the codes of its start."""
        prepared = self.prepared.layers[name]
        return prepared if self.rounding is None else replace(prepared, weight=held_weight(prepared.weight, start))

    def _pieces(self, trained: TrainedBlock, name: str, generator: torch.Generator) -> Pieces:
        """How many inputs of a batch are computed at once; what is drawn on the way is drawn again."""
        settings, layers = replace(self.settings, sample_weights=None), trained.layers.values()
        drawn = generator.get_state()
        for layer in layers:
            layer.parameter_groups(settings.rates)

        def measure(again: bool) -> Kept:
            for layer in layers:
                layer.again = again
            with BlockLoss(trained, settings, generator).watching() as loss_of:
                kept = kept_by(lambda count: loss_of(torch.arange(count) % len(self.step), 0), layers if again else ())
            generator.set_state(drawn)
            return kept

        return pieces_that_fit(
            measure,
            most_at_once(self.walk.share, self.settings.batch),
            self.options.memory_gib * GIB / 2,
            what=f"block {name}",
            share="half",
            memory_gib=self.options.memory_gib,
        )

    def _finish(
        self, reached: Reached, block: QuantizedBlock, layers: Mapping[str, Layer], note: Mapping[str, Any]
    ) -> FinishedBlock:
        """Put integer layers in place, compute the block's output, calibrate output tables."""
        finished, output = self.walk.finished(
            reached, block, layers, steps=self.steps, groups=self.groups if self.options.outputs else None
        )
        share = self.walk.share
        if not all_finite(output, share):
            raise DivergedError("its quantized output is not finite")
        return FinishedBlock(
            layers=finished,
            output=output,
            note={**note, "relative_error": relative_error(output, reached.target, share)},
        )


def train_block(
    block: TrainedBlock,
    settings: Reconstruction,
    *,
    seed: int,
    generator: torch.Generator,
    report: Callable[[int, float], None],
    pieces: Pieces | None = None,
) -> None:
    """Train the layers of a block in place.

    Args:
        block: what is trained, on what.
        settings: on which loss, at which rates.
        seed: of the batches.
        generator: of what is dropped and mixed.
        report: called now and then with (iterations done, mean loss of the last ones).
        pieces: in which a batch is computed; None computes it as a whole.

    Raises:
        DivergedError: a loss, or at the end a trained value, is not finite.
    """
    groups = [group for layer in block.layers.values() for group in layer.parameter_groups(settings.rates)]
    if not groups or not settings.iterations:
        return
    optimizer = torch.optim.Adam(groups, eps=EPSILON, fused=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    parameters = [parameter for group in groups for parameter in group["params"]]
    draws = BatchDraws(block.share, settings.batch, seed, generator)
    recent: list[float] = []
    with BlockLoss(block, settings, generator).watching() as loss_of:
        for i in range(settings.iterations):
            fade = 0.5 * (1 + math.cos(math.pi * i / settings.iterations))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * fade
            optimizer.zero_grad(set_to_none=True)

            def backward(shard: int, i: int = i) -> float:
                index = draws.of(shard, i)
                value = 0.0
                for piece in index.split(settings.batch if pieces is None else pieces.size) if len(index) else ():
                    loss = loss_of(piece, i) * (len(piece) / settings.batch)
                    value += loss.item()
                    if not math.isfinite(value):
                        break
                    loss.backward()
                return value

            value = sum_gradients(block.share, parameters, backward)
            if not math.isfinite(value):
                raise DivergedError(f"the loss is {value} at iteration {i + 1}")
            optimizer.step()
            recent.append(value)
            if (i + 1) % REPORT_EVERY == 0 or i + 1 == settings.iterations:
                report(i + 1, sum(recent[-REPORT_EVERY:]) / len(recent[-REPORT_EVERY:]))
    if not all(bool(torch.isfinite(p).all()) for group in groups for p in group["params"]):
        raise DivergedError("a trained value is not finite after the last iteration")


def _spread(output: StepRange) -> float:
    """About the standard deviation of a layer's output: an eighth of its range."""
    spread = float(np.mean(output.high - output.low)) / 8
    return spread if math.isfinite(spread) and spread > 0 else 1.0
