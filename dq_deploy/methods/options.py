"""What a method is asked to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dq_deploy.errors import OptionError

PARTS: dict[str, tuple[str, ...]] = {
    "minmax": (),
    "dilatequant": ("weight-dilation", "temporal-quantizer", "distillation"),
    "dmq": ("learned-scaling", "timestep-weighting", "reconstruction", "power-of-two", "split-skips"),
    "eda-dm": ("tdac", "fine-grained-loss", "reconstruction", "activation-drop", "split-skips"),
    "quest": ("reconstruction", "time-embedding", "attention", "global-loss", "local-loss"),
}
"""What each method is made of; `without` leaves parts out, which is how its ablation is run."""

METHODS = tuple(PARTS)

METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "dmq": {"split_skips": True, "asymmetric_weights": True},
    "eda-dm": {"static": True, "split_skips": True, "calibration_choice": "tdac"},
}
"""Where a method has another default than `False` and `uniform` for an option that is None."""

DILATION_BOUNDS = ("asymmetric", "symmetric")
CALIBRATION_CHOICES = ("uniform", "tdac", "normal-biased")
POWER_OF_TWO_VOTES = ("one-vote", "per-group")

FLOAT_ACTIVATIONS = 16
"""Activation bits that mean: activations stay float, only the weights are quantized."""

WEIGHT_ONLY_BITS = 4
WEIGHT_ONLY = (WEIGHT_ONLY_BITS, FLOAT_ACTIVATIONS)
BLOCK_SIZES = (64, 128)

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
    "lr_rounding": (0, 10),
    "lr_equivalent": (0, 10),
    "rounding_penalty": (0, 100),
    "layer_loss": (0, 100),
    "activation_drop": (0, 1),
    "scaling_iterations": (0, 1_000_000),
    "timestep_exponent": (0, 1000),
    "agreement": (0, 1),
    "finetune_iterations": (0, 1_000_000),
    "tdac_radius": (0, 1e9),
    "tdac_diversity": (0, 1e9),
}
_OPTIONAL_RANGES: dict[str, tuple[float, float]] = {"step_groups": (1, 1000), "budget": (2, 8)}


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
        step_groups: groups of neighbouring steps that share an activation quantizer; None gives each step its own.
        static: one activation quantizer for all steps, the same as one group; None is the method's own choice.
        symmetric_activations: zero points 0, codes -2^(b-1)..2^(b-1)-1.
        asymmetric_weights: weights have a zero point an output channel; None is the method's own choice.
        keep: patterns of layers that stay float; None is `plan.DEFAULT_KEEP`.
        layer_bits: pattern to bits, or to (weight bits, activation bits); the last match counts.
        budget: average bits a weight over all quantized layers; chosen a layer by measured sensitivity.
        budget_widths: weight bits a layer may get under `budget`.
        split_skips: layers behind a skip concatenation get a quantizer for each half; None is the method's own choice.
        seed: of noise, labels and training batches.
        samples: calibration trajectories; each gives one input a step, or as many in all by `calibration_choice`.
        labels: classes to calibrate with, () for all.
        calibration_choice: which steps calibration inputs come from, one of `CALIBRATION_CHOICES`; None is the
            method's own choice.
        tdac_radius: mean square within which two steps' features count as near, in means over all pairs (EDA-DM, r).
        tdac_diversity: weight of a step's diversity beside its density (EDA-DM, lambda).
        memory_gib: most memory for calibration data and block inputs.
        outputs: calibrate the 8-bit output tables that mode fast needs.
        without: parts of the method left out, of `PARTS`; for ablations.
        iterations: training iterations a block.
        batch: training inputs an iteration, steps mixed.
        lr_weight: Adam step of weights, in weight codes.
        lr_bias: of biases, relative to the output's spread.
        lr_weight_scale: of weight scales, relative.
        lr_scale: of activation scales, relative.
        lr_zero_point: of zero points, as a share of the code range.
        lr_rounding: of AdaRound's rounding variables.
        rounding_penalty: weight of AdaRound's pull towards whole codes, a mean over weights; 0 leaves it out.
        layer_loss: weight of the errors of the layers inside a block (EDA-DM, gamma).
        activation_drop: share of activation values left float while a block is trained (EDA-DM).
        scaling_iterations: iterations a layer of learned equivalent scaling (DMQ).
        lr_equivalent: Adam step of the logarithm of equivalent scales (DMQ).
        timestep_exponent: how sharply losses of hard steps are weighted down (DMQ, alpha).
        power_of_two: `one-vote` over all steps, or `per-group`, where all groups of steps must elect the same (DMQ).
        agreement: share of samples that must agree on a power of two (DMQ).
        finetune_iterations: iterations a stage of selective finetuning (QuEST).
        dilation_bound: `asymmetric` bounds a weight by its channel's own range end, `symmetric` by max|w|.
    """

    method: str = "dilatequant"
    weight_bits: int = 4
    activation_bits: int = 8
    block_size: int = 64
    steps: int = 20
    step_groups: int | None = None
    static: bool | None = None
    symmetric_activations: bool = False
    asymmetric_weights: bool | None = None
    keep: tuple[str, ...] | None = None
    layer_bits: LayerBits = field(default_factory=dict)
    budget: float | None = None
    budget_widths: tuple[int, ...] = (4, 8)
    split_skips: bool | None = None
    seed: int = 0
    samples: int = 64
    labels: tuple[int, ...] = ()
    calibration_choice: str | None = None
    tdac_radius: float = 0.3
    tdac_diversity: float = 1.0
    memory_gib: float = 2.0
    outputs: bool = True
    without: tuple[str, ...] = ()
    iterations: int = 200
    batch: int = 32
    lr_weight: float = 2e-2
    lr_bias: float = 1e-3
    lr_weight_scale: float = 1e-3
    lr_scale: float = 5e-3
    lr_zero_point: float = 5e-3
    lr_rounding: float = 0.1
    rounding_penalty: float = 10.0
    layer_loss: float = 0.8
    activation_drop: float = 0.5
    scaling_iterations: int = 200
    lr_equivalent: float = 1e-2
    timestep_exponent: float = 20.0
    power_of_two: str = "one-vote"
    agreement: float = 0.85
    finetune_iterations: int = 200
    dilation_bound: str = "asymmetric"

    def __post_init__(self) -> None:
        """Check every range.

        Raises:
            OptionError: names the option, what was got and what is allowed.
        """
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise OptionError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(map(str, allowed))}")
        self._take_method_defaults()
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if name == "activation_bits" and value == FLOAT_ACTIVATIONS and isinstance(value, int):
                continue
            more = f", or {FLOAT_ACTIVATIONS} for weight-only layers" if name == "activation_bits" else ""
            _check_number(name, value, low, high, whole=isinstance(_DEFAULTS[name], int), more=more)
        for name, (low, high) in _OPTIONAL_RANGES.items():
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name), low, high, whole=name == "step_groups")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name} is {getattr(self, name)!r}, expected true or false")
        object.__setattr__(self, "keep", None if self.keep is None else tuple(self.keep))
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "without", _parts_without(self.method, self.without))
        object.__setattr__(self, "budget_widths", _checked_widths(self.budget_widths))
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

    def _take_method_defaults(self) -> None:
        own = METHOD_DEFAULTS.get(self.method, {})
        if self.static and self.step_groups not in (None, 1):
            raise OptionError(f"static and step_groups {self.step_groups} were given, expected one of them")
        if self.static is None and self.step_groups is not None:
            object.__setattr__(self, "static", self.step_groups == 1)
        for name in ("static", "split_skips", "asymmetric_weights"):
            if getattr(self, name) is None:
                part = name.replace("_", "-")
                object.__setattr__(self, name, own.get(name, False) and part not in self.without)
        if self.calibration_choice is None:
            choice = own.get("calibration_choice", "uniform")
            object.__setattr__(self, "calibration_choice", "uniform" if choice in self.without else choice)

    def uses(self, part: str) -> bool:
        """Whether a part of the method is in: one of `PARTS[method]` that `without` does not name."""
        return part in PARTS[self.method] and part not in self.without

    def groups_of_steps(self, steps: int) -> NDArray[np.int64]:
        """Group of each step bucket, [T] from 0: equal shares of neighbouring steps."""
        count = 1 if self.is_static else min(self.step_groups or steps, steps)
        return np.arange(steps, dtype=np.int64) * count // steps

    @property
    def is_static(self) -> bool:
        """Whether one activation quantizer serves all steps."""
        return bool(self.static) or self.step_groups == 1 or "temporal-quantizer" in self.without

    def as_json(self) -> dict[str, Any]:
        """JSON values by option name, as a record's provenance holds them."""
        value = asdict(self)
        for key, item in value.items():
            if isinstance(item, tuple):
                value[key] = list(item)
        value["layer_bits"] = {key: list(pair) for key, pair in self.layer_bits.items()}  # type: ignore[arg-type]
        return value


_DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(QuantizeOptions)}
_FLAGS = (
    *tuple(name for name, value in _DEFAULTS.items() if isinstance(value, bool)),
    "static",
    "split_skips",
    "asymmetric_weights",
)
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "method": METHODS,
    "dilation_bound": DILATION_BOUNDS,
    "power_of_two": POWER_OF_TWO_VOTES,
    "calibration_choice": (None, *CALIBRATION_CHOICES),
}


def _check_number(name: str, value: Any, low: float, high: float, *, whole: bool, more: str = "") -> None:
    right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not right or not low <= value <= high:
        kind = "whole number" if whole else "number"
        raise OptionError(f"{name} is {value!r}, expected a {kind} from {low:g} to {high:g}{more}")


def _parts_without(method: str, without: Sequence[str]) -> tuple[str, ...]:
    names = (without,) if isinstance(without, str) else tuple(without)
    for name in names:
        if name not in PARTS[method]:
            known = ", ".join(PARTS[method]) or "none: the method has no parts"
            raise OptionError(f"without names {name!r}, expected parts of {method}: {known}")
    return names


def _checked_widths(widths: Sequence[int]) -> tuple[int, ...]:
    found = tuple(widths)
    if not found or not all(isinstance(w, int) and not isinstance(w, bool) and 2 <= w <= 8 for w in found):
        raise OptionError(f"budget_widths is {widths!r}, expected weight bits from 2 to 8, such as 4, 8")
    return tuple(sorted(set(found)))


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
