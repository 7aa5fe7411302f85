"""The layers of one block rounded by second-order statistics, each behind those before it that are rounded already."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from dq_deploy.methods.blocks.nested_values import Gathered
from dq_deploy.methods.blocks.prefix import call_block
from dq_deploy.methods.blocks.walk import BlockWalk, QuantizedBlock, Reached
from dq_deploy.methods.prepare.preparation import PreparedLayer
from dq_deploy.methods.ranges.step_ranges import batches
from dq_deploy.methods.second_order.rounding import SecondOrder, rounded_layer
from dq_deploy.methods.second_order.statistics import (
    CollectedError,
    DequantizedInput,
    LayerStatistics,
    columns_of,
    rows_of_input,
)
from dq_deploy.record import Layer
from dq_deploy.simulation.fake_quant import IntegerLayer


class BlockRounding:
    """Rounds the layers of blocks in their turn.

    Args:
        walk: of the model; it has to keep the float prefix's inputs where the settings need them.
        settings: what is done.
        seed: of which rows are drawn.
        limit_bytes: of the statistics of layers that are in memory at once, or those of one layer.
    """

    def __init__(self, walk: BlockWalk, settings: SecondOrder, *, seed: int, limit_bytes: int = 0) -> None:
        self.walk, self.settings, self.seed, self.limit_bytes = walk, settings, seed, limit_bytes
        order = [name for block in walk.blocks for name in walk.layers_of(block)]
        self.position = {name: i for i, name in enumerate(order)}

    def layers(self, reached: Reached, start: Mapping[str, Layer]) -> dict[str, Layer]:
        """The block's layers with new codes, in execution order.

        Args:
            reached: the block.
            start: its layers rounded otherwise, whose activation tables and zero points stay.
        """
        if not self.settings.quantized_prefix:
            by_float: dict[str, Layer] = self._by_float_rows(reached, start)
            return by_float
        block, found = self.walk.quantized_block(reached.block), {}
        for name in reached.layers:
            seen = self._statistics(reached, block, name, start[name])
            found[name] = rounded_layer(self.walk.prepared.layers[name], start[name], seen, self.settings)
            block.put(name, IntegerLayer(found[name], self.walk.context))
        return found

    @torch.no_grad()
    def _by_float_rows(self, reached: Reached, start: Mapping[str, Layer]) -> dict[str, Layer]:
        """As `layers`, by what the layers read in the float model: one pass for as many of them as fit in memory."""
        walk, found = self.walk, {}
        module = walk.prepared.module
        given = reached.float_given
        assert given is not None
        for names in self._together(reached.layers):
            seen = {name: self._empty(name) for name in names}
            with ExitStack() as stack:
                for name in names:
                    reader = _Reader(
                        DequantizedInput(start[name], walk.context), seen[name], self.settings.float_targets
                    )
                    stack.callback(module.get_submodule(name).register_forward_hook(reader).remove)
                for chunk in batches(walk.count, walk.chunk):
                    walk.context.step = walk.step[chunk]
                    call_block(module.get_submodule(reached.block.name), given.take(chunk))
            for name in names:
                found[name] = rounded_layer(walk.prepared.layers[name], start[name], seen.pop(name), self.settings)
        return found

    def _together(self, names: Sequence[str]) -> Iterator[list[str]]:
        """Layers whose statistics are in memory at once: as many as `limit_bytes` allows, at least one."""
        taken: list[str] = []
        size = 0
        for name in names:
            own = statistics_bytes(self.walk.prepared.layers[name])
            if taken and size + own > self.limit_bytes:
                yield taken
                taken, size = [], 0
            taken.append(name)
            size += own
        if taken:
            yield taken

    def _empty(self, name: str) -> LayerStatistics:
        prepared = self.walk.prepared.layers[name]
        wanted = self.settings.rows_a_column * columns_of(prepared)
        return LayerStatistics(
            prepared,
            share=wanted / (rows_of_input(prepared.site) * self.walk.count),
            seed=self.seed * 100_003 + self.position[name],
            outputs=self.settings.float_targets,
        )

    @torch.no_grad()
    def _statistics(self, reached: Reached, block: QuantizedBlock, name: str, start: Layer) -> LayerStatistics:
        walk, seen, given = self.walk, self._empty(name), reached.given
        stand_in = DequantizedInput(start, walk.context)
        block.put(name, stand_in)
        for chunk in batches(walk.count, walk.chunk):
            walk.context.step = walk.step[chunk]
            _run_to(block.module, given, chunk)
            assert stand_in.taken is not None
            seen.add(stand_in.taken, self._float_output(reached, name, chunk))
        stand_in.taken = None
        return seen

    def _float_output(self, reached: Reached, name: str, chunk: slice) -> torch.Tensor | None:
        """What the float layer gives behind the float prefix."""
        if not self.settings.float_targets:
            return None
        assert reached.float_given is not None
        module, found = self.walk.prepared.module, []

        def stop(_module: torch.nn.Module, _args: Any, output: torch.Tensor) -> None:
            found.append(output)
            raise CollectedError

        handle = module.get_submodule(name).register_forward_hook(stop)
        try:
            _run_to(module.get_submodule(reached.block.name), reached.float_given, chunk)
        finally:
            handle.remove()
        return found[0]


class _Reader:
    """Forward hook of a float layer: what its integer form would multiply goes into the sums."""

    def __init__(self, stand_in: DequantizedInput, seen: LayerStatistics, outputs: bool) -> None:
        self.stand_in, self.seen, self.outputs = stand_in, seen, outputs

    def __call__(self, _module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        with contextlib.suppress(CollectedError):
            self.stand_in(args[0])
        assert self.stand_in.taken is not None
        self.seen.add(self.stand_in.taken, output if self.outputs else None)
        self.stand_in.taken = None


def _run_to(module: torch.nn.Module, given: Gathered, chunk: slice) -> None:
    """Run a block until one of its layers has what it wants."""
    try:
        call_block(module, given.take(chunk))
    except CollectedError:
        return
    raise AssertionError("a layer of the block was not reached")


def statistics_bytes(prepared: PreparedLayer) -> int:
    """Most bytes that rounding one layer takes: H, G and the weights in float64, and rows that wait."""
    columns, outs, groups = columns_of(prepared), prepared.site.out_channels, prepared.site.groups
    return 8 * groups * columns**2 + 8 * outs * columns * 6
