"""Means of few trajectories, as far as these support them."""

from __future__ import annotations

import torch


def shrunk_mean(errors: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Mean of [N, C] errors of N trajectories as far as they support it, and the share that is kept on average."""
    mean = errors.double().mean(0)
    if len(errors) < 2:
        return torch.zeros_like(mean).float(), 0.0
    noise = errors.double().var(0) / len(errors)
    share = (1 - noise / mean.square().clamp_min(torch.finfo(torch.float64).tiny)).clamp(0, 1)
    return (share * mean).float(), float(share.mean())
