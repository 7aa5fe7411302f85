"""Arrays and streams of other libraries are read as they describe themselves; what an engine cannot take is refused."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import torch

from dq_deploy.engines.cuda.arrays import (
    DeviceArray,
    array_of_capsule,
    device_array_of,
    dtype_of,
    nbytes_of,
    stream_handle,
)
from dq_deploy.errors import DqError, InputError


def holder(**changes):
    """An object with the interface of a [2, 3] float32 array at address 4096."""
    interface = {"shape": (2, 3), "typestr": "<f4", "data": (4096, False), "strides": None, "version": 3, **changes}
    return SimpleNamespace(__cuda_array_interface__={k: v for k, v in interface.items() if v is not ...})


def test_an_interface_is_read():
    found = device_array_of(holder(stream=7), name="sample")
    assert (found.pointer, found.shape, found.dtype, found.read_only) == (4096, (2, 3), np.float32, False)
    assert (found.producer_stream, found.producer_unknown) == (7, False)
    assert found.nbytes == 24


@pytest.mark.parametrize("changes", [{}, {"stream": None}, {"version": 2}, {"version": 2, "stream": 7}])
def test_an_array_that_names_no_stream_may_still_be_written(changes):
    found = device_array_of(holder(**changes), name="sample")
    assert (found.producer_stream, found.producer_unknown) == (None, True)


def test_dlpack_goes_first_and_is_told_who_reads():
    """Torch's other interface is of version 2: it cannot say which stream writes."""
    asked = []

    def capsule(**said):
        asked.append(said)
        return torch.arange(6.0).reshape(2, 3).__dlpack__()

    both = holder(version=2)
    both.__dlpack__, both.__dlpack_device__ = capsule, lambda: (2, 0)
    found = device_array_of(both, name="sample", stream=7)
    assert asked == [{"stream": 7}]
    assert (found.pointer != 4096, found.producer_unknown) == (True, False)


def test_a_read_only_array_says_so():
    assert device_array_of(holder(data=(4096, True)), name="sample").read_only


def test_contiguous_strides_are_dense_and_a_size_of_one_may_have_any():
    assert device_array_of(holder(strides=(12, 4)), name="sample").shape == (2, 3)
    assert device_array_of(holder(shape=(2, 1, 3), strides=(12, 999, 4)), name="sample").shape == (2, 1, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": (4, 8)}, r"strides of \(4, 8\) bytes, expected \(12, 4\): make it contiguous"),
        ({"strides": (24, 4)}, "make it contiguous"),
        ({"strides": (4,)}, "make it contiguous"),
        ({"typestr": "not a type"}, "cannot be read"),
        ({"data": ...}, "cannot be read"),
        ({"data": 4096}, "cannot be read"),
        ({"mask": object()}, "masked"),
        ({"stream": 0}, "names the stream 0"),
    ],
)
def test_a_broken_or_strided_interface_gets_one_line(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        device_array_of(holder(**changes), name="sample")
    assert "sample" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.zeros((2, 3), np.float32), torch.zeros(2, 3), np.zeros(3)[::2]])
def test_host_arrays_with_dlpack_are_refused(value):
    with pytest.raises(InputError, match=r"tensor sample lies in host memory.*run\(\)"):
        device_array_of(value, name="sample")


@pytest.mark.parametrize("value", [[1.0, 2.0], 3.0, None, object()])
def test_what_has_neither_interface_is_refused(value):
    with pytest.raises(InputError, match="__cuda_array_interface__ or DLPack"):
        device_array_of(value, name="sample")


def test_another_kind_of_device_is_named():
    value = SimpleNamespace(__dlpack__=lambda **_: None, __dlpack_device__=lambda: (10, 0))
    with pytest.raises(InputError, match="ROCm memory"):
        device_array_of(value, name="sample")


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.arange(6, dtype=np.float32).reshape(2, 3), "float32"),
        (np.arange(4, dtype=np.int64), "int64"),
        (torch.arange(6, dtype=torch.float16).reshape(3, 2), "float16"),
        (torch.ones(2, 2, dtype=torch.bfloat16), "bfloat16"),
        (torch.ones(3, dtype=torch.bool), "bool"),
        (torch.zeros((), dtype=torch.int32), "int32"),
    ],
)
def test_a_dlpack_capsule_is_read_where_it_points_and_what_it_says(value, dtype):
    """Host tensors have the same capsule; only where it points differs."""
    found = array_of_capsule(value.__dlpack__(), "sample", device=None)
    assert found.dtype == dtype_of(dtype)
    assert found.shape == tuple(value.shape)
    raw = (ctypes.c_uint8 * found.nbytes).from_address(found.pointer)
    wanted = value.view(torch.int16).numpy() if dtype == "bfloat16" else np.asarray(value)
    assert bytes(raw) == wanted.tobytes()


def test_a_capsule_keeps_its_tensor_alive():
    found = array_of_capsule(torch.full((4,), 7.0).__dlpack__(), "sample", device=None)
    assert list((ctypes.c_float * 4).from_address(found.pointer)) == [7.0] * 4


def test_a_strided_capsule_is_refused_and_one_with_an_offset_is_not():
    value = torch.arange(12.0).reshape(3, 4)
    with pytest.raises(InputError, match="make it contiguous"):
        array_of_capsule(value.T.__dlpack__(), "sample", device=None)
    found = array_of_capsule(value[1:].__dlpack__(), "sample", device=None)
    assert ctypes.c_float.from_address(found.pointer).value == 4.0


def test_an_element_type_that_numpy_lacks_is_refused():
    with pytest.raises(InputError, match="elements of DLPack's type"):
        array_of_capsule(torch.zeros(2, dtype=torch.complex64).__dlpack__(), "sample", device=None)


def test_what_is_no_capsule_is_refused():
    used = torch.zeros(2).__dlpack__()
    torch.from_dlpack(SimpleNamespace(__dlpack__=lambda **_: used, __dlpack_device__=lambda: (1, 0)))
    with pytest.raises(InputError, match="capsule"):  # it is consumed and named so
        array_of_capsule(used, "sample", device=None)


def test_a_device_array_offers_the_interface_it_reads():
    own = DeviceArray(pointer=4096, shape=(2, 3), dtype=np.dtype(np.int64), producer_stream=7)
    again = device_array_of(SimpleNamespace(__cuda_array_interface__=own.__cuda_array_interface__), name="x")
    assert again == own


def test_sizes_count_bytes():
    assert nbytes_of((2, 77, 768), dtype_of("bfloat16")) == 2 * 77 * 768 * 2
    assert nbytes_of((), dtype_of("float32")) == 4
    assert dtype_of("bfloat16") == np.dtype(ml_dtypes.bfloat16)
    with pytest.raises(DqError, match="float99"):
        dtype_of("float99")


@pytest.mark.parametrize(
    ("stream", "handle"),
    [
        (0, 0),
        (140_000, 140_000),
        (SimpleNamespace(__cuda_stream__=lambda: (0, 5)), 5),
        (SimpleNamespace(cuda_stream=6), 6),
        (SimpleNamespace(ptr=7), 7),
        (SimpleNamespace(handle=8), 8),
    ],
)
def test_a_stream_of_any_library_has_a_handle(stream, handle):
    assert stream_handle(stream) == handle


@pytest.mark.parametrize("stream", [-1, True, "1", None, SimpleNamespace(handle="x")])
def test_what_is_no_stream_is_refused(stream):
    with pytest.raises(InputError, match="stream is"):
        stream_handle(stream)


def test_another_version_of_the_stream_protocol_is_refused():
    with pytest.raises(InputError, match="version 1 of __cuda_stream__"):
        stream_handle(SimpleNamespace(__cuda_stream__=lambda: (1, 5)))
