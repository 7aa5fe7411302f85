"""Names of the array types that the project's signatures use."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""An array whose element type is known only when the program runs."""

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

Integers = NDArray[np.integer]
"""Whole numbers of any width, signed or unsigned."""
