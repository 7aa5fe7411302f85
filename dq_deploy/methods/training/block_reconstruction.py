"""Block reconstruction: one block after another is trained behind the quantized blocks before it (BRECQ, 2102.05426).

Each learns to give behind the quantized prefix what the float block gives behind the float prefix. What is trained
on which loss are settings: see `reconstruction`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from dq_deploy.errors import NonFiniteError, OptionError, library_errors
from dq_deploy.methods.nested_values import Gathered, Nested
from dq_deploy.methods.options import SharedOptions
from dq_deploy.methods.prepare.preparation import Prepared
from dq_deploy.methods.progress import Progress, ProgressCallback
from dq_deploy.methods.ranges.step_ranges import (
    LayerRanges,
    StepRange,
    batches,
    first_of_every_step,
    output_table,
    steps_of,
    watch_steps,
)
from dq_deploy.methods.training.block_loss import BlockLoss, TrainedBlock, call_block
from dq_deploy.methods.training.prefix import CHUNK, Flow, Prefix, flow_of_blocks
from dq_deploy.methods.training.reconstruction import Reconstruction
from dq_deploy.methods.training.resume import ResumeFolder
from dq_deploy.methods.training.trainable import TrainableLayer
from dq_deploy.models import Block, blocks_of
from dq_deploy.numerics.arrays import Array
from dq_deploy.record import Layer
from dq_deploy.simulation.fake_quant import IntegerLayer, StepContext, replace_layer

GIB = 1 << 30

COMPARED_INPUTS = 256
"""Inputs on which a trained block is compared with the untrained one."""

REPORT_EVERY = 10
EPSILON = 1e-12
"""Adam's, far below any gradient of a relative loss."""

_ADVICE = "check the model's configuration and the options"


class DivergedError(Exception):
    """A block's training gave NaN or infinity; the message says where."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstructed:
    """Layers after training and what happened, block by block (JSON values)."""

    layers: dict[str, Layer]
    history: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Reached:
    """A block whose turn it is.

    Attributes:
        index: position among all blocks.
        done: iterations of all blocks before it.
        layers: names of its quantized layers.
        given: arguments behind the quantized prefix, of all inputs.
        float_given: behind the float prefix, where they are needed.
        target: float output.
    """

    block: Block
    index: int
    done: int
    layers: list[str]
    given: Gathered
    float_given: Gathered | None
    target: Gathered


@dataclass(frozen=True, kw_only=True, eq=False)
class _Finished:
    """A block whose integer layers are in place: they, its output for all inputs, and its note (JSON values)."""

    layers: dict[str, Layer]
    output: Gathered
    note: dict[str, Any]


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

    Raises:
        OptionError: memory is too little for one input.
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
    ) -> None:
        self.prepared = prepared
        self.start = start
        self.ranges = ranges
        self.options = options
        self.settings = settings
        self.progress = progress
        blocks = {block.name: block for block in blocks_of(prepared.module, prepared.call)}
        self.steps = steps_of(ranges)
        self.groups = options.groups_of_steps(self.steps)
        flow = flow_of_blocks(
            prepared.module, list(blocks.values()), inputs, prepared.call, both_inputs=settings.needs_float_inputs
        )
        self.blocks = [blocks[name] for name in flow.order]
        self.count = self._count(flow, inputs)
        chosen = {name: value[: self.count] for name, value in inputs.items()}
        self.step = torch.from_numpy(chosen["step"])
        self.context = StepContext()
        self.reference = Prefix(prepared.module, flow, chosen, prepared.call, self.count)
        self.quantized = Prefix(copy.deepcopy(prepared.module), flow, chosen, prepared.call, self.count)
        self.trained = [i for i, b in enumerate(self.blocks) if self._layers_of(b)]
        self.total = len(self.trained) * settings.iterations

    def _layers_of(self, block: Block) -> list[str]:
        return [name for name in block.layers if name in self.start]

    def _count(self, flow: Flow, inputs: Mapping[str, Array]) -> int:
        """Calibration inputs whose block inputs and outputs fit into memory beside themselves, whole trajectories."""
        available = len(inputs["step"])
        memory = int(self.options.memory_gib * GIB) - sum(value.nbytes for value in inputs.values())
        fit = memory // flow.peak_bytes
        if fit < 1:
            raise OptionError(
                f"memory_gib is {self.options.memory_gib}, expected at least {flow.peak_bytes / GIB:.2g}: "
                "one calibration input takes that"
            )
        if fit < available:
            fit = fit // self.steps * self.steps or fit
            note = f"{fit} of {available} calibration inputs fit in memory_gib {self.options.memory_gib:g}"
            self.progress(Progress(stage="distill", done=0, total=1, note=note))
        return min(fit, available)

    def run(self, state: ResumeFolder | None) -> Reconstructed:
        """Train every block, or take it from the state of an earlier run.

        Raises:
            NonFiniteError: a block's training gives NaN or infinity; names it, the last good one, and what is kept.
        """
        layers: dict[str, Layer] = {}
        history: list[dict[str, Any]] = []
        for index, block in enumerate(self.blocks):
            with library_errors(f"block {block.name}", _ADVICE):
                reached = self._reach(index, block)
            finished = self._loaded(reached, state)
            if finished is None:
                try:
                    with library_errors(f"training block {block.name}", _ADVICE):
                        finished = self._reconstruct(reached)
                except DivergedError as error:
                    if state is not None:
                        state.note_divergence(block.name)
                    raise NonFiniteError(_stopped(block.name, str(error), history, state)) from error
                if state is not None and reached.layers:
                    state.save_block(index, block.name, finished.layers, finished.note)
            self.reference.finish(reached.target)
            self.quantized.finish(finished.output)
            layers.update(finished.layers)
            if reached.layers:
                history.append(finished.note)
        return Reconstructed(layers=layers, history=history)

    def _loaded(self, reached: _Reached, state: ResumeFolder | None) -> _Finished | None:
        """The block as an earlier run finished it, or None."""
        name = reached.block.name
        loaded = state.load_block(reached.index, name, self.prepared.layers) if state and reached.layers else None
        if loaded is None:
            return None
        layers, note = loaded
        self._place(layers)
        output = self._output(reached.block, reached.given)
        done = reached.done + self.settings.iterations
        self.progress(Progress(stage="distill", done=done, total=self.total))
        return _Finished(layers=layers, output=output, note=note)

    def _reach(self, index: int, block: Block) -> _Reached:
        behind_float = self.reference.next_inputs()
        module = self.prepared.module.get_submodule(block.name)
        with torch.no_grad():
            taken = ((chunk, call_block(module, behind_float.take(chunk))) for chunk in batches(self.count, CHUNK))
            target = self.reference.outputs_of(block.name, taken, self.count)
        names = self._layers_of(block)
        float_given = behind_float if self.settings.needs_float_inputs and names else None
        del behind_float  # before the quantized ones are made: both at once are counted only where both are kept
        return _Reached(
            block=block,
            index=index,
            done=self.trained.index(index) * self.settings.iterations if names else 0,
            layers=names,
            given=self.quantized.next_inputs(),
            float_given=float_given,
            target=target,
        )

    def _place(self, layers: Mapping[str, Layer]) -> None:
        for name, layer in layers.items():
            replace_layer(self.quantized.module, name, IntegerLayer(layer, self.context))

    def _output(self, block: Block, given: Gathered) -> Gathered:
        module = self.quantized.module.get_submodule(block.name)

        def run(chunk: slice) -> Nested:
            self.context.step = self.step[chunk]
            return call_block(module, given.take(chunk))

        with torch.no_grad():
            pieces = ((chunk, run(chunk)) for chunk in batches(self.count, CHUNK))
            return self.quantized.outputs_of(block.name, pieces, self.count)

    def _reconstruct(self, reached: _Reached) -> _Finished:
        """Train a block, and leave it untrained where that made it worse."""
        untrained = {name: self.start[name] for name in reached.layers}
        if not reached.layers:
            return _Finished(layers={}, output=self._output(reached.block, reached.given), note={})
        note: dict[str, Any] = {"block": reached.block.name, "layers": reached.layers}
        if not self.settings.iterations:
            return self._finish(reached, untrained, note)
        compared = torch.from_numpy(first_of_every_step(self.step.numpy(), self.steps, COMPARED_INPUTS))
        before = _relative_error(self._untrained_output(reached, untrained, compared), reached.target, compared)
        finished = self._finish(reached, self._train(reached), note)
        after = _relative_error([v[compared] for v in finished.output.of_samples()], reached.target, compared)
        if after > before * self.settings.worse_allowed:
            words = f"left untrained: its relative error was {before:.3g}, and {after:.3g} after training"
            self.progress(
                Progress(
                    stage="distill",
                    done=reached.done + self.settings.iterations,
                    total=self.total,
                    block=reached.block.name,
                    note=f"block {reached.block.name} is {words}",
                )
            )
            return self._finish(reached, untrained, {**note, "note": words})
        return finished

    @torch.no_grad()
    def _untrained_output(
        self, reached: _Reached, layers: Mapping[str, Layer], index: torch.Tensor
    ) -> list[torch.Tensor]:
        """What the block gives with these layers for some inputs."""
        self._place(layers)
        module = self.quantized.module.get_submodule(reached.block.name)

        def run(chunk: slice) -> Nested:
            self.context.step = self.step[index[chunk]]
            return call_block(module, reached.given.take(index[chunk]))

        pieces = ((chunk, run(chunk)) for chunk in batches(len(index), CHUNK))
        return self.quantized.outputs_of(reached.block.name, pieces, len(index)).of_samples()

    def _train(self, reached: _Reached) -> dict[str, Layer]:
        """Train a block and round it."""
        settings, name = self.settings, reached.block.name
        seed = self.options.seed * 100_003 + reached.done
        generator = torch.Generator().manual_seed(seed + 1)
        layers = {}
        for layer_name in reached.layers:
            layers[layer_name] = TrainableLayer(
                self.prepared.layers[layer_name],
                self.start[layer_name],
                _spread(self.ranges[layer_name].output),
                self.context,
                weights=settings.weights,
                groups=self.groups,
                drop=settings.activation_drop,
                generator=generator,
            )
            replace_layer(self.quantized.module, layer_name, layers[layer_name])

        def report(done: int, loss: float) -> None:
            self.progress(Progress(stage="distill", done=reached.done + done, total=self.total, block=name, loss=loss))

        block = TrainedBlock(
            module=self.quantized.module.get_submodule(name),
            float_module=self.prepared.module.get_submodule(name),
            layers={layer_name[len(name) + 1 :]: layer for layer_name, layer in layers.items()},
            given=reached.given,
            float_given=reached.float_given,
            target=reached.target,
            step=self.step,
            context=self.context,
        )
        train_block(block, settings, seed=seed, generator=generator, report=report)
        return {layer_name: layer.harvest() for layer_name, layer in layers.items()}

    def _finish(self, reached: _Reached, layers: Mapping[str, Layer], note: Mapping[str, Any]) -> _Finished:
        """Put integer layers in place, compute the block's output, calibrate output tables."""
        finished = {name: replace(layer, out_scale=None, out_zero_point=None) for name, layer in layers.items()}
        self._place(finished)
        with watch_steps(self.quantized.module, finished, self.context, self.steps) as seen:
            output = self._output(reached.block, reached.given)
        if not all(bool(torch.isfinite(values).all()) for values in output.of_samples()):
            raise DivergedError("its quantized output is not finite")
        if self.options.outputs:
            finished = {name: self._with_output(layer, seen[name]) for name, layer in finished.items()}
            self._place(finished)
        told = {**note, "relative_error": _relative_error(output.of_samples(), reached.target)}
        return _Finished(layers=finished, output=output, note=told)

    def _with_output(self, layer: Layer, seen: StepRange) -> Layer:
        scale, zero = output_table(seen, self.groups)
        return replace(layer, out_scale=scale, out_zero_point=zero)


def train_block(
    block: TrainedBlock,
    settings: Reconstruction,
    *,
    seed: int,
    generator: torch.Generator,
    report: Callable[[int, float], None],
) -> None:
    """Train the layers of a block in place.

    Args:
        block: what is trained, on what.
        settings: on which loss, at which rates.
        seed: of the batches.
        generator: of what is dropped and mixed.
        report: called now and then with (iterations done, mean loss of the last ones).

    Raises:
        DivergedError: a loss, or at the end a trained value, is not finite.
    """
    groups = [group for layer in block.layers.values() for group in layer.parameter_groups(settings.rates)]
    if not groups or not settings.iterations:
        return
    optimizer = torch.optim.Adam(groups, eps=EPSILON, fused=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    batches = torch.Generator().manual_seed(seed)
    recent: list[float] = []
    with BlockLoss(block, settings, generator).watching() as loss_of:
        for i in range(settings.iterations):
            fade = 0.5 * (1 + math.cos(math.pi * i / settings.iterations))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * fade
            index = torch.randint(0, len(block.step), (settings.batch,), generator=batches)
            loss = loss_of(index, i)
            value = loss.item()
            if not math.isfinite(value):
                raise DivergedError(f"the loss is {value} at iteration {i + 1}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            recent.append(value)
            if (i + 1) % REPORT_EVERY == 0 or i + 1 == settings.iterations:
                report(i + 1, sum(recent[-REPORT_EVERY:]) / len(recent[-REPORT_EVERY:]))
    if not all(bool(torch.isfinite(p).all()) for group in groups for p in group["params"]):
        raise DivergedError("a trained value is not finite after the last iteration")


def _stopped(block: str, reason: str, history: list[dict[str, Any]], state: ResumeFolder | None) -> str:
    last = f"the last good block is {history[-1]['block']}" if history else "no block before it was trained"
    kept = f", kept in {state.folder} with those before it" if history and state else ""
    return (
        f"block {block}: {reason}, expected finite numbers; {last}{kept}; "
        "lower the learning rates (lr_weight, lr_scale, lr_rounding) in a preset and run again"
    )


def _relative_error(outputs: list[torch.Tensor], target: Gathered, index: torch.Tensor | None = None) -> float:
    """Mean square error relative to the target's mean square, the mean of what the block gives.

    Args:
        outputs: of the block, for some inputs.
        target: for all inputs.
        index: which of them; None for all.
    """
    errors = []
    for output, whole in zip(outputs, target.of_samples(), strict=True):
        wanted = whole if index is None else whole[index]
        errors.append(
            float((output - wanted).double().square().mean()) / (float(wanted.double().square().mean()) or 1.0)
        )
    return sum(errors) / len(errors)


def _spread(output: StepRange) -> float:
    """About the standard deviation of a layer's output: an eighth of its range."""
    spread = float(np.mean(output.high - output.low)) / 8
    return spread if math.isfinite(spread) and spread > 0 else 1.0
