"""Records and shapes without training: random weights at a model's size, and sizes that the interpreter takes."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dq_deploy.record import Record


def small_record(model: str, bits: int) -> Record:
    """A record of a model's shape; `tiny` is what a rehearsal runs."""
    from tests.tiny import random_record, tiny_denoiser

    if model == "tiny":
        shape = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
        return random_record(
            tiny_denoiser(sample_size=4, block_out_channels=[8], norm_num_groups=2, **shape), weight_bits=bits
        )
    from benchmarks.unets.denoisers import denoiser_of

    return random_record(denoiser_of(model), weight_bits=bits)


SMALL: dict[str, dict[str, Any]] = {
    "quantize": {"batch": 2, "rows": 16, "channels": 32},
    "group_norm_silu_quantize": {"batch": 2, "rows": 16, "channels": 32, "groups": 4, "parts": (32,)},
    "layer_norm_quantize": {"batch": 2, "rows": 16, "channels": 32, "outputs": ((0, 32),)},
    "geglu_quantize": {"batch": 2, "rows": 16, "channels": 32},
    "int_linear": {"batch": 2, "rows": 16, "channels": 32, "out_channels": 32},
    "int_conv2d": {"batch": 2, "height": 4, "width": 4, "channels": 32, "out_channels": 32},
}
"""Sizes of each op that the interpreter takes."""


def small_shapes() -> list[Any]:
    """One small shape of each op."""
    from benchmarks.kernels.shapes import Shape

    found = []
    for op, sizes in SMALL.items():
        first = importlib.import_module(f"dq_kernels.{op}.cases").SHAPE_CASES[0]
        found.append(Shape(op=op, model="small", case=replace(first, name="small", **sizes)))
    return found
