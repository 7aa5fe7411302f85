"""Every layer's codes and accumulators inside the engine against the numerics, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dq_deploy.errors import DqError
from dq_deploy.graph.writing.steps import BUCKET, TIMESTEP
from dq_deploy.manifest.values import ManifestLayer, ManifestPart
from dq_deploy.models import LayerSite
from dq_deploy.numerics import step_bucket
from dq_deploy.numerics.arrays import Array
from dq_deploy.record import Record
from dq_deploy.verify.inputs import Batch
from dq_deploy.verify.layers.compare import (
    LayerTally,
    PartTensors,
    compare_output,
    compare_output_codes,
    compare_part,
    edge_probes,
    edge_problem,
    float_product_slack,
    layer_output,
)
from dq_deploy.verify.onnx.instrument import ShippedGraph, run_all
from dq_deploy.verify.onnx.kernels import KernelGraph, read_kernels
from dq_deploy.verify.output.kept_tensors import KeptTensors

CHUNK_BYTES = 256 << 20
"""Inner tensors read in one run; larger models are read in several instrumented copies."""

Progress = Callable[[str], None]


@dataclass(kw_only=True)
class Parity:
    """What the comparison found.

    Attributes:
        layers: by module path.
        outputs: the shipped engine's output of each batch.
        shapes: shape of each layer part's input, by tensor name, without the batch axis.
        kept: by batch and layer: its input (parts joined) and its float output; those of the batches in `paths` come
            behind those of the others.
        edge_problem: first wrong bucket, in words, or an empty string.
        edges_checked: number of edges looked at from both sides.
    """

    kept: KeptTensors
    layers: dict[str, LayerTally] = field(default_factory=dict)
    outputs: list[dict[str, Array]] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    edge_problem: str = ""
    edges_checked: int = 0


def same_bits(a: Mapping[str, Array], b: Mapping[str, Array]) -> bool:
    """Whether two sets of tensors are equal bit for bit, for the names of the first."""
    return all(a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and a[n].tobytes() == b[n].tobytes() for n in a)


class ParityCheck:
    """Compares the layers of one engine.

    Args:
        shipped: the engine's file.
        record: the quantized denoiser it claims to be.
        entries: manifest entries of the layers, by module path.
        graph: the shipped engine's optimized graph.
        batches: inputs.
        sites: shapes of the layers, by module path.
        paths: inputs whose layers are kept and not compared.
    """

    def __init__(
        self,
        shipped: ShippedGraph,
        record: Record,
        entries: Mapping[str, ManifestLayer],
        graph: KernelGraph | None,
        batches: Sequence[Batch],
        sites: Mapping[str, LayerSite],
        paths: Sequence[Batch] = (),
    ) -> None:
        self.shipped, self.record, self.entries, self.graph, self.batches = shipped, record, entries, graph, batches
        self.sites, self.paths = sites, paths
        tallies = {name: LayerTally() for name in record.layers}
        self.result = Parity(layers=tallies, kept=KeptTensors(shipped.folder))
        self._ends = {name: output_tensor(shipped, name, entries.get(name)) for name in record.layers}

    def run(self, outputs: list[dict[str, Array]], progress: Progress) -> Parity:
        """Compare all layers.

        Args:
            outputs: the shipped engine's outputs of the batches, then of `paths`.
            progress: called with a line where something takes long.
        """
        self.result.outputs = outputs
        self._check_edges()
        readable = [name for name in self.record.layers if self._readable(name)]
        for chunk in self._chunks(readable):
            progress(f"comparing {len(chunk)} layers at {self.record.steps} steps")
            self._prove(chunk)
        return self.result

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

    def _chunks(self, names: Sequence[str]) -> list[list[str]]:
        """Groups of layers whose inner tensors fit CHUNK_BYTES in the largest batch."""
        batch = max(len(b.buckets) for b in (*self.batches, *self.paths))
        chunks: list[list[str]] = [[]]
        total = 0
        for name in names:
            site = self.sites[name]
            size = batch * (5 * int(np.prod(site.input_shape)) + 8 * int(np.prod(site.output_shape)))
            if chunks[-1] and total + size > CHUNK_BYTES:
                chunks.append([])
                total = 0
            chunks[-1].append(name)
            total += size
        return [chunk for chunk in chunks if chunk]

    def _names(self, chunk: Sequence[str]) -> list[str]:
        parts = [part for name in chunk for part in self._parts(name)]
        names = [tensor for part in parts for tensor in (part.input, part.codes, part.accumulator) if tensor]
        names += [code for name in chunk if (code := self.entries[name].output_codes)]
        return [*names, *(end for n in chunk if (end := self._ends[n])), BUCKET]

    def _prove(self, chunk: Sequence[str]) -> None:
        """Compare a group; where looking at it changes the engine, look at smaller groups."""
        fresh = {name: LayerTally(problems=list(self.result.layers[name].problems)) for name in chunk}
        reason = self._attempt(chunk, fresh)
        if not reason:
            self.result.layers.update(fresh)
        elif len(chunk) > 1:
            middle = len(chunk) // 2
            self._prove(chunk[:middle])
            self._prove(chunk[middle:])
        else:
            self.result.layers[chunk[0]].problem(reason)

    def _attempt(self, chunk: Sequence[str], tallies: dict[str, LayerTally]) -> str:
        optimized = self.shipped.scratch(".optimized")
        try:
            runner = self.shipped.open(self.shipped.with_outputs(self._names(chunk)), optimized=optimized)
        except DqError as error:
            return f"instrumented copy cannot be loaded: {error}"
        with runner:
            if optimized is not None and self.graph is not None:
                changed = self._changed_kernel(chunk, read_kernels(self.shipped, optimized))
                optimized.unlink()
                if changed:
                    return changed
            for index, batch in enumerate([*self.batches, *self.paths]):
                tensors = {**batch.feeds, **run_all(runner, batch.feeds)}
                if not same_bits(self.result.outputs[index], tensors):
                    return "instrumented copy gives another output than the shipped engine"
                problem = self._wrong_bucket(tensors, batch)
                for name in chunk:
                    if problem:
                        tallies[name].problem(problem)
                    if index < len(self.batches):
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
        layer, entry = self.record.layers[name], self.entries[name]
        terms = []
        for index, part in enumerate(self._parts(name)):
            read = PartTensors(
                x=tensors[str(part.input)],
                codes=tensors[str(part.codes)],
                accumulator=tensors.get(part.accumulator or ""),
            )
            self.result.shapes[str(part.input)] = read.x.shape[1:]
            term = compare_part(self.record, layer, index, part, read, batch.buckets, tally)
            if term is not None:
                terms.append(term)
        if len(terms) != len(layer.parts):
            return
        y, end, output_codes = layer_output(layer, terms), self._ends[name], entry.output_codes
        if output_codes is not None and output_codes in tensors:
            x = tensors[str(self._parts(name)[0].input)]
            compare_output_codes(self.record, layer, x, tensors[output_codes], batch.buckets, tally)
        elif end is not None and end in tensors and tensors[end].dtype == np.float32:
            layout = self._parts(name)[0].layout or "nchw"
            slack = float_product_slack(layer, entry, batch.buckets)
            compare_output(self.record, layer, y, tensors[end], layout, batch.buckets, tally, slack=slack)

    def _keep(self, batch: int, name: str, tensors: Mapping[str, Array]) -> None:
        end = self._ends[name]
        if end is None or end not in tensors or tensors[end].dtype != np.float32:
            return
        inputs = [tensors[str(part.input)] for part in self._parts(name)]
        axis = 1 if self.record.layers[name].kind == "conv2d" else -1
        joined = inputs[0] if len(inputs) == 1 else np.concatenate(inputs, axis=axis)
        self.result.kept.put(batch, name, joined, tensors[end])

    def _check_edges(self) -> None:
        """Every edge from both sides, in the piece of the engine that finds the bucket."""
        timesteps = edge_probes(self.record.step_edges)
        if not len(timesteps) or not self.record.layers:  # weight-only layers do not depend on the step
            return
        if BUCKET not in self.shipped.producer:
            self.result.edge_problem = (
                f"tensor {BUCKET} is not in the engine; its {len(timesteps) // 2} edges are unproven"
            )
            return
        with self.shipped.open(self.shipped.piece({TIMESTEP: (1, ["B"])}, [BUCKET])) as runner:
            got = runner.run({TIMESTEP: timesteps})[BUCKET].reshape(-1)
            if len(got) != len(timesteps):  # one step a batch: the engine looks at the first sample
                got = np.concatenate([runner.run({TIMESTEP: t[None]})[BUCKET].reshape(-1) for t in timesteps])
        self.result.edges_checked = len(timesteps) // 2
        self.result.edge_problem = edge_problem(self.record, timesteps, got) or ""


def output_tensor(shipped: ShippedGraph, name: str, entry: ManifestLayer | None) -> str | None:
    """The float tensor a layer hands on: what the manifest says, else the end of the nodes named after the layer."""
    if entry is not None and entry.output:
        return entry.output
    prefix = f"dq/{name}/"
    own = [node for node in shipped.proto.graph.node if node.name.startswith(prefix)]
    consumed = {tensor for node in own for tensor in node.input}
    ends = [node.output[0] for node in own if node.output[0] not in consumed]
    return ends[0] if len(ends) == 1 else None
