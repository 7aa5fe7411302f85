"""Every layer of a running engine against the numerics: what is the same whichever engine runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dq_deploy.models import LayerSite
from dq_deploy.numerics.arrays import F32, I64, Array
from dq_deploy.record import Layer, Record
from dq_deploy.verify.inputs import Batch, Runs
from dq_deploy.verify.layers.compare import ComparedPart, HeldForm, PartTensors, compare_part
from dq_deploy.verify.layers.extreme_inputs import extreme_inputs
from dq_deploy.verify.layers.outputs import LayerPlace, edge_problem, edge_timesteps, layer_output
from dq_deploy.verify.layers.tally import LayerTally
from dq_deploy.verify.output.kept_tensors import KeptTensors

CHUNK_BYTES = 256 << 20
"""Inner tensors read in one run; larger models are read in several."""

PROBE_ELEMENTS = 1 << 22
"""Input values of one probe run; more steps than fit run in several."""

Progress = Callable[[str], None]


@dataclass(kw_only=True)
class LayerResults:
    """What the comparison found.

    Attributes:
        layers: by module path.
        kept: by batch and layer: its input (parts joined) and its float output; those of the inputs for the float
            operations come behind those of the others.
        edge_problem: first wrong bucket, in words, or an empty string.
        edges_checked: number of edges looked at from both sides.
    """

    kept: KeptTensors
    layers: dict[str, LayerTally] = field(default_factory=dict)
    edge_problem: str = ""
    edges_checked: int = 0

    @property
    def any_difference(self) -> bool:
        """Whether a layer differs."""
        return any(tally.first is not None for tally in self.layers.values())


@dataclass(frozen=True, kw_only=True)
class LayerSubject:
    """What a comparison of layers is about.

    Attributes:
        record: the quantized denoiser, read apart from the engine.
        runs: the inputs, and the engine's outputs of them from its usual runs.
        sites: shapes of the layers, by module path.
        folder: for what memory should not hold.
        progress: called with a line where something takes long.
    """

    record: Record
    runs: Runs
    sites: Mapping[str, LayerSite]
    folder: Path
    progress: Progress


class LayerComparison(ABC):
    """Looks at the layers of one engine while it runs.

    Attributes:
        result: what was found so far.
    """

    input_bytes: int
    """Held for each value of a layer's input while it is looked at."""
    output_bytes: int
    """Likewise of its output."""

    def __init__(self, subject: LayerSubject) -> None:
        """Take what is compared; nothing runs yet."""
        self.subject, self.record, self.runs = subject, subject.record, subject.runs
        tallies = {name: LayerTally() for name in subject.record.layers}
        self.result = LayerResults(layers=tallies, kept=KeptTensors(subject.folder))

    def run(self) -> LayerResults:
        """Compare the step edges, then all layers."""
        self._check_edges()
        for chunk in self._chunks(self.readable_layers()):
            self.subject.progress(f"comparing {len(chunk)} layers at {self.record.steps} steps")
            self.compare_chunk(chunk)
        return self.result

    @abstractmethod
    def readable_layers(self) -> list[str]:
        """Layers whose codes can be read; why the others cannot is noted in their tallies."""

    @abstractmethod
    def compare_chunk(self, chunk: Sequence[str]) -> None:
        """Run the engine with all inputs and compare these layers."""

    @abstractmethod
    def buckets_of(self, timesteps: F32) -> Array:
        """The step buckets the engine finds for some timesteps."""

    def edges_unread(self) -> str:
        """Why the engine's buckets cannot be read, or an empty string."""
        return ""

    def _check_edges(self) -> None:
        """Every edge from both sides, in the piece of the engine that finds the bucket."""
        timesteps = edge_timesteps(self.record.step_edges)
        if not len(timesteps) or not self.record.layers:  # weight-only layers do not depend on the step
            return
        unread = self.edges_unread()
        if unread:
            self.result.edge_problem = f"{unread}; its {len(timesteps) // 2} edges are unproven"
            return
        self.result.edge_problem = edge_problem(self.record, timesteps, self.buckets_of)
        self.result.edges_checked = len(timesteps) // 2

    def _chunks(self, names: Sequence[str]) -> list[list[str]]:
        """Groups of layers whose values fit CHUNK_BYTES in the largest batch."""
        batch = max(len(b.buckets) for b in self.runs.all)
        chunks: list[list[str]] = [[]]
        total = 0
        for name in names:
            site = self.subject.sites[name]
            inputs, outputs = int(np.prod(site.input_shape)), int(np.prod(site.output_shape))
            size = batch * (self.input_bytes * inputs + self.output_bytes * outputs)
            if chunks[-1] and total + size > CHUNK_BYTES:
                chunks.append([])
                total = 0
            chunks[-1].append(name)
            total += size
        return [chunk for chunk in chunks if chunk]

    def place(self, layer: Layer, batch: Batch, tally: LayerTally) -> LayerPlace:
        """A layer in the run of a batch."""
        return LayerPlace(record=self.record, layer=layer, buckets=batch.buckets, tally=tally)

    def compare_parts(self, place: LayerPlace, forms: Sequence[HeldForm], read: Sequence[PartTensors]) -> F32 | None:
        """Compare all parts of a layer.

        Args:
            place: the layer in one run.
            forms: how the engine holds each part.
            read: what was read of each part.

        Returns:
            The layer's output by the numerics, or None where it could not be computed.
        """
        terms = []
        for index, (form, tensors) in enumerate(zip(forms, read, strict=True)):
            part = ComparedPart(record=self.record, layer=place.layer, index=index, form=form, tally=place.tally)
            term = compare_part(part, tensors, place.buckets)
            if term is not None:
                terms.append(term)
        return layer_output(place.layer, terms, place.buckets) if len(terms) == len(place.layer.parts) else None

    def keep(self, batch: int, layer: Layer, inputs: Sequence[Array], output: Array) -> None:
        """Keep a layer's tensors for the comparison of the float operations."""
        axis = 1 if layer.kind == "conv2d" else -1
        joined = inputs[0] if len(inputs) == 1 else np.concatenate(inputs, axis=axis)
        self.result.kept.put(batch, layer.name, joined, output)


def probe_part(
    part: ComparedPart,
    shape: tuple[int, ...],
    run: Callable[[F32, I64], PartTensors],
    *,
    seed: int,
    mixed: bool = True,
) -> None:
    """Compare a part's codes and accumulators at every step bucket for inputs beyond and between its codes.

    Args:
        part: which; its tally's `probe` is added to.
        shape: of one sample of its input.
        run: the engine's piece of it, from inputs [B, *shape] and step buckets [B].
        seed: of the random values.
        mixed: whether a batch may hold several steps.
    """
    steps = part.record.steps
    group = max(1, PROBE_ELEMENTS // int(np.prod(shape))) if mixed else 1
    for start in range(0, steps, group):
        buckets = np.arange(start, min(start + group, steps))
        compare_part(part, run(extreme_inputs(part.layer, part.own, shape, buckets, seed), buckets), buckets)
