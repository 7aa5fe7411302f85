"""Times in a server by formula: pictures that share an engine, whose speed depends on how many there are."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

MOST = 2_000
"""Pictures at once beyond which a server is called overloaded."""


def at_once(rate: float, speed: Callable[[int], float]) -> np.ndarray | None:
    """How many pictures are in a server that shares its engine evenly, as probabilities of 0, 1, 2, ...

    Processor sharing with a speed that depends on the number: p(n) is proportional to the product of rate / speed(j)
    over j = 1 to n, whatever the distribution of the work (Cohen 1979, The multiple phase service network with
    generalized processor sharing).

    Args:
        rate: work that arrives a second, in steps.
        speed: steps a second of all pictures together, by their number.

    Returns:
        Probabilities, or None where more comes than is done.
    """
    logs = [0.0]
    for number in range(1, MOST):
        logs.append(logs[-1] + math.log(rate / speed(number)))
        if logs[-1] < max(logs) - 30:
            found = np.exp(np.array(logs) - max(logs))
            return found / found.sum()
    return None


def percentiles(
    rate: float,
    steps: np.ndarray,
    speed: Callable[[int], float],
    besides_s: float = 0.0,
    wanted: tuple[float, ...] = (0.5, 0.99),
    draws: int = 200_000,
) -> list[float]:
    """Percentiles of a request's time.

    A request that finds n others (Poisson arrivals see time averages) has the speed of n + 1 throughout. That is right
    for short ones, and for long ones too wide: the number changes meanwhile.

    Args:
        rate: requests a second.
        steps: of each kind of request.
        speed: as of `at_once`.
        besides_s: of each request, outside the engine.
        wanted: shares.
        draws: of a seeded generator.

    Returns:
        Seconds; infinity where more comes than is served.
    """
    found = at_once(rate * float(steps.mean()), speed)
    if found is None:
        return [math.inf] * len(wanted)
    draw = np.random.default_rng(0)
    others = draw.choice(len(found), draws, p=found)
    each = np.array([(number + 1) / speed(number + 1) for number in range(len(found))])
    return [float(one) for one in np.quantile(draw.choice(steps, draws) * each[others] + besides_s, wanted)]
