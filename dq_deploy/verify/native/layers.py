"""Every layer inside the native engine against the numerics: codes, accumulators and outputs bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dq_deploy.graph.writing.steps import TIMESTEP
from dq_deploy.manifest.values import ManifestPart
from dq_deploy.models import LayerSite
from dq_deploy.native.runner import NativeRunner
from dq_deploy.numerics.arrays import F32, Array
from dq_deploy.record import Layer, Record
from dq_deploy.verify.inputs import Batch, one_sample
from dq_deploy.verify.layers.compare import (
    Difference,
    LayerTally,
    PartTensors,
    Tally,
    compare_part,
    edge_probes,
    edge_problem,
    layer_output,
)
from dq_deploy.verify.native.ops import buckets_of, different_bits, pieces_of, run_piece
from dq_deploy.verify.onnx.parity import CHUNK_BYTES, Parity, same_bits
from dq_deploy.verify.onnx.probe import PROBE_ELEMENTS, extreme_inputs
from dq_deploy.verify.output.kept_tensors import KeptTensors

if TYPE_CHECKING:
    from dq_deploy.engines.capabilities import LayerTrace
    from dq_deploy.native.cuda.runner import NativeCudaRunner

    AnyNative = NativeRunner | NativeCudaRunner

CENTRED = ManifestPart(offset=0)
"""What compare_part is told of each part: codes and accumulators come as the numerics define them."""

EDGES_AT_ONCE = 8

Progress = Callable[[str], None]


class NativeParity:
    """Compares the layers of an opened native engine with a record.

    Attributes:
        result: what was found.
    """

    def __init__(
        self,
        runner: AnyNative,
        record: Record,
        batches: Sequence[Batch],
        sites: Mapping[str, LayerSite],
        *,
        folder: Path,
        paths: Sequence[Batch] = (),
    ) -> None:
        """Take the engine and what it is held against.

        Args:
            runner: the engine.
            record: read apart from the engine.
            batches: inputs.
            sites: shapes of the layers, by module path.
            folder: for what memory should not hold.
            paths: inputs whose layers are kept and not compared.
        """
        self.runner, self.record, self.batches, self.sites, self.paths = runner, record, batches, sites, paths
        self.result = Parity(layers={name: LayerTally() for name in record.layers}, kept=KeptTensors(folder))

    def run(self, outputs: list[dict[str, Array]], *, seed: int, progress: Progress) -> Parity:
        """Compare all layers.

        Args:
            outputs: the engine's outputs of the batches, then of `paths`, from its usual runs.
            seed: of the extreme inputs.
            progress: called with a line where something takes long.
        """
        self.result.outputs = outputs
        self._check_edges()
        for name in set(self.record.layers) - set(self.runner.layer_forms()):
            self.result.layers[name].problem("the engine's program does not have this layer")
        for chunk in self._chunks():
            progress(f"comparing {len(chunk)} layers at {self.record.steps} steps")
            for index in range(len(self.batches) + len(self.paths)):
                self._look_at(chunk, index)
        progress("probing every layer with extreme inputs at every step")
        self._probe(seed)
        return self.result

    def _chunks(self) -> list[list[str]]:
        """Groups of layers whose values fit CHUNK_BYTES in the largest batch."""
        batch = max(len(b.buckets) for b in (*self.batches, *self.paths))
        chunks: list[list[str]] = [[]]
        total = 0
        for name in (name for name in self.record.layers if name in self.runner.layer_forms()):
            site = self.sites[name]
            size = batch * (9 * int(np.prod(site.input_shape)) + 12 * int(np.prod(site.output_shape)))
            if chunks[-1] and total + size > CHUNK_BYTES:
                chunks.append([])
                total = 0
            chunks[-1].append(name)
            total += size
        return [chunk for chunk in chunks if chunk]

    def _look_at(self, chunk: Collection[str], index: int) -> None:
        compared = index < len(self.batches)
        batch = self.batches[index] if compared else self.paths[index - len(self.batches)]
        seen, layers = self.runner.probe(batch.feeds, chunk)
        if not same_bits(self.result.outputs[index], seen):
            for name in chunk:
                self.result.layers[name].problem("the engine gives another output while it is looked at")
        for name in chunk:
            if name not in layers:
                self.result.layers[name].problem("the engine's program does not run this layer")
                continue
            if compared:
                self._compare(self.record.layers[name], layers[name], batch)
            self._keep(index, self.record.layers[name], layers[name])

    def _compare(self, layer: Layer, trace: LayerTrace, batch: Batch) -> None:
        tally = self.result.layers[layer.name]
        if len(trace.inputs) != len(layer.parts):
            tally.problem(f"engine has {len(trace.inputs)} parts, expected {len(layer.parts)}")
            return
        terms = []
        for index, (x, codes, total) in enumerate(zip(trace.inputs, trace.codes, trace.accumulators, strict=True)):
            read = PartTensors(x=x, codes=codes, accumulator=total)
            term = compare_part(self.record, layer, index, CENTRED, read, batch.buckets, tally)
            if term is not None:
                terms.append(term)
        if len(terms) == len(layer.parts):
            self._compare_output(layer, trace.output, layer_output(layer, terms), batch)

    def _compare_output(self, layer: Layer, got: Array, want: F32, batch: Batch) -> None:
        """The float output; every operation behind the accumulator is defined, so nothing is tolerated."""
        tally = self.result.layers[layer.name]
        if got.shape != want.shape:
            tally.problem(f"engine holds outputs {got.shape}, expected {want.shape}")
            return
        wrong = different_bits(got, want)
        for sample in np.unique(np.argwhere(wrong)[:, 0]).tolist():
            bucket = int(batch.buckets[sample])
            largest = float(np.abs(want[sample]).max(initial=0)) or 1.0
            gap = np.abs(got[sample].astype(np.float64) - want[sample])
            step = tally.steps.setdefault(bucket, Tally())
            gap_share = float(np.nan_to_num(gap, nan=np.inf).max()) / largest
            step.max_output_difference = max(step.max_output_difference, gap_share)
            if tally.first is None:
                at = tuple(int(i) for i in np.argwhere(wrong[sample])[0])
                tally.first = Difference(
                    layer=layer.name, part=0, tensor="output", bucket=bucket, coordinate=at,
                    timestep=float(self.record.timesteps[bucket]), got=float(got[sample][at]),
                    expected=float(want[sample][at]),
                )  # fmt: skip

    def _keep(self, batch: int, layer: Layer, trace: LayerTrace) -> None:
        axis = 1 if layer.kind == "conv2d" else -1
        joined = trace.inputs[0] if len(trace.inputs) == 1 else np.concatenate(trace.inputs, axis=axis)
        self.result.kept.put(batch, layer.name, joined, trace.output)

    def _probe(self, seed: int) -> None:
        """Each part by itself, by the same tables, weights and kernels, with inputs at and beyond the code range."""
        if not isinstance(self.runner, NativeRunner):
            return
        executor = self.runner.executor
        for (name, index), piece in pieces_of(executor).items():
            layer = self.record.layers.get(name)
            if layer is None or index >= len(layer.parts):
                continue
            group = max(1, PROBE_ELEMENTS // int(np.prod(piece.shape)))
            for start in range(0, self.record.steps, group):
                buckets = np.arange(start, min(start + group, self.record.steps))
                inputs = extreme_inputs(layer, layer.parts[index], piece.shape, buckets, seed)
                x, codes, total = run_piece(executor, piece, inputs, buckets)
                read = PartTensors(x=x, codes=codes, accumulator=total)
                tally = self.result.layers[name]
                compare_part(self.record, layer, index, CENTRED, read, buckets, tally, probe=True)

    def _check_edges(self) -> None:
        """Every edge from both sides: the buckets the engine fills its step input with."""
        timesteps = edge_probes(self.record.step_edges)
        if not len(timesteps) or not self.record.layers:
            return
        one = one_sample(self.batches[0].feeds, 0)
        got = []
        for start in range(0, len(timesteps), EDGES_AT_ONCE):
            some = timesteps[start : start + EDGES_AT_ONCE]
            feeds = {name: np.repeat(value, len(some), axis=0) for name, value in one.items()}
            got.append(buckets_of(self.runner, {**feeds, TIMESTEP: some}))
        self.result.edges_checked = len(timesteps) // 2
        self.result.edge_problem = edge_problem(self.record, timesteps, np.concatenate(got)) or ""


def batch_difference(runner: AnyNative, batch: Batch, output: Mapping[str, Array]) -> str:
    """Whether a batch of mixed steps and labels equals its samples run one by one, bit for bit.

    Returns:
        An empty string, or which sample differs and the first layer that does.
    """
    for index in range(len(batch.buckets)):
        alone = runner.run(one_sample(batch.feeds, index))
        for name, value in output.items():
            if different_bits(alone[name], value[index : index + 1]).any():
                gap = float(np.abs(alone[name].astype(np.float64) - value[index : index + 1]).max())
                first = _first_batch_dependent(runner, batch, index)
                return f"sample {index} of a mixed batch differs from itself alone by up to {gap:.3g}: {first}"
    return ""


def _first_batch_dependent(runner: AnyNative, batch: Batch, index: int) -> str:
    """The first layer in execution order whose input for a sample depends on the rest of its batch."""
    together = runner.probe(batch.feeds)[1]
    alone = runner.probe(one_sample(batch.feeds, index))[1]
    for name, trace in together.items():
        mine = alone[name]
        for what, a, b in (("input", trace.inputs, mine.inputs), ("output", (trace.output,), (mine.output,))):
            if any(different_bits(x[index : index + 1], y).any() for x, y in zip(a, b, strict=True)):
                return f"first at the {what} of layer {name}"
    return "no layer shows the difference"
