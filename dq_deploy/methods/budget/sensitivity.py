"""How much one layer at few bits moves the denoiser's output: measured layer by layer, width by width, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from dq_deploy.calibration import CalibrationSource
from dq_deploy.methods.nested_values import Nested, copied
from dq_deploy.methods.options import SharedOptions
from dq_deploy.methods.prepare.calibration_inputs import batch_of, collect_inputs, step_influence
from dq_deploy.methods.prepare.initial_layers import initial_layers
from dq_deploy.methods.prepare.preparation import Prepared, prepare
from dq_deploy.methods.progress import Progress, ProgressCallback
from dq_deploy.methods.ranges.step_ranges import batches, collect_ranges, model_inputs
from dq_deploy.methods.training.prefix import flow_of_blocks
from dq_deploy.models import Denoiser, blocks_of, call_denoiser
from dq_deploy.numerics.arrays import F64, I64, Array
from dq_deploy.record import Layer
from dq_deploy.simulation.fake_quant import IntegerLayer, StepContext, replace_layer

RANGE_SAMPLES = 8
"""Trajectories that ranges are taken from."""

MOST_INPUTS = 40
"""Inputs that errors are measured on: as many steps at most, and where there are fewer steps as many a step."""

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, eq=False)
class Sensitivity:
    """Output errors of one quantized layer at a time.

    Attributes:
        steps: [S] step buckets they were measured at, increasing.
        influence: [S] how far the next sample moves for an error of one in the output at each step.
        errors: by layer and weight bits, [S] relative squared error of the denoiser's output at each step.
    """

    steps: I64
    influence: F64
    errors: Mapping[str, Mapping[int, F64]]

    def total(self, name: str, width: int) -> float:
        """Squared error that a layer brings into the samples, ``sum_t influence[t]^2 error[t]``."""
        return float(self.influence**2 @ self.errors[name][width])


def measure_sensitivity(
    denoiser: Denoiser,
    options: SharedOptions,
    source: CalibrationSource,
    names: Sequence[str],
    progress: ProgressCallback,
) -> Sensitivity:
    """Quantize each layer alone, at each of `budget_widths`, and compare the output with the float model's.

    ``error[t] = sum (output - float output)^2 / sum (float output)^2`` over the inputs of step t. Weights are rounded
    by the method's range search, activations have their own bits and ranges from the least and greatest value seen;
    nothing is trained or dilated. Blocks before the layer give the outputs they gave in the float model, once computed.

    Args:
        denoiser: the float model.
        options: bits of activations, steps, groups of steps, memory.
        source: where inputs come from.
        names: layers to measure, all of them integer layers by the options.
        progress: called with (measurements done, measurements).
    """
    few = replace(
        options, samples=min(RANGE_SAMPLES, options.samples), calibration_choice="uniform", outputs=False, budget=None
    )
    calibration = collect_inputs(denoiser, few, source, progress)
    prepared = prepare(denoiser, few)
    wanted = set(names)
    prepared = replace(prepared, layers={name: layer for name, layer in prepared.layers.items() if name in wanted})
    inputs = calibration.inputs
    ranges = collect_ranges(prepared, inputs, steps=len(calibration.timesteps), batch=batch_of(denoiser, 64))
    layers = {
        width: initial_layers(_at_width(prepared, width), ranges, few, search=False) for width in options.budget_widths
    }
    chosen = _inputs_to_measure(inputs["step"], len(calibration.timesteps))
    measured = {name: value[chosen] for name, value in inputs.items()}
    steps, errors = _Measurement(prepared, layers, measured, options.memory_gib, progress).run()
    # a file of latents names no sampler, and not every scheduler says it: then steps count alike
    influence = step_influence(denoiser, options, source)
    if influence is None or len(influence) != len(calibration.timesteps):
        influence = np.ones(len(calibration.timesteps))
        note = "how far an error in a step moves the sample is not known: all steps count alike for the budget"
        progress(Progress(stage="sensitivity", done=1, total=1, note=note))
    return Sensitivity(steps=steps, influence=influence[steps], errors=errors)


def _at_width(prepared: Prepared, width: int) -> Prepared:
    layers = {
        name: replace(layer, bits=replace(layer.bits, weight_bits=width)) for name, layer in prepared.layers.items()
    }
    return replace(prepared, layers=layers)


def _inputs_to_measure(step: I64, steps: int) -> I64:
    """Indices of the first inputs of each of `MOST_INPUTS` steps at most, spread evenly."""
    chosen = np.unique(np.linspace(0, steps - 1, min(steps, MOST_INPUTS)).round().astype(np.int64))
    each = max(1, MOST_INPUTS // steps)
    return np.sort(np.concatenate([np.flatnonzero(step == t)[:each] for t in chosen]))


class _Measurement:
    """One float model, its layers at each width, and the inputs errors are measured on."""

    def __init__(
        self,
        prepared: Prepared,
        layers: Mapping[int, Mapping[str, Layer]],
        inputs: Mapping[str, Array],
        memory_gib: float,
        progress: ProgressCallback,
    ) -> None:
        self.module, self.call = prepared.module, prepared.call
        self.layers = layers
        self.inputs = inputs
        self.progress = progress
        blocks = {block.name: block for block in blocks_of(self.module, prepared.call)}
        flow = flow_of_blocks(self.module, list(blocks.values()), inputs, prepared.call)
        self.order = flow.order
        self.position = {layer: i for i, name in enumerate(self.order) for layer in blocks[name].layers}
        each = sum(flow.output_bytes(name) for name in self.order)
        self.batch = max(1, min(MOST_INPUTS, int(memory_gib * GIB / 2) // each))
        self.context = StepContext()
        self.kept: dict[str, Nested] = {}

    def run(self) -> tuple[I64, dict[str, dict[int, F64]]]:
        """Step buckets, [S], and the errors of every layer at every width."""
        steps, slot = np.unique(self.inputs["step"], return_inverse=True)
        names = list(next(iter(self.layers.values())))
        squares = {name: {width: np.zeros(len(steps)) for width in self.layers} for name in names}
        norm = np.zeros(len(steps))
        chunks = batches(len(slot), self.batch)
        done, total = 0, len(chunks) * len(names) * len(self.layers)
        with torch.no_grad():
            for chunk in chunks:
                given = model_inputs(self.inputs, chunk, self.call)
                self.context.step = torch.from_numpy(self.inputs["step"][chunk])
                target = self._float_pass(given)
                np.add.at(norm, slot[chunk], _squares(target))
                for name in names:
                    for width in self.layers:
                        output = self._with_layer(name, self.layers[width][name], given)
                        np.add.at(squares[name][width], slot[chunk], _squares(output - target))
                        done += 1
                    self.progress(Progress(stage="sensitivity", done=done, total=total))
        self.kept.clear()
        norm = np.where(norm > 0, norm, 1.0)
        errors = {name: {width: s / norm for width, s in by_width.items()} for name, by_width in squares.items()}
        return steps, errors

    def _float_pass(self, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Output of the float model; every block's output is kept."""

        def keep(name: str) -> Any:
            def hook(_module: torch.nn.Module, _args: tuple[Any, ...], output: Nested) -> None:
                self.kept[name] = output

            return hook

        handles = [self.module.get_submodule(name).register_forward_hook(keep(name)) for name in self.order]
        try:
            return call_denoiser(self.module, given)
        finally:
            for handle in handles:
                handle.remove()

    def _with_layer(self, name: str, layer: Layer, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Output of the model with one integer layer; blocks before it are not computed again."""
        before = [(self.module.get_submodule(n), self.kept[n]) for n in self.order[: self.position[name]]]
        original = self.module.get_submodule(name)
        try:
            for child, output in before:
                child.forward = lambda *_args, _output=output, **_kwargs: copied(_output)
            replace_layer(self.module, name, IntegerLayer(layer, self.context))
            return call_denoiser(self.module, given)
        finally:
            replace_layer(self.module, name, original)
            for child, _ in before:
                child.__dict__.pop("forward", None)


def _squares(values: torch.Tensor) -> F64:
    """Sum of squares of each sample, [B] float64."""
    result: F64 = values.double().square().flatten(1).sum(1).numpy()
    return result
