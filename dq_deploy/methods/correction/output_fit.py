"""Factor and offset of the denoiser's output: what is wrong in the same sense at every step adds up in the picture.

Most of a step's error is another one at the next step; a factor or an offset of the output that is off is the same at
all steps, so it moves the picture by far more than its share of the output's error. For output channel n of the layer
that gives the output, over all values of a trajectory i with y the record's and f the float model's,

    a[i], b[i]  that make  sum over steps t of  w[t] * sum of (f - a y - b)^2  least

with w[t] how far an error at step t moves the sample, the layer's weight scales and biases take the means over
trajectories, shrunk as rows are (see `shrinking`). Codes stay as they are, and no engine has more to compute.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dq_deploy.calibration import CalibrationInputs
from dq_deploy.methods.correction.shrinking import shrunk_mean
from dq_deploy.methods.prepare.calibration_inputs import batch_of
from dq_deploy.methods.ranges.step_ranges import batches, model_inputs
from dq_deploy.methods.run import Run
from dq_deploy.models import call_denoiser
from dq_deploy.numerics import channel_axis_of
from dq_deploy.numerics.arrays import F64, I64
from dq_deploy.record import Layer, Record
from dq_deploy.simulation.fake_quant import simulate

LARGEST_CHANGE = 0.5
"""A factor that takes more off is no correction: the output is another one."""


def with_fitted_output(run: Run, record: Record, held: CalibrationInputs, chosen: I64, weights: F64) -> Record | None:
    """The record with factor and offset in the layer that gives the output; None where no integer layer does.

    Args:
        run: the float model.
        record: of this model.
        held: inputs that nothing was trained on.
        chosen: [M] which of them.
        weights: [T] how far an error at each step moves the sample.
    """
    name = list(record.layers)[-1]
    layer = record.layers[name]
    if layer.bias is None:
        return None
    sums = _Sums(layer, held.inputs["trajectory"][chosen])
    simulation = simulate(record)
    step = held.inputs["step"]
    with torch.no_grad():
        for part in batches(len(chosen), batch_of(run.denoiser, len(chosen))):
            index: Any = chosen[part]
            given = model_inputs(held.inputs, index, run.denoiser.call)
            wanted, output = _heard(run.denoiser.module, name, given)
            if part.start == 0 and not _same_values(wanted, output):
                return None
            simulation.context.step = torch.from_numpy(step[index])
            got, _ = _heard(simulation.denoiser, name, given)
            sums.add(got, wanted, held.inputs["trajectory"][index], weights[step[index]])
    more, offset = sums.line()
    return _with_line(record, layer, more, offset) if bool((more > -LARGEST_CHANGE).all()) else None


def _heard(module: torch.nn.Module, name: str, given: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's output and the denoiser's."""
    heard: list[torch.Tensor] = []
    handle = module.get_submodule(name).register_forward_hook(lambda _module, _args, output: heard.append(output))
    try:
        output = call_denoiser(module, given)
    finally:
        handle.remove()
    return heard[-1], output


def _same_values(layer: torch.Tensor, output: torch.Tensor) -> bool:
    """Whether the denoiser's output is the layer's, in whatever order its values are laid out."""
    if layer.numel() != output.numel():
        return False
    return bool(torch.equal(layer.flatten().sort().values, output.flatten().sort().values))


class _Sums:
    """Weighted sums by trajectory and channel: of one, y, f, y y and y f."""

    def __init__(self, layer: Layer, trajectory: I64) -> None:
        self.kind = layer.kind
        self.names = np.unique(trajectory)
        self.values = torch.zeros(5, len(self.names), layer.out_channels, dtype=torch.float64)

    def add(self, got: torch.Tensor, wanted: torch.Tensor, trajectory: I64, weights: F64) -> None:
        """Take in outputs [B, ...] of the record and of the float model.

        Args:
            got: of the record.
            wanted: of the float model.
            trajectory: [B] of each sample.
            weights: [B].
        """
        axis = channel_axis_of(self.kind, got.ndim)
        y, f = (v.double().movedim(axis, -1).reshape(len(weights), -1, v.shape[axis]) for v in (got, wanted))
        found = torch.stack([torch.ones_like(y), y, f, y * y, y * f]).sum(2) * torch.from_numpy(weights)[:, None]
        place = torch.from_numpy(np.searchsorted(self.names, trajectory))
        self.values.index_add_(1, place, found)

    def line(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Factor less one and offset of each channel, [C_out] float32."""
        one, y, f, yy, yf = self.values
        one = one.clamp_min(torch.finfo(torch.float64).tiny)
        spread = yy - y * y / one
        factor = torch.where(spread > 0, (yf - y * f / one) / spread.clamp_min(torch.finfo(torch.float64).tiny), 1.0)
        more, _ = shrunk_mean(factor - 1)
        # what the shrunk factor leaves, and not what each trajectory's own would
        offset, _ = shrunk_mean((f - (1 + more.double()) * y) / one)
        return more, offset


def _with_line(record: Record, layer: Layer, more: torch.Tensor, offset: torch.Tensor) -> Record:
    assert layer.bias is not None
    factor = (1 + more.double()).numpy()
    parts = tuple(replace(part, weight_scale=(part.weight_scale * factor).astype(np.float32)) for part in layer.parts)
    bias = (layer.bias * factor + offset.double().numpy()).astype(np.float32)
    return replace(record, layers={**record.layers, layer.name: replace(layer, parts=parts, bias=bias)})
