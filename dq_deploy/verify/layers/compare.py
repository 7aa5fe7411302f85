"""One layer part against the numerics: codes and accumulators, code by code."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dq_deploy.numerics import (
    F32,
    I32,
    accumulate_conv2d,
    accumulate_linear,
    integer_layer,
    row_steps,
    table_at,
)
from dq_deploy.numerics.arrays import F64, I64, Array
from dq_deploy.record import Layer, Part, Record
from dq_deploy.verify.layers.tally import Difference, LayerTally, Tally

ABSURD = 2**31
"""Stands for the difference of a value that is no number."""


@dataclass(frozen=True, kw_only=True)
class HeldForm:
    """How an engine holds the codes and the accumulator of one layer part.

    Attributes:
        offset: what its codes are above the centred codes; None where that is each step's zero point and `shift`.
        shift: added to the zero point.
        codes_padding: border of the codes (top, left, bottom, right) that holds the code of 0.
        layout: of accumulator and output, `nchw`, `nhwc` or `last`; codes lie as the layer's input does.
        holds: what the accumulator is, see `expected_accumulator`.
    """

    offset: int | None = None
    shift: int = 0
    codes_padding: tuple[int, ...] = ()
    layout: str = "nchw"
    holds: str = "canonical"

    def offsets(self, part: Part, buckets: I64) -> I64:
        """[B] what each sample's codes are above the centred codes."""
        offset = part.zero_point + self.shift if self.offset is None else [self.offset]
        return table_at(np.asarray(offset), buckets).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class ComparedPart:
    """One part of a layer that is compared.

    Attributes:
        record: for the timesteps.
        layer: whose part it is.
        index: which.
        form: how the engine holds it.
        tally: of the layer; what is found is added to it.
        probe: the tensors come from extreme inputs.
    """

    record: Record
    layer: Layer
    index: int
    form: HeldForm
    tally: LayerTally
    probe: bool = False

    @property
    def own(self) -> Part:
        """The record's values of it."""
        return self.layer.parts[self.index]


@dataclass(frozen=True, kw_only=True, eq=False)
class PartTensors:
    """What was read from the engine for one part.

    Attributes:
        x: its input.
        codes: as the engine holds them.
        accumulator: likewise; None where the engine does not show it.
    """

    x: Array
    codes: Array
    accumulator: Array | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pair:
    """A tensor of the engine and what it must be, sample by sample, with the absolute difference of each value."""

    name: str
    got: Array
    want: Array
    gap: Array


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


def expected_accumulator(part: ComparedPart, codes: I32, accumulator: I32, buckets: I64) -> I64:
    """What the engine's accumulator holds: int64, shape of the layer's output.

    By the form's `holds`: `canonical` is A; `shifted` is A + z[t] * sum(w_q), padding holding the code z;
    `shifted_inside` is the product of c + z[t] where padding holds 0; `held` is A + offset * sum(w_q).

    Args:
        part: which.
        codes: centred codes c.
        accumulator: A.
        buckets: step bucket of each entry of the leading axis.
    """
    layer, own, holds = part.layer, part.own, part.form.holds
    z = table_at(own.zero_point, buckets).astype(np.int64)
    if holds == "shifted_inside":
        shifted = (codes + z.reshape((-1,) + (1,) * (codes.ndim - 1))).astype(np.int32)
        q = own.q_weight(0)
        if layer.kind == "linear":
            return accumulate_linear(shifted, q).astype(np.int64)
        return accumulate_conv2d(shifted, q, layer.window, groups=layer.groups).astype(np.int64)
    wide = accumulator.astype(np.int64)
    if holds not in ("shifted", "held"):
        return wide
    factor = z if holds == "shifted" else part.form.offsets(own, buckets)
    groups = table_at(own.group_of_step, buckets)
    rows = [own.q_weight(int(g)).reshape(layer.out_channels, -1) for g in groups]
    shift = factor[:, None] * np.stack([row.sum(axis=1, dtype=np.int64) for row in rows])
    shape = [len(factor)] + [1] * (wide.ndim - 1)
    shape[1 if layer.kind == "conv2d" else wide.ndim - 1] = shift.shape[1]
    shifted_sum: I64 = wide + shift.reshape(shape)
    return shifted_sum


def samples_of(buckets: I64, entries: int) -> list[tuple[int, int | slice]]:
    """The bucket and the entries of each sample along a leading axis, all of them at once where it holds no samples."""
    if entries % len(buckets):
        return [(int(buckets[0]), slice(0, entries))]
    k = entries // len(buckets)
    return [(int(b), i if k == 1 else slice(i * k, (i + 1) * k)) for i, b in enumerate(buckets.tolist())]


def compare_part(part: ComparedPart, tensors: PartTensors, buckets: I64) -> F32 | None:
    """Add one run's comparison to the layer's tally.

    Args:
        part: which, and where the result goes.
        tensors: read from the engine.
        buckets: [B] bucket of each sample.

    Returns:
        The part's float output by the numerics without bias, or None where it could not be computed.
    """
    x = tensors.x
    if x.dtype != np.float32 or np.isnan(x).any():
        what = "NaN" if x.dtype == np.float32 else str(x.dtype)
        part.tally.problem(f"layer input holds {what}, expected float32 numbers")
        return None
    single = dataclasses.replace(part.layer, parts=(part.own,), bias=None, out_scale=None, out_zero_point=None)
    expected = integer_layer(single, x, buckets)
    entries = row_steps(buckets, len(x), static=True).astype(np.int64)
    want = expected_accumulator(part, expected.codes[0], expected.accumulators[0], entries)
    pairs = _paired(part, tensors, expected.codes[0], want, entries)
    if pairs is None:
        return None
    for bucket, own in samples_of(buckets, len(x)):
        _count(part, pairs, want, own, bucket)
    return expected.output


def _paired(
    part: ComparedPart, tensors: PartTensors, centred: I32, want: I64, buckets: I64
) -> tuple[_Pair, _Pair] | None:
    """Codes, less what the engine adds to them, and accumulators, each beside the numerics'; None if shapes differ."""
    form, seen = part.form, tensors.accumulator
    offset = form.offsets(part.own, buckets)
    inner = _without_padding(tensors.codes, form.codes_padding, offset, part.tally)
    codes = held_in_canonical_layout(inner, tensors.x.shape, "nchw")
    held = None if seen is None else held_in_canonical_layout(seen, want.shape, form.layout)
    if codes is None or (held is None and seen is not None):
        part.tally.problem(
            f"engine holds codes {tensors.codes.shape} and accumulators {None if seen is None else seen.shape}, "
            f"expected {tensors.x.shape} and {want.shape} in layout {form.layout}"
        )
        return None
    plain = codes.astype(np.int64) - offset.reshape((-1,) + (1,) * (codes.ndim - 1))
    code_pair = _Pair(name="code", got=plain, want=centred, gap=np.abs(plain - centred))
    if held is None:
        none = np.zeros((len(buckets), 0), np.float32)
        return code_pair, _Pair(name="accumulator", got=none, want=none, gap=none)
    wanted = want.astype(held.dtype)
    with np.errstate(invalid="ignore"):
        gap = np.abs(held.astype(np.float64) - wanted.astype(np.float64))
    gap = np.nan_to_num(gap, nan=ABSURD, posinf=ABSURD)
    return code_pair, _Pair(name="accumulator", got=held, want=wanted, gap=gap)


def _count(part: ComparedPart, pairs: tuple[_Pair, _Pair], want: I64, sample: int | slice, bucket: int) -> None:
    """Add one sample to the tally of its step, or of the probe."""
    result, (codes, accumulators) = part.tally, pairs
    tally = result.probe if part.probe else result.steps.setdefault(bucket, Tally())
    code_gap, gap = codes.gap[sample], accumulators.gap[sample]
    result.timesteps[bucket] = float(part.record.timesteps[bucket])
    tally.samples += 1
    tally.codes += code_gap.size
    tally.code_differences += int(np.count_nonzero(code_gap))
    tally.max_code_difference = max(tally.max_code_difference, int(code_gap.max(initial=0)))
    tally.accumulators += gap.size
    tally.accumulator_differences += int(np.count_nonzero(gap))
    tally.max_accumulator_difference = max(tally.max_accumulator_difference, float(gap.max(initial=0)))
    if gap.size:
        tally.largest_accumulator = max(tally.largest_accumulator, float(np.abs(want[sample]).max(initial=0)))
    if result.first is None:
        where = "probe" if part.probe else "engine"
        for pair in pairs:
            found = first_of(
                pair.name, pair.gap[sample], pair.got[sample], pair.want[sample],
                place=Place(record=part.record, layer=part.layer.name, part=part.index, bucket=bucket, where=where),
            )  # fmt: skip
            result.first = result.first or found


def _without_padding(codes: Array, padding: Sequence[int], offset: I64, result: LayerTally) -> Array:
    """Codes less a border of (top, left, bottom, right) that must hold the code of 0: the sample's offset."""
    if not any(padding):
        return codes
    top, left, bottom, right = padding
    inside = np.zeros(codes.shape[2:], bool)
    inside[top : codes.shape[2] - bottom, left : codes.shape[3] - right] = True
    if (codes[:, :, ~inside] != offset[:, None, None]).any():
        result.problem("padding holds another code than that of 0")
    return codes[:, :, top : codes.shape[2] - bottom, left : codes.shape[3] - right]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a difference is: a layer part at a step bucket, in the engine or in a probe."""

    record: Record
    layer: str
    bucket: int
    part: int = 0
    where: str = "engine"


def first_of(tensor: str, wrong: Array, got: Array, want: Array, *, place: Place) -> Difference | None:
    """The first value of one sample where `wrong` is not 0, or None.

    Args:
        tensor: what the values are, in words.
        wrong: not 0 where they differ.
        got: the engine's.
        want: the numerics'.
        place: where they are from.
    """
    if not wrong.any():
        return None
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    return Difference(
        layer=place.layer,
        part=place.part,
        tensor=tensor,
        bucket=place.bucket,
        timestep=float(place.record.timesteps[place.bucket]),
        coordinate=at,
        got=float(got[at]),
        expected=float(want[at]),
        where=place.where,
    )


def magnitude(y: F32 | F64) -> float:
    """Largest magnitude of a tensor; 1 where all of it is 0."""
    return float(np.abs(y).max(initial=0)) or 1.0
