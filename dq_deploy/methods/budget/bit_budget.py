"""Bits a layer under a budget, of weights, activations or both: the least summed output error that it allows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dq_deploy.calibration import CalibrationSource
from dq_deploy.errors import GuaranteeError, OptionError
from dq_deploy.methods.budget.sensitivity import Question, Sensitivity, Unit, measure_sensitivity
from dq_deploy.methods.layer_bits import GENERAL_REASON, LayerBits, bits_of_sites
from dq_deploy.methods.options import FLOAT_ACTIVATIONS, MinmaxOptions, SharedOptions
from dq_deploy.methods.progress import Progress, ProgressCallback
from dq_deploy.models import Denoiser, quantizable_layers, shared_inputs
from dq_deploy.numerics.arrays import F64, I64
from dq_deploy.record import Record

FREE = GENERAL_REASON
"""Reason of bits that nobody named; only those are chosen."""

NIBBLE_BITS = 4
MOST_CUTS = 64
"""Choices over the capacity by the solver's tolerance that are excluded one by one."""
OBJECTIVE = 1e4
"""Sum of the objective's coefficients, far above the solver's absolute gap of 1e-6."""


WIDEST = 8
"""Bits of what is not asked about: with them a layer's error is that of the other operand alone."""

WEIGHTS, ACTIVATIONS = "weights", "activations"


@dataclass(frozen=True, kw_only=True, eq=False)
class Share:
    """What one budget was kept over, and by what.

    Invariants::

        sum(sizes * bits) <= budget * sum(sizes)

    Attributes:
        budget: average bits asked for.
        sizes: by layer, what its bits count with: its weights, or for activations the multiply-accumulates of a sample.
        sensitivity: of the units that were chosen for.
    """

    budget: float
    sizes: Mapping[str, int]
    sensitivity: Sensitivity

    def average(self, bits: Mapping[str, int]) -> float:
        """Average of bits by layer, each counted with its size."""
        return average_bits(bits, self.sizes)


@dataclass(frozen=True, kw_only=True, eq=False)
class ChosenBits:
    """Bits of every quantized layer, and what they were chosen by.

    Attributes:
        layers: (weight bits, activation bits) by layer, also of those whose bits were fixed.
        weights: by layer.
        macs: of one sample, by layer.
        shares: by `WEIGHTS` and `ACTIVATIONS`, those that have a budget.
        units: layers whose activation bits were one decision, where they are several.
    """

    layers: Mapping[str, tuple[int, int]]
    weights: Mapping[str, int]
    macs: Mapping[str, int]
    shares: Mapping[str, Share]
    units: tuple[Unit, ...] = ()

    @property
    def average_bits(self) -> float:
        """Weight bits a weight over all quantized layers."""
        return average_bits({name: bits for name, (bits, _) in self.layers.items()}, self.weights)

    @property
    def stored_bits(self) -> float:
        """The same as files and the native engine hold them: two codes a byte up to 4 bits, one a byte above."""
        held = {name: 4 if bits <= NIBBLE_BITS else 8 for name, (bits, _) in self.layers.items()}
        return average_bits(held, self.weights)

    @property
    def average_activation_bits(self) -> float:
        """Activation bits over all integer layers, each counted with its multiply-accumulates."""
        return average_bits(activation_bits_of(self.layers), self.macs)

    def in_words(self) -> str:
        """One line, as `4.49 bits on average: 31 layers at 4, 12 at 8`."""
        words = []
        if WEIGHTS in self.shares:
            words.append(words_of_bits(self.average_bits, [bits for bits, _ in self.layers.values()]))
        if ACTIVATIONS in self.shares:
            widths = list(activation_bits_of(self.layers).values())
            words.append(f"activations {words_of_bits(self.average_activation_bits, widths)}")
        return "; ".join(words)

    def as_history(self) -> dict[str, Any]:
        """The history entry, JSON values; errors to four digits."""
        any_share = next(iter(self.shares.values()))
        entry: dict[str, Any] = {
            "stage": "bits",
            "budget": self.shares[WEIGHTS].budget if WEIGHTS in self.shares else None,
            "average_bits": self.average_bits,
            "stored_bits": self.stored_bits,
            "layers": {name: list(pair) for name, pair in self.layers.items()},
            "steps": [int(t) for t in any_share.sensitivity.steps],
            "influence": [float(f"{x:.4g}") for x in any_share.sensitivity.influence],
            "sensitivity": _errors(self.shares[WEIGHTS]) if WEIGHTS in self.shares else {},
        }
        if ACTIVATIONS in self.shares:
            share = self.shares[ACTIVATIONS]
            entry |= {
                "activation_budget": share.budget,
                "average_activation_bits": self.average_activation_bits,
                "activation_sensitivity": _errors(share),
                "shared_inputs": [list(unit) for unit in self.units],
            }
        return entry

    def noted_in(self, record: Record) -> Record:
        """The record with the choice as the first entry of its history."""
        provenance = dict(record.provenance)
        provenance["history"] = [self.as_history(), *provenance.get("history", [])]
        return replace(record, provenance=provenance)


def _errors(share: Share) -> dict[str, dict[str, list[float]]]:
    return {
        name: {str(width): [float(f"{e:.4g}") for e in by_step] for width, by_step in by_width.items()}
        for name, by_width in share.sensitivity.errors.items()
    }


def activation_bits_of(layers: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Activation bits of the layers whose activations are integers."""
    return {name: bits for name, (_, bits) in layers.items() if bits != FLOAT_ACTIVATIONS}


def average_bits(bits: Mapping[str, int], sizes: Mapping[str, int]) -> float:
    """Average of bits by layer, each counted with its size."""
    return sum(sizes[name] * width for name, width in bits.items()) / sum(sizes[name] for name in bits)


def words_of_bits(average: float, widths: Sequence[int]) -> str:
    """Average and layers by bits in one line."""
    first, *others = sorted(Counter(widths).items())
    counts = [
        f"{first[1]} layer{'s' * (first[1] != 1)} at {first[0]}",
        *(f"{count} at {bits}" for bits, count in others),
    ]
    return f"{average:.2f} bits on average: {', '.join(counts)}"


def options_within_budget(
    denoiser: Denoiser, options: SharedOptions, source: CalibrationSource, progress: ProgressCallback
) -> tuple[SharedOptions, ChosenBits]:
    """Options whose `layer_bits` keep `budget` and `activation_budget`, and the choice behind them.

    Layers that `layer_bits` names, weight-only ones, and those that have 8 bits by default keep their bits; they
    count in the average. Float layers do not. Where `budget` is given `weight_bits` is not used, where
    `activation_budget` is given `activation_bits` is not.

    The two budgets are kept apart: errors are taken to add up, and each operand's error is measured with the other one
    at `WIDEST` bits. With `budget` alone activations have their own bits.

    Raises:
        OptionError: a budget cannot be kept, or there is nothing to choose.
    """
    sites = quantizable_layers(denoiser.module, denoiser.call)
    given = {name: bits for name, bits in bits_of_sites(sites, options).items() if not bits.is_float}
    free = [name for name, bits in given.items() if bits.is_integer and bits.reason == FREE]
    weights = {s.name: s.out_channels * (s.in_channels // s.groups) * math.prod(s.kernel) for s in sites}
    macs = {s.name: s.macs for s in sites}
    asked: dict[str, _Asked] = {}
    if options.budget is not None:
        asked[WEIGHTS] = _asked_of_weights(options, given, weights, free)
    if options.activation_budget is not None:
        shared = shared_inputs(denoiser.module, denoiser.call)
        asked[ACTIVATIONS] = _asked_of_activations(options, given, macs, free, shared)
    capacities = {name: own.capacity() for name, own in asked.items()}
    found = measure_sensitivity(denoiser, options, source, {n: own.question for n, own in asked.items()}, progress)
    picked = {name: own.choose(found[name], capacities[name]) for name, own in asked.items()}
    pairs = {name: (bits.weight_bits or 0, bits.activation_bits or 0) for name, bits in given.items()}
    changed = {
        name: (picked.get(WEIGHTS, {}).get(name, pairs[name][0]), picked.get(ACTIVATIONS, {}).get(name, pairs[name][1]))
        for name in free
    }
    chosen = ChosenBits(
        layers={**pairs, **changed},
        weights={name: weights[name] for name in given},
        macs={name: macs[name] for name in given},
        shares={n: Share(budget=own.budget, sizes=own.sizes, sensitivity=found[n]) for n, own in asked.items()},
        units=tuple(u for own in asked.values() for u in own.question.units if len(u) > 1),
    )
    progress(Progress(stage="sensitivity", done=1, total=1, note=chosen.in_words()))
    return replace(options, layer_bits={**options.layer_bits, **changed}), chosen


@dataclass(frozen=True, kw_only=True, eq=False)
class _Asked:
    """One budget that is to be kept.

    Attributes:
        option: its name.
        unit_of_size: what the bits are counted by, in words.
        budget: average bits.
        sizes: by layer that counts.
        fixed: bits of the layers that keep theirs.
        question: what is measured; its units are what is chosen for.
    """

    option: str
    unit_of_size: str
    budget: float
    sizes: Mapping[str, int]
    fixed: Mapping[str, int]
    question: Question

    def sizes_of_units(self) -> list[int]:
        """Size of each unit, all its layers together."""
        return [sum(self.sizes[name] for name in unit) for unit in self.question.units]

    def capacity(self) -> int:
        """Bits left for the layers that may be chosen for.

        Raises:
            OptionError: there are none, or the budget is below the least possible.
        """
        if not self.question.units:
            raise OptionError(
                f"{self.option} is {self.budget:g} but no layer's bits are left to choose, expected integer layers "
                f"that neither layer_bits nor a default fixes; leave `{self.option}` out or name fewer layers"
            )
        total = sum(self.sizes.values())
        narrow = min(self.question.widths)
        fixed = sum(self.sizes[name] * bits for name, bits in self.fixed.items())
        least = fixed + narrow * sum(self.sizes_of_units())
        allowed = math.floor(self.budget * total + 1e-6)
        if least > allowed:
            possible = math.ceil(least / total * 1000) / 1000
            raise OptionError(
                f"{self.option} is {self.budget:g} bits {self.unit_of_size}, expected at least {possible:g}: every "
                f"layer that may change at {narrow} bits, the others as layer_bits and the defaults fix them"
            )
        return allowed - fixed

    def choose(self, found: Sensitivity, capacity: int) -> dict[str, int]:
        """Bits by layer."""
        units, widths = self.question.units, list(self.question.widths)
        errors = np.array([[found.total(unit[0], width) for width in widths] for unit in units])
        picked = choose_widths(errors, self.sizes_of_units(), widths, capacity)
        return {name: width for unit, width in zip(units, picked, strict=True) for name in unit}


def _asked_of_weights(
    options: SharedOptions, given: Mapping[str, LayerBits], weights: Mapping[str, int], free: Sequence[str]
) -> _Asked:
    assert options.budget is not None
    alone = [] if options.activation_bits == FLOAT_ACTIVATIONS else free
    activations = None if options.activation_budget is None else WIDEST
    return _Asked(
        option="budget",
        unit_of_size="a weight",
        budget=options.budget,
        sizes={name: weights[name] for name in given},
        fixed={name: bits.weight_bits or 0 for name, bits in given.items() if name not in alone},
        question=Question(
            units=tuple((name,) for name in alone),
            widths={width: (width, activations) for width in options.budget_widths},
        ),
    )


def _asked_of_activations(
    options: SharedOptions,
    given: Mapping[str, LayerBits],
    macs: Mapping[str, int],
    free: Sequence[str],
    shared: Sequence[Unit],
) -> _Asked:
    assert options.activation_budget is not None
    counted = {name: bits.activation_bits or 0 for name, bits in given.items() if bits.is_integer}
    return _Asked(
        option="activation_budget",
        unit_of_size="a multiply-accumulate",
        budget=options.activation_budget,
        sizes={name: macs[name] for name in counted},
        fixed={name: bits for name, bits in counted.items() if name not in free},
        question=Question(
            units=_units(free, shared),
            widths={width: (WIDEST, width) for width in options.activation_budget_widths},
            search=not isinstance(options, MinmaxOptions),
        ),
    )


def _units(free: Sequence[str], shared: Sequence[Unit]) -> tuple[Unit, ...]:
    """Layers that are decided together, in the order of their first; those that may not be chosen for are left out."""
    together = [tuple(name for name in unit if name in free) for unit in shared]
    unit_of = {name: unit for unit in together for name in unit}
    return tuple(dict.fromkeys(unit_of.get(name, (name,)) for name in free))


def choose_widths(errors: F64, sizes: Sequence[int], widths: Sequence[int], capacity: int) -> list[int]:
    """One width a layer with the least summed error under ``sum size * width <= capacity``.

    A multiple-choice knapsack, solved to optimality by HiGHS through `scipy.optimize.milp`; errors are taken to add up.

    Args:
        errors: [L, W] error of each layer at each width, finite, not negative.
        sizes: [L] weights of each layer.
        widths: [W] bits.
        capacity: bits for all layers together.

    Raises:
        OptionError: not even the least widths fit.
        GuaranteeError: the solver gives no answer.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    layers, count = errors.shape
    cost = np.outer(np.asarray(sizes, np.int64), np.asarray(widths, np.int64))
    least = int(cost.min(axis=1).sum())
    if least > capacity:
        raise OptionError(f"the least widths take {least} bits, expected at most {capacity}; raise the budget")
    objective = errors / (errors.max() or 1.0)
    objective *= OBJECTIVE / (objective.sum() or 1.0)
    unit = float(cost.mean())
    rows = [
        LinearConstraint(np.kron(np.eye(layers), np.ones((1, count))), 1, 1),
        LinearConstraint(cost.reshape(1, -1) / unit, -np.inf, capacity / unit),
    ]
    for _ in range(MOST_CUTS):
        found = milp(
            objective.ravel(),
            constraints=rows,
            integrality=np.ones(layers * count),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            raise GuaranteeError(f"the solver found no widths within {capacity} bits ({found.message})")
        picked = np.asarray(found.x).reshape(layers, count).argmax(axis=1)
        if cost[np.arange(layers), picked].sum() <= capacity:
            break
        # over by the solver's tolerance, which a layer of millions of weights fills with small ones: not this choice
        cut = np.zeros((layers, count))
        cut[np.arange(layers), picked] = 1
        rows.append(LinearConstraint(cut.reshape(1, -1), -np.inf, layers - 1))
    else:
        picked = _narrowed(picked, errors, cost, capacity)
    return [int(widths[i]) for i in picked]


def _narrowed(picked: I64, errors: F64, cost: I64, capacity: int) -> I64:
    """A choice that is a little over the capacity, made to fit: layers that lose least go to their least width."""
    every = np.arange(len(picked))
    narrow = cost.argmin(axis=1)
    loss = errors[every, narrow] - errors[every, picked]
    result = picked.copy()
    for layer in np.argsort(loss, kind="stable"):
        if cost[every, result].sum() <= capacity:
            break
        result[layer] = narrow[layer]
    return result
