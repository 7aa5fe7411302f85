"""The float linear layer in float64 numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def float_linear(x: NDArray[Any], weights: NDArray[Any], bias: NDArray[Any] | None = None) -> NDArray[np.float64]:
    """Float64 x w^T + bias, [rows, out_channels]; x is [rows, channels], weights are [out_channels, channels]."""
    y = x.astype(np.float64) @ weights.astype(np.float64).T
    return y if bias is None else y + bias
