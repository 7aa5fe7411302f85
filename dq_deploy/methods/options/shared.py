"""What every method is asked: bits, steps, calibration, and which of its parts are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

import numpy as np

from dq_deploy.errors import OptionError
from dq_deploy.methods.options.checks import check_values, choice, flag, number, plain, several, whole
from dq_deploy.numerics.arrays import I64

CALIBRATION_CHOICES = ("uniform", "tdac", "normal-biased", "influence")

ATTENTION = ("int8",)
"""What attention's two products may be given quantizers for."""

DEVICES = ("cpu", "cuda")

FLOAT_ACTIVATIONS = 16
"""Activation bits that mean: activations stay float, only the weights are quantized."""

WEIGHT_ONLY_BITS = 4
WEIGHT_ONLY = (WEIGHT_ONLY_BITS, FLOAT_ACTIVATIONS)

BitsByPattern = Mapping[str, int | tuple[int, int] | Sequence[int]]
"""Pattern of layer names to bits, or to (weight bits, activation bits)."""


@dataclass(frozen=True, kw_only=True)
class OwnChoices:
    """What a method takes where an option is None; a choice named in `without` is left out as well."""

    static: bool = False
    split_skips: bool = False
    asymmetric_weights: bool = False
    calibration_choice: str = "uniform"


@dataclass(frozen=True, kw_only=True)
class SharedOptions:
    """Options that every method reads; each method adds its own in a subclass.

    Attributes:
        method: name of the method.
        parts: what the method is made of; `without` leaves parts out, which is how its ablation is run.
        own: what the method chooses where an option is None.
        has_float_activations: whether the method makes weight-only layers, whose activations stay float.
        weight_bits: bits of the layers that are not named otherwise, 2 to 8.
        activation_bits: bits of the activations of these layers, 2 to 8; or 16, which makes layers weight-only: linear
            layers get 4-bit weights with a scale for each block, all others stay float. Only `minmax` can do that.
        steps: sampling steps that get their own activation quantizers.
        step_groups: groups of neighbouring steps that share an activation quantizer; None gives each step its own.
        static: one activation quantizer for all steps, the same as one group; None is the method's own choice.
        symmetric_activations: zero points 0, codes -2^(b-1)..2^(b-1)-1.
        asymmetric_weights: weights have a zero point for each output channel; None is the method's own choice.
        keep: patterns of layers that stay float; None keeps those of `layer_bits.ROLE_DEFAULTS`: time and pooled
            embeddings.
        layer_bits: pattern to bits, or to (weight bits, activation bits); the last match counts.
        budget: average number of weight bits over all quantized layers; the bits of each layer follow from its
            measured sensitivity.
        budget_widths: weight bits a layer may get under `budget`.
        activation_budget: average number of activation bits over all integer layers, each counted with its
            multiply-accumulates; the bits of each follow from its measured sensitivity.
        activation_budget_widths: activation bits a layer may get under `activation_budget`.
        split_skips: layers behind a skip concatenation get a quantizer for each half; None is the method's own choice.
        seed: seed of noise, labels and training batches.
        samples: calibration trajectories. Each gives one input for each step, or as many in all where
            `calibration_choice` picks the steps.
        labels: classes to calibrate with; () takes all.
        calibration_choice: which steps calibration inputs come from, one of `CALIBRATION_CHOICES`; None is the
            method's own choice.
        tdac_radius: mean square within which two steps' features count as near, in means over all pairs (EDA-DM, r).
        tdac_diversity: weight of a step's diversity beside its density (EDA-DM, lambda).
        memory_gib: most memory for calibration data and block inputs.
        device: where the float model runs and blocks are trained, "cpu" or "cuda".
        attention: "int8" adds quantizers of attention's two products, for engines that run them in integers; None
            leaves them out.
        step_correction: give every integer layer a bias row a step, from the mean error of each channel on trajectories
            that nothing was trained on; left out where it does not lower the error on others of them.
        picture_iterations: iterations of training weight scales and biases on the error of pictures, with gradients
            through the sampling run; 0 leaves it out.
        outputs: calibrate the 8-bit output tables that mode fast needs.
        without: parts of the method left out; for ablations.
        unused: options of other methods that were given, by name. They decide nothing; a record's provenance
            keeps them.
    """

    method: ClassVar[str]
    parts: ClassVar[tuple[str, ...]]
    own: ClassVar[OwnChoices] = OwnChoices()
    has_float_activations: ClassVar[bool] = False

    weight_bits: int = whole(4, 2, 8)
    activation_bits: int = whole(8, 2, 8, also=FLOAT_ACTIVATIONS, also_means="for weight-only layers")
    steps: int = whole(20, 1, 1000)
    step_groups: int | None = whole(None, 1, 1000)
    static: bool | None = flag(None)
    symmetric_activations: bool = flag(False)
    asymmetric_weights: bool | None = flag(None)
    keep: tuple[str, ...] | None = None
    layer_bits: BitsByPattern = field(default_factory=dict)
    budget: float | None = number(None, 2, 8)
    budget_widths: tuple[int, ...] = (4, 8)
    activation_budget: float | None = number(None, 2, 8)
    activation_budget_widths: tuple[int, ...] = (4, 6, 8)
    split_skips: bool | None = flag(None)
    seed: int = whole(0, 0, 2**31 - 1)
    samples: int = whole(64, 1, 1_000_000)
    labels: tuple[int, ...] = ()
    calibration_choice: str | None = choice(None, *CALIBRATION_CHOICES)
    tdac_radius: float = number(0.3, 0, 1e9)
    tdac_diversity: float = number(1.0, 0, 1e9)
    memory_gib: float = number(2.0, 0.001, 4096)
    device: str = choice("cpu", *DEVICES)
    attention: str | None = choice(None, *ATTENTION)
    step_correction: bool = flag(False)
    picture_iterations: int = whole(0, 0, 1_000_000)
    outputs: bool = flag(True)
    without: tuple[str, ...] = ()
    unused: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every value, and take the method's own choice where an option is None.

        Raises:
            OptionError: names the option, what was got and what is allowed.
        """
        known = {option.name: option for option in fields(self)}
        for name in known:
            self._set(name, plain(getattr(self, name)))
        check_values(known, {name: getattr(self, name) for name in known})
        self._set("without", self._parts_left_out())
        self._take_own_choices()
        self._set("keep", None if self.keep is None else several("keep", self.keep, str))
        self._set("labels", several("labels", self.labels, int))
        for name in ("budget_widths", "activation_budget_widths"):
            self._set(name, _checked_widths(name, getattr(self, name)))
        pairs = several("layer_bits", self.layer_bits, str, of=Mapping)
        self._set("layer_bits", {pattern: bits_pair(pattern, self.layer_bits[pattern]) for pattern in pairs})
        if self.activation_bits == FLOAT_ACTIVATIONS and self.weight_bits != WEIGHT_ONLY_BITS:
            raise OptionError(
                f"weight_bits is {self.weight_bits} with activation_bits {FLOAT_ACTIVATIONS}, expected "
                f"{WEIGHT_ONLY_BITS}: weight-only layers have no other"
            )
        if self.has_weight_only and not self.has_float_activations:
            raise OptionError(
                f"activation bits are {FLOAT_ACTIVATIONS} with method {self.method}, which trains integer layers "
                "only; weight-only layers need method minmax"
            )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _parts_left_out(self) -> tuple[str, ...]:
        names = (self.without,) if isinstance(self.without, str) else tuple(self.without)
        for name in names:
            if name not in self.parts:
                known = ", ".join(self.parts) or "none: the method has no parts"
                raise OptionError(f"without names {name!r}, expected parts of {self.method}: {known}")
        return names

    def _take_own_choices(self) -> None:
        if self.static and self.step_groups not in (None, 1):
            raise OptionError(f"static and step_groups {self.step_groups} were given, expected one of them")
        if self.step_groups is not None and self.step_groups > self.steps:
            raise OptionError(f"step_groups is {self.step_groups}, expected at most {self.steps}, as there are steps")
        if self.static is None and self.step_groups is not None:
            self._set("static", self.step_groups == 1)
        for name in ("static", "split_skips", "asymmetric_weights"):
            if getattr(self, name) is None:
                self._set(name, getattr(self.own, name) and name.replace("_", "-") not in self.without)
        if self.calibration_choice is None:
            chosen = self.own.calibration_choice
            self._set("calibration_choice", "uniform" if chosen in self.without else chosen)

    @property
    def has_weight_only(self) -> bool:
        """Whether some layers are asked to keep float activations."""
        pairs = [bits_pair(pattern, bits) for pattern, bits in self.layer_bits.items()]
        return FLOAT_ACTIVATIONS in (self.activation_bits, *(activations for _, activations in pairs))

    def uses(self, part: str) -> bool:
        """Whether a part of the method is in: one of `parts` that `without` does not name."""
        return part in self.parts and part not in self.without

    def groups_of_steps(self, steps: int) -> I64:
        """Group of each step bucket, [T] from 0: equal shares of neighbouring steps."""
        count = 1 if self.is_static else min(self.step_groups or steps, steps)
        return np.arange(steps, dtype=np.int64) * count // steps

    @property
    def is_static(self) -> bool:
        """Whether one activation quantizer serves all steps."""
        return bool(self.static) or self.step_groups == 1 or "temporal-quantizer" in self.without


def _checked_widths(name: str, widths: Sequence[int]) -> tuple[int, ...]:
    found = several(name, widths, int)
    if not found or not all(2 <= width <= 8 for width in found):
        raise OptionError(f"{name} is {widths!r}, expected bits from 2 to 8, such as 4, 8")
    return tuple(sorted(set(found)))


def bits_pair(pattern: str, bits: int | Sequence[int]) -> tuple[int, int]:
    """(weight bits, activation bits) of one `layer_bits` entry.

    Raises:
        OptionError: not one or two numbers from 2 to 8, or 4 and 16.
    """
    bits = plain(bits)
    pair = tuple(map(plain, bits)) if isinstance(bits, Sequence) else (bits, bits)
    numbers = len(pair) == 2 and all(isinstance(b, int) and not isinstance(b, bool) for b in pair)
    if not numbers or not (pair == WEIGHT_ONLY or all(2 <= b <= 8 for b in pair)):
        raise OptionError(
            f"layer_bits for {pattern!r} is {bits!r}, expected 2 to 8, or two such numbers for weights and "
            f"activations, or {WEIGHT_ONLY[0]} and {WEIGHT_ONLY[1]} for weight-only layers"
        )
    return int(pair[0]), int(pair[1])
