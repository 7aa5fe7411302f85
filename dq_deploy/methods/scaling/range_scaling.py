"""Equivalent scales from ranges (SmoothQuant, arXiv 2211.10438): a part of each channel's range moves into the weights.

    g[k] = max|x[k]|^alpha / max|w[k]|^(1 - alpha)

With 1 every channel of x / g has the same range, and the weights hold all differences; with less they share them. The
paper takes one alpha for a model. Here each layer takes the one of `SHARES` with the least output error under both
quantizers, over rows of the float model; the search is AWQ's (arXiv 2306.00978, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dq_deploy.calibration import CalibrationInputs
from dq_deploy.methods.options import SharedOptions
from dq_deploy.methods.prepare.calibration_inputs import batch_of
from dq_deploy.methods.prepare.dilation import LARGEST
from dq_deploy.methods.prepare.preparation import Prepared, PreparedLayer, with_equivalent_scales
from dq_deploy.methods.progress import Progress
from dq_deploy.methods.ranges.measured_ranges import FLOAT_BATCH
from dq_deploy.methods.ranges.step_ranges import batches, first_of_every_step
from dq_deploy.methods.run import Run
from dq_deploy.methods.scaling.equivalent_scaling import (
    SAMPLES,
    LayerRows,
    LearnedScales,
    ScaledLayer,
    checked_scale,
    collect_rows,
    within_memory,
)
from dq_deploy.numerics.arrays import F64

SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Of alpha; factors of one come before them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaled:
    """The float model with factors in its layers, and a history entry of JSON values."""

    prepared: Prepared
    history: dict[str, Any]


def with_channel_scales(run: Run, prepared: Prepared, calibration: CalibrationInputs, options: SharedOptions) -> Scaled:
    """The float model with the factors of `scales_from_ranges`."""
    found = scales_from_ranges(run, prepared, calibration, options)
    return Scaled(prepared=with_equivalent_scales(prepared, found.factors, kind="channel"), history=found.history)


def scales_from_ranges(
    run: Run, prepared: Prepared, calibration: CalibrationInputs, options: SharedOptions
) -> LearnedScales:
    """Factors of every integer layer that gains by them; its relative output error before and after is the history.

    Args:
        run: told after each layer.
        prepared: the float model, `pre` one everywhere.
        calibration: inputs and timesteps.
        options: bits, groups of steps, symmetric activations, zero points of weights, memory.

    Raises:
        NonFiniteError: a factor is not finite; names the layer.
    """
    steps = len(calibration.timesteps)
    chosen = first_of_every_step(calibration.inputs["step"], steps, SAMPLES)
    batch = batch_of(run.denoiser, FLOAT_BATCH)
    names = [name for name, layer in prepared.layers.items() if layer.site.in_channels > 1]
    factors: dict[str, F64] = {}
    errors: dict[str, dict[str, float]] = {}
    for some in within_memory(prepared, names, len(chosen), options):
        seeds = {name: options.seed + names.index(name) for name in some}
        collected = collect_rows(prepared, seeds, calibration.inputs, chosen, options, steps=steps, batch=batch)
        for name in some:
            share, factor, before, after = _best(prepared.layers[name], collected.pop(name), options)
            errors[name] = {"before": before, "after": after, "share": share}
            if share:
                factors[name] = checked_scale(name, factor)
            run.progress(Progress(stage="scales", done=len(errors), total=len(names), block=name, loss=after))
    return LearnedScales(factors=factors, history={"stage": "channel-scales", "relative_error": errors})


def _best(layer: PreparedLayer, rows: LayerRows, options: SharedOptions) -> tuple[float, F64, float, float]:
    """The share with the least error, 0 for factors of one; its factors; and the errors with ones and with them."""
    scaled = ScaledLayer(layer, rows, options)
    ones = np.ones(layer.site.in_channels)
    tried = {0.0: ones, **{share: factors_of_share(layer, rows, share) for share in SHARES}}
    errors = {share: _error(scaled, factor) for share, factor in tried.items()}
    share = min(errors, key=errors.__getitem__)
    return share, tried[share], errors[0.0], errors[share]


def factors_of_share(layer: PreparedLayer, rows: LayerRows, share: float) -> F64:
    """[C_in] float64 factors, the greatest one 1 in each part.

    A channel that is never or hardly used counts as 2^-20 of the widest, and one without weights likewise.

    Args:
        layer: its weight, and the widths of its parts.
        rows: lowest and highest value of each channel.
        share: alpha.
    """
    site = layer.site
    x = torch.maximum(rows.high.amax(0), -rows.low.amin(0)).double().numpy()
    w = np.abs(layer.weight.astype(np.float64)).reshape(site.groups, site.out_channels // site.groups, -1, _taps(layer))
    w = w.max(axis=(1, 3)).reshape(-1)
    pieces, start = [], 0
    for width in layer.widths:
        part = slice(start, start + width)
        start += width
        g = _at_least(x[part]) ** share / _at_least(w[part]) ** (1 - share)
        pieces.append(g / g.max())
    return np.concatenate(pieces)


def _taps(layer: PreparedLayer) -> int:
    """Weights of one input and one output channel."""
    return int(np.prod(layer.site.kernel)) if layer.site.kernel else 1


def _at_least(values: F64) -> F64:
    floor = values.max() / LARGEST
    result: F64 = np.maximum(values, floor if floor > 0 else 1.0)
    return result


@torch.no_grad()
def _error(scaled: ScaledLayer, factor: F64) -> float:
    """Mean squared output error over all rows, relative to the mean square output."""
    g = torch.from_numpy(factor.astype(np.float32)).to(scaled.weight.device)
    every = torch.arange(len(scaled.data.step))
    return float(torch.cat([scaled.losses(g, every[piece]) for piece in batches(len(every), 64)]).mean())
