"""One operation of a program in numpy: what no kernel does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dq_deploy.errors import ModelError
from dq_deploy.native.cpu.numpy_ops.made import Made
from dq_deploy.native.cpu.numpy_ops.table import numpy_op
from dq_deploy.numerics.arrays import Array


def call(attributes: Mapping[str, Any], reads: Mapping[str, Array], writes: Mapping[str, Array]) -> None:
    """Run one operation.

    Args:
        attributes: of the op: `function`, torch's name with the overload; `args` and `kwargs` as JSON, where
            `{"read": role}` stands for an array; `compute`, the dtype torch computes in; `rounded`, `bfloat16` where
            float32 holds values of that type.
        reads: arrays by role.
        writes: `y`, or `y0`, `y1` ... for the results of an operation with several.

    Raises:
        ModelError: there is no such operation.
    """
    name = str(attributes["function"])
    function = numpy_op(name)
    if function is None:
        raise ModelError(f"operation {name} is none that this version runs in numpy; open the record again")

    def filled(value: Any) -> Any:
        if isinstance(value, dict) and value.keys() == {"read"}:
            return reads[value["read"]]
        return [filled(entry) for entry in value] if isinstance(value, list) else value

    first = next(iter(writes.values()))
    made = Made(shape=first.shape, dtype=first.dtype, compute=np.dtype(attributes["compute"]))
    named = {key: filled(value) for key, value in attributes["kwargs"].items()}
    with np.errstate(all="ignore"):  # torch says nothing of an overflow either
        result = function(made, *filled(attributes["args"]), **named)
        for role, target in writes.items():
            value = result[int(role[1:])] if isinstance(result, tuple) else result
            target[...] = _as_bfloat16(np.asarray(value)) if attributes.get("rounded") else value


def _as_bfloat16(x: Array) -> Array:
    """Rounded to the 8 significant bits of bfloat16, half to even; still float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, rounded.view(np.float32))
