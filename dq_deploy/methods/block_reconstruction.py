"""Block-wise knowledge distillation (DilateQuant, arXiv 2409.14307; the blocks are those of BRECQ).

Each block learns to give behind the quantized prefix what the float block gives behind the float prefix.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dq_deploy.errors import NonFiniteError, OptionError
from dq_deploy.methods.fake_quant import IntegerLayer, StepContext, replace_layer
from dq_deploy.methods.options import QuantizeOptions
from dq_deploy.methods.prefix import CHUNK, BlockInputs, Flow, Prefix, trace_flow
from dq_deploy.methods.preparation import Prepared
from dq_deploy.methods.progress import Progress, ProgressCallback
from dq_deploy.methods.ranges import LayerRanges, StepRange, batches, of_steps
from dq_deploy.methods.resume import ResumeFolder
from dq_deploy.methods.scales import activation_table
from dq_deploy.methods.trainable import TrainableLayer
from dq_deploy.models import Block, blocks_of
from dq_deploy.record import Layer

GIB = 1 << 30
REPORT_EVERY = 10
EPSILON = 1e-12
"""Adam's, far below any gradient of a relative loss."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Distilled:
    """Layers after training and what happened, block by block (JSON values)."""

    layers: dict[str, Layer]
    history: list[dict[str, Any]]


class Distiller:
    """Trains the blocks of one model in order."""

    def __init__(
        self,
        prepared: Prepared,
        start: Mapping[str, Layer],
        ranges: Mapping[str, LayerRanges],
        inputs: Mapping[str, NDArray[Any]],
        options: QuantizeOptions,
        progress: ProgressCallback,
    ) -> None:
        self.prepared = prepared
        self.start = start
        self.ranges = ranges
        self.options = options
        self.progress = progress
        blocks = {block.name: block for block in blocks_of(prepared.module)}
        self.steps = int(inputs["step"].max()) + 1
        self.flow = trace_flow(prepared.module, list(blocks.values()), inputs)
        self.blocks = [blocks[name] for name in self.flow.order]
        self.count = self._count(self.flow, len(inputs["step"]))
        chosen = {name: value[: self.count] for name, value in inputs.items()}
        self.step = torch.from_numpy(chosen["step"])
        self.context = StepContext()
        self.reference = Prefix(prepared.module, self.flow, chosen, self.count)
        self.quantized = Prefix(copy.deepcopy(prepared.module), self.flow, chosen, self.count)
        self.trained = [i for i, b in enumerate(self.blocks) if self._layers_of(b)]

    def _layers_of(self, block: Block) -> list[str]:
        return [name for name in block.layers if name in self.start]

    def _count(self, flow: Flow, available: int) -> int:
        """Calibration inputs whose block inputs and outputs fit into memory, whole trajectories."""
        fit = int(self.options.memory_gib * GIB) // flow.peak_bytes
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

    def run(self, state: ResumeFolder | None) -> Distilled:
        """Train every block, or take it from the state of an earlier run."""
        layers: dict[str, Layer] = {}
        history: list[dict[str, Any]] = []
        total = len(self.trained) * self.options.iterations
        for index, block in enumerate(self.blocks):
            target = self._reference_output(block)
            given = self.quantized.next_inputs()
            names = self._layers_of(block)
            done = self.trained.index(index) * self.options.iterations if names else 0
            loaded = state.load_block(index, block.name, self.prepared.layers) if state and names else None
            if loaded is not None:
                finished, note = loaded
                self._place(finished)
                output = self._output(block, given)
                self.progress(Progress(stage="distill", done=done + self.options.iterations, total=total))
            else:
                note = self._train(block, names, given, target, done, total)
                finished, output, note = self._finish(block, names, given, target, note)
                if state is not None and names:
                    state.save_block(index, block.name, finished, note)
            self.reference.finish(target)
            self.quantized.finish(output)
            layers.update(finished)
            if names:
                history.append(note)
        return Distilled(layers=layers, history=history)

    def _reference_output(self, block: Block) -> torch.Tensor:
        given = self.reference.next_inputs()
        module = self.prepared.module.get_submodule(block.name)
        with torch.no_grad():
            return torch.cat([_call(module, given, chunk) for chunk in batches(self.count, CHUNK)])

    def _place(self, layers: Mapping[str, Layer]) -> None:
        for name, layer in layers.items():
            replace_layer(self.quantized.module, name, IntegerLayer(layer, self.context))

    def _output(self, block: Block, given: BlockInputs) -> torch.Tensor:
        module = self.quantized.module.get_submodule(block.name)
        pieces = []
        with torch.no_grad():
            for chunk in batches(self.count, CHUNK):
                self.context.step = self.step[chunk]
                pieces.append(_call(module, given, chunk))
        return torch.cat(pieces)

    def _train(
        self,
        block: Block,
        names: list[str],
        given: BlockInputs,
        target: torch.Tensor,
        done: int,
        total: int,
    ) -> dict[str, Any]:
        """Put trainable layers in place and train them; returns the block's note."""
        layers = []
        for name in names:
            spread = _spread(self.ranges[name].output)
            layer = TrainableLayer(self.prepared.layers[name], self.start[name], spread, self.context)
            replace_layer(self.quantized.module, name, layer)
            layers.append(layer)
        note: dict[str, Any] = {"block": block.name, "layers": names}
        if not names or not self.options.iterations:
            return note
        module = self.quantized.module.get_submodule(block.name)
        groups = [group for layer in layers for group in layer.parameter_groups(self.options)]
        optimizer = torch.optim.Adam(groups, eps=EPSILON, fused=True)
        rates = [group["lr"] for group in optimizer.param_groups]
        generator = torch.Generator().manual_seed(self.options.seed * 100_003 + done)
        norm = float(target.square().mean()) or 1.0
        recent: list[float] = []
        for i in range(self.options.iterations):
            fade = 0.5 * (1 + math.cos(math.pi * i / self.options.iterations))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * fade
            index = torch.randint(0, self.count, (self.options.batch,), generator=generator)
            self.context.step = self.step[index]
            loss = torch.nn.functional.mse_loss(_call(module, given, index), target[index]) / norm
            value = loss.item()
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"block {block.name}: the loss is {value} at iteration {i + 1}, expected a finite number; "
                    "lower lr_weight and lr_scale in a preset"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            recent.append(value)
            if (i + 1) % REPORT_EVERY == 0 or i + 1 == self.options.iterations:
                mean = sum(recent[-REPORT_EVERY:]) / len(recent[-REPORT_EVERY:])
                self.progress(Progress(stage="distill", done=done + i + 1, total=total, block=block.name, loss=mean))
        return note

    def _finish(
        self,
        block: Block,
        names: list[str],
        given: BlockInputs,
        target: torch.Tensor,
        note: dict[str, Any],
    ) -> tuple[dict[str, Layer], torch.Tensor, dict[str, Any]]:
        """Replace trained layers by integer ones, compute the block's output, calibrate output tables."""
        layers: dict[str, Layer] = {}
        for name in names:
            trained = self.quantized.module.get_submodule(name)
            assert isinstance(trained, TrainableLayer)
            layers[name] = trained.harvest()
        self._place(layers)
        seen = {name: StepRange.empty(self.steps) for name in names}
        handles = [
            self.quantized.module.get_submodule(name).register_forward_hook(self._range_hook(seen[name]))
            for name in names
        ]
        output = self._output(block, given)
        for handle in handles:
            handle.remove()
        if self.options.outputs:
            layers = {name: self._with_output(layer, seen[name]) for name, layer in layers.items()}
            self._place(layers)
        if not bool(torch.isfinite(output).all()):
            raise NonFiniteError(f"block {block.name}: the quantized output is not finite; lower lr_scale")
        error = float((output - target).double().square().mean())
        norm = float(target.double().square().mean()) or 1.0
        return layers, output, {**note, "relative_error": error / norm}

    def _range_hook(self, into: StepRange) -> Any:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            into.add(output.reshape(len(output), -1), self.context.step.numpy(), None)

        return hook

    def _with_output(self, layer: Layer, seen: StepRange) -> Layer:
        from dataclasses import replace

        known = np.isfinite(seen.low) & np.isfinite(seen.high)
        low = np.where(known, seen.low, seen.low[known].min()).astype(np.float32)
        high = np.where(known, seen.high, seen.high[known].max()).astype(np.float32)
        groups = self.options.groups_of_steps(self.steps)
        ends = StepRange(low=low, high=high, draws=[]).ends(groups)
        scale, zero = of_steps(activation_table(*ends, bits=8), groups)
        return replace(layer, out_scale=scale, out_zero_point=zero)


def _call(module: torch.nn.Module, given: BlockInputs, index: torch.Tensor | slice) -> torch.Tensor:
    args, kwargs = given.take(index)
    output: torch.Tensor = module(*args, **kwargs)
    return output


def _spread(output: StepRange) -> float:
    """About the standard deviation of a layer's output: an eighth of its range."""
    spread = float(np.mean(output.high - output.low)) / 8
    return spread if spread > 0 else 1.0
