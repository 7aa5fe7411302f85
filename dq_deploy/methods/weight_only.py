"""Weight-only layers: 4-bit codes with a scale for each block of input channels, by the same search as elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dq_deploy.calibration import CalibrationInputs, CalibrationSource
from dq_deploy.calibration.sharding import Workers
from dq_deploy.methods.layer_bits import KEPT_FLOAT
from dq_deploy.methods.options import MinmaxOptions
from dq_deploy.methods.prepare.calibration_inputs import visited_timesteps
from dq_deploy.methods.prepare.preparation import Prepared
from dq_deploy.methods.progress import Progress, ProgressCallback
from dq_deploy.methods.ranges.scales import search_weight_scale, weight_codes
from dq_deploy.models import Denoiser
from dq_deploy.numerics.arrays import F32
from dq_deploy.record import WeightOnlyLayer


def search_block_scales(weight: F32, bits: int, block_size: int) -> tuple[NDArray[np.int8], F32]:
    """Codes and scales with the least L2.4 error in each block.

    Args:
        weight: [C_out, C_in] float32, C_in a multiple of `block_size`.
        bits: of the codes.
        block_size: input channels that share a scale.

    Returns:
        w_code int8 [C_out, C_in] and scale float32 [C_out, C_in / block_size].
    """
    blocks = np.ascontiguousarray(weight, np.float32).reshape(-1, block_size)
    scales = search_weight_scale(blocks, bits)
    codes = weight_codes(blocks, scales, bits)
    return codes.reshape(weight.shape), scales.reshape(len(weight), -1)


def weight_only_layers(
    prepared: Prepared, options: MinmaxOptions, progress: ProgressCallback, workers: Workers | None = None
) -> dict[str, WeightOnlyLayer]:
    """The layers that were asked to be weight-only, in execution order.

    Args:
        prepared: the float model and the bits of its layers.
        options: the block size.
        progress: called with the weights done.
        workers: that do a share each.
    """
    workers = workers or Workers()
    chosen = {name: bits for name, bits in prepared.bits.items() if bits.is_weight_only}
    weights = {name: prepared.module.get_submodule(name).weight.detach().cpu().numpy() for name in chosen}
    total = sum(weight.size for weight in weights.values())
    done = workers.tally()

    def quantized(name: str) -> WeightOnlyLayer:
        bits = chosen[name].weight_bits
        assert bits is not None
        codes, scale = search_block_scales(weights[name], bits, options.block_size)
        bias = prepared.module.get_submodule(name).bias
        layer = WeightOnlyLayer(
            name=name,
            weight_bits=bits,
            block_size=options.block_size,
            w_code=codes,
            scale=scale,
            bias=None if bias is None else np.array(bias.detach().cpu().numpy(), np.float32),
        )
        progress(Progress(stage="weights", done=done.add(weights[name].size), total=total))
        return layer

    return workers.split({name: weight.size for name, weight in weights.items()}, quantized)


def timesteps_alone(denoiser: Denoiser, options: MinmaxOptions, source: CalibrationSource) -> CalibrationInputs:
    """No calibration inputs, but the timesteps of the sampler: what a record of weight-only layers alone needs."""
    return CalibrationInputs(
        inputs={},
        timesteps=visited_timesteps(denoiser, options, source),
        provenance={"inputs": 0, "sampler": "none, no layer has activation ranges"},
    )


def weight_only_history(prepared: Prepared, options: MinmaxOptions) -> list[dict[str, Any]]:
    """What a record's history says of weight-only layers: how many there are, and which could not be, by reason.

    Returns:
        One entry, or none where no layer was asked to be weight-only.
    """
    if not options.has_weight_only:
        return []
    every = prepared.bits.values()
    kept: dict[str, list[str]] = {}
    for bits in every:
        if bits.reason.startswith(KEPT_FLOAT):
            kept.setdefault(bits.reason.removeprefix(KEPT_FLOAT), []).append(bits.name)
    return [
        {
            "stage": "weight-only",
            "layers": sum(bits.is_weight_only for bits in every),
            "block_size": options.block_size,
            "kept_float": kept,
        }
    ]
