"""The training of one block: its loss, its iterations, and what stops it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dq_deploy.methods.training.prefix import BlockInputs
from dq_deploy.methods.training.random_mask import random_mask
from dq_deploy.methods.training.reconstruction import Reconstruction
from dq_deploy.methods.training.trainable import TrainableLayer
from dq_deploy.methods.training.weight_rounding import penalty_beta, rounding_penalty
from dq_deploy.simulation.fake_quant import StepContext

REPORT_EVERY = 10
EPSILON = 1e-12
"""Adam's, far below any gradient of a relative loss."""


class DivergedError(Exception):
    """A block's training gave NaN or infinity; the message says where."""


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
        context: step context of the trainable layers.
    """

    module: torch.nn.Module
    float_module: torch.nn.Module
    layers: Mapping[str, TrainableLayer]
    given: BlockInputs
    float_given: BlockInputs | None
    target: torch.Tensor
    step: torch.Tensor
    context: StepContext


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
    with _BlockLoss(block, settings, generator).watching() as loss_of:
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


class _BlockLoss:
    """Loss of a batch: see `Reconstruction`."""

    def __init__(self, block: TrainedBlock, settings: Reconstruction, generator: torch.Generator) -> None:
        self.block = block
        self.settings = settings
        self.generator = generator
        self.norm = float(block.target.square().mean()) or 1.0
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
        loss = self._output_error(output, block.target[index])
        if self.inner:
            assert block.float_given is not None
            with torch.no_grad():
                call_block(block.float_module, block.float_given.take(index))
            errors = [_relative_error(self.outputs[name], self.targets[name]) for name in self.inner]
            loss = loss + settings.layer_loss * torch.stack(errors).sum()
        beta = penalty_beta(iteration, settings.iterations) if settings.rounding_penalty else None
        if self.roundings and beta is not None:
            count = sum(rounding.numel() for rounding in self.roundings)
            undecided = torch.stack([rounding_penalty(rounding, beta) for rounding in self.roundings]).sum() / count
            loss = loss + settings.rounding_penalty * undecided
        return loss

    def _output_error(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.settings.sample_weights is None:
            return torch.nn.functional.mse_loss(output, target) / self.norm
        losses = (output - target).square().flatten(1).mean(1) / self.norm
        return (self.settings.sample_weights(self.block.context.step, losses.detach()) * losses).mean()

    def _mixed(self, index: torch.Tensor) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Arguments of the quantized block, a share of their values from the float prefix."""
        args, kwargs = self.block.given.take(index)
        if not self.settings.input_mix:
            return args, kwargs
        assert self.block.float_given is not None
        float_args, float_kwargs = self.block.float_given.take(index)
        mixed = [self._mix(mine, other) for mine, other in zip(args, float_args, strict=True)]
        return mixed, {key: self._mix(value, float_kwargs[key]) for key, value in kwargs.items()}

    def _mix(self, mine: Any, other: Any) -> Any:
        if not isinstance(mine, torch.Tensor) or not mine.is_floating_point():
            return mine
        is_float = random_mask(tuple(mine.shape), self.settings.input_mix, self.generator)
        return torch.where(is_float, other, mine)


def call_block(module: torch.nn.Module, given: tuple[Sequence[Any], Mapping[str, Any]]) -> torch.Tensor:
    """Output of a block for arguments as `BlockInputs.take` gives them."""
    args, kwargs = given
    output: torch.Tensor = module(*args, **kwargs)
    return output


def _catcher(into: dict[str, torch.Tensor], name: str) -> Callable[..., None]:
    def hook(module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        into[name] = output

    return hook


def _relative_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    error = torch.nn.functional.mse_loss(output, target)
    return error / target.square().mean().clamp(min=torch.finfo(torch.float32).tiny)
