"""AdaRound (arXiv 2004.10568): whether each weight is rounded down or up is learned.

    w_q = clamp(floor(w / s_w) + h, ...)       h = clamp(sigmoid(rounding) * (ZETA - LOW) + LOW, 0, 1)

While a block is trained h lies anywhere in [0, 1]; at the end it is 1 where `rounding >= 0`, else 0. The
rectified sigmoid of the paper reaches both ends at finite values, so a decided weight gets no gradient.
"""

from __future__ import annotations

import torch

ZETA, LOW = 1.1, -0.1
"""Ends of the stretched sigmoid."""

BETA_START, BETA_END = 20.0, 2.0
WARM_UP = 0.2
"""Share of the iterations before the penalty sets in."""


def soft_rounding(rounding: torch.Tensor) -> torch.Tensor:
    """The share h, in [0, 1], of rounding variables."""
    return (torch.sigmoid(rounding) * (ZETA - LOW) + LOW).clamp(0, 1)


def rounding_of_rest(rest: torch.Tensor) -> torch.Tensor:
    """Rounding variables whose h is `rest`, the part w / s_w - floor(w / s_w) in [0, 1)."""
    return -torch.log((ZETA - LOW) / (rest - LOW) - 1)


def penalty_beta(iteration: int, iterations: int) -> float | None:
    """Exponent of the penalty: falls in a line from 20 to 2 behind the warm-up, in which it is None."""
    begin = WARM_UP * iterations
    if iteration < begin:
        return None
    return BETA_START + (BETA_END - BETA_START) * (iteration - begin) / (iterations - begin)


def rounding_penalty(rounding: torch.Tensor, beta: float) -> torch.Tensor:
    """Sum over weights of 1 - |2 h - 1|^beta: 0 where every h is 0 or 1."""
    return (1 - (2 * soft_rounding(rounding) - 1).abs().pow(beta)).sum()
