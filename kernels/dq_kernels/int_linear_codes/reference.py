"""The linear layer, the activation and the codes one after the other, as the separate kernels do it."""

from __future__ import annotations

from typing import Any

import numpy as np

from dq_kernels.arrays import Array
from dq_kernels.elementwise.reference import elementwise
from dq_kernels.geglu_quantize.reference import geglu_quantize
from dq_kernels.int_linear.reference import int_linear
from dq_kernels.quantize.reference import Quantizer, quantize


def int_linear_codes(
    *, output: Quantizer, activation: str = "copy", gated: bool = False, **layer: Any
) -> tuple[Array, bool]:
    """Codes uint8 [batch, rows, channels of `output`], and whether a value on the way is NaN.

    Args:
        output: quantizer of channels of the activation's result.
        activation: kind of elementwise operation that reads one value.
        gated: the first half of the result times the gelu of the second.
        **layer: arguments of `int_linear`.
    """
    y, _ = int_linear(**layer)
    if gated:
        _, codes, seen = geglu_quantize(y, layer["step"], output)
        assert codes is not None
        return codes, seen
    with np.errstate(all="ignore"):
        y = elementwise(activation, y)
    return quantize(y, layer["step"], output)
