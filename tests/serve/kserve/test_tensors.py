"""The codec: what is written is read as it was, and nothing that does not fit is read."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dq_deploy.serve.kserve.tensors import (
    BYTES,
    DTYPES,
    Tensor,
    binary_of,
    datatype_of,
    json_of,
    read_binary,
    read_json,
)
from dq_deploy.serve.web.errors import ApiError

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, max_side=4)


@st.composite
def tensors(draw):
    datatype = draw(st.sampled_from([*DTYPES, BYTES]))
    shape = draw(SHAPES)
    if datatype == BYTES:
        texts = draw(st.lists(st.binary(max_size=6), min_size=math.prod(shape), max_size=math.prod(shape)))
        values = np.empty(len(texts), object)
        values[:] = texts
        return Tensor(name="t", datatype=datatype, values=values.reshape(shape))
    values = draw(hnp.arrays(DTYPES[datatype], shape, elements=hnp.from_dtype(DTYPES[datatype], allow_nan=True)))
    return Tensor(name="t", datatype=datatype, values=values)


def same(a: Tensor, b: Tensor) -> bool:
    if a.datatype == BYTES:
        return a.values.shape == b.values.shape and a.values.tolist() == b.values.tolist()
    return (
        a.values.dtype == b.values.dtype
        and a.values.shape == b.values.shape
        and a.values.tobytes() == b.values.tobytes()
    )


@given(tensors())
def test_raw_bytes_come_back_as_they_were(tensor):
    data = binary_of(tensor)
    found = read_binary("t", tensor.datatype, tensor.values.shape, memoryview(b"x" + data)[1:])
    assert same(found, tensor)
    assert found.values.flags.writeable
    assert found.datatype == BYTES or found.values.flags.aligned


@given(tensors())
def test_raw_bytes_are_those_of_triton_s_client(tensor):
    from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

    if tensor.datatype == BYTES:
        assert binary_of(tensor) == serialize_byte_tensor(tensor.values).item()
        assert deserialize_bytes_tensor(binary_of(tensor)).tolist() == tensor.values.ravel().tolist()
    else:
        assert binary_of(tensor) == tensor.values.tobytes()


@given(tensors())
def test_json_comes_back_as_it_was_flat_or_nested(tensor):
    plain = tensor.values
    if tensor.datatype == BYTES:
        plain = np.array([text.hex() for text in plain.ravel()] or [""], object).reshape(plain.shape)
        tensor = Tensor(name="t", datatype=BYTES, values=np.vectorize(str.encode, otypes=[object])(plain))
    elif tensor.datatype == "BF16" or not np.isfinite(plain).all():
        return
    tensor = Tensor(name="t", datatype=tensor.datatype, values=plain if tensor.datatype != BYTES else tensor.values)
    flat = json.loads(json.dumps(json_of(tensor)))
    assert same(read_json("t", tensor.datatype, plain.shape, flat), tensor)
    nested = plain.tolist() if plain.ndim else [plain.item()]
    assert same(read_json("t", tensor.datatype, plain.shape, nested), tensor)


@given(tensors(), st.data())
@settings(max_examples=150)
def test_bytes_that_are_cut_or_longer_are_refused(tensor, data):
    whole = binary_of(tensor)
    size = data.draw(st.integers(0, len(whole) + 5).filter(lambda n: n != len(whole)))
    changed = (whole + bytes(5))[:size]
    with pytest.raises(ApiError) as refused:
        read_binary("t", tensor.datatype, tensor.values.shape, memoryview(changed))
    assert refused.value.status == 400


@given(
    st.sampled_from([*DTYPES, BYTES]),
    SHAPES,
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just({}),
        lambda inner: st.lists(inner, max_size=4),
        max_leaves=12,
    ),
)
def test_any_json_is_read_or_refused(datatype, shape, data):
    try:
        found = read_json("t", datatype, shape, data)
    except ApiError as error:
        refused = error
    else:
        refused = None
    if refused is not None:
        assert (refused.status, len(refused.message) < 300) == (400, True)
    else:
        assert found.values.shape == shape


@pytest.mark.parametrize(
    ("datatype", "data", "words"),
    [
        ("INT8", [128], "128, which is no INT8"),
        ("UINT64", [-1], "-1, which is no UINT64"),
        ("INT64", [1.0], "1.0, expected values of INT64"),
        ("INT64", [True], "True, expected values of INT64"),
        ("BOOL", [1], "1, expected values of BOOL"),
        ("FP32", ["1"], "'1', expected values of FP32"),
        ("FP32", [1e39], "too large for FP32"),
        ("FP16", [65520], "too large for FP16"),
        ("FP64", [10**400], "too large for FP64"),
        ("FP32", [float("inf")], "too large for FP32"),
        ("BYTES", ["\ud800"], "half a character"),
        ("BYTES", [None], "None, expected texts"),
        ("BF16", [1], "send it as binary"),
        ("FP32", [[[1.0]]], "[[1.0]], expected values of FP32"),
        ("FP32", [[1.0], [2.0]], "not nested as [1]"),
        ("FP32", [1.0, 2.0], "2 values, expected 1"),
        ("FP32", {"a": 1}, "is a dict, expected a list"),
    ],
)
def test_json_values_that_do_not_fit_are_refused(datatype, data, words):
    with pytest.raises(ApiError) as refused:
        read_json("t", datatype, (1,), data)
    assert words in refused.value.message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xff\xff\xff\xffabcd", "text 0 has 4294967295 bytes, but 4 are left"),
        (b"\x02\0\0\0abcd", "ends before text 1 of 2"),
        (b"\x01\0\0\0a\x00\0\0\0zz", "its 2 texts end at 9"),
        (b"", "0 bytes for 2 texts"),
    ],
)
def test_texts_with_lengths_that_lie_are_refused(data, words):
    with pytest.raises(ApiError) as refused:
        read_binary("t", BYTES, (2,), memoryview(data))
    assert words in refused.value.message


def test_more_texts_than_the_body_can_hold_cost_nothing():
    with pytest.raises(ApiError, match="expected at most 2"):
        read_binary("t", BYTES, (2**30,), memoryview(bytes(8)))


def test_a_byte_that_is_no_truth_value_is_refused():
    with pytest.raises(ApiError, match="neither 0 nor 1"):
        read_binary("t", "BOOL", (2,), memoryview(b"\x01\x02"))


@pytest.mark.parametrize("name", ["bool", "int8", "uint16", "int64", "float16", "float32", "float64"])
def test_numpy_s_datatypes_have_triton_s_names(name):
    from tritonclient.utils import np_to_triton_dtype

    assert datatype_of(np.dtype(name)) == np_to_triton_dtype(np.dtype(name))
