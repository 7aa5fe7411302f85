"""The loss of one block in training: how far its output, and those of its layers, are from the float block's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dq_deploy.calibration.sharding import Share
from dq_deploy.methods.blocks.measures import mean_squares
from dq_deploy.methods.blocks.nested_values import Gathered, mapped, tensors_in
from dq_deploy.methods.blocks.prefix import call_block
from dq_deploy.methods.training.random_mask import random_mask
from dq_deploy.methods.training.reconstruction import Reconstruction
from dq_deploy.methods.training.trainable import TrainableLayer
from dq_deploy.methods.training.weight_rounding import penalty_beta, rounding_penalty
from dq_deploy.simulation.fake_quant import StepContext


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedBlock:
    """One block in training.

    Attributes:
        module: the quantized block, with trainable layers in place.
        float_module: the same block of the float model.
        layers: the trainable layers by name within the block, in execution order.
        given: arguments behind the quantized prefix.
        float_given: arguments behind the float prefix, where the settings need them.
        target: float output for all inputs.
        step: [N] bucket of each input.
        share: which of all processes' inputs these are.
        context: step context of the trainable layers.
    """

    module: torch.nn.Module
    float_module: torch.nn.Module
    layers: Mapping[str, TrainableLayer]
    given: Gathered
    float_given: Gathered | None
    target: Gathered
    step: torch.Tensor
    share: Share
    context: StepContext


class BlockLoss:
    """Loss of a batch: see `Reconstruction`."""

    def __init__(self, block: TrainedBlock, settings: Reconstruction, generator: torch.Generator) -> None:
        self.block = block
        self.settings = settings
        self.generator = generator
        self.norms = [value or 1.0 for value in mean_squares(block.target.of_samples(), block.share)]
        self.unit = sum(self.norms) / len(self.norms)
        self.inner = list(block.layers)[:-1] if settings.layer_loss else []
        self.outputs: dict[str, torch.Tensor] = {}
        self.targets: dict[str, torch.Tensor] = {}
        self.roundings = [
            part.rounding for layer in block.layers.values() for part in layer.parts if hasattr(part, "rounding")
        ]

    @contextlib.contextmanager
    def watching(self) -> Iterator[Callable[[int | torch.Tensor, int], torch.Tensor]]:
        """The loss as a function of (input index, iteration), while outputs of inner layers are caught."""
        with contextlib.ExitStack() as stack:
            for name in self.inner:
                for module, into in (
                    (self.block.module, self.outputs),
                    (self.block.float_module, self.targets),
                ):
                    inner = module.get_submodule(name) if name else module
                    stack.callback(inner.register_forward_hook(_catcher(into, name)).remove)
            yield self._of

    def _of(self, index: torch.Tensor, iteration: int) -> torch.Tensor:
        block, settings = self.block, self.settings
        block.context.step = block.step[index]
        output = call_block(block.module, self._mixed(index))
        loss = self._output_error(list(tensors_in(output)), list(tensors_in(block.target.take(index))))
        if self.inner:
            assert block.float_given is not None
            with torch.no_grad():
                call_block(block.float_module, block.float_given.take(index))
            errors = [torch.nn.functional.mse_loss(self.outputs[name], self.targets[name]) for name in self.inner]
            loss = loss + settings.layer_loss * torch.stack(errors).sum() / self.unit
        beta = penalty_beta(iteration, settings.iterations) if settings.rounding_penalty else None
        if self.roundings and beta is not None:
            count = sum(rounding.numel() for rounding in self.roundings)
            undecided = torch.stack([rounding_penalty(rounding, beta) for rounding in self.roundings]).sum() / count
            loss = loss + settings.rounding_penalty * undecided
        return loss

    def _output_error(self, outputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> torch.Tensor:
        """The mean of the errors of what the block gives, each in relation to its target."""
        return torch.stack([self._error(*one) for one in zip(outputs, targets, self.norms, strict=True)]).mean()

    def _error(self, output: torch.Tensor, target: torch.Tensor, norm: float) -> torch.Tensor:
        if self.settings.sample_weights is None:
            return torch.nn.functional.mse_loss(output, target) / norm
        step = self.block.context.step
        losses = (output - target).square().reshape(len(step), -1).mean(1) / norm
        return (self.settings.sample_weights(step, losses.detach()) * losses).mean()

    def _mixed(self, index: torch.Tensor) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Arguments of the quantized block, a share of their values from the float prefix."""
        given: tuple[Sequence[Any], Mapping[str, Any]] = self.block.given.take(index)
        if not self.settings.input_mix:
            return given
        assert self.block.float_given is not None
        mixed: tuple[Sequence[Any], Mapping[str, Any]] = mapped(self._mix, given, self.block.float_given.take(index))
        return mixed

    def _mix(self, mine: Any, other: Any) -> Any:
        if not isinstance(mine, torch.Tensor) or not mine.is_floating_point():
            return mine
        is_float = random_mask(tuple(mine.shape), self.settings.input_mix, self.generator).to(mine.device)
        return torch.where(is_float, other, mine)


def _catcher(into: dict[str, torch.Tensor], name: str) -> Callable[..., None]:
    def hook(module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        into[name] = output

    return hook
