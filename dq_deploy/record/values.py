"""The quantized model as frozen values; every invariant is checked where the value is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dq_deploy.errors import RecordError
from dq_deploy.numerics import ACCUMULATOR_LIMIT, FLOAT32_EXACT
from dq_deploy.numerics.arrays import F32, I32
from dq_deploy.numerics.geometry import NO_PADDING, Padding, Window
from dq_deploy.record.checks import check_bias, check_module_path, check_scales, require
from dq_deploy.record.extensions import AttentionQuantizers, Branch, Call, Fold
from dq_deploy.record.weight_only import WeightOnlyLayer

SCHEMA_VERSION = 4
"""Newest schema version; a record is written as the lowest that can hold it."""

KINDS = ("linear", "conv2d")


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One slice of a layer's input channels with its own quantizers; a split skip connection has two.

    What is multiplied is w_q = w_code - w_zero_point. It need not fit int8: the zero point may be any that keeps the
    layer's sums in int32.

    Invariants, checked when it is made:

        len(scale) == len(zero_point)            1 (static) or T
        w_code.shape == (G, C_out, C_in / groups, ...)
        w_zero_point.shape == weight_scale.shape == (G, C_out)
        len(group_of_step) in (1, T), values in 0..G-1

    Attributes:
        pre: [C_in] float32, one over the equivalent scale; ones where there is none or it was folded.
        scale: [T] or [1] float32 activation scale per step bucket.
        zero_point: [T] or [1] int32.
        w_code: int8 weight codes; the equivalent scale is already in them.
        w_zero_point: int32, zero for trained weights.
        weight_scale: float32.
        group_of_step: int32, weight set of each step bucket; [0] where there is one set.
    """

    pre: F32
    scale: F32
    zero_point: I32
    w_code: NDArray[np.int8]
    w_zero_point: I32
    weight_scale: F32
    group_of_step: I32 = field(default_factory=lambda: np.zeros(1, np.int32))

    def __post_init__(self) -> None:
        """Check the invariants above."""
        check_scales("pre", self.pre)
        check_scales("scale", self.scale)
        check_scales("weight_scale", self.weight_scale)
        require(self.pre.ndim == 1, f"pre has shape {self.pre.shape}, expected [C_in]")
        require(self.scale.ndim == 1, f"scale has shape {self.scale.shape}, expected [T] or [1]")
        require(
            self.zero_point.shape == self.scale.shape and self.zero_point.dtype == np.int32,
            f"zero_point is {self.zero_point.dtype}{self.zero_point.shape}, expected int32{self.scale.shape}",
        )
        self._check_codes()
        shape = self.w_shape
        require(len(shape) in (3, 5), f"w_code has shape {shape}, expected [G, C_out, C_in, ...]")
        require(min(shape) >= 1, f"w_code has shape {shape}, expected no empty axis")
        sets = shape[:2]
        for name, value in (("w_zero_point", self.w_zero_point), ("weight_scale", self.weight_scale)):
            require(value.shape == sets, f"{name} has shape {value.shape}, expected {sets} as w_code's first two")
        require(self.w_zero_point.dtype == np.int32, f"w_zero_point is {self.w_zero_point.dtype}, expected int32")
        groups = self.group_of_step
        require(
            groups.ndim == 1 and groups.dtype == np.int32 and bool(((groups >= 0) & (groups < sets[0])).all()),
            f"group_of_step names weight sets outside 0..{sets[0] - 1}",
        )

    def _check_codes(self) -> None:
        require(self.w_code.dtype == np.int8, f"w_code is {self.w_code.dtype}, expected int8")

    @property
    def w_shape(self) -> tuple[int, ...]:
        """Shape of `w_code`."""
        return self.w_code.shape

    @cached_property
    def code_span(self) -> tuple[int, int]:
        """Least and greatest weight code."""
        return int(self.w_code.min()), int(self.w_code.max())

    @cached_property
    def q_weight_span(self) -> tuple[int, int]:
        """Least and greatest w_q over all weight sets; needs no copy of the codes."""
        if not self.w_zero_point.any():
            return self.code_span
        rows = self.w_code.reshape(*self.w_code.shape[:2], -1)
        zero = self.w_zero_point.astype(np.int64)
        return int((rows.min(axis=2) - zero).min()), int((rows.max(axis=2) - zero).max())

    @property
    def fits_int8(self) -> bool:
        """Whether every w_q lies in [-128, 127]."""
        low, high = self.q_weight_span
        return low >= -128 and high <= 127

    @property
    def steps(self) -> int:
        """Number of step buckets with own activation quantizers; 1 is static."""
        return int(self.scale.shape[0])

    def q_weight(self, group: int) -> NDArray[np.int16] | NDArray[np.int32]:
        """w_q = w_code - w_zero_point of one weight set, [C_out, C_in / groups, ...]: int16, or int32 where it must."""
        low, high = self.q_weight_span
        kind = np.int16 if low >= -(2**15) and high < 2**15 else np.int32
        code = self.w_code[group].astype(kind)
        zero = self.w_zero_point[group].astype(kind)
        centred: NDArray[np.int16] | NDArray[np.int32] = code - zero.reshape((-1,) + (1,) * (code.ndim - 1))
        return centred


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One integer layer: a linear or 2-D convolution of the denoiser.

    Invariants, checked when it is made:

        len(parts) >= 1
        -2^(weight_bits-1) <= w_code <= 2^(weight_bits-1) - 1
        q_max - q_min == 2^activation_bits - 1,  q_min in (0, -2^(activation_bits-1))
        K * max|c| * max|w_q| < 2^31,  max|c| < 2^24
        groups == 1 for linear and for several parts
        fold.factor, branch.down and branch.up fit C_in and C_out

    Attributes:
        name: module path in the diffusers denoiser, as `down_blocks.0.resnets.0.conv1`.
        kind: `linear` or `conv2d`.
        stride: (vertical, horizontal).
        padding: (top, left, bottom, right), zeros of the float input.
        dilation: (vertical, horizontal).
        groups: channel groups of the convolution.
        weight_bits: 2 to 8.
        activation_bits: 2 to 8.
        q_min: lowest activation code before centring; 0, or -2^(bits-1) for symmetric ranges.
        q_max: highest activation code.
        parts: slices of the input channels, in order.
        bias: [C_out] float32, [T, C_out] where it differs by step, or None.
        out_scale: [T] or [1] float32 of the declared requantization, or None.
        out_zero_point: int32, same shape, codes 0..255.
        fold: what was decided about folding `pre` into the producer, in words.
        folded: what the producer took over, or None.
        branch: low-rank float product beside the integer one, or None.
    """

    name: str
    kind: str
    stride: tuple[int, int] = (1, 1)
    padding: Padding = NO_PADDING
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    weight_bits: int
    activation_bits: int
    q_min: int
    q_max: int
    parts: tuple[Part, ...]
    bias: F32 | None = None
    out_scale: F32 | None = None
    out_zero_point: I32 | None = None
    fold: str = ""
    folded: Fold | None = None
    branch: Branch | None = None

    def __post_init__(self) -> None:
        """Check the invariants above; the message names the layer."""
        try:
            self._check()
        except RecordError as error:
            raise RecordError(f"layer {self.name}: {error}") from error

    def _check(self) -> None:
        check_module_path(self.name)
        require(self.kind in KINDS, f"kind is {self.kind!r}, expected one of {KINDS}")
        require(len(self.parts) >= 1, "has no parts, expected at least 1")
        for name, bits in (("weight_bits", self.weight_bits), ("activation_bits", self.activation_bits)):
            require(2 <= bits <= 8, f"{name} is {bits}, expected 2 to 8")
        require(self.groups >= 1, f"groups is {self.groups}, expected at least 1")
        require(
            self.groups == 1 or (self.kind == "conv2d" and len(self.parts) == 1),
            f"groups is {self.groups}, expected 1 for a linear or split layer",
        )
        geometry = (*self.stride, *self.dilation)
        require(min(geometry) >= 1, f"stride and dilation are {geometry}, expected at least 1")
        require(min(self.padding) >= 0, f"padding is {self.padding}, expected none below 0")
        half = 2 ** (self.activation_bits - 1)
        expected = ((0, 2 * half - 1), (-half, half - 1))
        require(
            (self.q_min, self.q_max) in expected,
            f"codes {self.q_min}..{self.q_max}, expected one of {expected}",
        )
        ndim = 3 if self.kind == "linear" else 5
        n_out = self.parts[0].w_shape[1]
        require(n_out % self.groups == 0, f"has {n_out} outputs, expected a multiple of groups {self.groups}")
        low, high = -(2 ** (self.weight_bits - 1)), 2 ** (self.weight_bits - 1) - 1
        for part in self.parts:
            shape = part.w_shape
            require(len(shape) == ndim, f"w_code has {len(shape)} axes, expected {ndim} for {self.kind}")
            require(shape[1] == n_out, f"parts have {shape[1]} and {n_out} outputs, expected the same")
            require(
                shape[2] * self.groups == len(part.pre),
                f"pre has {len(part.pre)} channels, expected {shape[2] * self.groups} by w_code",
            )
            least, most = part.code_span
            require(
                least >= low and most <= high,
                f"w_code spans [{min(least, 0)}, {max(most, 0)}], expected [{low}, {high}]",
            )
            self._check_accumulator(part)
        check_bias(self.bias, n_out)
        self._check_output()
        self._check_extensions()

    def _check_accumulator(self, part: Part) -> None:
        z = part.zero_point.astype(np.int64)
        reach = int(max(np.abs(self.q_min - z).max(), np.abs(self.q_max - z).max()))
        worst = max(abs(end) for end in part.q_weight_span)
        k = prod(part.w_shape[2:])
        require(reach < FLOAT32_EXACT, f"zero_point is up to {reach} from the codes, expected below 2^24")
        require(
            k * reach * worst < ACCUMULATOR_LIMIT,
            f"K * max|c| * max|w_q| = {k} * {reach} * {worst} reaches 2^31; check zero_point, use fewer bits",
        )

    def _check_output(self) -> None:
        if (self.out_scale is None) != (self.out_zero_point is None):
            raise RecordError("has only one of out_scale and out_zero_point, expected both or neither")
        if self.out_scale is None or self.out_zero_point is None:
            return
        check_scales("out_scale", self.out_scale)
        zero = self.out_zero_point
        require(
            zero.shape == self.out_scale.shape and zero.dtype == np.int32 and bool(((zero >= 0) & (zero <= 255)).all()),
            f"out_zero_point is {zero.dtype}{zero.shape}, expected int32{self.out_scale.shape} in 0..255",
        )

    def _check_extensions(self) -> None:
        if self.folded is not None:
            width = len(self.folded.factor)
            require(width == self.in_channels, f"fold factor has {width} channels, expected {self.in_channels}")
        if self.branch is None:
            return
        down = (self.branch.down.shape[0], self.in_channels // self.groups, *self.kernel)
        require(self.branch.down.shape == down, f"branch down has shape {self.branch.down.shape}, expected {down}")
        rows = len(self.branch.up)
        require(rows == self.out_channels, f"branch up has {rows} rows, expected {self.out_channels}")

    @property
    def in_channels(self) -> int:
        """Input channels over all parts."""
        return sum(len(part.pre) for part in self.parts)

    @property
    def out_channels(self) -> int:
        """Output channels."""
        return int(self.parts[0].w_shape[1])

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel size, () for a linear layer."""
        return tuple(int(k) for k in self.parts[0].w_shape[3:])

    @property
    def mean_bias(self) -> F32 | None:
        """The bias [C_out]; of one that differs by step its mean over the steps, in float64 and rounded once."""
        if self.bias is None or self.bias.ndim == 1:
            return self.bias
        mean: F32 = self.bias.mean(axis=0, dtype=np.float64).astype(np.float32)
        return mean

    @property
    def window(self) -> Window:
        """How a convolution moves over its image.

        Raises:
            RecordError: the layer is linear.
        """
        if len(self.kernel) != 2:
            raise RecordError(f"layer {self.name} is {self.kind}, expected a convolution; only those have a window")
        rows, columns = self.kernel
        return Window(kernel=(rows, columns), stride=self.stride, padding=self.padding, dilation=self.dilation)

    @property
    def reach(self) -> int:
        """q_max - q_min: the width of the code range; 127 or less lets centred codes fit int8."""
        return self.q_max - self.q_min


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """A quantized denoiser: integers, scales, step tables, the float rest and where it came from.

    Invariants, checked when it is made:

        len(timesteps) == T, len(step_edges) == T - 1, step_edges strictly increasing
        every table of every layer has 1 or T entries
        layers and weight_only share no name, and one of them is not empty
        no float parameter belongs to a layer of either
        float_ranges are finite and not negative
        every table of `attention` has 1 or T entries

    Attributes:
        family: denoiser family, as `unet2d`.
        layers: integer layers by module path, in the order of the module tree.
        timesteps: [T] float32, calibrated timesteps, increasing.
        step_edges: [T-1] float32; bucket = count(edges <= timestep).
        float_parameters: state-dict entries that stay float, after folding, by their diffusers key.
        model_config: the denoiser's diffusers configuration.
        scheduler_config: the scheduler's, or None.
        provenance: JSON values: source hash, method, options, versions, history.
        weight_only: layers with few-bit weights and float products, by module path, in the order of the module tree.
        float_ranges: largest |output| of each module seen in calibration, by module path.
        attention: quantizers of attention's two products, by module path. The native engine runs them
            where it is asked to; everywhere else the products stay float.
        call: how the denoiser is called, or None where an older version did not say.
    """

    family: str
    layers: Mapping[str, Layer]
    timesteps: F32
    step_edges: F32
    float_parameters: Mapping[str, NDArray[np.generic]]
    model_config: Mapping[str, Any]
    scheduler_config: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    weight_only: Mapping[str, WeightOnlyLayer] = field(default_factory=dict)
    float_ranges: Mapping[str, float] = field(default_factory=dict)
    attention: Mapping[str, AttentionQuantizers] = field(default_factory=dict)
    call: Call | None = None

    def __post_init__(self) -> None:
        """Check the invariants above."""
        count = len(self.timesteps)
        for name, value in (("timesteps", self.timesteps), ("step_edges", self.step_edges)):
            require(
                value.ndim == 1 and value.dtype == np.float32 and bool(np.isfinite(value).all()),
                f"{name} is {value.dtype}{value.shape}, expected finite float32 with one axis",
            )
            require(
                bool((np.diff(value) > 0).all()),
                f"{name} is not strictly increasing; quantize the model again",
            )
        require(count >= 1, "timesteps is empty, expected at least one calibrated timestep")
        require(
            len(self.step_edges) == count - 1,
            f"step_edges has {len(self.step_edges)} entries, expected {count - 1} for {count} timesteps",
        )
        self._check_layers(count)
        for key, stored in self.float_parameters.items():
            if stored.dtype.kind == "f" and not np.isfinite(stored).all():
                raise RecordError(f"float parameter {key} holds NaN or infinity, expected finite numbers")
        for name, largest in self.float_ranges.items():
            good = isinstance(largest, float) and 0 <= largest < np.inf
            if not good or not name.isprintable():
                raise RecordError(f"float_ranges of {name!r} is {largest!r}, expected a finite number from 0")

    def _check_layers(self, count: int) -> None:
        require(bool(self.layers) or bool(self.weight_only), "record has no quantized layer, expected at least one")
        both = sorted(set(self.layers) & set(self.weight_only))
        require(not both, f"{', '.join(both[:1])} is an integer layer and a weight-only one, expected one of the two")
        every: dict[str, Layer | WeightOnlyLayer] = {**self.layers, **self.weight_only}
        for name, layer in every.items():
            require(name == layer.name, f"layer {layer.name!r} is stored as {name!r}, expected the same name")
            if isinstance(layer, Layer):
                self._check_tables(layer, count)
            for suffix in ("weight", "bias"):
                key = f"{name}.{suffix}"
                require(
                    key not in self.float_parameters,
                    f"{key} is stored as float and in layer {name}, expected once",
                )

        for name, quantizers in self.attention.items():
            require(name == quantizers.name, f"attention {quantizers.name!r} is stored as {name!r}, expected the same")
            for role, table in quantizers.tables.items():
                _check_table(f"attention {name}: {role} scale", table.scale, count)

    def _check_tables(self, layer: Layer, count: int) -> None:
        tables: list[tuple[str, NDArray[Any] | None]] = [("out_scale", layer.out_scale)]
        for i, part in enumerate(layer.parts):
            tables += [(f"parts[{i}].scale", part.scale), (f"parts[{i}].group_of_step", part.group_of_step)]
        for name, table in tables:
            if table is not None:
                _check_table(f"layer {layer.name}: {name}", table, count)
        if layer.bias is not None and layer.bias.ndim == 2 and len(layer.bias) != count:
            raise RecordError(
                f"layer {layer.name}: bias has {len(layer.bias)} rows, expected {count}, one a step bucket"
            )

    @property
    def steps(self) -> int:
        """T, the number of step buckets."""
        return len(self.timesteps)


def _check_table(what: str, table: NDArray[Any], count: int) -> None:
    if len(table) not in (1, count):
        raise RecordError(
            f"{what} has {len(table)} entries, expected 1 or {count}, the number "
            "of step buckets that step_edges defines"
        )


def edges_from_timesteps(timesteps: NDArray[np.floating]) -> F32:
    """Midpoints between increasing calibrated timesteps, float32 [T-1]."""
    t = np.asarray(timesteps, np.float64)
    return ((t[1:] + t[:-1]) / 2).astype(np.float32)
