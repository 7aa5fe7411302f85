"""From the cases of an op to calls of the Triton kernels, and the comparison with the reference, bit for bit.

The interpreter must be asked for before the kernels are decorated: tests/kernels/gpu/test_interpreter.py runs the
files that import this in a process of their own.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from dq_kernels.gpu.launch.weights import make_quantizer, make_weights
from dq_kernels.quantize.reference import signed_codes

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by tests/kernels/gpu/test_interpreter.py, interpreted", allow_module_level=True)

FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CANARY = 77
"""What outputs hold before a kernel writes them."""


def tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array).copy())


def padded(array, more, fill=CANARY):
    """The array with `more` columns behind its last, a pitch."""
    width = [(0, 0)] * (array.ndim - 1) + [(0, more)]
    return tensor(np.pad(array, width, constant_values=fill))


def rounded(array, dtype):
    """float32 values that a narrower type holds, so that reference and kernel read the same."""
    return tensor(array).to(FLOATS[dtype])


def gpu_quantizer(reference):
    """A GPU quantizer of a reference.Quantizer."""
    from dq_kernels.gpu.launch.launching import to_device

    made = make_quantizer(
        pre=reference.pre,
        inverse_scale=reference.inverse_scale,
        zero_point=reference.zero_point,
        q_min=reference.q_min,
        q_max=reference.q_max,
        first=reference.first,
    )
    return to_device(made, "cpu")


def product_quantizer(inputs, pads_pitch=0):
    from dq_kernels.gpu.launch.launching import to_device

    names = ("scale", "zero_point", "q_min", "q_max")
    return to_device(make_quantizer(**{name: inputs[name] for name in names}, pads_pitch=pads_pitch), "cpu")


def gpu_weights(inputs, bits):
    from dq_kernels.gpu.launch.launching import to_device

    return to_device(make_weights(inputs["weights"], inputs["weight_scale"], bits=bits), "cpu")


def code_buffer(batch, rows, channels, more=0):
    return torch.full((batch, rows, channels + more), CANARY, dtype=torch.int8)


def flag():
    return torch.zeros(1, dtype=torch.int32)


def assert_codes(found, expected):
    """int8 codes with zeros in the pitch against uint8 ones of the reference."""
    channels = expected.shape[2]
    assert_same(found[:, :, :channels].numpy(), signed_codes(expected))
    assert not found[:, :, channels:].any(), "bytes behind the channels are not 0"


def assert_same(found, expected):
    """Equal bit for bit (NaN too); names the first element that is not."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    kind = {1: np.uint8, 2: np.uint16, 4: np.uint32}[found.itemsize]
    different = np.argwhere(found.view(kind) != np.ascontiguousarray(expected).view(kind))
    assert not len(different), (
        f"{len(different)} of {found.size} differ, first at {different[0].tolist()}: "
        f"{found[tuple(different[0])]!r}, expected {expected[tuple(different[0])]!r}"
    )


def assert_floats(found, expected):
    """A result of any float type against float32 of the reference, rounded once.

    The interpreter cuts float32 off to get bfloat16, a GPU rounds it:
    tests/kernels/gpu/ahead_of_time/test_compile.py looks for the rounding conversion in the compiled code.
    """
    if found.dtype == torch.bfloat16:
        expected = (np.ascontiguousarray(expected).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    assert_same(found.contiguous().view(-1).float().numpy(), tensor(expected).to(found.dtype).view(-1).float().numpy())
