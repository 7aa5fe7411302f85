"""A layer's output and its step buckets against the numerics, behind the codes and accumulators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dq_deploy.numerics import (
    F32,
    bias_of_samples,
    channel_axis_of,
    integer_layer,
    is_static,
    requantize_accumulator,
    row_steps,
    step_bucket,
    table_at,
)
from dq_deploy.numerics.arrays import I64, Array
from dq_deploy.record import Layer, Record
from dq_deploy.verify.layers.compare import (
    ABSURD,
    Place,
    first_of,
    held_in_canonical_layout,
    magnitude,
    samples_of,
)
from dq_deploy.verify.layers.tally import LayerTally, Tally

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
integers are compared without a tolerance, by a product of their own.
"""


@dataclass(frozen=True, kw_only=True)
class LayerPlace:
    """A layer in one run.

    Attributes:
        record: for the timesteps.
        layer: the record's.
        buckets: [B] step bucket of each sample.
        tally: of the layer; what is found is added to it.
    """

    record: Record
    layer: Layer
    buckets: I64
    tally: LayerTally

    def note_first(self, tensor: str, bucket: int, wrong: Array, got: Array, want: Array) -> None:
        """Remember the first wrong value of a sample, if the layer has none yet."""
        if self.tally.first is None:
            place = Place(record=self.record, layer=self.layer.name, bucket=bucket)
            self.tally.first = first_of(tensor, wrong, got, want, place=place)

    def step_of(self, bucket: int) -> Tally:
        """The counts of a step."""
        return self.tally.steps.setdefault(bucket, Tally())


def layer_output(layer: Layer, terms: Sequence[F32], buckets: I64) -> F32:
    """Output y of a layer from its parts' terms: summed in order, then the bias, of each sample's step bucket."""
    y = terms[0]
    for term in terms[1:]:
        y = (y + term).astype(np.float32)
    if layer.bias is None:
        return y
    step = row_steps(buckets, len(y), static=is_static(layer))
    biased: F32 = (y + bias_of_samples(layer.bias, y.ndim, channel_axis_of(layer.kind, y.ndim), step)).astype(
        np.float32
    )
    return biased


def float_product_slack(layer: Layer, in_float: Sequence[bool], buckets: I64) -> F32:
    """What a sample's output may be off by because products are float sums: [B], 0 where they are not.

    Args:
        layer: whose output it is.
        in_float: of each part, whether its product is a float sum.
        buckets: [B] step buckets.
    """
    slack = np.zeros(len(buckets), np.float32)
    for part, of_floats in zip(layer.parts, in_float, strict=True):
        if of_floats:
            rows = np.abs(part.q_weight(0).astype(np.float64)).reshape(layer.out_channels, -1)
            largest = float((rows.sum(axis=1) * part.weight_scale[0]).max(initial=0)) * 128 * np.sqrt(rows.shape[1])
            slack += table_at(part.scale, buckets) * np.float32(largest * FLOAT_PRODUCT_TOLERANCE)
    return slack


def compare_output(place: LayerPlace, y: F32, output: Array, layout: str, *, slack: F32) -> None:
    """Compare a layer's float output with y, within `OUTPUT_TOLERANCE` and the slack of each sample of the batch."""
    got = output if output.shape == y.shape else held_in_canonical_layout(output, y.shape, layout)
    if got is None:
        return
    for index, (bucket, sample) in enumerate(samples_of(place.buckets, len(y))):
        gap = np.nan_to_num(np.abs(got[sample].astype(np.float64) - y[sample]), nan=ABSURD, posinf=ABSURD)
        gap = np.maximum(gap - slack[index], 0) / magnitude(y[sample])
        step = place.step_of(bucket)
        step.max_output_difference = max(step.max_output_difference, float(gap.max(initial=0)))
        place.note_first("output", bucket, gap > OUTPUT_TOLERANCE, got[sample], y[sample])


def compare_output_bits(place: LayerPlace, y: F32, output: Array) -> None:
    """Compare a layer's float output with y bit for bit, where every operation behind the accumulator is defined."""
    if output.shape != y.shape:
        place.tally.problem(f"engine holds outputs {output.shape}, expected {y.shape}")
        return
    wrong = different_bits(output, y)
    for bucket, sample in samples_of(place.buckets, len(y)):
        if not wrong[sample].any():
            continue
        gap = np.abs(output[sample].astype(np.float64) - y[sample])
        share = float(np.nan_to_num(gap, nan=np.inf).max()) / magnitude(y[sample])
        step = place.step_of(bucket)
        step.max_output_difference = max(step.max_output_difference, share)
        place.note_first("output", bucket, wrong[sample], output[sample], y[sample])


def compare_output_codes(place: LayerPlace, x: F32, output: Array) -> None:
    """Compare a layer's 8-bit output codes with the declared requantization of its accumulators, bit for bit."""
    layer = place.layer
    if layer.out_scale is None or layer.out_zero_point is None or len(layer.parts) != 1:
        return
    part = layer.parts[0]
    want = requantize_accumulator(
        integer_layer(layer, x, place.buckets).accumulators[0],
        bias=layer.bias,
        scale=part.scale,
        weight_scale=part.weight_scale[0],
        out_scale=layer.out_scale,
        out_zero_point=layer.out_zero_point,
        step=row_steps(place.buckets, len(x), static=True),
    )
    if output.shape != want.shape:
        place.tally.problem(f"engine holds output codes {output.shape}, expected {want.shape}")
        return
    gap = np.abs(output.astype(np.int64) - want)
    for bucket, sample in samples_of(place.buckets, len(want)):
        step = place.step_of(bucket)
        step.output_codes += gap[sample].size
        step.output_code_differences += int(np.count_nonzero(gap[sample]))
        step.max_output_code_difference = max(step.max_output_code_difference, int(gap[sample].max(initial=0)))
        place.note_first("output code", bucket, gap[sample], output[sample], want[sample])


def different_bits(got: Array, want: Array) -> Array:
    """Where two arrays of one shape differ: integers by value, floats by their bits."""
    if got.dtype == np.float32:
        a, b = (np.ascontiguousarray(v, np.float32).view(np.uint32) for v in (got, want))
        return np.asarray(a != b)
    return np.asarray(got.astype(np.int64) != want)


def edge_timesteps(edges: F32) -> F32:
    """Timesteps on both sides of every edge: the number below it, and the edge itself."""
    edges = np.asarray(edges, np.float32)
    return np.stack([np.nextafter(edges, np.float32(-np.inf)), edges], axis=1).reshape(-1).astype(np.float32)


def edge_problem(record: Record, timesteps: F32, buckets_of: Callable[[F32], Array]) -> str:
    """The first timestep whose bucket in the engine is not `numerics.step_bucket`'s, in words; empty if none.

    Args:
        record: names the edges.
        timesteps: to look up.
        buckets_of: the engine's buckets of timesteps.
    """
    want, found = step_bucket(timesteps, record.step_edges), np.asarray(buckets_of(timesteps)).reshape(-1)
    wrong = np.flatnonzero(found != want)
    if not len(wrong):
        return ""
    i = int(wrong[0])
    layers = [name for name, layer in record.layers.items() if not is_static(layer)]
    named = f"layer {layers[0]} and {len(layers) - 1} more with step tables" if layers else "no layer with step tables"
    return (
        f"step {int(want[i])}: timestep {float(timesteps[i])!r} falls into bucket {int(found[i])} "
        f"in the engine, expected {int(want[i])}; it concerns {named}"
    )
