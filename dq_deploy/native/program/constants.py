"""Arrays that a program holds itself, as JSON values."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from dq_deploy.numerics.arrays import Array


def constant_of(values: Array) -> dict[str, Any]:
    """An array as JSON values: its dtype, its shape, its bytes."""
    flat = np.ascontiguousarray(values)
    return {"dtype": flat.dtype.name, "shape": list(values.shape), "bytes": base64.b64encode(flat.tobytes()).decode()}


def array_of(constant: Mapping[str, Any]) -> Array:
    """The inverse of `constant_of`."""
    flat = np.frombuffer(base64.b64decode(constant["bytes"]), constant["dtype"])
    return flat.reshape(constant["shape"])
