"""What a method is asked to do, and which bits each layer gets."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from dq_deploy.errors import OptionError
from dq_deploy.models.layers import LayerSite

METHODS = ("minmax", "dilatequant")
DILATION_BOUNDS = ("asymmetric", "symmetric")

DEFAULT_KEEP = ("time_embedding.*", "add_embedding.*")
"""Layers that stay float unless told otherwise: they run once a step and their codes feed every block."""

DEFAULT_EIGHT_BITS = ("conv_in", "conv_out", "*.time_emb_proj")
"""Layers at 8-bit weights and activations unless told otherwise."""

FLOAT_ACTIVATIONS = 16
"""Activation bits that mean: activations stay float, only the weights are quantized."""

WEIGHT_ONLY_BITS = 4
WEIGHT_ONLY = (WEIGHT_ONLY_BITS, FLOAT_ACTIVATIONS)
BLOCK_SIZES = (64, 128)

KEPT_FLOAT = "float: "
"""Start of the reason of a layer that was asked to be weight-only and cannot be."""

LayerBits = Mapping[str, int | tuple[int, int] | Sequence[int]]

_RANGES: dict[str, tuple[float, float]] = {
    "weight_bits": (2, 8),
    "activation_bits": (2, 8),
    "steps": (1, 1000),
    "seed": (0, 2**31 - 1),
    "samples": (1, 1_000_000),
    "iterations": (0, 1_000_000),
    "batch": (1, 4096),
    "memory_gib": (0.001, 4096),
    "lr_weight": (0, 10),
    "lr_bias": (0, 10),
    "lr_weight_scale": (0, 10),
    "lr_scale": (0, 10),
    "lr_zero_point": (0, 10),
}


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """Options of every method; a method ignores none silently but those it has no use for.

    Attributes:
        method: one of `METHODS`.
        weight_bits: bits of the layers that are not named otherwise, 2 to 8.
        activation_bits: likewise; or 16, which makes layers weight-only: linear ones get 4-bit weights with a scale a
            block, all others stay float. Method `minmax` alone has them.
        block_size: input channels that share a scale in weight-only layers, one of `BLOCK_SIZES`.
        steps: sampling steps that get their own activation quantizers.
        static: one activation quantizer for all steps.
        symmetric_activations: zero points 0, codes -2^(b-1)..2^(b-1)-1.
        keep: patterns of layers that stay float; None is `DEFAULT_KEEP`.
        layer_bits: pattern to bits, or to (weight bits, activation bits); the last match counts.
        split_skips: layers behind a skip concatenation get a quantizer for each half.
        seed: of noise, labels and training batches.
        samples: calibration trajectories; each gives one input a step.
        labels: classes to calibrate with, () for all.
        memory_gib: most memory for calibration data and block inputs.
        outputs: calibrate the 8-bit output tables that mode fast needs.
        iterations: training iterations a block (DilateQuant).
        batch: training inputs an iteration, steps mixed.
        lr_weight: Adam step of weights, in weight codes.
        lr_bias: of biases, relative to the output's spread.
        lr_weight_scale: of weight scales, relative.
        lr_scale: of activation scales, relative.
        lr_zero_point: of zero points, as a share of the code range.
        dilation_bound: `asymmetric` bounds a weight by its channel's own range end, `symmetric` by max|w|.
        weight_dilation: False leaves dilation out (ablation).
        temporal_quantizer: False trains one activation quantizer for all steps (ablation).
        distillation: False leaves training out (ablation).
    """

    method: str = "dilatequant"
    weight_bits: int = 4
    activation_bits: int = 8
    block_size: int = 64
    steps: int = 20
    static: bool = False
    symmetric_activations: bool = False
    keep: tuple[str, ...] | None = None
    layer_bits: LayerBits = field(default_factory=dict)
    split_skips: bool = False
    seed: int = 0
    samples: int = 64
    labels: tuple[int, ...] = ()
    memory_gib: float = 2.0
    outputs: bool = True
    iterations: int = 200
    batch: int = 32
    lr_weight: float = 2e-2
    lr_bias: float = 1e-3
    lr_weight_scale: float = 1e-3
    lr_scale: float = 5e-3
    lr_zero_point: float = 5e-3
    dilation_bound: str = "asymmetric"
    weight_dilation: bool = True
    temporal_quantizer: bool = True
    distillation: bool = True

    def __post_init__(self) -> None:
        """Check every range.

        Raises:
            OptionError: names the option, what was got and what is allowed.
        """
        for name, allowed in (("method", METHODS), ("dilation_bound", DILATION_BOUNDS)):
            if getattr(self, name) not in allowed:
                raise OptionError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(allowed)}")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if name == "activation_bits" and value == FLOAT_ACTIVATIONS and isinstance(value, int):
                continue
            whole = isinstance(_DEFAULTS[name], int)
            if (
                isinstance(value, bool)
                or not isinstance(value, int if whole else (int, float))
                or not low <= value <= high
            ):
                kind = "whole number" if whole else "number"
                more = f", or {FLOAT_ACTIVATIONS} for weight-only layers" if name == "activation_bits" else ""
                raise OptionError(f"{name} is {value!r}, expected a {kind} from {low:g} to {high:g}{more}")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name} is {getattr(self, name)!r}, expected true or false")
        object.__setattr__(self, "keep", None if self.keep is None else tuple(self.keep))
        object.__setattr__(self, "labels", tuple(self.labels))
        pairs = {pattern: bits_pair(pattern, bits) for pattern, bits in self.layer_bits.items()}
        object.__setattr__(self, "layer_bits", pairs)
        if self.activation_bits == FLOAT_ACTIVATIONS and self.weight_bits != WEIGHT_ONLY_BITS:
            raise OptionError(
                f"weight_bits is {self.weight_bits} with activation_bits {FLOAT_ACTIVATIONS}, expected "
                f"{WEIGHT_ONLY_BITS}: weight-only layers have no other"
            )
        if self.block_size not in BLOCK_SIZES or not isinstance(self.block_size, int):
            raise OptionError(f"block_size is {self.block_size!r}, expected one of {', '.join(map(str, BLOCK_SIZES))}")
        if self.has_weight_only and self.method != "minmax":
            raise OptionError(
                f"activation bits are {FLOAT_ACTIVATIONS} with method {self.method}, which trains integer layers "
                "only; weight-only layers need method minmax"
            )

    @property
    def has_weight_only(self) -> bool:
        """Whether some layers are asked to keep float activations."""
        pairs = [bits_pair(pattern, bits) for pattern, bits in self.layer_bits.items()]
        return FLOAT_ACTIVATIONS in (self.activation_bits, *(activations for _, activations in pairs))

    @property
    def is_static(self) -> bool:
        """Whether one activation quantizer serves all steps."""
        return self.static or not self.temporal_quantizer

    def as_json(self) -> dict[str, Any]:
        """JSON values by option name, as a record's provenance holds them."""
        value = asdict(self)
        for key, item in value.items():
            if isinstance(item, tuple):
                value[key] = list(item)
        value["layer_bits"] = {key: list(pair) for key, pair in self.layer_bits.items()}  # type: ignore[arg-type]
        return value


_DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(QuantizeOptions)}
_FLAGS = tuple(name for name, value in _DEFAULTS.items() if isinstance(value, bool))


def bits_pair(pattern: str, bits: int | Sequence[int]) -> tuple[int, int]:
    """(weight bits, activation bits) of one `layer_bits` entry.

    Raises:
        OptionError: not one or two numbers from 2 to 8, or 4 and 16.
    """
    pair = (bits, bits) if isinstance(bits, int) else tuple(bits)
    whole = len(pair) == 2 and all(isinstance(b, int) and not isinstance(b, bool) for b in pair)
    if not whole or not (pair == WEIGHT_ONLY or all(2 <= b <= 8 for b in pair)):
        raise OptionError(
            f"layer_bits for {pattern!r} is {bits!r}, expected 2 to 8, or two such numbers for weights and "
            f"activations, or {WEIGHT_ONLY[0]} and {WEIGHT_ONLY[1]} for weight-only layers"
        )
    return int(pair[0]), int(pair[1])


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """What one layer becomes.

    Attributes:
        name: module path.
        weight_bits: None where the layer stays float.
        activation_bits: likewise.
        reason: why it has these bits, in words.
    """

    name: str
    weight_bits: int | None
    activation_bits: int | None
    reason: str

    @property
    def is_float(self) -> bool:
        """Whether the layer stays float."""
        return self.weight_bits is None

    @property
    def is_weight_only(self) -> bool:
        """Whether the layer keeps float activations behind few-bit weights."""
        return self.activation_bits == FLOAT_ACTIVATIONS

    @property
    def is_integer(self) -> bool:
        """Whether the layer becomes an integer layer."""
        return not self.is_float and not self.is_weight_only


def _last_match(name: str, patterns: Iterable[str]) -> str | None:
    found = None
    for pattern in patterns:
        if fnmatch.fnmatchcase(name, pattern):
            found = pattern
    return found


def _check_patterns(names: Sequence[str], option: str, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise OptionError(f"{option} {pattern!r} matches no layer; see the names with --list-layers")


def plan_layers(names: Sequence[str], options: QuantizeOptions) -> dict[str, LayerPlan]:
    """Bits of every quantizable layer, in the order given.

    Patterns the user gave come before the defaults; a layer under both `keep` and `layer_bits` is refused.

    Raises:
        OptionError: a pattern matches nothing, two options contradict each other, or no layer is left.
    """
    keep = () if options.keep is None else options.keep
    _check_patterns(names, "keep", keep)
    _check_patterns(names, "layer_bits", options.layer_bits)
    plans: dict[str, LayerPlan] = {}
    for name in names:
        kept = _last_match(name, keep)
        chosen = _last_match(name, options.layer_bits)
        if kept is not None and chosen is not None:
            raise OptionError(
                f"layer {name} is under keep {kept!r} and layer_bits {chosen!r}, expected one; narrow a pattern"
            )
        bits: tuple[int | None, int | None] = (options.weight_bits, options.activation_bits)
        reason = "general"
        if chosen is not None:
            bits, reason = bits_pair(chosen, options.layer_bits[chosen]), f"layer_bits {chosen!r}"
        elif kept is not None:
            bits, reason = (None, None), f"keep {kept!r}"
        elif options.keep is None and _last_match(name, DEFAULT_KEEP):
            bits, reason = (None, None), "time or added embedding, float by default"
        elif options.activation_bits != FLOAT_ACTIVATIONS and _last_match(name, DEFAULT_EIGHT_BITS):
            bits, reason = (8, 8), "first, last and time projection layers, 8 bits by default"
        plans[name] = LayerPlan(name=name, weight_bits=bits[0], activation_bits=bits[1], reason=reason)
    if all(plan.is_float for plan in plans.values()):
        raise OptionError("every layer stays float, expected at least one to quantize; narrow keep")
    return plans


def plan_sites(sites: Iterable[LayerSite], options: QuantizeOptions) -> dict[str, LayerPlan]:
    """`plan_layers` for real layers: those asked to be weight-only that cannot be stay float, and the reason says why.

    Raises:
        OptionError: as `plan_layers`, or no layer can be what was asked.
    """
    known = {site.name: site for site in sites}
    plans = plan_layers(list(known), options)
    for name, plan in plans.items():
        why = _weight_only_refusal(known[name], options.block_size) if plan.is_weight_only else ""
        if why:
            plans[name] = replace(plan, weight_bits=None, activation_bits=None, reason=f"{KEPT_FLOAT}{why}")
    if all(plan.is_float for plan in plans.values()):
        raise OptionError(
            f"no layer can be weight-only in blocks of {options.block_size}, expected a linear one whose input "
            "channels are a multiple; choose another --block-size or integer activations"
        )
    return plans


def _weight_only_refusal(site: LayerSite, block_size: int) -> str:
    """Why a layer cannot be weight-only, or an empty string."""
    if site.kind != "linear":
        return "weight-only layers are linear, this is a convolution"
    if site.in_channels % block_size:
        return f"{site.in_channels} input channels are no multiple of the block size {block_size}"
    return ""
