"""The float operations between the layers: the float module fed with the engine's own layer outputs.

A comparison of layers begins at each layer's input, so a wrong operation between two layers would pass it; comparing
only the final output would show it, but quantizers amplify the last bit of a float, and the fault has no name. Here
the torch module runs with every quantized layer replaced by what the engine's layer gave. No quantizer is left, so each
layer's input must agree to float accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dq_deploy.engines.base import Array
from dq_deploy.models import denoiser_from_record
from dq_deploy.record import Record
from dq_deploy.verify.inputs import Batch
from dq_deploy.verify.output import run_module

FLOAT_PATH_TOLERANCE = 1e-4
"""Largest accepted difference of a layer's input, as a share of its largest magnitude.

Float32 operations of two libraries differ by about 1e-6 of it; a wrong operation by far more.
"""


@dataclass(frozen=True, kw_only=True)
class FloatPath:
    """What was found.

    Attributes:
        layers: number of layers whose inputs were compared.
        max_difference: largest difference of an input, as a share of its largest magnitude.
        problem: the first layer in execution order whose input differs, in words, or an empty string.
    """

    layers: int
    max_difference: float
    problem: str


def relative_gap(got: Array, want: Array) -> float:
    """Largest difference as a share of the largest magnitude; infinity where shapes differ or values are NaN."""
    if got.size != want.size:
        return float("inf")
    gap = np.abs(got.reshape(want.shape).astype(np.float64) - want)
    largest = float(np.abs(want).max(initial=0)) or 1.0
    return float(np.nan_to_num(gap, nan=np.inf).max(initial=0)) / largest


def compare_float_path(
    record: Record,
    batch: Batch,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    final: Array,
    *,
    tolerance: float = FLOAT_PATH_TOLERANCE,
) -> FloatPath:
    """Run the float module around the engine's layers and compare what each layer receives.

    Args:
        record: gives the float module.
        batch: what both were fed.
        inputs: input of each layer in the engine, by module path.
        outputs: output of each layer in the engine; every layer of the record.
        final: the engine's output.
        tolerance: largest accepted difference, as a share of the largest magnitude.
    """
    import torch

    module = denoiser_from_record(record)
    gaps: dict[str, float] = {}

    class Replay(torch.nn.Module):
        """Stands for one layer: checks its input and gives the engine's output."""

        def __init__(self, name: str, original: torch.nn.Module) -> None:
            super().__init__()
            self.name = name
            self.weight = original.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gaps[self.name] = relative_gap(inputs[self.name], x.numpy())
            value = torch.from_numpy(np.array(outputs[self.name]))
            return value if value.ndim == x.ndim else value.reshape(*x.shape[:-1], -1)

    for name in record.layers:
        parent, _, leaf = name.rpartition(".")
        owner: Any = module.get_submodule(parent)
        setattr(owner, leaf, Replay(name, module.get_submodule(name)))
    result = run_module(module, [batch])[0]
    gaps["the output"] = relative_gap(final, result)
    bad = next((name for name, gap in gaps.items() if gap > tolerance), None)
    problem = ""
    if bad is not None:
        first, last = int(batch.buckets[0]), int(batch.buckets[-1])
        steps = f"step {first}" if first == last else f"steps {first} to {last}"
        what = bad if bad == "the output" else f"the input of layer {bad}"
        problem = (
            f"{steps}: {what} differs from the float module's by {gaps[bad]:.2g} of its range although every layer in "
            "front gave the same; a float operation between them is wrong"
        )
    return FloatPath(layers=len(gaps) - 1, max_difference=max(gaps.values()), problem=problem)
