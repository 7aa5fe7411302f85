"""What the values of a record are checked with."""

from __future__ import annotations

import numpy as np

from dq_deploy.errors import RecordError
from dq_deploy.numerics.arrays import F32

SCALE_MIN = 2.0**-60
SCALE_MAX = 2.0**60


def require(ok: bool, message: str) -> None:
    """Raise `RecordError` with the message unless `ok`."""
    if not ok:
        raise RecordError(message)


def check_scales(name: str, scale: F32) -> None:
    """Scales are float32 in [2^-60, 2^60].

    Raises:
        RecordError: names the array and the first bad number.
    """
    require(scale.dtype == np.float32, f"{name} is {scale.dtype}, expected float32")
    finite = np.isfinite(scale) & (scale >= SCALE_MIN) & (scale <= SCALE_MAX)
    if not finite.all():
        bad = scale[~finite].reshape(-1)[0]
        raise RecordError(f"{name} holds {bad}, expected positive numbers in [2^-60, 2^60]; quantize the model again")


def check_module_path(name: str) -> None:
    """A module path is not empty and holds no '/' and nothing unprintable."""
    require(
        bool(name) and "/" not in name and name.isprintable(),
        "name is empty or holds '/' or unprintable characters, expected a module path",
    )


def check_bias(bias: F32 | None, n_out: int) -> None:
    """A bias is finite float32 [C_out], or [T, C_out] by step, or not there."""
    if bias is not None:
        require(
            bias.ndim in (1, 2)
            and bias.shape[-1] == n_out
            and bias.dtype == np.float32
            and bool(np.isfinite(bias).all()),
            f"bias is {bias.dtype}{bias.shape}, expected finite float32({n_out},), or a row a step",
        )
