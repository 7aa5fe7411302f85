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
from dq_deploy.methods.blocks.nested_values import (
    IN_MEMORY,
    Gathered,
    Nested,
    copied,
    entries_of,
    gathered,
    mapped,
    tensors_in,
)
from dq_deploy.methods.blocks.storage import BlockStore
from dq_deploy.methods.ranges.step_ranges import batches, model_inputs
from dq_deploy.models import Block, call_denoiser
from dq_deploy.numerics.arrays import Array
from dq_deploy.record import Call

CHUNK = 64
"""Inputs at a time when a block's outputs are computed, or fewer where the model's tensors are large.

It is part of what makes a resumed run equal.
"""


class _ReachedError(Exception):
    """Control flow: the target block has been called."""


@dataclass(frozen=True, kw_only=True)
class Flow:
    """How blocks feed each other.

    Attributes:
        order: block names in the order they are called.
        last_reader: position of the last block that reads a block's output, -1 for none.
        arguments: size of the leading axis of each tensor among a block's arguments, for one input.
        outputs: what a block gives for one input; its tensors have shapes and no values.
        peak_bytes: most bytes one calibration input takes while blocks are trained one after another.
    """

    order: tuple[str, ...]
    last_reader: Mapping[str, int]
    arguments: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, Nested]
    peak_bytes: int

    def output_bytes(self, name: str) -> int:
        """Of a block's output for one input."""
        return _bytes(self.outputs[name])


def call_block(module: torch.nn.Module, given: tuple[Sequence[Any], Mapping[str, Any]]) -> Nested:
    """Output of a block for arguments as `Prefix.next_inputs` gives them."""
    args, kwargs = given
    return module(*args, **kwargs)


def _bytes(value: Nested) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(value))


def flow_of_blocks(
    module: torch.nn.Module,
    blocks: Sequence[Block],
    inputs: Mapping[str, Array],
    call: Call,
    *,
    both_inputs: bool = False,
    quantized: bool = True,
) -> Flow:
    """Run one input and see, by gradients, which block's output reaches which block's input.

    Args:
        module: the denoiser.
        blocks: its blocks.
        inputs: calibration inputs by name; the first is run.
        call: of the denoiser.
        both_inputs: a block's inputs behind the float prefix are kept beside those behind the quantized one.
        quantized: there is a quantized prefix beside the float one.

    Raises:
        ModelError: a block is not called exactly once.
    """
    order: list[str] = []
    arguments: dict[str, tuple[int, ...]] = {}
    leaves: dict[str, list[torch.Tensor]] = {}
    outputs: dict[str, Nested] = {}
    readers: dict[str, int] = {}
    argument_bytes: list[int] = []
    originals = {block.name: module.get_submodule(block.name).forward for block in blocks}

    def note_readers(given: list[torch.Tensor]) -> None:
        known = [(name, leaf) for name, own in leaves.items() for leaf in own]
        if not given or not known:
            return
        total = torch.stack([v.float().sum() for v in given]).sum()
        grads = torch.autograd.grad(total, [leaf for _, leaf in known], retain_graph=True, allow_unused=True)
        readers.update({name: len(order) for (name, _), grad in zip(known, grads, strict=True) if grad is not None})

    def watch(name: str) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Nested:
            given = [v for v in tensors_in((args, kwargs)) if v.requires_grad]
            note_readers(given)
            argument_bytes.append(_bytes((args, kwargs)))
            arguments[name] = entries_of((args, kwargs))
            order.append(name)
            with torch.no_grad():
                out = originals[name](*args, **kwargs)
            outputs[name] = mapped(lambda v: v.detach().to("meta") if isinstance(v, torch.Tensor) else v, out)
            if not any(v.is_floating_point() for v in tensors_in(out)):
                raise ModelError(f'block {name} gives a {type(out).__name__}, expected tensors; use `method="minmax"`')
            watched = mapped(_watched, out)
            leaves[name] = [v for v in tensors_in(watched) if v.requires_grad]
            return copied(watched)  # not the leaves themselves, which must not be changed in place

        return forward

    try:
        for block in blocks:
            module.get_submodule(block.name).forward = watch(block.name)
        with torch.enable_grad():
            call_denoiser(module, model_inputs(inputs, slice(0, 1), call))
    finally:
        for block in blocks:
            del module.get_submodule(block.name).forward
    if sorted(order) != sorted(block.name for block in blocks):
        raise ModelError(f'blocks were called as {order}, expected each exactly once; use `method="minmax"`')
    last = {name: readers.get(name, -1) for name in order}
    sizes = {name: _bytes(outputs[name]) for name in order}
    peak, prefixes = 0, 1 + quantized
    for k, name in enumerate(order):
        alive = sum(sizes[other] for other in order[:k] if last[other] >= k)
        peak = max(peak, prefixes * (alive + sizes[name]) + (1 + both_inputs) * argument_bytes[k])
    return Flow(order=tuple(order), last_reader=last, arguments=arguments, outputs=outputs, peak_bytes=peak)


def _watched(value: Any) -> Any:
    """A tensor of its own whose readers can be found by gradients; anything else as it is."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    return value.detach().clone().requires_grad_()


class Prefix:
    """A module whose blocks are finished one after another, and the outputs still needed of them."""

    def __init__(
        self,
        module: torch.nn.Module,
        flow: Flow,
        inputs: Mapping[str, Array],
        call: Call,
        count: int,
        chunk: int = CHUNK,
        store: BlockStore = IN_MEMORY,
        *,
        chunks: Sequence[slice] | None = None,
    ) -> None:
        self.module = module
        self.chunks = batches(count, chunk) if chunks is None else chunks
        self.store = store
        self.call = call
        self.flow = flow
        self.inputs = inputs
        self.count = count
        self.outputs: dict[str, Gathered] = {}
        self.position = 0

    def _stored(self, name: str, chunk: slice) -> Any:
        count = chunk.stop - chunk.start

        def nothing(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return torch.zeros(1, dtype=value.dtype, device=self.store.device).expand(
                value.shape[0] * count, *value.shape[1:]
            )

        def forward(*args: Any, **kwargs: Any) -> Nested:
            if name in self.outputs:
                return copied(self.outputs[name].take(chunk))
            return mapped(nothing, self.flow.outputs[name])  # nothing reads it any more

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
            call_denoiser(self.module, model_inputs(self.inputs, chunk, self.call))
        except _ReachedError:
            pass
        finally:
            for child in modules:
                child.__dict__.pop("forward", None)
        return reached[0]

    @torch.no_grad()
    def next_inputs(self) -> Gathered:
        """Arguments of the next block for all calibration inputs: a tuple and a dict."""
        pieces = ((chunk, self._arguments(chunk)) for chunk in self.chunks)
        return gathered(pieces, self.count, self.flow.arguments[self.flow.order[self.position]], self.store)

    def outputs_of(
        self, name: str, pieces: Iterable[tuple[slice, Nested]], count: int, *, in_memory: bool = False
    ) -> Gathered:
        """What a block gave for `count` inputs, from chunks of them."""
        return gathered(
            pieces, count, entries_of(self.flow.outputs[name]), self.store.in_memory if in_memory else self.store
        )

    def finish(self, output: Gathered) -> None:
        """Store the next block's output for all inputs and go on to the block behind it."""
        self.outputs[self.flow.order[self.position]] = output
        self.position += 1
        for name in list(self.outputs):
            if self.flow.last_reader[name] < self.position:
                del self.outputs[name]
