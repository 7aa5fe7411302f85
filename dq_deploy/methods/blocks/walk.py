"""One block after another: what it is given behind quantized blocks, and what it gives in the float model.

A block is computed in a copy of its own module tree, which shares every weight, so that a model is in memory once and
its integer layers only while their block's turn lasts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from dq_deploy.calibration.sharding import Share
from dq_deploy.errors import OptionError
from dq_deploy.methods.blocks.amounts import Amounts, amounts_of, inputs_in_shares
from dq_deploy.methods.blocks.nested_values import Gathered, Nested
from dq_deploy.methods.blocks.prefix import CHUNK, Prefix, call_block, flow_of_blocks
from dq_deploy.methods.blocks.storage import BlockStore
from dq_deploy.methods.options import SharedOptions
from dq_deploy.methods.prepare.calibration_inputs import inputs_at_once
from dq_deploy.methods.prepare.preparation import Prepared, sharing_copy
from dq_deploy.methods.ranges.step_ranges import StepRange, batches, output_table, watch_steps
from dq_deploy.models import Block, blocks_of
from dq_deploy.numerics.arrays import I64, Array
from dq_deploy.record import Layer
from dq_deploy.simulation.fake_quant import IntegerLayer, StepContext, replace_layer


@dataclass(frozen=True, kw_only=True, eq=False)
class Reached:
    """A block whose turn it is.

    Attributes:
        block: its name and layers.
        index: position among all blocks.
        layers: names of its quantized layers.
        given: arguments behind the quantized prefix, of all inputs; behind the float one where there is no other.
        float_given: behind the float prefix, where they are needed.
        target: float output.
    """

    block: Block
    index: int
    layers: list[str]
    given: Gathered
    float_given: Gathered | None
    target: Gathered


class QuantizedBlock:
    """A block whose layers may be replaced by others; the float model keeps its own.

    Attributes:
        root: module that holds the block.
    """

    def __init__(self, model: torch.nn.Module, name: str, device: str = "cpu") -> None:
        self.name, self.device = name, device
        self.root = torch.nn.Module()
        self.root.block = sharing_copy(model.get_submodule(name))

    @property
    def module(self) -> torch.nn.Module:
        """The block as it is now."""
        found: torch.nn.Module = self.root.block
        return found

    def path(self, layer: str) -> str:
        """Of a layer of the model, within `root`."""
        return f"block{layer[len(self.name) :]}"

    def put(self, layer: str, module: torch.nn.Module) -> None:
        """A module in a layer's place."""
        replace_layer(self.root, self.path(layer), module.to(self.device))

    def place(self, layers: Mapping[str, Layer], context: StepContext) -> None:
        """Integer layers in their places."""
        for name, layer in layers.items():
            self.put(name, IntegerLayer(layer, context))


def _amounts(
    inputs: Mapping[str, Array], each: int, options: SharedOptions, work_bytes: int, share: Share | None
) -> Amounts:
    """What is used of the inputs: all of them where they are cut into shards, which have to be the same everywhere."""

    def found() -> Amounts:
        amounts = amounts_of(inputs, each, options.memory_gib, work_bytes=work_bytes)
        if amounts.dropped and share is not None and share.workers.shards > 1:
            raise OptionError(
                f"memory_gib and the temporary folder have room for {amounts.count} of {len(inputs['step'])} inputs of "
                "a process, expected all where processes share them; give more `memory_gib`, set TMPDIR to a "
                "folder with room, use fewer `samples`, or start more processes"
            )
        return amounts

    if share is None:
        return found()
    return share.workers.everywhere(found)[share.workers.rank]


class BlockWalk:
    """The blocks of one model in the order in which they run.

    Attributes:
        blocks: of the model.
        step: [N] bucket of each input.
        context: step of the samples in flight, for layers that are put into blocks.
        device: where blocks run.
        count: N, calibration inputs that are used here.
        share: of which all processes' inputs they are.
        chunk: inputs at a time.
        amounts: where their blocks' tensors are.
    """

    def __init__(
        self,
        prepared: Prepared,
        quantized: Collection[str],
        inputs: Mapping[str, Array],
        options: SharedOptions,
        *,
        both_inputs: bool = False,
        quantized_prefix: bool = True,
        work_bytes: int = 0,
        share: Share | None = None,
    ) -> None:
        """Find out how blocks feed each other.

        Args:
            prepared: the folded float model.
            quantized: layers that become integer ones.
            inputs: calibration inputs by name, with `step`.
            options: `memory_gib`.
            both_inputs: a block's inputs behind the float prefix are wanted beside those behind the quantized one.
            quantized_prefix: without it every block is given what it is given in the float model.
            work_bytes: that a block's turn takes beside its inputs and outputs.
            share: which of all inputs they are, where several processes share them.

        Raises:
            OptionError: neither memory nor disk holds an input of every step, or with shards every input.
            ModelError: a block is not called exactly once.
        """
        self.prepared, self.both_inputs = prepared, both_inputs
        self.quantized = frozenset(quantized)
        blocks = {block.name: block for block in blocks_of(prepared.module, prepared.call)}
        flow = flow_of_blocks(
            prepared.module,
            list(blocks.values()),
            inputs,
            prepared.call,
            both_inputs=both_inputs and quantized_prefix,
            quantized=quantized_prefix,
        )
        self.blocks = [blocks[name] for name in flow.order]
        self.chunk = inputs_at_once(prepared.module, prepared.call, CHUNK)
        self.amounts = _amounts(inputs, flow.peak_bytes, options, work_bytes, share)
        chosen = inputs_in_shares(inputs["step"], self.amounts.count)
        kept = {name: value[chosen] for name, value in inputs.items()} if self.amounts.dropped else dict(inputs)
        self.count = len(chosen)
        self.step = torch.from_numpy(kept["step"])
        self.share = share if share is not None else Share(step=np.asarray(kept["step"]))
        self.chunks = self.share.chunks(self.chunk)
        self.context, self.device = StepContext(), options.device
        store = BlockStore(on_disk=self.amounts.on_disk, device=options.device)

        def prefix() -> Prefix:
            return Prefix(prepared.module, flow, kept, prepared.call, self.count, store=store, chunks=self.chunks)

        self.reference = prefix()
        self.behind = prefix() if quantized_prefix else None

    def layers_of(self, block: Block) -> list[str]:
        """Names of a block's quantized layers."""
        return [name for name in block.layers if name in self.quantized]

    def reach(self, index: int) -> Reached:
        """The next block, which has to be the one at this position; every block is reached, and finished, once."""
        block = self.blocks[index]
        behind_float = self.reference.next_inputs()
        target = self.output(self.prepared.module.get_submodule(block.name), block.name, behind_float)
        names = self.layers_of(block)
        if self.behind is None:
            return Reached(
                block=block, index=index, layers=names, given=behind_float, float_given=behind_float, target=target
            )
        float_given = behind_float if self.both_inputs and names else None
        del behind_float  # before the quantized ones are made: both at once are counted only where both are kept
        return Reached(
            block=block,
            index=index,
            layers=names,
            given=self.behind.next_inputs(),
            float_given=float_given,
            target=target,
        )

    @torch.no_grad()
    def output(self, module: torch.nn.Module, name: str, given: Gathered) -> Gathered:
        """What a block's module gives for all inputs."""

        def run(chunk: slice) -> Nested:
            self.context.step = self.step[chunk]
            return call_block(module, given.take(chunk))

        pieces = ((chunk, run(chunk)) for chunk in self.chunks)
        return self.reference.outputs_of(name, pieces, self.count)

    @torch.no_grad()
    def outputs_at(self, module: torch.nn.Module, given: Gathered, index: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of the samples among what a block's module gives for some inputs, as `Gathered` keeps them.

        Args:
            module: of the block.
            given: its arguments.
            index: inputs of one shard; of none there are no tensors.
        """
        if not len(index):
            return []

        def run(chunk: slice) -> Nested:
            self.context.step = self.step[index[chunk]]
            return call_block(module, given.take(index[chunk]))

        name = self.reference.flow.order[self.reference.position]
        pieces = ((chunk, run(chunk)) for chunk in batches(len(index), self.chunk))
        found = self.reference.outputs_of(name, pieces, len(index), in_memory=True)
        return [room.take(slice(None)) for room in found.of_samples()]

    def quantized_block(self, block: Block) -> QuantizedBlock:
        """The block with layers that may be replaced."""
        return QuantizedBlock(self.prepared.module, block.name, self.device)

    def finished(
        self,
        reached: Reached,
        block: QuantizedBlock,
        layers: Mapping[str, Layer],
        *,
        steps: int,
        groups: I64 | None,
    ) -> tuple[dict[str, Layer], Gathered]:
        """A block's integer layers with tables of what they give, and what the block gives with them.

        Args:
            reached: the block.
            block: where the layers are put.
            layers: of the block; their output tables are left out.
            steps: step buckets.
            groups: [T] of output tables; None leaves these out.
        """
        workers = self.share.workers
        finished = {name: replace(layer, out_scale=None, out_zero_point=None) for name, layer in layers.items()}
        block.place(finished, self.context)
        paths = {block.path(name): name for name in finished}
        with watch_steps(block.root, paths, self.context, steps) as seen:
            output = self.output(block.module, reached.block.name, reached.given)
        if groups is not None:
            everywhere = workers.everywhere(lambda: seen)
            for path, name in paths.items():
                scale, zero = output_table(StepRange.merged([one[path] for one in everywhere]), groups)
                finished[name] = replace(finished[name], out_scale=scale, out_zero_point=zero)
        return finished, output

    def finish(self, reached: Reached, output: Gathered) -> None:
        """Keep what the quantized block gives for all inputs and go on to the block behind it."""
        self.reference.finish(reached.target)
        if self.behind is not None:
            self.behind.finish(output)
