"""How much a layer at few bits moves the denoiser's output: measured unit by unit, width by width, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from dq_deploy.calibration import CalibrationSource
from dq_deploy.methods.blocks.nested_values import Nested, copied
from dq_deploy.methods.blocks.prefix import flow_of_blocks
from dq_deploy.methods.options import SharedOptions
from dq_deploy.methods.prepare.assembly import layer_of_parts
from dq_deploy.methods.prepare.calibration_inputs import batch_of, collect_inputs, step_influence
from dq_deploy.methods.prepare.initial_layers import initial_layers
from dq_deploy.methods.prepare.preparation import Prepared, PreparedLayer, prepare
from dq_deploy.methods.progress import Progress, ProgressCallback
from dq_deploy.methods.ranges.step_ranges import LayerRanges, batches, collect_ranges, model_inputs, steps_of
from dq_deploy.models import Denoiser, blocks_of, call_denoiser
from dq_deploy.numerics.arrays import F32, F64, I32, I64, Array
from dq_deploy.record import Layer
from dq_deploy.simulation.fake_quant import IntegerLayer, StepContext, replace_layer

RANGE_SAMPLES = 8
"""Trajectories that ranges are taken from."""

MOST_INPUTS = 40
"""Inputs that errors are measured on: as many steps at most, and where there are fewer steps as many a step."""

GIB = 1 << 30

_NO_BUDGETS: dict[str, Any] = {"budget": None, "activation_budget": None}


Unit = tuple[str, ...]
"""Layers whose bits are one decision, named by the first: a layer alone, or those that read one tensor."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Which widths are tried, on what.

    Attributes:
        units: layers that are quantized together while all others are float.
        widths: what is tried, by width: weight bits and activation bits, None for a layer's own.
        search: activation ranges are shrunk to the least L2.4 error, as methods that train do; else the least and
            greatest value seen.
    """

    units: tuple[Unit, ...]
    widths: Mapping[int, tuple[int | None, int | None]]
    search: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Sensitivity:
    """Output errors of one unit at a time.

    Attributes:
        steps: [S] step buckets they were measured at, increasing.
        influence: [S] how far the next sample moves for an error of one in the output at each step.
        errors: by the unit's name and width, [S] relative squared error of the denoiser's output at each step.
    """

    steps: I64
    influence: F64
    errors: Mapping[str, Mapping[int, F64]]

    def total(self, name: str, width: int) -> float:
        """Squared error that a unit brings into the samples, ``sum_t influence[t]^2 error[t]``."""
        return float(self.influence**2 @ self.errors[name][width])


@dataclass(frozen=True, kw_only=True)
class _Trial:
    question: str
    unit: Unit
    width: int


def measure_sensitivity(
    denoiser: Denoiser,
    options: SharedOptions,
    source: CalibrationSource,
    questions: Mapping[str, Question],
    progress: ProgressCallback,
) -> dict[str, Sensitivity]:
    """Quantize each unit alone, at each width of each question, and compare the output with the float model's.

    ``error[t] = sum (output - float output)^2 / sum (float output)^2`` over the inputs of step t. Weights are rounded
    by the method's range search; nothing is trained or dilated. Blocks before the unit's first layer give the outputs
    they gave in the float model, once computed.

    Args:
        denoiser: the float model.
        options: bits, steps, groups of steps, memory.
        source: where inputs come from.
        questions: by a name of the caller's; all layers are integer layers by the options.
        progress: called with (measurements done, measurements).

    Returns:
        The answer to each question.
    """
    few = replace(
        options, samples=min(RANGE_SAMPLES, options.samples), calibration_choice="uniform", outputs=False, **_NO_BUDGETS
    )
    calibration = collect_inputs(denoiser, few, source, progress)
    prepared = prepare(denoiser, few)
    wanted = {name for question in questions.values() for unit in question.units for name in unit}
    prepared = replace(prepared, layers={name: layer for name, layer in prepared.layers.items() if name in wanted})
    inputs, steps = calibration.inputs, len(calibration.timesteps)
    ranges = collect_ranges(
        prepared,
        inputs,
        steps=steps,
        draw_values=any(question.search for question in questions.values()),
        seed=options.seed,
        batch=batch_of(denoiser, 64),
    )
    layers = {
        (name, width): own
        for name, question in questions.items()
        for width, own in _layers_of(question, prepared, ranges, few).items()
    }
    trials = [
        _Trial(question=name, unit=unit, width=width)
        for name, question in questions.items()
        for unit in question.units
        for width in question.widths
    ]
    chosen = _inputs_to_measure(inputs["step"], steps)
    measured = {name: value[chosen] for name, value in inputs.items()}
    at, errors = _Measurement(prepared, layers, trials, measured, options.memory_gib, progress).run()
    # a file of latents names no sampler, and not every scheduler says it: then steps count alike
    influence = step_influence(denoiser, options, source)
    if influence is None or len(influence) != steps:
        influence = np.ones(steps)
        note = "how far an error in a step moves the sample is not known: all steps count alike for the budget"
        progress(Progress(stage="sensitivity", done=1, total=1, note=note))
    found: dict[str, dict[str, dict[int, F64]]] = {name: {} for name in questions}
    for trial, own in zip(trials, errors, strict=True):
        found[trial.question].setdefault(trial.unit[0], {})[trial.width] = own
    return {name: Sensitivity(steps=at, influence=influence[at], errors=own) for name, own in found.items()}


def _layers_of(
    question: Question, prepared: Prepared, ranges: Mapping[str, LayerRanges], options: SharedOptions
) -> dict[int, dict[str, Layer]]:
    """The integer layers of a question at each width; weights of the same bits are rounded once."""
    by_weights: dict[int | None, dict[str, Layer]] = {}
    found = {}
    groups = options.groups_of_steps(steps_of(ranges))
    for width, bits in question.widths.items():
        chosen = _at_bits(prepared, question.units, bits)
        rounded = by_weights.get(bits[0])
        if rounded is None:
            found[width] = by_weights[bits[0]] = initial_layers(chosen, ranges, options, search=question.search)
            continue
        found[width] = {
            name: _with_tables(
                rounded[name],
                layer,
                ranges[name].input_tables(
                    layer, groups=groups, symmetric=options.symmetric_activations, search=question.search
                ),
            )
            for name, layer in chosen.layers.items()
        }
    return found


def _with_tables(rounded: Layer, prepared: PreparedLayer, tables: Sequence[tuple[F32, I32]]) -> Layer:
    """An integer layer with other activation quantizers, of the bits that `prepared` has."""
    parts = [
        replace(part, scale=scale, zero_point=zero) for part, (scale, zero) in zip(rounded.parts, tables, strict=True)
    ]
    return layer_of_parts(prepared, parts, bias=rounded.bias, output=None, symmetric=rounded.q_min < 0)


def _at_bits(prepared: Prepared, units: Sequence[Unit], bits: tuple[int | None, int | None]) -> Prepared:
    """The layers of these units alone, with other bits."""
    weights, activations = bits
    layers = {}
    for name in (name for unit in units for name in unit):
        own = prepared.layers[name].bits
        changed = replace(
            own,
            weight_bits=own.weight_bits if weights is None else weights,
            activation_bits=own.activation_bits if activations is None else activations,
        )
        layers[name] = replace(prepared.layers[name], bits=changed)
    return replace(prepared, layers=layers)


def _inputs_to_measure(step: I64, steps: int) -> I64:
    """Indices of the first inputs of each of `MOST_INPUTS` steps at most, spread evenly."""
    chosen = np.unique(np.linspace(0, steps - 1, min(steps, MOST_INPUTS)).round().astype(np.int64))
    each = max(1, MOST_INPUTS // steps)
    return np.sort(np.concatenate([np.flatnonzero(step == t)[:each] for t in chosen]))


class _Measurement:
    """One float model, the layers of each question and width, and the inputs errors are measured on."""

    def __init__(
        self,
        prepared: Prepared,
        layers: Mapping[tuple[str, int], Mapping[str, Layer]],
        trials: Sequence[_Trial],
        inputs: Mapping[str, Array],
        memory_gib: float,
        progress: ProgressCallback,
    ) -> None:
        self.module, self.call = prepared.module, prepared.call
        self.layers, self.trials = layers, trials
        self.inputs = inputs
        self.progress = progress
        blocks = {block.name: block for block in blocks_of(self.module, prepared.call)}
        flow = flow_of_blocks(self.module, list(blocks.values()), inputs, prepared.call)
        self.order = flow.order
        self.position = {layer: i for i, name in enumerate(self.order) for layer in blocks[name].layers}
        each = sum(flow.output_bytes(name) for name in self.order)
        self.batch = max(1, min(MOST_INPUTS, int(memory_gib * GIB / 2) // each))
        self.context, self.device = StepContext(), next(self.module.parameters()).device
        self.kept: dict[str, Nested] = {}

    def run(self) -> tuple[I64, list[F64]]:
        """Step buckets, [S], and the errors of every trial."""
        steps, slot = np.unique(self.inputs["step"], return_inverse=True)
        squares = [np.zeros(len(steps)) for _ in self.trials]
        norm = np.zeros(len(steps))
        chunks = batches(len(slot), self.batch)
        done, total = 0, len(chunks) * len(self.trials)
        with torch.no_grad():
            for chunk in chunks:
                given = model_inputs(self.inputs, chunk, self.call)
                self.context.step = torch.from_numpy(self.inputs["step"][chunk])
                target = self._float_pass(given)
                np.add.at(norm, slot[chunk], _squares(target))
                for trial, own in zip(self.trials, squares, strict=True):
                    output = self._with_layers(trial, given)
                    np.add.at(own, slot[chunk], _squares(output - target))
                    done += 1
                    self.progress(Progress(stage="sensitivity", done=done, total=total))
        self.kept.clear()
        norm = np.where(norm > 0, norm, 1.0)
        return steps, [own / norm for own in squares]

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

    def _with_layers(self, trial: _Trial, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Output of the model with a unit's integer layers; blocks before them are not computed again."""
        first = min(self.position[name] for name in trial.unit)
        before = [(self.module.get_submodule(n), self.kept[n]) for n in self.order[:first]]
        layers = self.layers[trial.question, trial.width]
        originals = {name: self.module.get_submodule(name) for name in trial.unit}
        try:
            for child, output in before:
                child.forward = lambda *_args, _output=output, **_kwargs: copied(_output)
            for name in trial.unit:
                replace_layer(self.module, name, IntegerLayer(layers[name], self.context).to(self.device))
            return call_denoiser(self.module, given)
        finally:
            for name, original in originals.items():
                replace_layer(self.module, name, original)
            for child, _ in before:
                child.__dict__.pop("forward", None)


def _squares(values: torch.Tensor) -> F64:
    """Sum of squares of each sample, [B] float64."""
    result: F64 = values.double().square().flatten(1).sum(1).cpu().numpy()
    return result
