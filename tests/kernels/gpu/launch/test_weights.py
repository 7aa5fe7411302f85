import numpy as np
import pytest
import torch
from dq_kernels.cpu.library import KernelInputError
from dq_kernels.gpu.launch.weights import (
    int4_pitch,
    make_quantizer,
    make_weights,
    pack_int4,
    pack_int4_torch,
    pack_int8,
    pad_rows,
    unpack_int4,
)
from hypothesis import given, settings
from hypothesis import strategies as st


@given(st.integers(1, 100), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_int4_weights_unpack_to_what_they_were(channels, taps, out, seed):
    rows = np.random.default_rng(seed).integers(-8, 8, (out, taps, channels)).astype(np.int8)
    packed = pack_int4(rows)
    assert packed.shape == (out, taps, int4_pitch(channels))
    assert packed.shape[2] % 16 == 0
    assert np.array_equal(unpack_int4(packed, channels), rows)
    assert np.array_equal(pack_int4_torch(torch.from_numpy(rows)).numpy(), packed)


def test_the_order_of_int4_is_channel_j_low_and_channel_j_plus_pitch_high():
    rows = np.zeros((1, 1, 40), np.int8)
    rows[0, 0, 0], rows[0, 0, 32], rows[0, 0, 39], rows[0, 0, 31] = -8, 7, -1, 3
    packed = pack_int4(rows).view(np.uint8)[0, 0]
    assert packed.shape == (32,)
    assert (packed[0], packed[7], packed[31]) == (0x78, 0xF0, 0x03)
    assert not packed[1:7].any()


def test_rows_of_int8_weights_begin_at_multiples_of_16():
    packed = pack_int8(np.full((2, 9, 33), -5, np.int8))
    assert packed.shape == (2, 9, 48)
    assert (packed[:, :, :33] == -5).all()
    assert not packed[:, :, 33:].any()


def test_sums_are_those_of_all_taps_and_channels():
    weights = np.random.default_rng(0).integers(-8, 8, (5, 3, 3, 20)).astype(np.int8)
    for bits in (8, 4):
        made = make_weights(weights, np.ones(5, np.float32), bits=bits)
        assert np.array_equal(made.sums, weights.reshape(5, -1).sum(1, dtype=np.int32))
        assert (made.kernel, made.channels, made.out_channels) == ((3, 3), 20, 5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weights": np.zeros((2, 3), np.int16)}, r"weights are int16 \[2, 3\], expected int8"),
        ({"weights": np.zeros((2, 3, 4), np.int8)}, r"weights are int8 \[2, 3, 4\]"),
        ({"scale": np.ones(3, np.float32)}, r"scale is float32 \[3\], expected float32 \[2\]"),
        ({"bits": 5}, "bits is 5, expected 8 or 4"),
        ({"weights": np.full((2, 3), 8, np.int8), "bits": 4}, "reach from 8 to 8, expected -8 to 7"),
    ],
)
def test_weights_that_make_no_sense_are_refused(change, reason):
    good = {"weights": np.zeros((2, 3), np.int8), "scale": np.ones(2, np.float32), "bits": 8}
    with pytest.raises(KernelInputError, match=reason):
        make_weights(**good | change)


def test_padding_is_the_zero_code_of_each_step_and_refused_where_int8_does_not_hold_it():
    rows = pad_rows(np.array([0, 255, 100], np.int32), 0, 5)
    assert rows.shape == (3, 5)
    assert rows[:, 0].tolist() == [-128, 127, -28]
    with pytest.raises(KernelInputError, match="stored zero codes reach from -129 to -129"):
        pad_rows(np.array([-1], np.int32), 0, 5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"zero_point": np.zeros(1, np.int64)}, r"zero_point is int64 \[1\], expected int32 \[1\]"),
        ({"scale": np.ones(2, np.float32)}, r"scale is float32 \[2\], expected float32 \[1\]"),
        ({"q_max": 256}, "codes from 0 to 256, expected 2 to 256 of them"),
        ({"zero_point": np.array([1 << 23], np.int32)}, r"expected less than 2\^22"),
    ],
)
def test_a_quantizer_that_makes_no_sense_is_refused(change, reason):
    with pytest.raises(KernelInputError, match=reason):
        make_quantizer(**{"zero_point": np.zeros(1, np.int32), "q_min": 0, "q_max": 255} | change)
