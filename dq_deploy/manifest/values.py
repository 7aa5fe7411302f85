"""The typed values of a manifest, from the whole down to one product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from dq_deploy.manifest.entries import Entries
from dq_deploy.manifest.kinds import (
    AnyNumber,
    Capability,
    Count,
    CountOrNull,
    Dimension,
    Flag,
    Number,
    NumberOrNull,
    ObjectOrNull,
    Size,
    SizeOrNull,
    Text,
    TextOrNull,
    WholeOrNull,
)


@dataclass(frozen=True, kw_only=True)
class TensorEntry(Entries):
    """An input or output of an engine.

    Attributes:
        name: of the tensor.
        dtype: numpy's name of its type.
        shape: its sizes; a letter is a free one.
        limits: lowest and highest value it may have; None where any is valid.
    """

    name: Text
    dtype: Text
    shape: tuple[Dimension, ...]
    limits: tuple[Number, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ManifestOptions(Entries):
    """What an export was asked for; of another target than TensorRT's there is neither float type nor conv.

    The layout is that of the inputs and outputs, as `optimum`; None for our own.
    """

    target: Text | None = None
    mode: Text | None = None
    float_type: Text | None = None
    conv: Text | None = None
    layout: Text | None = None


@dataclass(frozen=True, kw_only=True)
class ManifestMacs(Entries):
    """Multiply-accumulates of one sample.

    Attributes:
        of_all: of convolutions, linear layers and attention products.
        of_quantizable: of convolutions and linear layers.
        attention: of attention products.
        layers: of each convolution and linear layer, by module path.
    """

    of_all: Size
    of_quantizable: Size
    attention: Count
    layers: Mapping[str, Count]


GEMM_NULLS = frozenset({"m"})
"""Entries of a product of matrices that are written as null where they have no value."""


@dataclass(frozen=True, kw_only=True)
class ProductShape(Entries):
    """Sizes of one product for one sample.

    Attributes:
        kind: `gemm`, with m, k and n; or `conv`, with n, c and the sizes of the window.
        m: rows; None where they vary.
        n: output channels.
        k: summed products.
        c: input channels.
        kernel: window, and so are the next three.
        stride: steps of the window.
        padding: zeros around.
        dilation: gaps in the window.
        spatial: height and width that go in; None where they vary.
        spatial_out: height and width that come out; None where they vary.
    """

    kind: Text
    m: SizeOrNull = None
    n: Size | None = None
    k: Size | None = None
    c: Size | None = None
    kernel: tuple[Count, ...] | None = None
    stride: tuple[Count, ...] | None = None
    padding: tuple[Count, ...] | None = None
    dilation: tuple[Count, ...] | None = None
    spatial: tuple[Count, ...] | None = None
    spatial_out: tuple[Count, ...] | None = None

    def missing(self) -> tuple[str, ...]:
        """Names of the sizes that a product of this kind needs and does not have."""
        of_conv = ("n", "c", "kernel", "stride", "padding", "dilation")
        return tuple(name for name in (of_conv if self.kind == "conv" else ("n", "k")) if getattr(self, name) is None)


PART_NULLS = frozenset({"accumulator", "accumulator_holds", "offset", "offset_table"})
"""Entries of a part that every target writes, null where they have no value."""


@dataclass(frozen=True, kw_only=True)
class ManifestPart(Entries):
    """Where codes and accumulators of one part of a layer can be read. Tensors are given by their names in the graph.

    Attributes:
        input: float tensor that is quantized.
        codes: its integer codes.
        codes_padding: zeros already around the codes: top, left, bottom, right.
        rows: the codes as the product reads them.
        weight: the integer weights.
        weight_type: `int8` or `int4`.
        accumulator: sums of the product; None where they cannot be read.
        accumulator_holds: `canonical`, `shifted`, `shifted_inside` or `held`.
        products: the tensors that are added up to the accumulator, where there are several.
        node: ONNX node of the product.
        offset: what is added to a centred code; None where that differs by step.
        offset_table: name of the step table with the offsets then.
        offset_shift: what is added to an entry of that table.
        layout: `nchw`, `nhwc` or `last`: the axis of channels.
        scale_at: `weights` where the product's weights carry s * s_w, so that its float term is A * (s * s_w); `behind`
            where they carry s_w and the product is multiplied by s[t], (A * s_w) * s[t]; None of other targets.
        product: sizes of the product.
    """

    input: TextOrNull = None
    codes: TextOrNull = None
    codes_padding: tuple[Count, ...] | None = None
    rows: TextOrNull = None
    weight: TextOrNull = None
    weight_type: TextOrNull = None
    accumulator: TextOrNull = None
    accumulator_holds: TextOrNull = None
    products: tuple[Text, ...] | None = None
    node: TextOrNull = None
    offset: WholeOrNull = None
    offset_table: TextOrNull = None
    offset_shift: WholeOrNull = None
    layout: TextOrNull = None
    scale_at: Text | None = None
    product: ProductShape | None = None
    nulls: frozenset[str] = field(default=PART_NULLS, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class ManifestLayer(Entries):
    """One layer of a record as the graph has it.

    Attributes:
        name: module path.
        kind: `conv2d` or `linear`.
        integer: whether its products are integer ones.
        form: how it is written, in words.
        reason: why it is not integer, or an empty text.
        output: name of the float tensor it hands on.
        output_codes: node that makes its output's codes, in mode fast.
        bias_at: `last_product` where the last part's convolution adds it, in the engine's own rounding and in front of
            the sum of the parts; `behind` where it is added to that sum; None without a bias and of other targets.
        im2col_bytes: bytes of the int8 patches of one sample, for a convolution written as a product.
        parts: its parts, in the order in which they are summed; empty for a float layer.
        node: ONNX node of its product, for a layer without parts.
        weight_type: `int4` or `float`, of a layer whose activations are float.
        product: sizes of its product, for a layer without parts.
    """

    name: Text
    kind: Text | None = None
    integer: Flag
    form: Text | None = None
    reason: Text | None = None
    output: TextOrNull = None
    output_codes: TextOrNull = None
    bias_at: Text | None = None
    im2col_bytes: Count | None = None
    parts: tuple[ManifestPart, ...] | None = None
    node: TextOrNull = None
    weight_type: Text | None = None
    product: ProductShape | None = None


@dataclass(frozen=True, kw_only=True)
class KeptFloat(Entries):
    """A float operation that stayed out of the float type, with its largest value and the reason."""

    name: Text
    largest: AnyNumber
    kept: Text
    why: Text


@dataclass(frozen=True, kw_only=True)
class EngineManifest(Entries):
    """What an exported ONNX file says of itself.

    Attributes:
        record_sha256: content hash of the record it was made from.
        target: one of `targets.TARGETS`, or `native`.
        mode: `exact` or `fast`.
        single_step_batch: whether all samples of a batch must be in the same step bucket, as in mode fast.
        family: family of the denoiser, as `unet2d`.
        model_config: diffusers configuration of the denoiser.
        scheduler_config: diffusers configuration of its scheduler, or None.
        inputs: input tensors, in the engine's order.
        outputs: output tensors, in the engine's order.
        sizes: what each size that varies was where the denoiser's call was recorded; None in earlier versions.
        multiples: what a size that varies has to be a multiple of, by name; None where every number will do.
        constants: plain values that the denoiser is always called with, by argument; None where there are none.
        timesteps: the calibrated timesteps, one for each step bucket.
        step_edges: limits between the step buckets.
        versions: versions of the packages that made it, by name.
        options: options of the export.
        macs: multiply-accumulates of one sample.
        layers: the layers, in the record's order.
        notes: rewrites that were declined, with reasons.
        float_precision: float operations kept in float32; None where the target has no choice.
        data_sha256: hash of the `.data` file; None where there is none.
        content_sha256: hash of the file without its manifest, and of the manifest without this entry.
    """

    FORMAT: ClassVar[str] = "dq_deploy.manifest"
    VERSION: ClassVar[int] = 1

    record_sha256: Text | None = None
    target: Text
    mode: Text
    single_step_batch: Flag | None = None
    family: Text | None = None
    model_config: Mapping[str, Any]
    scheduler_config: ObjectOrNull
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    sizes: Mapping[str, Size] | None = None
    multiples: Mapping[str, Size] | None = None
    constants: Mapping[str, Any] | None = None
    timesteps: tuple[Number, ...]
    step_edges: tuple[Number, ...]
    versions: Mapping[str, Text] | None = None
    options: ManifestOptions | None = None
    macs: ManifestMacs | None = None
    layers: tuple[ManifestLayer, ...]
    notes: tuple[Text, ...] | None = None
    float_precision: tuple[KeptFloat, ...] | None = None
    data_sha256: TextOrNull = None
    content_sha256: Text | None = None

    @classmethod
    def from_json(cls, value: object, *, where: str = "") -> Self:
        """As `Entries.from_json`; format and version, which whoever opens the file looks at, are left out."""
        if isinstance(value, dict):
            value = {name: entry for name, entry in value.items() if name not in ("format", "version")}
        return super().from_json(value, where=where)

    def to_json(self) -> dict[str, Any]:
        """JSON values as the file holds them, with its format and version."""
        return {"format": self.FORMAT, "version": self.VERSION, **super().to_json()}


@dataclass(frozen=True, kw_only=True)
class SizeRange(Entries):
    """Smallest, best and largest sizes of one input."""

    min: tuple[Size, ...]
    opt: tuple[Size, ...]
    max: tuple[Size, ...]

    def text(self) -> str:
        """As `1x4x64x64..2x4x64x64..8x4x96x96`."""
        return "..".join("x".join(str(size) for size in shape) for shape in (self.min, self.opt, self.max))


@dataclass(frozen=True, kw_only=True)
class BuildFacts(Entries):
    """How a plan was built.

    Attributes:
        seconds: from the start of the builder's process to its end.
        parse_seconds: of it, to read the graph.
        build_seconds: of it, to build.
        peak_mib: most memory of that process; None where it is not known.
        workspace_mib: most workspace a kernel may use; None for no limit.
        timing_cache: name of TensorRT's file of measured kernels, or None.
        network_layers: layers of TensorRT's network.
        plan_bytes: size of the plan.
        text_bytes: about how much of it is source text of kernels.
    """

    seconds: Number | None = None
    parse_seconds: Number | None = None
    build_seconds: Number | None = None
    peak_mib: NumberOrNull = None
    workspace_mib: CountOrNull = None
    timing_cache: TextOrNull = None
    network_layers: Count | None = None
    plan_bytes: Count | None = None
    text_bytes: Count | None = None
    nulls: frozenset[str] = field(
        default=frozenset({"peak_mib", "workspace_mib", "timing_cache"}), repr=False, compare=False
    )


@dataclass(frozen=True, kw_only=True)
class LayerBuilt(Entries):
    """What a layer became when the plan was built.

    Attributes:
        name: module path.
        requested: `integer` or `float`.
        executed: `integer`, `float` or `unknown`.
        operands: element types of its products, as `int8 x int8`.
        macs: multiply-accumulates of one sample.
        why: reason where it is not integer.
    """

    name: Text
    requested: Text
    executed: Text
    operands: tuple[Text, ...] | None = None
    macs: Count
    why: Text


@dataclass(frozen=True, kw_only=True)
class PlanFacts(Entries):
    """What a build adds to the manifest of the ONNX file.

    Attributes:
        onnx: name of that file.
        onnx_sha256: of that file.
        onnx_data_sha256: of its data files, by name.
        plan_sha256: of the plan.
        runtime: `tensorrt` or `tensorrt-rtx`.
        runtime_version: of the builder.
        compute_capabilities: of the GPUs it is for.
        portable: whether later GPUs take it too.
        profiles: ranges of the inputs' sizes, by input.
        build: how it was built.
        layers_built: what each layer became; None where nobody looked.
        manifest_sha256: of the manifest without this entry; None in manifests of earlier versions.
    """

    onnx: Text | None = None
    onnx_sha256: Text
    onnx_data_sha256: Mapping[str, Text] | None = None
    plan_sha256: Text
    runtime: Text
    runtime_version: Text
    compute_capabilities: tuple[Capability, ...]
    portable: Flag | None = None
    profiles: tuple[Mapping[str, SizeRange], ...]
    build: BuildFacts | None = None
    layers_built: tuple[LayerBuilt, ...] | None = None
    manifest_sha256: TextOrNull = None


@dataclass(frozen=True, kw_only=True)
class PlanManifest(PlanFacts, EngineManifest):
    """What a plan says of itself: what its ONNX file says, and what the build added."""

    FORMAT: ClassVar[str] = "dq_deploy.plan"
