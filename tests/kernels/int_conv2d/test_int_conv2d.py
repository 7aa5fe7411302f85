"""The integer convolution is its reference bit for bit, on every instruction set; the reference is torch's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from dq_kernels.cpu.library import KernelInputError, packed_form
from dq_kernels.cpu.structs import ISAS
from dq_kernels.int_conv2d import packing_span, run, supports
from dq_kernels.int_conv2d.cases import SHAPE_CASES, TEST_CASES, ZERO_CASES, Case
from dq_kernels.int_conv2d.reference import int_conv2d
from dq_kernels.int_linear.cases import EXTRAS
from hypothesis import given, settings
from hypothesis import strategies as st

MIDDLE = Case(name="middle", height=6, width=5, channels=36, out_channels=40)


def assert_equals_reference(context, case, **changed):
    inputs = case.inputs() | changed
    y, accumulators = run(context, **inputs)
    y_ref, accumulators_ref = int_conv2d(**inputs)
    np.testing.assert_array_equal(accumulators, accumulators_ref)
    np.testing.assert_array_equal(y.view(np.int32), y_ref.view(np.int32))


@pytest.mark.parametrize("case", TEST_CASES, ids=lambda c: c.name)
def test_the_reference_convolves_as_torch(case):
    inputs = case.inputs()
    steps = inputs["step"] if case.steps > 1 else np.zeros_like(inputs["step"])
    zero_code = (inputs["zero_point"] - inputs["q_min"])[steps]
    centred = torch.tensor(inputs["codes"].astype(np.float64) - zero_code[:, None, None, None]).permute(0, 3, 1, 2)
    top, left, bottom, right = case.padding
    padded = torch.nn.functional.pad(centred, (left, right, top, bottom))
    weights = torch.tensor(inputs["weights"].astype(np.float64)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.conv2d(padded, weights, stride=case.stride, dilation=case.dilation)
    np.testing.assert_array_equal(int_conv2d(**inputs)[1], expected.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("case", TEST_CASES, ids=lambda c: c.name)
def test_int8_codes_give_the_same_reference(case):
    inputs = case.inputs()
    shifted = (inputs["codes"].astype(np.int16) - 128).astype(np.int8)
    y, _ = int_conv2d(**inputs | {"codes": shifted}, zero_code_offset=-128)
    np.testing.assert_array_equal(y, int_conv2d(**inputs)[0])


@pytest.mark.parametrize("case", [*TEST_CASES, *ZERO_CASES], ids=lambda c: c.name)
def test_a_case_equals_the_reference(product_contexts, case):
    for context in product_contexts(case.batch * case.height * case.width > 12):
        assert_equals_reference(context, case)


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@pytest.mark.parametrize("isa", ISAS)
@given(
    case=st.builds(
        Case,
        name=st.just(""),
        batch=st.integers(1, 3),
        height=st.integers(7, 12),
        width=st.integers(7, 12),
        channels=st.integers(1, 40),
        out_channels=st.integers(1, 70),
        kernel=pairs,
        stride=pairs,
        padding=st.tuples(*[st.integers(0, 3)] * 4),
        dilation=pairs,
        activation_bits=st.integers(1, 8),
        weight_bits=st.integers(1, 8),
        steps=st.integers(1, 3),
        zero=st.sampled_from(("low", "mid", "high")),
        extreme=st.booleans(),
        weight_zero=st.sampled_from((None, (-128, 127), (-500, 500))),
        extras=st.sets(st.sampled_from(EXTRAS)).map(tuple),
        seed=st.integers(0, 1000),
    )
)
@settings(max_examples=150, deadline=None)
def test_any_convolution_equals_the_reference(isa, context_of, case):
    assert_equals_reference(context_of(isa, 1), case)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("case", [c for c in SHAPE_CASES if c.model == "cifar" and c.height <= 8], ids=lambda c: c.name)
def test_the_small_layers_of_the_cifar_unet_equal_the_reference(context_of, case, bits, isa):
    assert_equals_reference(context_of(isa, 2), dataclasses.replace(case, weight_bits=bits))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("bits", "channels"), [(4, 700), (8, 700), (8, 4200)])
def test_windows_longer_than_a_block_of_weights_are_exact(context_of, isa, bits, channels):
    case = Case(name="", height=5, width=6, channels=channels, out_channels=33, weight_bits=bits, extras=("residual",))
    assert_equals_reference(context_of(isa, 2), case)


@pytest.mark.parametrize("isa", ISAS)
def test_samples_of_a_tile_pad_by_their_own_zero_code(context_of, isa):
    """Images of one pixel: every tile holds several samples, and nearly all of each window is padding."""
    case = Case(name="", batch=21, height=1, width=1, channels=9, out_channels=17, steps=5, weight_bits=8)
    assert_equals_reference(context_of(isa, 1), case)


@pytest.mark.parametrize("isa", ISAS)
def test_a_zero_code_above_the_largest_code_pads_exactly(context_of, isa):
    """4-bit codes with a zero point outside of them: weights are packed for the zero code, not only for the codes."""
    case = dataclasses.replace(MIDDLE, activation_bits=4, weight_bits=8, extreme=True)
    zero_point = np.array([247], np.int32)
    assert packing_span(q_min=-8, q_max=7, zero_point=zero_point) == 255
    assert_equals_reference(context_of(isa, 1), case, zero_point=zero_point)
    weights = case.inputs()["weights"].reshape(40, 9, 36)
    assert packed_form(context_of("avx2", 1).pack(weights, 255)) == "vpmaddwd, int8 in memory"


@pytest.mark.parametrize("isa", ISAS)
def test_the_number_of_threads_changes_no_bit(context_of, isa):
    inputs = dataclasses.replace(MIDDLE, batch=2, height=17).inputs()
    results = [run(context_of(isa, threads), **inputs)[0].tobytes() for threads in (1, 3, 7)]
    assert results[0] == results[1] == results[2]


def test_an_output_size_without_padding_below_is_taken(best_context):
    inputs = MIDDLE.inputs() | {"out_size": (3, 2), "stride": (2, 2)}
    assert run(best_context, **inputs)[0].tobytes() == int_conv2d(**inputs)[0].tobytes()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"codes": np.zeros((6, 5, 36), np.uint8)}, r"codes are \(6, 5, 36\) and weights .*, expected 4 axes each"),
        ({"stride": (0, 1)}, r"stride is \(0, 1\) and dilation \(1, 1\), expected 1 or more"),
        ({"zero_point": np.array([200], np.int32)}, r"zero codes are 328..328, padding takes 0..255"),
        (
            {"residual": np.zeros((1, 6, 5, 39), np.float32)},
            r"residual is float32 \(1, 6, 5, 39\), expected ",
        ),
    ],
)
def test_a_wrong_argument_is_refused(best_context, changed, message):
    with pytest.raises(KernelInputError, match=message):
        run(best_context, **MIDDLE.inputs() | changed)


def test_a_zero_code_beyond_a_byte_is_taken_without_padding(context_of):
    case = Case(name="", height=4, width=4, channels=8, out_channels=8, kernel=(1, 1), padding=(0, 0, 0, 0))
    for isa in ("portable", "avx2"):
        assert_equals_reference(context_of(isa, 1), case, zero_point=np.array([-900], np.int32))


def test_supports_says_why_not():
    weights = np.zeros((4, 3, 3, 8), np.int8)
    common = {"q_min": -128, "q_max": 127}
    assert supports(weights, zero_point=[0], **common) == ""
    assert supports(weights, zero_point=[0], groups=4, **common) == "the convolution has 4 groups, the kernel takes 1"
    assert supports(weights, zero_point=[0, -129], **common) == "zero codes are -1..128, padding takes 0..255"
    assert supports(weights, zero_point=[0, -129], padded=False, **common) == ""
