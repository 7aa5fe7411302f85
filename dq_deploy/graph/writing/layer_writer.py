"""What the passes that write integer layers share: the loop over a record's layers, and the parts of one layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dq_deploy.graph.pass_contract import PassResult
from dq_deploy.graph.varying import size_at, sizes_of
from dq_deploy.graph.writing.builder import Builder, replace_uses
from dq_deploy.graph.writing.folded_steps import LayerSteps, steps_of
from dq_deploy.graph.writing.image_sizes import ImageSizes, fixed_size, sizes_of_image
from dq_deploy.graph.writing.sites import Site, find_sites
from dq_deploy.graph.writing.steps import StepTables
from dq_deploy.manifest.values import ManifestLayer, ManifestPart
from dq_deploy.numerics import reciprocal
from dq_deploy.numerics.arrays import F32
from dq_deploy.numerics.geometry import Pair
from dq_deploy.record import Part, Record

FLOAT = ir.DataType.FLOAT
Codes = TypeVar("Codes")


def float_entry(site: Site, reason: str) -> ManifestLayer:
    """Manifest entry of a layer that stays float."""
    return ManifestLayer(
        name=site.layer.name, kind=site.layer.kind, integer=False, form="float", reason=reason, parts=()
    )


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What the layers of one graph share.

    Attributes:
        codes: codes that several layers read, by the tensor and the quantizer.
        images: sizes of images, where they vary.
        traced: what each size of the call was when the graph was traced, or as the record has it.
        samples: sample of each entry of a leading axis that holds several of one, by its size.
    """

    codes: dict[tuple[str, bytes], Any] = field(default_factory=dict)
    images: ImageSizes = field(default_factory=ImageSizes)
    traced: Mapping[str, int] = field(default_factory=dict)
    samples: dict[str, ir.Value] = field(default_factory=dict)


class LayerWriter:
    """Writes the nodes of one layer in front of its float node; a pass says what a part becomes.

    Args:
        graph: edited in place.
        site: the layer's place in it.
        steps: tables of the pass.
        shared: what the layers of the graph share.

    Attributes:
        rank: axes of the layer's input.
        forms: what the parts became, in words.
    """

    def __init__(self, graph: ir.Graph, site: Site, steps: StepTables, shared: Shared) -> None:
        self.graph, self.site, self.layer, self.shared = graph, site, site.layer, shared
        self.conv = self.layer.kind == "conv2d"
        self.b = Builder(graph, site.node, f"dq/{self.layer.name}")
        self.steps: LayerSteps = steps_of(steps, self.b, site.input, shared.samples)
        shape = site.input.shape
        self.rank = 4 if self.conv else len(shape) if shape is not None else 3
        self.forms: list[str] = []

    def write(self) -> ManifestLayer:
        """Put the layer's nodes in and return its manifest entry."""
        raise NotImplementedError

    def _part(self, x: ir.Value, part: Part) -> tuple[ir.Value, ManifestPart]:
        """The float term of one part and what the manifest says of it."""
        raise NotImplementedError

    def _parts(self) -> tuple[ir.Value, list[ManifestPart]]:
        """The sum of all parts' terms, in order, and the entry of each."""
        entries = []
        total: ir.Value | None = None
        start = 0
        for index, part in enumerate(self.layer.parts):
            self.b.prefix = f"dq/{self.layer.name}" + (f"/part{index}" if len(self.layer.parts) > 1 else "")
            x = self._slice(start, len(part.pre))
            start += len(part.pre)
            term, entry = self._part(x, part)
            entries.append(entry)
            self.b.prefix = f"dq/{self.layer.name}"
            role = "parts_sum" if index < 2 else f"parts_sum{index}"
            total = term if total is None else self.b.op("Add", [total, term], role, dtype=FLOAT)
        assert total is not None
        return total, entries

    def _entry(self, form: str, parts: list[ManifestPart]) -> ManifestLayer:
        return ManifestLayer(
            name=self.layer.name, kind=self.layer.kind, integer=True, form=form, reason="", parts=tuple(parts)
        )

    def _slice(self, start: int, width: int) -> ir.Value:
        """Input channels of one part."""
        if len(self.layer.parts) == 1:
            return self.site.input
        axis = 1 if self.conv else self.rank - 1
        limits = [self.b.constant(np.array([v], np.int64), "limit") for v in (start, start + width, axis)]
        return self.b.op("Slice", [self.site.input, *limits], "input", dtype=FLOAT)

    def _channels(self, values: NDArray[np.generic], role: str) -> ir.Value:
        """A constant of channels that broadcasts against the layer's input and output."""
        shape = [1] * self.rank
        shape[1 if self.conv else self.rank - 1] = -1
        return self.b.constant(values.reshape(shape), role)

    def _bias_value(self, rank: int, axis: int) -> ir.Value:
        """The bias beside the outputs, of each sample's step where it differs by step; the layer has one."""
        assert self.layer.bias is not None
        return bias_value(self.steps, self.b, self.layer.bias, rank=rank, axis=axis)

    def _multiplier(self, part: Part) -> ir.Value:
        """Each sample's m = pre * inv_s[t]."""
        m = self.steps.scalar(reciprocal(part.scale), self.rank)
        if (part.pre == 1).all():
            return m
        return self.b.op("Mul", [m, self._channels(part.pre, "pre")], "multiplier", dtype=FLOAT)

    def _clamped(self, value: ir.Value, part: Part) -> ir.Value:
        """The value within each sample's bounds of centred codes."""
        z = part.zero_point.astype(np.float32)
        value = self.b.op("Max", [value, self.steps.scalar(self.layer.q_min - z, self.rank)], "at_least", dtype=FLOAT)
        return self.b.op("Min", [value, self.steps.scalar(self.layer.q_max - z, self.rank)], "at_most", dtype=FLOAT)

    def _shape_out(self) -> ir.Value:
        """Shape of a convolution's output; 0 stands for the batch, which Reshape keeps."""
        size, channels = fixed_size(self.site.output), self.layer.out_channels
        if size is not None:
            return self.b.constant(np.array([0, channels, *size], np.int64), "shape_out")
        return self.shared.images.image_shape(self.b, channels, self.site.input, self.layer.window)

    def _pixels(self, value: ir.Value) -> Pair | None:
        """Height and width of an image, as traced where they vary; None where that is not known."""
        height, width = (size_at(size, self.shared.traced) for size in sizes_of_image(value) or (None, None))
        return None if height is None or width is None else (height, width)

    def _once(self, x: ir.Value, part: Part, make: Callable[[], Codes], *more: int) -> Codes:
        """Codes of x, made once for all layers that quantize it alike; `more` is what else tells them apart."""
        assert x.name is not None
        bounds = np.array([self.layer.q_min, self.layer.q_max, self.conv, *more])
        tables = (part.pre, part.scale, part.zero_point, bounds)
        key = (x.name, b"|".join(np.ascontiguousarray(t).tobytes() for t in tables))
        if key not in self.shared.codes:
            self.shared.codes[key] = make()
        codes: Codes = self.shared.codes[key]
        return codes


def bias_value(steps: LayerSteps, b: Builder, bias: F32, *, rank: int, axis: int) -> ir.Value:
    """A bias shaped to be added to a tensor: a constant [1, C, 1, ...], or the row of each sample's step.

    Args:
        steps: where rows are looked up.
        b: of the layer.
        bias: [C], or [T, C] by step.
        rank: axes of the tensor.
        axis: of its channels.
    """
    if bias.ndim == 2 and len(bias) > 1:
        return steps.rows(bias, f"{b.prefix}/bias", rank, channel_axis=axis)
    shape = [1] * rank
    shape[axis] = -1
    return b.constant(bias.reshape(shape), "bias")


def _add_rows_of_bias(graph: ir.Graph, site: Site, steps: StepTables, shared: Shared) -> None:
    """Behind a layer that stays float: what the rows of a bias by step differ by from their mean, which it has."""
    bias, mean = site.layer.bias, site.layer.mean_bias
    if bias is None or mean is None or bias.ndim == 1 or len(bias) == 1:
        return
    b = Builder(graph, site.node, f"dq/{site.layer.name}")
    conv = site.layer.kind == "conv2d"
    rank = 4 if conv else len(site.input.shape) if site.input.shape is not None else 3
    of_layer = steps_of(steps, b, site.input, shared.samples)
    rows = bias_value(of_layer, b, (bias - mean).astype(np.float32), rank=rank, axis=1 if conv else rank - 1)
    node = ir.node("Add", [site.output, rows], name=f"{b.prefix}/biased")
    y = node.outputs[0]
    y.name = f"{b.prefix}/biased"
    maker = site.output.producer()
    assert maker is not None
    graph.insert_after(maker, node)
    replace_uses(site.output, y)
    node.replace_input_with(0, site.output)


def write_layers(
    model: ir.Model,
    record: Record,
    entries: list[ManifestLayer],
    *,
    decline: Callable[[Site], str],
    writer: Callable[[ir.Graph, Site, StepTables, Shared], LayerWriter],
    shared_step: bool = False,
) -> PassResult:
    """Rewrite every layer of a record that a form can express.

    Args:
        model: edited in place.
        record: the quantized denoiser.
        entries: takes the manifest's entry of each layer.
        decline: why a layer stays float, or an empty string.
        writer: makes the writer of one layer.
        shared_step: as `StepTables` has it.
    """
    sites = find_sites(model.graph, record)
    steps = StepTables(model.graph, record.step_edges, shared_step=shared_step)
    notes = []
    of_record = {} if record.call is None else record.call.sizes
    shared = Shared(traced={**of_record, **sizes_of(model).traced})
    for site in sites:
        reason = decline(site)
        if reason:
            notes.append(f"{site.layer.name} stays float: {reason}")
            entries.append(float_entry(site, reason))
            _add_rows_of_bias(model.graph, site, steps, shared)
            continue
        entries.append(writer(model.graph, site, steps, shared).write())
    steps.finish()
    return PassResult(model=model, modified=True, notes=tuple(notes))
