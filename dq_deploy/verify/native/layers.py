"""Every layer inside the native engine against the numerics: codes, accumulators and outputs bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from dq_deploy.graph.writing.steps import TIMESTEP
from dq_deploy.native.runner import NativeRunner
from dq_deploy.numerics.arrays import F32, I64, Array
from dq_deploy.record import Layer
from dq_deploy.verify.inputs import Batch
from dq_deploy.verify.layers.compare import ComparedPart, HeldForm, PartTensors
from dq_deploy.verify.layers.comparison import LayerComparison, LayerSubject, probe_part
from dq_deploy.verify.layers.outputs import compare_output_bits, different_bits
from dq_deploy.verify.native.ops import LayerPiece, buckets_of, pieces_of, run_piece
from dq_deploy.verify.output.difference import same_bits

if TYPE_CHECKING:
    from dq_deploy.engines.capabilities import LayerValues
    from dq_deploy.native.cuda.runner import NativeCudaRunner

    AnyNative: TypeAlias = NativeRunner | NativeCudaRunner

CENTRED = HeldForm(offset=0)
"""How each part is held: codes and accumulators come as the numerics define them."""

EDGES_AT_ONCE = 8


class NativeLayers(LayerComparison):
    """Compares the layers of an opened native engine, whose values it shows itself."""

    input_bytes, output_bytes = 9, 12

    def __init__(self, subject: LayerSubject, runner: AnyNative) -> None:
        """Take the engine and what it is held against."""
        super().__init__(subject)
        self.runner = runner

    def readable_layers(self) -> list[str]:
        """Layers of the engine's program."""
        there = self.runner.layer_forms()
        for name in set(self.record.layers) - set(there):
            self.result.layers[name].problem("the engine's program does not have this layer")
        return [name for name in self.record.layers if name in there]

    def compare_chunk(self, chunk: Sequence[str]) -> None:
        """Run every input once more, looking at these layers."""
        for index, batch in enumerate(self.runs.all):
            self._look_at(chunk, index, batch)

    def buckets_of(self, timesteps: F32) -> Array:
        """The buckets the engine fills its step input with."""
        first = self.runs.batches[0]
        got = []
        for start in range(0, len(timesteps), EDGES_AT_ONCE):
            some = timesteps[start : start + EDGES_AT_ONCE]
            got.append(buckets_of(self.runner, {**first.repeated(0, len(some)), TIMESTEP: some}))
        return np.concatenate(got)

    def _look_at(self, chunk: Sequence[str], index: int, batch: Batch) -> None:
        seen, layers = self.runner.observe(batch.feeds, chunk)
        if not same_bits(self.runs.outputs[index], seen):
            for name in chunk:
                self.result.layers[name].problem("the engine gives another output while it is looked at")
        for name in chunk:
            if name not in layers:
                self.result.layers[name].problem("the engine's program does not run this layer")
                continue
            layer, seen_layer = self.record.layers[name], layers[name]
            if index < len(self.runs.batches):
                self._compare(layer, seen_layer, batch)
            self.keep(index, layer, seen_layer.inputs, seen_layer.output)

    def _compare(self, layer: Layer, seen_layer: LayerValues, batch: Batch) -> None:
        place = self.place(layer, batch, self.result.layers[layer.name])
        if len(seen_layer.inputs) != len(layer.parts):
            place.tally.problem(f"engine has {len(seen_layer.inputs)} parts, expected {len(layer.parts)}")
            return
        values = zip(seen_layer.inputs, seen_layer.codes, seen_layer.accumulators, strict=True)
        read = [PartTensors(x=x, codes=codes, accumulator=total) for x, codes, total in values]
        y = self.compare_parts(place, [CENTRED] * len(read), read)
        if y is not None:
            compare_output_bits(place, y, seen_layer.output)

    def probe(self, runner: NativeRunner, *, seed: int) -> None:
        """Each part by itself, by the same tables, weights and kernels, with inputs at and beyond the code range."""
        executor = runner.executor
        for (name, index), piece in pieces_of(executor).items():
            layer = self.record.layers.get(name)
            if layer is None or index >= len(layer.parts):
                continue

            def run(x: F32, buckets: I64, piece: LayerPiece = piece) -> PartTensors:
                padded, codes, total = run_piece(executor, piece, x, buckets)
                return PartTensors(x=padded, codes=codes, accumulator=total)

            part = ComparedPart(
                record=self.record, layer=layer, index=index, form=CENTRED, tally=self.result.layers[name], probe=True
            )
            probe_part(part, piece.shape, run, seed=seed)


def first_batch_dependent(runner: AnyNative, batch: Batch, index: int) -> str:
    """The first layer in execution order whose input for a sample depends on the rest of its batch, in words."""
    together = runner.observe(batch.feeds)[1]
    alone = runner.observe(batch.one(index))[1]
    for name, seen_layer in together.items():
        mine = alone[name]
        for what, a, b in (("input", seen_layer.inputs, mine.inputs), ("output", (seen_layer.output,), (mine.output,))):
            if any(
                different_bits(_of_sample(x, index, len(batch.buckets)), y).any() for x, y in zip(a, b, strict=True)
            ):
                return f"first at the {what} of layer {name}"
    return "no layer shows the difference"


def _of_sample(values: Array, index: int, batch: int) -> Array:
    """What belongs to one sample along a leading axis; all of it where the samples share it."""
    each, rest = divmod(len(values), batch)
    return values if rest else values[index * each : (index + 1) * each]
