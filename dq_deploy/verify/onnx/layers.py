"""Every layer's codes and accumulators inside a graph's engine against the numerics, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dq_deploy.errors import DqError
from dq_deploy.graph.writing.steps import BUCKET, SPREAD_TIMESTEP, TIMESTEP
from dq_deploy.manifest.values import ManifestLayer, ManifestPart
from dq_deploy.numerics import step_bucket
from dq_deploy.numerics.arrays import F32, Array
from dq_deploy.verify.inputs import Batch, run_all
from dq_deploy.verify.layers.compare import PartTensors
from dq_deploy.verify.layers.comparison import LayerComparison, LayerSubject
from dq_deploy.verify.layers.outputs import compare_output, compare_output_codes, float_product_slack
from dq_deploy.verify.layers.tally import LayerTally
from dq_deploy.verify.onnx.held_form import held_form
from dq_deploy.verify.onnx.instrument import ShippedGraph
from dq_deploy.verify.onnx.kernels import KernelGraph, read_kernels
from dq_deploy.verify.output.difference import same_bits

_NODES_AT_ONCE = 150


class GraphLayers(LayerComparison):
    """Compares the layers of a graph, read from copies of it that show its inner tensors.

    Attributes:
        shapes: smallest shape that each layer part's input had, by tensor name.
    """

    input_bytes, output_bytes = 5, 8

    def __init__(
        self, subject: LayerSubject, shipped: ShippedGraph, entries: Mapping[str, ManifestLayer], graph: KernelGraph
    ) -> None:
        """Take the engine and what it is held against.

        Args:
            subject: what is compared.
            shipped: the engine's file.
            entries: manifest entries of the layers, by module path.
            graph: the kernels of the shipped engine.
        """
        super().__init__(subject)
        self.shipped, self.entries, self.graph = shipped, entries, graph
        self.shapes: dict[str, ProbedInput] = {}
        self._ends = {name: output_tensor(shipped, name, entries.get(name)) for name in self.record.layers}

    def readable_layers(self) -> list[str]:
        """Layers whose inputs and codes are tensors of the graph."""
        return [name for name in self.record.layers if self._readable(name)]

    def compare_chunk(self, chunk: Sequence[str]) -> None:
        """Compare a group; where looking at it changes the engine, look at smaller groups."""
        fresh = {name: LayerTally(problems=list(self.result.layers[name].problems)) for name in chunk}
        reason = self._attempt(chunk, fresh)
        if not reason:
            self.result.layers.update(fresh)
        elif len(chunk) > 1:
            middle = len(chunk) // 2
            self.compare_chunk(chunk[:middle])
            self.compare_chunk(chunk[middle:])
        else:
            self.result.layers[chunk[0]].problem(reason)

    def edges_unread(self) -> str:
        """Why the engine's buckets cannot be read, or an empty string."""
        return "" if BUCKET in self.shipped.producer else f"tensor {BUCKET} is not in the engine"

    def buckets_of(self, timesteps: F32) -> Array:
        """The step buckets that the piece of the graph finds."""
        source = SPREAD_TIMESTEP if SPREAD_TIMESTEP in self.shipped.producer else TIMESTEP
        with self.shipped.open(self.shipped.piece({source: (1, ["B"])}, [BUCKET])) as runner:
            got = runner.run({source: timesteps})[BUCKET].reshape(-1)
            if len(got) == len(timesteps):
                return got
            # one step a batch: the engine looks at the first sample
            return np.concatenate([runner.run({source: t[None]})[BUCKET].reshape(-1) for t in timesteps])

    def _readable(self, name: str) -> bool:
        tally = self.result.layers[name]
        entry = self.entries.get(name)
        if entry is None:
            tally.problem("the engine's manifest does not name this layer")
            return False
        if not entry.integer:
            tally.problem(f"not an integer layer in this engine: {entry.reason or 'no reason given'}")
            return False
        parts = entry.parts or ()
        if len(parts) != len(self.record.layers[name].parts):
            tally.problem(f"engine has {len(parts)} parts, expected {len(self.record.layers[name].parts)}")
            return False
        for part in parts:
            for role, tensor in (("input", part.input), ("codes", part.codes), ("accumulator", part.accumulator)):
                if tensor is None:
                    tally.problem(f"this form shows no {role}")
                elif tensor not in self.shipped.tensors:
                    tally.problem(f"{role} tensor {tensor} is not in the engine")
        return all(part.input in self.shipped.tensors and part.codes in self.shipped.tensors for part in parts)

    def _parts(self, name: str) -> tuple[ManifestPart, ...]:
        return self.entries[name].parts or ()

    def _names(self, chunk: Sequence[str]) -> list[str]:
        parts = [part for name in chunk for part in self._parts(name)]
        names = [tensor for part in parts for tensor in (part.input, part.codes, part.accumulator) if tensor]
        names += [code for name in chunk if (code := self.entries[name].output_codes)]
        return [*names, *(end for n in chunk if (end := self._ends[n])), BUCKET]

    def _attempt(self, chunk: Sequence[str], tallies: dict[str, LayerTally]) -> str:
        """Compare a group in one copy; why that copy shows another engine, or an empty string."""
        optimized = self.shipped.scratch(".optimized")
        try:
            runner = self.shipped.open(self.shipped.with_outputs(self._names(chunk)), optimized=optimized)
        except DqError as error:
            return f"instrumented copy cannot be loaded: {error}"
        with runner:
            changed = self._changed_kernel(chunk, read_kernels(self.shipped, optimized))
            optimized.unlink()
            if changed:
                return changed
            for index, batch in enumerate(self.runs.all):
                tensors = {**batch.feeds, **run_all(runner, batch.feeds)}
                if not same_bits(self.runs.outputs[index], tensors):
                    return "instrumented copy gives another output than the shipped engine"
                problem = self._wrong_bucket(tensors, batch)
                for name in chunk:
                    if problem:
                        tallies[name].problem(problem)
                    if index < len(self.runs.batches):
                        self._compare(name, tensors, batch, tallies[name])
                    self._keep(index, name, tensors)
        return ""

    def _wrong_bucket(self, tensors: Mapping[str, Array], batch: Batch) -> str:
        want = step_bucket(batch.feeds[TIMESTEP], self.record.step_edges)
        got = tensors.get(BUCKET)
        if got is None:
            return "" if self.record.steps == 1 else f"tensor {BUCKET} is not in the engine"
        return "" if (got == want).all() else f"engine takes step buckets {got.tolist()}, expected {want.tolist()}"

    def _changed_kernel(self, chunk: Sequence[str], copied: KernelGraph) -> str:
        for name in chunk:
            layer = self.record.layers[name]
            for index, entry in enumerate(self._parts(name)):
                shipped, other = self.graph.kernel(entry, layer, index), copied.kernel(entry, layer, index)
                if (shipped.op, shipped.operands) != (other.op, other.operands):
                    return f"instrumented copy runs {other.op} where the shipped engine runs {shipped.op}"
        return ""

    def _compare(self, name: str, tensors: Mapping[str, Array], batch: Batch, tally: LayerTally) -> None:
        parts = self._parts(name)
        read = [
            PartTensors(
                x=tensors[str(part.input)],
                codes=tensors[str(part.codes)],
                accumulator=tensors.get(part.accumulator or ""),
            )
            for part in parts
        ]
        for part, own in zip(parts, read, strict=True):
            name_of_input, found = str(part.input), probed_input(own.x, batch)
            known = self.shapes.get(name_of_input)
            if known is None or found.values < known.values:
                self.shapes[name_of_input] = found
        place = self.place(self.record.layers[name], batch, tally)
        forms = [held_form(part) for part in parts]
        y = self.compare_parts(place, forms, read)
        if y is None:
            return
        codes, end = tensors.get(self.entries[name].output_codes or ""), self._float_output(name, tensors)
        if codes is not None:
            compare_output_codes(place, read[0].x, codes)
        elif end is not None:
            slack = float_product_slack(place.layer, [bool(part.weight) for part in parts], batch.buckets)
            compare_output(place, y, end, forms[0].layout, slack=slack)

    def _float_output(self, name: str, tensors: Mapping[str, Array]) -> Array | None:
        """What a layer hands on, where it is float32."""
        found = tensors.get(self._ends[name] or "")
        return found if found is not None and found.dtype == np.float32 else None

    def _keep(self, batch: int, name: str, tensors: Mapping[str, Array]) -> None:
        output = self._float_output(name, tensors)
        if output is not None:
            inputs = [tensors[str(part.input)] for part in self._parts(name)]
            self.keep(batch, self.record.layers[name], inputs, output)


@dataclass(frozen=True, kw_only=True)
class ProbedInput:
    """What a layer part's input looked like in a run.

    Attributes:
        shape: of one sample: [entries of the leading axis, ...], or without that axis where it is the batch.
        folded: whether the leading axis holds other than one entry a sample.
        batch: the run.
    """

    shape: tuple[int, ...]
    folded: bool
    batch: Batch

    @property
    def values(self) -> int:
        """Values of one sample."""
        return int(np.prod(self.shape))


def probed_input(x: Array, batch: Batch) -> ProbedInput:
    """The input of a layer part in the run of a batch."""
    samples = len(batch.buckets)
    if len(x) == samples:
        return ProbedInput(shape=x.shape[1:], folded=False, batch=batch)
    entries = len(x) if len(x) % samples else len(x) // samples
    return ProbedInput(shape=(entries, *x.shape[1:]), folded=True, batch=batch)


def output_tensor(shipped: ShippedGraph, name: str, entry: ManifestLayer | None) -> str | None:
    """The float tensor a layer hands on: what the manifest says, else the end of the nodes named after the layer."""
    if entry is not None and entry.output:
        return entry.output
    prefix = f"dq/{name}/"
    own = [node for node in shipped.proto.graph.node if node.name.startswith(prefix)]
    consumed = {tensor for node in own for tensor in node.input}
    ends = [node.output[0] for node in own if node.output[0] not in consumed]
    return ends[0] if len(ends) == 1 else None


def first_batch_dependent(shipped: ShippedGraph, batch: Batch, index: int) -> str:
    """The first node in graph order whose output for a sample depends on the rest of its batch, in words."""
    nodes = [node for node in shipped.proto.graph.node if node.output and node.output[0]]
    for start in range(0, len(nodes), _NODES_AT_ONCE):
        some = nodes[start : start + _NODES_AT_ONCE]
        names = [node.output[0] for node in some]
        try:
            with shipped.open(shipped.with_outputs(names)) as runner:
                together, alone = run_all(runner, batch.feeds), run_all(runner, batch.one(index))
        except DqError:
            continue  # some inner tensors have types a runner does not return
        for node in some:
            name = node.output[0]
            if name not in together:
                continue
            a, b = together[name], alone[name]
            if a.ndim and a.shape[0] == len(batch.buckets) and b.shape[0] == 1 and a[index].tobytes() != b[0].tobytes():
                return f"first at {node.op_type} {node.name!r}"
    return "no operation alone shows the difference"
