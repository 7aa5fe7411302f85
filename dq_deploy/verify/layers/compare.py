"""One layer part against the numerics: codes and accumulators, code by code."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dq_deploy.manifest.values import ManifestLayer, ManifestPart
from dq_deploy.numerics import (
    accumulate_conv2d,
    accumulate_linear,
    integer_layer,
    requantize_accumulator,
    step_bucket,
    table_at,
)
from dq_deploy.numerics.arrays import F32, I32, Array
from dq_deploy.record import Layer, Record

OUTPUT_TOLERANCE = 2.0**-20
"""Largest accepted difference of a layer's float output, as a share of its largest magnitude.

The scaling behind the accumulator is three float32 operations that an engine may group differently; everything in
front of it is compared without a tolerance.
"""

FLOAT_PRODUCT_TOLERANCE = 2.0**-23
"""What a product of K terms in float32 may be off by, over sqrt(K), as a share of the sum of its terms' magnitudes.

Twice what independent roundings to 2^-24 add up to (N. Higham, Accuracy and Stability of Numerical Algorithms, 2002,
section 2.8).

Only for graphs whose weights carry their scale and are run on another engine: there the product is a float sum. Its
integers are compared without a tolerance, by their twin.
"""

_ABSURD = 2**31


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first value that is not what the numerics say.

    Attributes:
        layer: module path.
        part: index of the input-channel slice.
        tensor: `code`, `accumulator` or `output`.
        bucket: step bucket of the sample.
        timestep: its calibrated timestep.
        coordinate: index in the tensor without the sample axis: (channel, row, column) for a convolution.
        got: the engine's value.
        expected: the value by the numerics.
        where: `engine` or `probe` (a piece of the engine fed with extreme values).
    """

    layer: str
    part: int
    tensor: str
    bucket: int
    timestep: float
    coordinate: tuple[int, ...]
    got: float
    expected: float
    where: str = "engine"

    def text(self) -> str:
        """One line for a person."""
        source = "" if self.where == "engine" else ", probed with extreme values"
        return (
            f"layer {self.layer}, step {self.bucket} (timestep {self.timestep:g}){source}: {self.tensor} at "
            f"{self.coordinate} is {self.got:g}, expected {self.expected:g}"
        )


@dataclass(kw_only=True)
class Tally:
    """Running counts of one layer at one step bucket."""

    samples: int = 0
    codes: int = 0
    code_differences: int = 0
    max_code_difference: int = 0
    accumulators: int = 0
    accumulator_differences: int = 0
    max_accumulator_difference: float = 0
    largest_accumulator: float = 0
    max_output_difference: float = 0
    output_codes: int = 0
    output_code_differences: int = 0
    max_output_code_difference: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing differed."""
        return not (self.code_differences or self.accumulator_differences)


@dataclass(kw_only=True)
class LayerTally:
    """Running results of one layer: by step bucket in the engine, and of the probe.

    Attributes:
        steps: by bucket, from runs of the whole engine.
        timesteps: calibrated timestep of each of those buckets.
        probe: from runs of the layer's piece of the engine with extreme inputs.
        first: first difference.
        problems: why something could not be compared.
    """

    steps: dict[int, Tally] = field(default_factory=dict)
    timesteps: dict[int, float] = field(default_factory=dict)
    probe: Tally = field(default_factory=Tally)
    first: Difference | None = None
    problems: list[str] = field(default_factory=list)

    def problem(self, text: str) -> None:
        """Remember a reason once."""
        if text not in self.problems:
            self.problems.append(text)


@dataclass(frozen=True, kw_only=True, eq=False)
class PartTensors:
    """What was read from the engine for one part."""

    x: F32
    codes: Array
    accumulator: Array | None


def held_in_canonical_layout(values: Array, like: tuple[int, ...], layout: str) -> Array | None:
    """A tensor of the engine in the layout of the numerics, or None where the shapes do not fit.

    Args:
        values: as the engine holds it; rows and columns of a convolution may be one axis.
        like: shape by the numerics: [B, C, H, W] or [B, ..., C].
        layout: `nchw`, `nhwc` or `last`.
    """
    if len(like) == 4 and layout == "nhwc":
        b, c, h, w = like
        if values.shape in ((b, h * w, c), (b, h, w, c)):
            return values.reshape(b, h * w, c).transpose(0, 2, 1).reshape(like)
    if values.size == np.prod(like) and (values.shape == like or layout in ("nchw", "last")):
        return values.reshape(like) if values.shape[0] == like[0] else None
    return None


def expected_accumulator(
    layer: Layer, part_index: int, codes: I32, accumulator: I32, buckets: Array, holds: str, offset: Array
) -> Array:
    """What the engine's accumulator holds: int64, shape of the layer's output.

    Args:
        layer: whose.
        part_index: which slice of its input.
        codes: centred codes c.
        accumulator: A.
        buckets: [B] step buckets.
        holds: `canonical` is A; `shifted` is A + z[t] * sum(w_q), padding holding the code z; `shifted_inside` is the
            product of c + z[t] where padding holds 0.
        offset: [B] what the engine's codes hold beyond c; `held` is A + offset * sum(w_q).
    """
    part = layer.parts[part_index]
    if holds == "shifted_inside":
        z = table_at(part.zero_point, buckets).reshape((-1,) + (1,) * (codes.ndim - 1))
        shifted = (codes + z).astype(np.int32)
        q = part.q_weight(0)
        if layer.kind == "linear":
            return accumulate_linear(shifted, q).astype(np.int64)
        return accumulate_conv2d(shifted, q, layer.window, groups=layer.groups).astype(np.int64)
    wide = accumulator.astype(np.int64)
    if holds not in ("shifted", "held"):
        return wide
    z = table_at(part.zero_point, buckets).astype(np.int64) if holds == "shifted" else offset
    groups = table_at(part.group_of_step, buckets)
    rows = [part.q_weight(int(g)).reshape(layer.out_channels, -1) for g in groups]
    shift = z[:, None] * np.stack([row.sum(axis=1, dtype=np.int64) for row in rows])
    shape = [len(z)] + [1] * (wide.ndim - 1)
    shape[1 if layer.kind == "conv2d" else wide.ndim - 1] = shift.shape[1]
    return wide + shift.reshape(shape)


def compare_part(
    record: Record,
    layer: Layer,
    part_index: int,
    entry: ManifestPart,
    tensors: PartTensors,
    buckets: NDArray[np.int64],
    result: LayerTally,
    *,
    probe: bool = False,
) -> F32 | None:
    """Add one run's comparison to the layer's tally.

    Args:
        record: for the timesteps.
        layer: whose part it is.
        part_index: which.
        entry: the part's manifest entry: offset, offset_table, accumulator_holds, layout.
        tensors: read from the engine.
        buckets: [B] bucket of each sample.
        result: is added to.
        probe: the tensors come from a probe.

    Returns:
        The part's float output by the numerics without bias, or None where it could not be computed.
    """
    part = layer.parts[part_index]
    if tensors.x.dtype != np.float32 or np.isnan(tensors.x).any():
        what = "NaN" if tensors.x.dtype == np.float32 else str(tensors.x.dtype)
        result.problem(f"layer input holds {what}, expected float32 numbers")
        return None
    single = dataclasses.replace(layer, parts=(part,), bias=None, out_scale=None, out_zero_point=None)
    expected = integer_layer(single, tensors.x, buckets)
    layout = entry.layout or "nchw"
    table = part.zero_point + (entry.offset_shift or 0) if entry.offset is None else np.asarray([entry.offset])
    offset = table_at(table, buckets).astype(np.int64)
    inner = _without_padding(tensors.codes, entry.codes_padding, offset, result)
    codes = held_in_canonical_layout(inner, tensors.x.shape, "nchw")  # they lie as the layer's input does
    holds = entry.accumulator_holds or "canonical"
    want = expected_accumulator(layer, part_index, expected.codes[0], expected.accumulators[0], buckets, holds, offset)
    seen = tensors.accumulator
    held = None if seen is None else held_in_canonical_layout(seen, want.shape, layout)
    if codes is None or (held is None and seen is not None):
        result.problem(
            f"engine holds codes {tensors.codes.shape} and accumulators {None if seen is None else seen.shape}, "
            f"expected {tensors.x.shape} and {want.shape} in layout {layout}"
        )
        return None
    if held is None:
        want = held = np.zeros((len(buckets), 0), np.float32)
    shift = offset.reshape((-1,) + (1,) * (codes.ndim - 1))
    code_gap = np.abs(codes.astype(np.int64) - shift - expected.codes[0])
    wanted = want.astype(held.dtype)
    with np.errstate(invalid="ignore"):
        gap = np.abs(held.astype(np.float64) - wanted.astype(np.float64))
    gap = np.nan_to_num(gap, nan=_ABSURD, posinf=_ABSURD)
    for sample, bucket in enumerate(buckets.tolist()):
        tally = result.probe if probe else result.steps.setdefault(bucket, Tally())
        result.timesteps[bucket] = float(record.timesteps[bucket])
        tally.samples += 1
        tally.codes += code_gap[sample].size
        tally.code_differences += int(np.count_nonzero(code_gap[sample]))
        tally.max_code_difference = max(tally.max_code_difference, int(code_gap[sample].max(initial=0)))
        tally.accumulators += gap[sample].size
        tally.accumulator_differences += int(np.count_nonzero(gap[sample]))
        tally.max_accumulator_difference = max(tally.max_accumulator_difference, float(gap[sample].max(initial=0)))
        tally.largest_accumulator = max(tally.largest_accumulator, float(np.abs(want[sample]).max(initial=0)))
        if result.first is None:
            result.first = _first_of(
                (("code", code_gap[sample], codes[sample].astype(np.int64) - shift[sample], expected.codes[0][sample]),
                 ("accumulator", gap[sample], held[sample], wanted[sample])),
                layer=layer.name, part=part_index, bucket=bucket,
                timestep=float(record.timesteps[bucket]), where="probe" if probe else "engine",
            )  # fmt: skip
    return expected.output


def _without_padding(codes: Array, padding: Sequence[int] | None, offset: Array, result: LayerTally) -> Array:
    """Codes less a border of (top, left, bottom, right) that must hold the code of 0: the sample's offset."""
    if not padding or not any(padding):
        return codes
    top, left, bottom, right = padding
    inside = np.zeros(codes.shape[2:], bool)
    inside[top : codes.shape[2] - bottom, left : codes.shape[3] - right] = True
    if (codes[:, :, ~inside] != offset[:, None, None]).any():
        result.problem("padding holds another code than that of 0")
    return codes[:, :, top : codes.shape[2] - bottom, left : codes.shape[3] - right]


def _first_of(tensors: Sequence[tuple[str, Array, Array, Array]], **place: Any) -> Difference | None:
    for name, gap, got, want in tensors:
        if gap.any():
            at = tuple(int(i) for i in np.argwhere(gap)[0])
            return Difference(tensor=name, coordinate=at, got=float(got[at]), expected=float(want[at]), **place)
    return None


def layer_output(layer: Layer, terms: Sequence[F32]) -> F32:
    """Output y of a layer from its parts' terms: summed in order, then the bias."""
    y = terms[0]
    for term in terms[1:]:
        y = (y + term).astype(np.float32)
    if layer.bias is None:
        return y
    shape = [1] * y.ndim
    shape[1 if layer.kind == "conv2d" else y.ndim - 1] = -1
    return (y + layer.bias.reshape(shape)).astype(np.float32)


def float_product_slack(layer: Layer, entry: ManifestLayer, buckets: NDArray[np.int64]) -> F32:
    """What a sample's output may be off by because its products are float sums: [B], 0 where they are not."""
    slack = np.zeros(len(buckets), np.float32)
    for part, held in zip(layer.parts, entry.parts or (), strict=True):
        if held.weight:
            rows = np.abs(part.q_weight(0).astype(np.float64)).reshape(layer.out_channels, -1)
            largest = float((rows.sum(axis=1) * part.weight_scale[0]).max(initial=0)) * 128 * np.sqrt(rows.shape[1])
            slack += table_at(part.scale, buckets) * np.float32(largest * FLOAT_PRODUCT_TOLERANCE)
    return slack


def compare_output(
    record: Record,
    layer: Layer,
    y: F32,
    output: Array,
    layout: str,
    buckets: NDArray[np.int64],
    result: LayerTally,
    *,
    slack: F32,
) -> None:
    """Compare a layer's float output with y, within `OUTPUT_TOLERANCE` and the slack of each sample."""
    got = output if output.shape == y.shape else held_in_canonical_layout(output, y.shape, layout)
    if got is None:
        return
    for sample, bucket in enumerate(buckets.tolist()):
        largest = float(np.abs(y[sample]).max(initial=0)) or 1.0
        gap = np.nan_to_num(np.abs(got[sample].astype(np.float64) - y[sample]), nan=_ABSURD, posinf=_ABSURD)
        gap = np.maximum(gap - slack[sample], 0) / largest
        tally = result.steps.setdefault(bucket, Tally())
        tally.max_output_difference = max(tally.max_output_difference, float(gap.max(initial=0)))
        if result.first is None:
            result.first = _first_of(
                [("output", gap > OUTPUT_TOLERANCE, got[sample], y[sample])],
                layer=layer.name, part=0, bucket=bucket, timestep=float(record.timesteps[bucket]),
            )  # fmt: skip


def compare_output_codes(
    record: Record, layer: Layer, x: F32, output: Array, buckets: NDArray[np.int64], result: LayerTally
) -> None:
    """Compare a layer's 8-bit output codes with the declared requantization of its accumulators, bit for bit."""
    if layer.out_scale is None or layer.out_zero_point is None or len(layer.parts) != 1:
        return
    part = layer.parts[0]
    want = requantize_accumulator(
        integer_layer(layer, x, buckets).accumulators[0],
        bias=layer.bias,
        scale=part.scale,
        weight_scale=part.weight_scale[0],
        out_scale=layer.out_scale,
        out_zero_point=layer.out_zero_point,
        step=buckets,
    )
    if output.shape != want.shape:
        result.problem(f"engine holds output codes {output.shape}, expected {want.shape}")
        return
    gap = np.abs(output.astype(np.int64) - want)
    for sample, bucket in enumerate(buckets.tolist()):
        tally = result.steps.setdefault(bucket, Tally())
        tally.output_codes += gap[sample].size
        tally.output_code_differences += int(np.count_nonzero(gap[sample]))
        tally.max_output_code_difference = max(tally.max_output_code_difference, int(gap[sample].max(initial=0)))
        if result.first is None:
            result.first = _first_of(
                [("output code", gap[sample], output[sample], want[sample])],
                layer=layer.name, part=0, bucket=bucket, timestep=float(record.timesteps[bucket]),
            )  # fmt: skip


def edge_probes(edges: F32) -> F32:
    """Timesteps on both sides of every edge: the number below it, and the edge itself."""
    edges = np.asarray(edges, np.float32)
    return np.stack([np.nextafter(edges, np.float32(-np.inf)), edges], axis=1).reshape(-1).astype(np.float32)


def edge_problem(record: Record, timesteps: F32, got: Array) -> str | None:
    """The first timestep whose bucket in the engine is not `numerics.step_bucket`'s, in words."""
    want, found = step_bucket(timesteps, record.step_edges), np.asarray(got).reshape(-1)
    wrong = np.flatnonzero(found != want)
    if not len(wrong):
        return None
    i = int(wrong[0])
    layers = [name for name, layer in record.layers.items() if any(p.steps > 1 for p in layer.parts)]
    named = f"layer {layers[0]} and {len(layers) - 1} more with step tables" if layers else "no layer with step tables"
    return (
        f"step {int(want[i])}: timestep {float(timesteps[i])!r} falls into bucket {int(found[i])} "
        f"in the engine, expected {int(want[i])}; it concerns {named}"
    )
