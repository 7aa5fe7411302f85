"""The call of a denoiser as a record keeps it."""

from __future__ import annotations

from collections.abc import Sequence

from dq_deploy.models.call import ADDED_CONDITIONS
from dq_deploy.models.layers import TensorSpec
from dq_deploy.record import Call, CallInput


def call_of_specs(specs: Sequence[TensorSpec]) -> Call:
    """The call of a denoiser with these inputs, by the names its forward has for them."""
    prefix = dict.fromkeys(ADDED_CONDITIONS, "added_cond_kwargs.")
    inputs = (
        CallInput(name=prefix.get(spec.name, "") + spec.name, dtype=spec.dtype, shape=tuple(spec.shape))
        for spec in specs
    )
    return Call(inputs=tuple(inputs))
