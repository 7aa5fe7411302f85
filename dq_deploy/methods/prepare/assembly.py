"""A record from quantized layers and the folded float model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dq_deploy.calibration import CalibrationInputs
from dq_deploy.methods.options import SharedOptions, json_of_options
from dq_deploy.methods.prepare.preparation import Prepared, PreparedLayer
from dq_deploy.methods.ranges.scales import code_range
from dq_deploy.models import Denoiser
from dq_deploy.models.buffers import computed_buffers
from dq_deploy.numerics.arrays import F32, I32
from dq_deploy.record import Layer, Part, Record, WeightOnlyLayer, edges_from_timesteps
from dq_deploy.record.files.arrays import FLOAT_PARAMETER_DTYPES

WeightSet = tuple[NDArray[np.int8], F32, I32 | None]
"""Weight codes [C_out, C_in, ...], scale [C_out] and zero point [C_out], where None is zeros."""


def build_layer(
    prepared: PreparedLayer,
    *,
    tables: Sequence[tuple[F32, I32]],
    weights: Sequence[WeightSet],
    bias: F32 | None,
    output: tuple[F32, I32] | None,
    symmetric: bool,
) -> Layer:
    """An integer layer from its parts.

    Args:
        prepared: geometry, bits, `pre` and fold decision.
        tables: per part, activation (scale, zero point).
        weights: per part, codes, scale and zero point.
        bias: [C_out] or None.
        output: (out_scale, out_zero_point) or None.
        symmetric: whether activation codes are signed.
    """
    parts = []
    for pre, (scale, zero), (code, weight_scale, weight_zero) in zip(
        prepared.pre_parts(), tables, weights, strict=True
    ):
        w_zero_point = np.zeros(len(code), np.int32) if weight_zero is None else weight_zero
        parts.append(
            Part(
                pre=np.ascontiguousarray(pre),
                scale=scale,
                zero_point=zero,
                w_code=np.ascontiguousarray(code[None]),
                w_zero_point=np.ascontiguousarray(w_zero_point[None]),
                weight_scale=np.ascontiguousarray(weight_scale[None]),
            )
        )
    return layer_of_parts(prepared, parts, bias=bias, output=output, symmetric=symmetric)


def layer_of_parts(
    prepared: PreparedLayer,
    parts: Sequence[Part],
    *,
    bias: F32 | None,
    output: tuple[F32, I32] | None,
    symmetric: bool,
) -> Layer:
    """An integer layer of finished parts, with the geometry, bits and fold decision of `prepared`."""
    site = prepared.site
    q_min, q_max = code_range(prepared.activation_bits, symmetric=symmetric)
    return Layer(
        name=site.name,
        kind=site.kind,
        stride=site.stride,
        padding=site.padding,
        dilation=site.dilation,
        groups=site.groups,
        weight_bits=prepared.weight_bits,
        activation_bits=prepared.activation_bits,
        q_min=q_min,
        q_max=q_max,
        parts=tuple(parts),
        bias=bias,
        out_scale=None if output is None else output[0],
        out_zero_point=None if output is None else output[1],
        fold=prepared.fold,
        folded=prepared.folded,
    )


def versions() -> dict[str, str]:
    """Versions of what decided the numbers in a record."""
    import diffusers

    from dq_deploy import __version__

    return {
        "dq_deploy": __version__,
        "torch": str(torch.__version__),
        "diffusers": diffusers.__version__,
        "numpy": np.__version__,
    }


def build_record(
    denoiser: Denoiser,
    prepared: Prepared,
    layers: Mapping[str, Layer],
    calibration: CalibrationInputs,
    options: SharedOptions,
    history: list[dict[str, Any]],
    *,
    float_ranges: Mapping[str, float],
    weight_only: Mapping[str, WeightOnlyLayer] = MappingProxyType({}),
) -> Record:
    """The record of a quantized denoiser.

    Args:
        denoiser: the float model.
        prepared: its folded copy, whose other parameters stay float.
        layers: integer layers by name.
        calibration: where the timesteps come from.
        options: as asked for.
        history: what the method did, JSON values.
        float_ranges: largest |output| of each module.
        weight_only: weight-only layers by name.
    """
    order = [name for name, _ in prepared.module.named_modules()]
    quantized = {f"{name}.{suffix}" for name in (*layers, *weight_only) for suffix in ("weight", "bias")}
    computed = {
        key: value
        for key, value in computed_buffers(prepared.module).items()
        if str(value.dtype).removeprefix("torch.") in FLOAT_PARAMETER_DTYPES  # else the class computes it again
    }
    state = {**prepared.module.state_dict(), **computed}
    rest = {key: np.array(value.detach().cpu().numpy()) for key, value in state.items() if key not in quantized}
    return Record(
        family=denoiser.family,
        layers={name: layers[name] for name in order if name in layers},
        timesteps=calibration.timesteps,
        step_edges=edges_from_timesteps(calibration.timesteps),
        float_parameters=rest,
        model_config=denoiser.config,
        scheduler_config=denoiser.scheduler_config,
        weight_only={name: weight_only[name] for name in order if name in weight_only},
        float_ranges=float_ranges,
        call=denoiser.call,
        provenance=provenance_of(denoiser, calibration, options, history),
    )


def provenance_of(
    denoiser: Denoiser, calibration: CalibrationInputs, options: SharedOptions, history: list[dict[str, Any]]
) -> dict[str, Any]:
    """What a record says of how it was made, as JSON values."""
    place = {"variant": denoiser.variant, "component": denoiser.component, "config": denoiser.config_source}
    return {
        "source": denoiser.source,
        **{name: value for name, value in place.items() if value is not None},
        "source_sha256": denoiser.source_sha256,
        "method": options.method,
        "options": json_of_options(options),
        "calibration": dict(calibration.provenance),
        "versions": versions(),
        "history": history,
    }
