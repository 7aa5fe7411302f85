"""Names of the array types that the kernels' signatures use."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""An array whose element type is known only when the program runs."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
