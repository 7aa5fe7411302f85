"""Inputs of a block behind everything before it, without computing that again.

Blocks that are finished give their stored outputs, so a pass through the model computes only what stands
between blocks (concatenations, resizing, residual additions). An output is stored until the last block that
reads it has been reached.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dq_deploy.errors import ModelError
from dq_deploy.methods.ranges.step_ranges import batches, model_inputs
from dq_deploy.models import Block, call_denoiser
from dq_deploy.numerics.arrays import Array

CHUNK = 64
"""Inputs at a time when a block's outputs are computed; part of what makes a resumed run equal."""


class _ReachedError(Exception):
    """Control flow: the target block has been called."""


@dataclass(frozen=True, kw_only=True)
class BlockInputs:
    """Arguments of a block for all calibration inputs; tensors have them on the first axis.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def take(self, index: torch.Tensor | slice) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of some inputs."""

        def pick(value: Any) -> Any:
            return value[index] if isinstance(value, torch.Tensor) else value

        return tuple(pick(v) for v in self.args), {k: pick(v) for k, v in self.kwargs.items()}


@dataclass(frozen=True, kw_only=True)
class Flow:
    """How blocks feed each other.

    Attributes:
        order: block names in the order they are called.
        last_reader: position of the last block that reads a block's output, -1 for none.
        output_shape: shape of a block's output for one input, without the batch axis.
        peak_bytes: most bytes one calibration input takes while blocks are trained one after another.
    """

    order: tuple[str, ...]
    last_reader: Mapping[str, int]
    output_shape: Mapping[str, tuple[int, ...]]
    peak_bytes: int


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    return [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]


def flow_of_blocks(
    module: torch.nn.Module,
    blocks: Sequence[Block],
    inputs: Mapping[str, Array],
    *,
    both_inputs: bool = False,
) -> Flow:
    """Run one input and see, by gradients, which block's output reaches which block's input.

    Args:
        module: the denoiser.
        blocks: its blocks.
        inputs: calibration inputs by name; the first is run.
        both_inputs: a block's inputs behind the float prefix are kept beside those behind the quantized one.

    Raises:
        ModelError: a block is not called exactly once.
    """
    order: list[str] = []
    leaves: dict[str, torch.Tensor] = {}
    readers: dict[str, int] = {}
    argument_bytes: list[int] = []
    originals = {block.name: module.get_submodule(block.name).forward for block in blocks}

    def watch(name: str) -> Any:
        def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
            given = [v for v in _tensors(args, kwargs) if v.requires_grad]
            known = list(leaves.values())
            if given and known:
                total = torch.stack([v.float().sum() for v in given]).sum()
                grads = torch.autograd.grad(total, known, retain_graph=True, allow_unused=True)
                for other, grad in zip(leaves, grads, strict=True):
                    if grad is not None:
                        readers[other] = len(order)
            argument_bytes.append(sum(v.numel() * v.element_size() for v in _tensors(args, kwargs)))
            order.append(name)
            with torch.no_grad():
                out = originals[name](*args, **kwargs)
            leaves[name] = out.detach().clone().requires_grad_()
            return leaves[name]

        return forward

    try:
        for block in blocks:
            module.get_submodule(block.name).forward = watch(block.name)
        with torch.enable_grad():
            call_denoiser(module, model_inputs(inputs, slice(0, 1)))
    finally:
        for block in blocks:
            del module.get_submodule(block.name).forward
    if sorted(order) != sorted(block.name for block in blocks):
        raise ModelError(f'blocks were called as {order}, expected each exactly once; use `method="minmax"`')
    last = {name: readers.get(name, -1) for name in order}
    sizes = {name: leaves[name].numel() * 4 for name in order}
    peak = 0
    for k, name in enumerate(order):
        alive = sum(sizes[other] for other in order[:k] if last[other] >= k)
        peak = max(peak, 2 * alive + (1 + both_inputs) * argument_bytes[k] + 2 * sizes[name])
    return Flow(
        order=tuple(order),
        last_reader=last,
        output_shape={name: tuple(leaves[name].shape[1:]) for name in order},
        peak_bytes=peak,
    )


def _whole(value: Any, count: int) -> Any:
    """Room for `count` rows like a tensor's; anything else as it is."""
    return value.new_empty((count, *value.shape[1:])) if isinstance(value, torch.Tensor) else value


def joined(pieces: Iterable[tuple[slice, torch.Tensor]], count: int) -> torch.Tensor:
    """All rows of `count` inputs from chunks of them, of which only one is held beside the result."""
    whole: torch.Tensor | None = None
    for chunk, piece in pieces:
        if whole is None:
            whole = _whole(piece, count)
        whole[chunk] = piece
    assert whole is not None
    return whole


class Prefix:
    """A module whose blocks are finished one after another, and the outputs still needed of them."""

    def __init__(self, module: torch.nn.Module, flow: Flow, inputs: Mapping[str, Array], count: int) -> None:
        self.module = module
        self.flow = flow
        self.inputs = inputs
        self.count = count
        self.outputs: dict[str, torch.Tensor] = {}
        self.position = 0

    def _stored(self, name: str, chunk: slice) -> Any:
        shape = self.flow.output_shape[name]

        def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
            if name in self.outputs:
                return self.outputs[name][chunk]
            return torch.zeros(1).expand(chunk.stop - chunk.start, *shape)  # nothing reads it any more

        return forward

    def _arguments(self, chunk: slice) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of the block at `position` for a chunk of inputs."""
        order = self.flow.order
        reached: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def stop(*args: Any, **kwargs: Any) -> None:
            reached.append((args, kwargs))
            raise _ReachedError

        patched = [(name, self._stored(name, chunk)) for name in order[: self.position]]
        patched.append((order[self.position], stop))
        modules = [self.module.get_submodule(name) for name, _ in patched]
        try:
            for child, (_, forward) in zip(modules, patched, strict=True):
                child.forward = forward
            call_denoiser(self.module, model_inputs(self.inputs, chunk))
        except _ReachedError:
            pass
        finally:
            for child in modules:
                child.__dict__.pop("forward", None)
        return reached[0]

    @torch.no_grad()
    def next_inputs(self) -> BlockInputs:
        """Arguments of the next block for all calibration inputs."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for chunk in batches(self.count, CHUNK):
            given, named = self._arguments(chunk)
            if chunk.start == 0:
                args = [_whole(value, self.count) for value in given]
                kwargs = {key: _whole(value, self.count) for key, value in named.items()}
            for into, value in (*zip(args, given, strict=True), *((kwargs[key], named[key]) for key in kwargs)):
                if isinstance(value, torch.Tensor):
                    into[chunk] = value
        return BlockInputs(args=tuple(args), kwargs=kwargs)

    def finish(self, output: torch.Tensor) -> None:
        """Store the next block's output for all inputs and go on to the block behind it."""
        self.outputs[self.flow.order[self.position]] = output
        self.position += 1
        for name in list(self.outputs):
            if self.flow.last_reader[name] < self.position:
                del self.outputs[name]
