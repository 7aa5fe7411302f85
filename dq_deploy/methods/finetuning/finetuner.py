"""Selective finetuning (QuEST, arXiv 2402.03666): few layers' weights and all activation scales, on the whole model.

A stage trains the weights of its layers and activation quantizers at once:

    loss = mean of |y - y_float|^2 / start[t]  +  layer_loss * mean over its layers of e(y_l)
    e(y_l) = |y_l - y_l,float|^2 / |y_l,float|^2

start[t] is the mean error of step t before the stage: without it the last steps, where the noise left in a sample can
hardly be told, outweigh all others. With weights w[t], as of `picture_influence`, the first term is instead

    sum over t of  w[t] * mean |y - y_float|^2    over the same before the stage

and inputs are drawn in proportion to the root of each step's part in it, and weighted back.

y is the output of the quantized denoiser and y_l that of a layer inside it, both at inputs of the float model's own
trajectory, or of the quantized one's; no data is needed. Stages are `time-embedding` (the projections into the residual
blocks, with their own activation quantizers) and `attention` (queries, keys, values, outputs and feed-forward layers,
with the activation quantizers of all layers but the projections, on the error of y alone).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dq_deploy.errors import NonFiniteError, library_errors
from dq_deploy.methods.blocks.storage import GIB
from dq_deploy.methods.finetuning.held_out import train_and_held_out
from dq_deploy.methods.finetuning.stages import Stage
from dq_deploy.methods.options import QuestOptions
from dq_deploy.methods.prepare.calibration_inputs import batch_of
from dq_deploy.methods.prepare.initial_record import InitialState, initial_state, working_module
from dq_deploy.methods.prepare.preparation import sharing_copy
from dq_deploy.methods.progress import Progress, ProgressCallback
from dq_deploy.methods.ranges.step_ranges import model_inputs
from dq_deploy.methods.training.pieces import Kept, Pieces, computed_again, kept_by, pieces_that_fit
from dq_deploy.methods.training.trainable import TrainableLayer
from dq_deploy.models import Denoiser, blocks_of, call_denoiser, quantizable_layers
from dq_deploy.numerics.arrays import F64, Array
from dq_deploy.record import Record
from dq_deploy.simulation.fake_quant import StepContext

CHECKS = 2
"""Times a stage looks at the held-out error, its end included; more often where that is over CHECK_EVERY iterations."""
CHECK_EVERY = 100
BACK_OFF = 0.25
"""Share of its rates with which training goes on from the best state, where the error has not fallen at a look."""
REPORT_EVERY = 5
STORED_SHARE = 0.25
"""Share of `memory_gib` in which float outputs of a stage's layers are stored."""
LEAST_CHANCE = 0.05
"""Of the step that is drawn most: what every other one is drawn at least."""
SMALLEST = 1e-12
"""Least error a step is compared with; one of no error at all has nothing to learn."""
EPSILON = 1e-12
"""Adam's, far below any gradient of a relative loss."""


@contextmanager
def _outputs_of(module: torch.nn.Module, names: Iterable[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Inside, the table holds what each named layer gave in the latest pass."""
    seen: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Any:
        def note(_module: torch.nn.Module, _args: Any, output: torch.Tensor) -> None:
            seen[name] = output

        return note

    handles = [module.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class _FloatOutputs:
    """What the float model gives at a stage's layers: stored where `memory_gib` allows, else computed each time."""

    def __init__(self, owner: Finetuner, point: InitialState, stage: Stage) -> None:
        self.owner = owner
        names = stage.layers
        self.names = names if stage.local else ()
        self.factors = {name: torch.from_numpy(value) for name, value in point.output_factors.items()}
        self.stored: dict[str, torch.Tensor] = {}
        self.spread: dict[str, float] = {}
        if not names:
            return
        first = self._compute(owner.train[: owner.piece], names)
        self.spread = {name: float(value.std()) or 1.0 for name, value in first.items()}
        if not self.names:
            return
        each = sum(value[0].numel() * 4 for value in first.values())
        if each * len(owner.train) <= owner.options.memory_gib * GIB * STORED_SHARE:
            shapes = {name: (len(owner.train), *first[name].shape[1:]) for name in names}
            self.stored = {name: torch.empty(shape, dtype=first[name].dtype) for name, shape in shapes.items()}
            for index in owner.train.split(owner.piece):
                for name, value in self._compute(index, names).items():
                    self.stored[name][index] = value.cpu()

    @torch.no_grad()
    def _compute(self, index: torch.Tensor, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        module = self.owner.float_module
        with _outputs_of(module, names) as seen:
            call_denoiser(module, self.owner.model_inputs(index))
        found = {}
        for name in names:
            factor = self.factors.get(name)
            found[name] = seen[name] if factor is None else seen[name] * factor.to(seen[name].device)
        return found

    def at(self, index: torch.Tensor) -> dict[str, torch.Tensor]:
        """By layer name, for the inputs at these positions of `train`, which is the start of all inputs."""
        if not self.stored:
            return self._compute(index, self.names) if self.names else {}
        return {name: value[index].to(self.owner.options.device) for name, value in self.stored.items()}


def largest_share(denoiser: Denoiser) -> float:
    """Share of all values that enter and leave layers which is that of one block, at most."""
    module, call = denoiser.module, denoiser.call
    values = {
        site.name: int(np.prod(site.input_shape)) + int(np.prod(site.output_shape))
        for site in quantizable_layers(module, call)
    }
    return max(sum(values[name] for name in block.layers) for block in blocks_of(module, call)) / sum(values.values())


class Finetuner:
    """Trains stages of one model, each from a record to a record.

    Args:
        denoiser: the float model.
        inputs: calibration inputs by name, with `step`.
        options: rates, iterations a stage, parts left out.
        progress: called now and then.
        stages: how many there will be.
        influence: [T] how far the next sample moves for an error of one in the output at each step; None where that is
            not known, and all steps' relative errors count alike.
        weights: [T] of each step's squared error, in the loss and in what is kept; None for `start` and the influence.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        inputs: Mapping[str, Array],
        options: QuestOptions,
        progress: ProgressCallback,
        *,
        stages: int,
        influence: F64 | None = None,
        weights: F64 | None = None,
    ) -> None:
        self.denoiser = denoiser
        self.weights = None if weights is None else torch.from_numpy(weights)
        self.chances: torch.Tensor | None = None
        self.float_module = denoiser.module
        if options.device != "cpu":
            self.float_module = sharing_copy(denoiser.module).to(options.device)
        order, held = train_and_held_out(inputs)
        self.inputs = {name: value[order] for name, value in inputs.items()}
        self.options = options
        self.progress = progress
        self.total = stages * options.finetune_iterations
        self.step = torch.from_numpy(self.inputs["step"])
        self.context = StepContext()
        self.piece = batch_of(denoiser, options.batch)
        self.blocks = [block.name for block in blocks_of(denoiser.module, denoiser.call)]
        count = len(self.step)
        self.train = torch.arange(max(count - held, 1))
        self.held = torch.arange(count - held, count)
        self.target = self._float_outputs()
        known = influence is not None and len(influence) == int(self.step.max()) + 1 and bool(influence.any())
        self.influence = torch.from_numpy(influence) if influence is not None and known else None

    def model_inputs(self, index: torch.Tensor) -> dict[str, Any]:
        """Inputs of the denoiser by name."""
        return model_inputs(self.inputs, index.numpy(), self.denoiser.call)

    @torch.no_grad()
    def _float_outputs(self) -> torch.Tensor:
        everything = torch.arange(len(self.step))
        module = self.float_module
        return torch.cat([call_denoiser(module, self.model_inputs(i)).cpu() for i in everything.split(self.piece)])

    def run(self, stage: Stage, number: int, record: Record) -> tuple[Record, dict[str, Any]]:
        """Train one stage; the record after it is the best one by the held-out error, which may be the one before.

        Args:
            stage: which layers' weights.
            number: of the stage, from 0.
            record: where it begins.

        Returns:
            The record, output tables as before, and what happened as JSON values.

        Raises:
            NonFiniteError: the loss is NaN or infinite; names stage and iteration.
        """
        point = initial_state(record, self.denoiser)
        floats = _FloatOutputs(self, point, stage)
        module, layers = working_module(point, stage.layers, floats.spread, self.context)
        module.to(self.options.device)
        groups = [
            group
            for name, layer in layers.items()
            for group in layer.parameter_groups(self._rates(stage, name, layer.prepared.weight_bits))
        ]
        before = self._held_out_errors(module).clamp_min(SMALLEST)
        unit = self._unit(before)
        pieces = self._pieces(module, floats, unit, stage) if groups else Pieces(size=1, again=False)
        optimizer = torch.optim.Adam(groups, eps=EPSILON) if groups else None
        iterations = self.options.finetune_iterations if optimizer else 0
        best, share, kept, backed_off = _values(groups), 1.0, "start", 0
        for i in self._iterations(stage, number, module, floats, unit, optimizer, iterations, pieces):
            found = self._share_left(self._held_out_errors(module), before)
            if found < share:
                best, share, kept = _values(groups), found, f"iteration {i}"
                continue
            assert optimizer is not None
            _go_back(optimizer, best)
            backed_off += 1
        total = sum(part.w_code[0].size for layer in record.layers.values() for part in layer.parts)
        trained = sum(point.layers[name].weight.size for name in stage.layers)
        note = {
            "stage": "finetune",
            "part": stage.name,
            "layers": len(stage.layers),
            "iterations": iterations,
            "weights_trained": trained,
            "share_of_weights": trained / total,
            "held_out_inputs": len(self.held),
            "influence": None if self.influence is None else [float(f"{x:.4g}") for x in self.influence],
            "error_of_start": float(before.mean()),
            "share_of_error_left": share,
            "kept": kept,
            "times_backed_off": backed_off,
            "learning_rates": self._rates(stage, next(iter(stage.layers), "")),
        }
        if point.frozen:
            note["frozen_layers"] = dict(point.frozen)
        if kept == "start":
            return record, note
        _put(groups, best)
        return _with_layers(record, layers), note

    def _rates(self, stage: Stage, name: str, weight_bits: int = 4) -> dict[str, float]:
        """A layer's learning rates by kind; `lr_weight` is in codes of 4 bits, so a weight moves alike at any width."""
        options = self.options
        rates: dict[str, float] = {}
        if name in stage.scales:
            rates |= {"scale": options.lr_scale, "zero_point": options.lr_zero_point}
        if name in stage.layers:
            codes = options.lr_weight * 2.0 ** (weight_bits - 4)
            rates |= {"weight": codes, "weight_scale": options.lr_weight_scale, "bias": options.lr_bias}
        return rates

    def _share_left(self, errors: torch.Tensor, before: torch.Tensor) -> float:
        """Of what the errors [T] at the start move the samples, the share that is left: a step by its influence."""
        weight = self.weights
        if weight is None and self.influence is not None:
            weight = self.influence.square()
        if weight is None:
            return float((errors / before).mean())
        return float((weight * errors).sum() / (weight * before).sum())

    def _iterations(
        self,
        stage: Stage,
        number: int,
        module: torch.nn.Module,
        floats: _FloatOutputs,
        unit: torch.Tensor,
        optimizer: torch.optim.Optimizer | None,
        iterations: int,
        pieces: Pieces,
    ) -> Iterator[int]:
        """Train; stops at each iteration, counted from 1, after which the held-out error is wanted."""
        if optimizer is None or not iterations:
            return
        every = min(math.ceil(iterations / CHECKS), CHECK_EVERY)
        for group in optimizer.param_groups:
            group["whole_lr"] = group["lr"]
        generator = torch.Generator().manual_seed(self.options.seed * 100_003 + 7_919 * (number + 1))
        recent: list[float] = []
        for i in range(1, iterations + 1):
            fade = 0.5 * (1 + math.cos(math.pi * (i - 1) / iterations))
            for group in optimizer.param_groups:
                group["lr"] = group["whole_lr"] * fade
            chosen = self._draw(generator)
            optimizer.zero_grad(set_to_none=True)
            with library_errors(f"finetuning stage {stage.name}, iteration {i}", "check the model and the options"):
                value = self._backward(module, floats, unit, chosen, pieces)
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"finetuning stage {stage.name}: the loss is {value} at iteration {i}, expected a finite number; "
                    "lower lr_weight and lr_scale in a preset"
                )
            optimizer.step()
            recent.append(value)
            if i % REPORT_EVERY == 0 or i == iterations:
                mean = sum(recent[-REPORT_EVERY:]) / len(recent[-REPORT_EVERY:])
                done = number * self.options.finetune_iterations + i
                self.progress(Progress(stage="finetune", done=done, total=self.total, block=stage.name, loss=mean))
            if i % every == 0 or i == iterations:
                yield i

    def _backward(
        self,
        module: torch.nn.Module,
        floats: _FloatOutputs,
        unit: torch.Tensor,
        chosen: torch.Tensor,
        pieces: Pieces,
    ) -> float:
        """Loss of a batch; its gradients are summed over pieces that fit in memory."""
        value = 0.0
        with self._computed(module, pieces.again), _outputs_of(module, floats.names) as seen:
            for index in chosen.split(pieces.size):
                loss = self._loss(module, floats, unit, index, seen) * (len(index) / len(chosen))
                loss.backward()
                value += loss.item()
        return value

    def _loss(
        self,
        module: torch.nn.Module,
        floats: _FloatOutputs,
        unit: torch.Tensor,
        index: torch.Tensor,
        seen: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Loss of some inputs; `seen` holds what the stage's layers give in this pass."""
        self.context.step = self.step[index]
        output = call_denoiser(module, self.model_inputs(index))
        terms = []
        if self.options.uses("global-loss"):
            errors = (output - self.target[index].to(output.device)).square().flatten(1).mean(1)
            terms.append((errors / unit[self.step[index]].to(output.device)).mean())
        if floats.names:
            wanted = floats.at(index)
            inner = [_relative_error(seen[name], wanted[name]) for name in floats.names]
            terms.append(self.options.layer_loss * torch.stack(inner).mean())
        return torch.stack(terms).sum()

    @contextmanager
    def _computed(self, module: torch.nn.Module, again: bool) -> Iterator[None]:
        """Inside, blocks keep only what they are given, where `again` says so."""
        with computed_again([module.get_submodule(name) for name in self.blocks] if again else []):
            yield

    def _pieces(self, module: torch.nn.Module, floats: _FloatOutputs, unit: torch.Tensor, stage: Stage) -> Pieces:
        """How many inputs of a batch are computed at once, and whether blocks are computed again."""
        blocks, whole = [module.get_submodule(name) for name in self.blocks], 0

        def measure(again: bool) -> Kept:
            nonlocal whole
            with self._computed(module, again), _outputs_of(module, floats.names) as seen:

                def run(count: int) -> torch.Tensor:
                    return self._loss(module, floats, unit, self.train[torch.arange(count) % len(self.train)], seen)

                kept = kept_by(run, blocks if again else ())
            if not again:
                whole = kept.each
                return kept
            # on the way back one block at a time is computed again with all that it keeps
            return replace(kept, each=kept.each + int(whole * largest_share(self.denoiser)))

        return pieces_that_fit(
            measure,
            self.options.batch,
            self.options.memory_gib * GIB / 2,
            what=f"stage {stage.name}",
            share="half",
            memory_gib=self.options.memory_gib,
        )

    def _unit(self, before: torch.Tensor) -> torch.Tensor:
        """What the errors of each step are divided by, [T]: in the mean over what is drawn they are one at first."""
        if self.weights is None:
            return before.float()
        parts = self.weights * before
        drawn = parts.sqrt().clamp_min(float(parts.max().sqrt()) * LEAST_CHANCE)
        step = self.step[self.train]
        each = torch.bincount(step, minlength=len(parts))
        drawn = drawn * (each > 0)
        drawn /= drawn.sum()
        self.chances = (drawn / each.clamp_min(1))[step]
        return (parts.sum() * drawn / self.weights.clamp_min(SMALLEST)).float().clamp_min(SMALLEST)

    def _draw(self, generator: torch.Generator) -> torch.Tensor:
        """Positions of a batch of inputs to train on."""
        if self.chances is None:
            return torch.randint(0, len(self.train), (self.options.batch,), generator=generator)
        return torch.multinomial(self.chances, self.options.batch, replacement=True, generator=generator)

    @torch.no_grad()
    def _held_out_errors(self, module: torch.nn.Module) -> torch.Tensor:
        """Mean square error of the denoiser's output at each step, [T], on inputs never trained on.

        A step that no such input is at gets the mean of the others.
        """
        steps = int(self.step.max()) + 1
        total, count = torch.zeros(steps, dtype=torch.float64), torch.zeros(steps, dtype=torch.float64)
        for index in self.held.split(self.piece):
            self.context.step = self.step[index]
            output = call_denoiser(module, self.model_inputs(index))
            errors = (output.cpu() - self.target[index]).double().square().flatten(1).mean(1)
            total.index_add_(0, self.step[index], errors)
            count.index_add_(0, self.step[index], torch.ones_like(errors))
        known = count > 0
        return torch.where(known, total / count.clamp_min(1), total[known].sum() / count[known].sum())


def _values(groups: list[dict[str, Any]]) -> list[list[torch.Tensor]]:
    return [[p.detach().clone() for p in group["params"]] for group in groups]


@torch.no_grad()
def _put(groups: list[dict[str, Any]], values: list[list[torch.Tensor]]) -> None:
    for group, saved in zip(groups, values, strict=True):
        for parameter, value in zip(group["params"], saved, strict=True):
            parameter.copy_(value)


def _go_back(optimizer: torch.optim.Optimizer, values: list[list[torch.Tensor]]) -> None:
    _put(optimizer.param_groups, values)
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group["whole_lr"] *= BACK_OFF


def _relative_error(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.mse_loss(given, wanted) / wanted.square().mean().clamp_min(1e-20)


def _with_layers(record: Record, layers: Mapping[str, TrainableLayer]) -> Record:
    """The record with trained layers in their places; output tables stay."""
    new = dict(record.layers)
    for name, trained in layers.items():
        old = record.layers[name]
        new[name] = replace(trained.harvest(), out_scale=old.out_scale, out_zero_point=old.out_zero_point)
    return replace(record, layers=new)
