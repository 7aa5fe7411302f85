"""QuEST's files: tables of scales a calibration timestep, finetuned weights, first and last layer apart.

The tables are stored along the channel or token axis. Where they vary along it, a scale stands inside the sum of an
integer product, and no integer layer computes the same.
"""

from __future__ import annotations

import numpy as np

from dq_deploy.errors import FileProblemError
from dq_deploy.numerics.arrays import Array
from dq_deploy.readers.foreign import ForeignModel
from dq_deploy.readers.formats.quantizer_tensors import Source
from dq_deploy.readers.formats.wrapped_layers import Layout, read_wrapped, wrapped_tensors
from dq_deploy.readers.tensors import few

FIRST_LAST_BITS = 8


def read(source: Source) -> ForeignModel:
    """The network in a file of QuEST.

    Raises:
        FileProblemError: the file is not of this layout, or its scales vary along the summed axis.
        OptionError: settings that it contradicts.
    """
    _check_one_scale_a_step(source)
    ends = (source.architecture.first, source.architecture.last)
    reasons = {}
    if source.settings.symmetric_activations:
        reasons = dict.fromkeys(
            ends, f"its {FIRST_LAST_BITS}-bit symmetric codes reach from -257 to 256, which int8 does not hold"
        )
    layout = Layout(
        table_names=("delta_list", "zero_point_list"),
        one_table=_along_steps,
        float_weights=False,
        ignored=("current_delta",),
    )
    return read_wrapped(
        source, layout, float_reasons=reasons, other_activation_bits=dict.fromkeys(ends, FIRST_LAST_BITS)
    )


def _along_steps(value: Array, what: str) -> Array:
    if value.ndim == 0:
        raise FileProblemError(f"{what} is a single number, expected a table with the steps first; check `reader`")
    rows = value.reshape(len(value), -1)
    if rows.shape[1] < 1:
        raise FileProblemError(f"{what} has shape {value.shape}, expected numbers for each step")
    return np.ascontiguousarray(rows[:, 0])


def _check_one_scale_a_step(source: Source) -> None:
    """Refuse scales that vary along channels or tokens, naming the layers."""
    tensors = wrapped_tensors(source)
    varying = []
    for path in source.layers:
        for name in (
            f"{path}.act_quantizer{half}.{kind}_list" for half in ("", "_0") for kind in ("delta", "zero_point")
        ):
            if name in tensors:
                value = tensors.take(name)
                rows = value.reshape(len(value) if value.ndim else 1, -1)
                if (rows != rows[:, :1]).any():
                    varying.append(path)
    if varying:
        names = sorted(set(varying))
        raise FileProblemError(
            f"{source.name}: activation scales of {len(names)} layers ({few(names)}) vary along the channels that a "
            "product sums over, so no integer product is the same; quantize with one scale a tensor and step"
        )
