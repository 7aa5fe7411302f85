"""Weight bits a layer under a budget: the least summed output error that a given average width allows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dq_deploy.calibration import CalibrationSource
from dq_deploy.errors import GuaranteeError, OptionError
from dq_deploy.methods.budget.sensitivity import Sensitivity, measure_sensitivity
from dq_deploy.methods.layer_bits import GENERAL_REASON, LayerBits, bits_of_sites
from dq_deploy.methods.options import FLOAT_ACTIVATIONS, SharedOptions
from dq_deploy.methods.progress import Progress, ProgressCallback
from dq_deploy.models import Denoiser, quantizable_layers
from dq_deploy.numerics.arrays import F64, I64
from dq_deploy.record import Record

FREE = GENERAL_REASON
"""Reason of bits that nobody named; only those are chosen."""

NIBBLE_BITS = 4
MOST_CUTS = 64
"""Choices over the capacity by the solver's tolerance that are excluded one by one."""
OBJECTIVE = 1e4
"""Sum of the objective's coefficients, far above the solver's absolute gap of 1e-6."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ChosenBits:
    """Bits of every quantized layer, and what they were chosen by.

    Invariants::

        sum(sizes * weight bits) <= budget * sum(sizes)

    Attributes:
        budget: average weight bits asked for.
        layers: (weight bits, activation bits) by layer, also of those whose bits were fixed.
        sizes: weights by layer.
        sensitivity: of the layers that were chosen for.
    """

    budget: float
    layers: Mapping[str, tuple[int, int]]
    sizes: Mapping[str, int]
    sensitivity: Sensitivity

    @property
    def average_bits(self) -> float:
        """Weight bits a weight over all quantized layers."""
        return self._average({name: bits for name, (bits, _) in self.layers.items()})

    @property
    def stored_bits(self) -> float:
        """The same as files and the native engine hold them: two codes a byte up to 4 bits, one a byte above."""
        return self._average({name: 4 if bits <= NIBBLE_BITS else 8 for name, (bits, _) in self.layers.items()})

    def _average(self, bits: Mapping[str, int]) -> float:
        return sum(self.sizes[name] * width for name, width in bits.items()) / sum(self.sizes.values())

    def in_words(self) -> str:
        """One line, as `4.49 bits on average: 31 layers at 4, 12 at 8`."""
        return words_of_bits(self.average_bits, [bits for bits, _ in self.layers.values()])

    def as_history(self) -> dict[str, Any]:
        """The history entry, JSON values; errors to four digits."""
        errors = {
            name: {str(width): [float(f"{e:.4g}") for e in by_step] for width, by_step in by_width.items()}
            for name, by_width in self.sensitivity.errors.items()
        }
        return {
            "stage": "bits",
            "budget": self.budget,
            "average_bits": self.average_bits,
            "stored_bits": self.stored_bits,
            "layers": {name: list(pair) for name, pair in self.layers.items()},
            "steps": [int(t) for t in self.sensitivity.steps],
            "influence": [float(f"{x:.4g}") for x in self.sensitivity.influence],
            "sensitivity": errors,
        }

    def noted_in(self, record: Record) -> Record:
        """The record with the choice as the first entry of its history."""
        provenance = dict(record.provenance)
        provenance["history"] = [self.as_history(), *provenance.get("history", [])]
        return replace(record, provenance=provenance)


def words_of_bits(average: float, widths: Sequence[int]) -> str:
    """Average and layers by weight bits in one line."""
    first, *others = sorted(Counter(widths).items())
    counts = [
        f"{first[1]} layer{'s' * (first[1] != 1)} at {first[0]}",
        *(f"{count} at {bits}" for bits, count in others),
    ]
    return f"{average:.2f} bits on average: {', '.join(counts)}"


def options_within_budget(
    denoiser: Denoiser, options: SharedOptions, source: CalibrationSource, progress: ProgressCallback
) -> tuple[SharedOptions, ChosenBits]:
    """Options whose `layer_bits` keep the budget, and the choice behind them.

    Layers that `layer_bits` names, weight-only ones, and those that have 8 bits by default keep their bits; they
    count in the average. Float layers do not. `weight_bits` is not used.

    Raises:
        OptionError: the budget cannot be kept, or there is nothing to choose.
    """
    assert options.budget is not None
    sites = quantizable_layers(denoiser.module, denoiser.call)
    given = {name: bits for name, bits in bits_of_sites(sites, options).items() if not bits.is_float}
    sizes = {s.name: s.out_channels * (s.in_channels // s.groups) * math.prod(s.kernel) for s in sites}
    sizes = {name: sizes[name] for name in given}
    free = [name for name, bits in given.items() if bits.is_integer and bits.reason == FREE]
    capacity = _capacity(options, given, sizes, free)
    sensitivity = measure_sensitivity(denoiser, options, source, free, progress)
    widths = options.budget_widths
    errors = np.array([[sensitivity.total(name, width) for width in widths] for name in free])
    picked = choose_widths(errors, [sizes[name] for name in free], widths, capacity)
    pairs = {name: (bits.weight_bits or 0, bits.activation_bits or 0) for name, bits in given.items()}
    found = {name: (width, pairs[name][1]) for name, width in zip(free, picked, strict=True)}
    chosen = ChosenBits(budget=options.budget, layers={**pairs, **found}, sizes=sizes, sensitivity=sensitivity)
    progress(Progress(stage="sensitivity", done=1, total=1, note=chosen.in_words()))
    return replace(options, layer_bits={**options.layer_bits, **found}), chosen


def _capacity(
    options: SharedOptions, given: Mapping[str, LayerBits], sizes: Mapping[str, int], free: Sequence[str]
) -> int:
    """Bits left for the layers that may be chosen for."""
    assert options.budget is not None
    if options.activation_bits == FLOAT_ACTIVATIONS or not free:
        raise OptionError(
            f"budget is {options.budget:g} but no layer's bits are left to choose, expected integer layers that "
            "neither layer_bits nor a default fixes; leave `budget` out or name fewer layers"
        )
    total = sum(sizes.values())
    fixed = sum(sizes[name] * (bits.weight_bits or 0) for name, bits in given.items() if name not in free)
    least = fixed + options.budget_widths[0] * sum(sizes[name] for name in free)
    allowed = math.floor(options.budget * total + 1e-6)
    if least > allowed:
        possible = math.ceil(least / total * 1000) / 1000
        raise OptionError(
            f"budget is {options.budget:g} bits a weight, expected at least {possible:g}: every layer that may change "
            f"at {options.budget_widths[0]} bits, the others as layer_bits and the defaults fix them"
        )
    return allowed - fixed


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
