"""What schema versions 3 and 4 added: folds, low-rank branches, attention quantizers, the denoiser's call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dq_deploy.errors import RecordError
from dq_deploy.numerics import FLOAT32_EXACT
from dq_deploy.numerics.arrays import F32, I32
from dq_deploy.record.checks import check_module_path, check_scales, require

CALL_DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "bool")
"""Element types of a denoiser's inputs."""

ROLES = ("q", "k", "v", "p", "e")
"""What attention multiplies: queries, keys, values, and of the softmax either the probabilities p or their numerators
e = exp(s - max), whose largest in a row is 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fold:
    """An equivalent scale that the producer of a layer's input took over.

    The producer's rows are divided by `factor`, the layer's input channels multiplied with it; both are in the stored
    numbers already. It is kept so that what belongs to the unfolded layer, as a low-rank branch, can be carried over.

    Attributes:
        producer: module path of the norm or layer in front.
        factor: [C_in] float32.
    """

    producer: str
    factor: F32

    def __post_init__(self) -> None:
        """Check path, type and range."""
        check_module_path(self.producer)
        require(self.factor.ndim == 1, f"fold factor has shape {self.factor.shape}, expected [C_in]")
        check_scales("fold factor", self.factor)


@dataclass(frozen=True, kw_only=True, eq=False)
class Branch:
    """A low-rank float product of a layer's input that is added behind its integer product.

    What is added, in float32:

        scale * up @ down(x)        down has the layer's geometry, up is 1 x 1

    Attributes:
        down: float32 [r, C_in / groups, kh, kw], or [r, C_in] for a linear layer; of the unfolded input.
        up: float32 [C_out, r].
        scale: a factor.
    """

    down: F32
    up: F32
    scale: float

    def __post_init__(self) -> None:
        """Check types, shapes and finiteness."""
        for name, value, axes in (("down", self.down, (2, 4)), ("up", self.up, (2,))):
            good = value.dtype == np.float32 and value.ndim in axes and min(value.shape) >= 1
            require(
                good and bool(np.isfinite(value).all()),
                f"branch {name} is {value.dtype}{value.shape}, expected finite float32 with no empty axis",
            )
        rank = len(self.down)
        require(self.up.shape[1] == rank, f"branch up has {self.up.shape[1]} columns, expected {rank} as down has rows")
        require(bool(np.isfinite(self.scale)), f"branch scale is {self.scale}, expected a finite number")


@dataclass(frozen=True, kw_only=True, eq=False)
class CodeTable:
    """The quantizer of one operand of attention, per tensor and step.

    Attributes:
        bits: 2 to 16; 16 as some sources have for probabilities.
        q_min: lowest code.
        q_max: highest code; q_max - q_min == 2^bits - 1.
        scale: float32 [T] or [1].
        zero_point: int32, as `scale`.
    """

    bits: int
    q_min: int
    q_max: int
    scale: F32
    zero_point: I32

    def __post_init__(self) -> None:
        """Check the invariants above."""
        require(2 <= self.bits <= 16, f"bits is {self.bits}, expected 2 to 16")
        half = 2 ** (self.bits - 1)
        expected = ((0, 2 * half - 1), (-half, half - 1))
        require((self.q_min, self.q_max) in expected, f"codes {self.q_min}..{self.q_max}, expected one of {expected}")
        require(self.scale.ndim == 1, f"scale has shape {self.scale.shape}, expected [T] or [1]")
        check_scales("scale", self.scale)
        require(
            self.zero_point.dtype == np.int32 and self.zero_point.shape == self.scale.shape,
            f"zero_point is {self.zero_point.dtype}{self.zero_point.shape}, expected int32{self.scale.shape}",
        )
        far = int(np.abs(self.zero_point.astype(np.int64)).max(initial=0))
        require(far < FLOAT32_EXACT, f"zero_point is up to {far}, expected below 2^24")


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionQuantizers:
    """The quantizers of one attention's two products; those the source has, by role.

    Attributes:
        name: module path of the attention.
        tables: by one of `ROLES`, at least one.
    """

    name: str
    tables: Mapping[str, CodeTable]

    def __post_init__(self) -> None:
        """Check path and roles."""
        check_module_path(self.name)
        unknown = sorted(set(self.tables) - set(ROLES))
        require(
            bool(self.tables) and not unknown,
            f"attention {self.name} has quantizers of {unknown or 'nothing'}, expected some of {', '.join(ROLES)}",
        )
        require(not {"p", "e"} <= set(self.tables), f"attention {self.name} has quantizers of p and e, expected one")

    @property
    def normed(self) -> bool:
        """Whether the softmax is coded as probabilities, not as their numerators."""
        return "p" in self.tables

    @property
    def why_not_int8(self) -> str:
        """Why both products cannot run on 8-bit codes, or an empty string."""
        lacking = [role for role in "qkv" if role not in self.tables] + ([] if {"p", "e"} & set(self.tables) else ["p"])
        if lacking:
            return f"it has no quantizer of {lacking[0]}"
        wide = [(role, table.bits) for role, table in self.tables.items() if table.bits > 8]
        if wide:
            return f"its quantizer of {wide[0][0]} has {wide[0][1]} bits"
        softmax = self.tables["p" if self.normed else "e"]
        if softmax.q_min or softmax.zero_point.any():
            return "its quantizer of the softmax does not begin at 0"
        reach = max(int(np.abs(table.zero_point.astype(np.int64)).max()) for table in self.tables.values())
        return f"its zero points reach {reach}" if reach > 2**16 else ""


@dataclass(frozen=True, kw_only=True)
class CallInput:
    """One tensor that the denoiser is called with.

    Attributes:
        name: of the argument; with dots for nested ones, as `added_cond_kwargs.text_embeds`.
        dtype: one of `CALL_DTYPES`.
        shape: a number where the size never changes, else a name: `B` the batch, or as `height`, `tokens`.
        limits: lowest and highest value it may have, as of class labels; None where any is valid.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    limits: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Check name, type and sizes."""
        require(bool(self.name) and self.name.isprintable(), f"call has an input named {self.name!r}, expected a name")
        require(
            self.dtype in CALL_DTYPES,
            f"call input {self.name} is {self.dtype}, expected one of {', '.join(CALL_DTYPES)}",
        )
        for size in self.shape:
            good = (isinstance(size, int) and size >= 1) or (isinstance(size, str) and size.isidentifier())
            require(
                good and not isinstance(size, bool),
                f"call input {self.name} has the size {size!r}, expected a whole number from 1 or a name",
            )
        if self.limits is not None:
            good = len(self.limits) == 2 and bool(np.isfinite(self.limits).all()) and self.limits[0] <= self.limits[1]
            require(good, f"call input {self.name} has the limits {self.limits}, expected (lowest, highest)")


OUTPUT = "output"
"""Name of the output of a denoiser that has one."""

BATCH = "B"
"""Name of the size that counts samples."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """The denoiser's forward as its user makes it.

    Invariants, where `outputs` are there::

        {every named size of inputs and outputs} - {"B"} == set(sizes)

    Attributes:
        inputs: named tensors, in order.
        constants: plain JSON values that never change, by argument.
        sizes: what each named size but the batch was where the call was recorded, or as the configuration has it.
        outputs: shape of each output by its name, in order and in the same names of sizes; the one of most denoisers
            is `output`. Empty where an older version did not say.
    """

    inputs: tuple[CallInput, ...]
    constants: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    outputs: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that names are unique, and the invariant above."""
        names = [item.name for item in self.inputs]
        require(bool(names), "call has no inputs, expected at least one")
        try:
            same = json.loads(json.dumps(dict(self.constants), allow_nan=False)) == dict(self.constants)
        except (TypeError, ValueError, RecursionError) as error:
            raise RecordError(f"call constants are not JSON ({error}); use plain finite values") from error
        require(same, "call constants change in JSON: expected text keys and lists, no tuples and no numbers as keys")
        every = [*names, *self.constants]
        if len(set(every)) != len(every):
            twice = next(name for name in every if every.count(name) > 1)
            raise RecordError(f"call names {twice} twice, expected once")
        for size, value in self.sizes.items():
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            require(whole, f"call has the size {size} {value!r}, expected a whole number from 1")
        if self.outputs:
            shown = (size for shape in self.outputs.values() for size in shape)
            named = {size for size in (*self.varying(), *shown) if isinstance(size, str)} - {BATCH}
            wrong = sorted(named ^ set(self.sizes))
            require(not wrong, f"call names the sizes {sorted(named)} and has values of {sorted(self.sizes)}")

    def varying(self) -> tuple[str, ...]:
        """Names of the sizes that vary, the batch among them, in the order they appear."""
        return tuple(dict.fromkeys(size for item in self.inputs for size in item.shape if isinstance(size, str)))
