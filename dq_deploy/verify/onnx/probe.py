"""Each layer's piece of the engine fed with extreme values at every step: what real inputs may never reach.

The pieces are cut from the shipped file and run by the same engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dq_deploy.engines.base import Runner
from dq_deploy.errors import DqError
from dq_deploy.graph.writing.steps import TIMESTEP
from dq_deploy.manifest.values import ManifestLayer
from dq_deploy.numerics.arrays import F32, I64, Array
from dq_deploy.record import BATCH, Record
from dq_deploy.verify.inputs import run_all
from dq_deploy.verify.layers.compare import ComparedPart, PartTensors
from dq_deploy.verify.layers.comparison import probe_part
from dq_deploy.verify.layers.tally import LayerTally
from dq_deploy.verify.onnx.held_form import held_form
from dq_deploy.verify.onnx.instrument import ShippedGraph
from dq_deploy.verify.onnx.layers import ProbedInput


@dataclass(frozen=True, kw_only=True)
class Probing:
    """What is the same for all layers of an engine.

    Attributes:
        shipped: the engine's file.
        record: the quantized denoiser.
        shapes: shape of each layer part's input, by tensor name.
        seed: of the random values.
        mixed: whether a batch may hold several steps.
    """

    shipped: ShippedGraph
    record: Record
    shapes: Mapping[str, ProbedInput]
    seed: int
    mixed: bool


def probe_layer(probing: Probing, name: str, entry: ManifestLayer, tally: LayerTally) -> None:
    """Compare one layer's codes and accumulators at every step bucket for inputs beyond and between its codes.

    Args:
        probing: the engine.
        name: module path of the layer.
        entry: the layer's manifest entry.
        tally: its `probe` is added to.
    """
    shipped, layer = probing.shipped, probing.record.layers[name]
    for index, part_entry in enumerate(entry.parts or ()):
        source = str(part_entry.input)
        if source not in probing.shapes:
            continue
        names = [str(part_entry.codes)]
        if part_entry.accumulator is not None and part_entry.accumulator in shipped.producer:
            names.append(part_entry.accumulator)
        probed = probing.shapes[source]
        shape: list[int | str] = ["entries", *probed.shape[1:]] if probed.folded else [BATCH, *probed.shape]
        inputs: dict[str, tuple[int, list[int | str]]] = {source: (1, shape)}
        try:
            runner = shipped.open(shipped.piece(inputs, names))
        except DqError as error:
            tally.problem(f"probe of the layer cannot be loaded: {error}")
            continue
        part = ComparedPart(
            record=probing.record, layer=layer, index=index, form=held_form(part_entry), tally=tally, probe=True
        )
        piece = _Piece(runner=runner, source=source, names=names, record=probing.record, probed=probed)
        with runner:
            probe_part(part, probed.shape, piece.run, seed=probing.seed, mixed=probing.mixed)


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A layer part's piece of the engine: from its input to its codes and its accumulator.

    Sizes that it asks of the engine's inputs are those of the run in which its input was seen.
    """

    runner: Runner
    source: str
    names: list[str]
    record: Record
    probed: ProbedInput

    def run(self, x: F32, buckets: I64) -> PartTensors:
        if self.probed.folded:
            x = x.reshape(-1, *x.shape[2:])
        feeds: dict[str, Array] = {
            **self.probed.batch.repeated(0, len(buckets)),
            self.source: x,
            TIMESTEP: self.record.timesteps[buckets],
        }
        got = run_all(self.runner, feeds)
        accumulator = got[self.names[1]] if len(self.names) > 1 else None
        return PartTensors(x=x, codes=got[self.names[0]], accumulator=accumulator)
