"""The layers of a block rounded by second-order statistics of what they read in the float model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from dq_deploy.calibration.sharding import Workers
from dq_deploy.methods.blocks.prefix import call_block
from dq_deploy.methods.blocks.walk import BlockWalk, Reached
from dq_deploy.methods.second_order.rounding import SecondOrder, rounded_layer
from dq_deploy.methods.second_order.statistics import (
    DequantizedInput,
    ExactSums,
    LayerStatistics,
    columns_of,
    largest_input,
    rows_of_input,
    statistics_bytes,
)
from dq_deploy.record import Layer


class BlockRounding:
    """Rounds the layers of blocks in their turn.

    Args:
        walk: of the model; it has to keep the float prefix's inputs.
        settings: what is done.
        seed: of which rows are drawn.
        limit_bytes: of the statistics of layers that are in memory at once, or those of one layer.
        outputs: largest |output| of the float layers, where sums of outputs are wanted and work is cut in shards.
    """

    def __init__(
        self,
        walk: BlockWalk,
        settings: SecondOrder,
        *,
        seed: int,
        limit_bytes: int = 0,
        outputs: Mapping[str, float] | None = None,
    ) -> None:
        self.outputs = outputs or {}
        self.exact = walk.share.workers.shards > 1
        self.walk, self.settings, self.seed, self.limit_bytes = walk, settings, seed, limit_bytes
        order = [name for block in walk.blocks for name in walk.layers_of(block)]
        self.position = {name: i for i, name in enumerate(order)}

    @torch.no_grad()
    def layers(self, reached: Reached, start: Mapping[str, Layer]) -> dict[str, Layer]:
        """The block's layers with new codes, in execution order; the block runs once for as many as fit in memory.

        Args:
            reached: the block.
            start: its layers rounded otherwise, whose activation tables and zero points stay.
        """
        walk, module, workers = self.walk, self.walk.prepared.module, self.walk.share.workers
        found: dict[str, Layer] = {}
        given = reached.float_given
        assert given is not None
        for names in self._together(reached.layers):
            seen = {name: self._empty(name, start[name]) for name in names}
            with ExitStack() as stack:
                for name in names:
                    stand_in = DequantizedInput(start[name], walk.context).to(walk.device)
                    reader = _Reader(stand_in, seen[name], self.settings.float_targets)
                    stack.callback(module.get_submodule(name).register_forward_hook(reader).remove)
                for shard in workers.mine:
                    for name in names:
                        seen[name].begin(shard, self._seed(name))
                    for chunk in walk.share.chunks_of(shard, walk.chunk):
                        walk.context.step = walk.step[chunk]
                        call_block(module.get_submodule(reached.block.name), given.take(chunk))
            costs = {name: float(statistics_bytes(walk.prepared.layers[name])) for name in names}
            _bring_together(seen, workers, workers.owners(costs))

            def rounded(name: str, seen: dict[str, LayerStatistics] = seen) -> Layer:
                return rounded_layer(walk.prepared.layers[name], start[name], seen.pop(name), self.settings)

            found |= workers.split(costs, rounded)
        return found

    def _seed(self, name: str) -> int:
        return self.seed * 100_003 + self.position[name]

    def _together(self, names: Sequence[str]) -> Iterator[list[str]]:
        """Layers whose statistics are in memory at once: as many as `limit_bytes` allows, at least one."""
        taken: list[str] = []
        size = 0
        for name in names:
            own = statistics_bytes(self.walk.prepared.layers[name], exact=self.exact)
            if taken and size + own > self.limit_bytes:
                yield taken
                taken, size = [], 0
            taken.append(name)
            size += own
        if taken:
            yield taken

    def _empty(self, name: str, start: Layer) -> LayerStatistics:
        prepared = self.walk.prepared.layers[name]
        rows = rows_of_input(prepared.site) * self.walk.share.count
        wanted = self.settings.rows_a_column * columns_of(prepared)
        return LayerStatistics(
            prepared,
            share=wanted / rows,
            seed=self._seed(name),
            outputs=self.settings.float_targets,
            device=self.walk.device,
            exact=ExactSums.of(rows, largest_input(start), self.outputs.get(name, 1.0)) if self.exact else None,
        )


def _bring_together(seen: dict[str, LayerStatistics], workers: Workers, owners: Mapping[str, int]) -> None:
    """Have each layer's owner hold the sums over the rows of all processes, and nobody else hold any."""
    for one in seen.values():
        one.flush()
    rows = workers.everywhere(lambda: {name: one.rows for name, one in seen.items()})
    for name, owner in owners.items():
        seen[name].rows = sum(found[name] for found in rows)
        for values in seen[name].sums():
            workers.exact_sum(values, owner)
        if owner != workers.rank:
            del seen[name]


class _Reader:
    """Forward hook of a float layer: what its integer form would multiply goes into the sums."""

    def __init__(self, stand_in: DequantizedInput, seen: LayerStatistics, outputs: bool) -> None:
        self.stand_in, self.seen, self.outputs = stand_in, seen, outputs

    def __call__(self, _module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        self.seen.add(self.stand_in.of(args[0]), output if self.outputs else None)
