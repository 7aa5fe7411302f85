"""Which steps calibration inputs come from: so many of each step, and in which order.

Weights of the steps become whole counts; the counts become an order in which any prefix holds about its share of
every step, so that a method that must do with fewer inputs takes the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dq_deploy.errors import OptionError
from dq_deploy.numerics.arrays import F64, I64

LEAST_INPUTS = 4
"""Inputs that every step keeps, or an eighth of the samples where that is more: its quantizer needs a range."""

MOST_SHARE = 4
"""A step gets at most so many times `samples`: as many trajectories are sampled as the largest count."""

NORMAL_MEAN = 0.4
NORMAL_DEVIATION = 0.4


@dataclass(frozen=True, kw_only=True, eq=False)
class StepChoice:
    """How many calibration inputs each step gives.

    Invariants::

        len(counts) == len(weights) == T, counts >= 1

    Attributes:
        name: one of `methods.options.CALIBRATION_CHOICES`.
        weights: [T] float64, sum 1, what was asked; index 0 is the least noisy step.
        counts: [T] int64.
        details: what the weights were made from, JSON values for the provenance.
    """

    name: str
    weights: F64
    counts: I64
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trajectories(self) -> int:
        """Trajectories that hold this many inputs of every step."""
        return int(self.counts.max())

    def within(self, trajectories: int) -> StepChoice:
        """The same weights with all counts scaled down until so many trajectories hold them; at least one a step."""
        if trajectories >= self.trajectories:
            return self
        total = max(len(self.counts), int(self.counts.sum()) * trajectories // self.trajectories)
        least = max(1, int(self.counts.min()) * trajectories // self.trajectories)
        counts = counts_of_steps(self.weights, total, least=least, most=trajectories)
        return StepChoice(name=self.name, weights=self.weights, counts=counts, details=self.details)

    def order(self, seed: int) -> tuple[I64, I64]:
        """Step and trajectory of each input, both [sum(counts)]; any prefix holds about its share of every step.

        The k-th of a step's n inputs stands near (k + u) / n of the way, u drawn for the step. Steps take
        trajectories in turn, each going on where the one before stopped, so that all are used alike.
        """
        rng = np.random.default_rng(seed)
        place = np.concatenate([(np.arange(n) + rng.random()) / n for n in self.counts])
        step = np.repeat(np.arange(len(self.counts), dtype=np.int64), self.counts)
        trajectory = np.arange(len(step), dtype=np.int64) % self.trajectories
        order = np.argsort(place, kind="stable")
        return step[order], trajectory[order]

    def as_provenance(self) -> dict[str, Any]:
        """JSON values: the name, counts and weights by step, and the details."""
        weights = [round(float(w), 6) for w in self.weights]
        return {"choice": self.name, "counts": [int(n) for n in self.counts], "weights": weights, **self.details}


def choose_steps(name: str, weights: F64, *, samples: int, details: Mapping[str, Any] | None = None) -> StepChoice:
    """Counts for samples * T inputs by the weights of the steps.

    Args:
        name: of the choice.
        weights: [T], not negative; all zero counts as all alike.
        samples: inputs a step on average.
        details: for the provenance.

    Raises:
        OptionError: fewer samples than every step must keep.
    """
    if samples < LEAST_INPUTS:
        raise OptionError(
            f"samples is {samples}, expected at least {LEAST_INPUTS} with calibration_choice {name}: every step needs "
            "as many for its range; give more or use uniform"
        )
    shares = np.asarray(weights, np.float64)
    shares = shares / shares.sum() if shares.sum() > 0 else np.full(len(shares), 1 / len(shares))
    counts = counts_of_steps(
        shares,
        samples * len(shares),
        least=max(LEAST_INPUTS, samples // 8),
        most=MOST_SHARE * samples,
    )
    return StepChoice(name=name, weights=shares, counts=counts, details=dict(details or {}))


def counts_of_steps(weights: F64, total: int, *, least: int, most: int) -> I64:
    """Whole counts in proportion to weights: least <= n_i <= most and sum n_i == total, rounded by largest remainder.

    Args:
        weights: [T], not negative.
        total: their sum, from least * T to most * T.
        least: of each count.
        most: of each count.

    Raises:
        OptionError: no such counts exist.
    """
    steps = len(weights)
    if not least * steps <= total <= most * steps:
        raise OptionError(
            f"{total} calibration inputs were asked for {steps} steps, expected {least * steps} to {most * steps}: "
            "change samples or steps"
        )
    floor = max(float(weights.max()) * 1e-9, np.finfo(np.float64).tiny)
    share = np.maximum(weights, floor)
    low, high = 0.0, most / float(share.min())
    for _ in range(200):
        middle = (low + high) / 2
        if np.clip(middle * share, least, most).sum() > total:
            high = middle
        else:
            low = middle
    exact = np.clip(low * share, least, most)
    counts: I64 = np.floor(exact).astype(np.int64)
    while (missing := total - int(counts.sum())) > 0:
        open_steps = np.flatnonzero(counts < most)
        first = open_steps[np.argsort(-(exact - counts)[open_steps], kind="stable")][:missing]
        counts[first] += 1
    return counts


def normal_biased_weights(steps: int) -> F64:
    """Normal density over the steps, its mean on their less noisy half: [T].

    ``w_i = exp(-((i + 1/2) / T - 0.4)^2 / (2 * 0.4^2))``, i = 0 the least noisy step. PTQ4DM (arXiv 2211.15736, 3.3)
    draws timesteps from a normal distribution whose mean is below T / 2; mean and deviation are 0.4 T in its scripts.
    There steps are drawn and clipped to the range, which heaps some on both ends; here the density itself counts.
    """
    place = (np.arange(steps) + 0.5) / steps
    return np.exp(-((place - NORMAL_MEAN) ** 2) / (2 * NORMAL_DEVIATION**2))
