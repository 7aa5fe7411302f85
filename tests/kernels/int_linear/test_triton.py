import numpy as np
import pytest
import torch
from dq_kernels.int_linear.cases import TEST_CASES, Case
from dq_kernels.int_linear.reference import int_linear as reference
from dq_kernels.quantize.reference import signed_codes

from tests.kernels.gpu.bridge import (
    FLOATS,
    assert_floats,
    assert_same,
    gpu_weights,
    padded,
    product_quantizer,
    tensor,
)

SMALL = {"block_m": 64, "block_n": 32, "block_k": 32, "warps": 4, "stages": 2, "group_m": 2}


def launch(inputs, bits, *, dtype="float32", more=0, extra_pitch=0, **blocks):
    """y, accumulators and those of the reference; `more` bytes of rubbish behind the codes of a row."""
    from dq_kernels.gpu.launch.launching import int_linear
    from dq_kernels.gpu.launch.product_calls import Epilogue
    from dq_kernels.gpu.tune.configurations import ProductConfiguration

    codes = padded(signed_codes(inputs["codes"]), more)
    batch, rows, _ = codes.shape
    out = len(inputs["weights"])
    y = torch.zeros(batch, rows, out + extra_pitch, dtype=FLOATS[dtype])
    accumulators = torch.zeros(batch, rows, out, dtype=torch.int32)
    given = {name: inputs[name] for name in ("previous", "bias", "row", "residual") if inputs[name] is not None}
    arrays = {name: tensor(array) for name, array in given.items()}
    for name in ("previous",) if "previous" in given else ():
        arrays[name] = padded(given[name], extra_pitch, 0.0)
    int_linear(
        codes,
        gpu_weights(inputs, bits),
        product_quantizer(inputs),
        tensor(inputs["step"]),
        Epilogue(y=y, accumulators=accumulators, **arrays),
        configuration=ProductConfiguration(**SMALL | blocks),
    )
    return y[:, :, :out], accumulators.numpy(), reference(**inputs)


def assert_equal(found):
    y, accumulators, (expected, expected_accumulators) = found
    assert_same(accumulators, expected_accumulators)
    assert_floats(y, expected)


def keeps(case):
    """Bits the weights of a case can be kept in."""
    return (8, 4) if case.weight_bits <= 4 else (8,)


PAIRS = [pytest.param(case, bits, id=f"{case.name}-W{bits}") for case in TEST_CASES for bits in keeps(case)]


@pytest.mark.parametrize(("case", "bits"), PAIRS)
def test_accumulators_and_results_are_those_of_the_reference(case, bits):
    assert_equal(launch(case.inputs(), bits))


FORMS = {
    "codes first": {"weights_first": False},
    "three splits": {"splits": 3},
    "an epilogue in four parts": {"block_m": 128, "block_n": 256},
    "tall tiles": {"block_m": 64, "block_n": 16, "block_k": 64},
    "wide tiles": {"block_m": 16, "block_n": 128, "block_k": 128, "group_m": 1},
    "pitch of the codes": {"more": 26},
    "pitch of y": {"extra_pitch": 7},
}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_bits(form, bits):
    case = Case(name="", batch=3, rows=5, channels=70, out_channels=36, steps=3, extras=TEST_CASES[1].extras)
    assert_equal(launch(case.inputs(), bits, **FORMS[form]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_result_in_a_narrow_float_is_rounded_once(dtype):
    assert_equal(launch(TEST_CASES[1].inputs(), 8, dtype=dtype))


def test_even_blocks_need_no_mask_and_the_splits_are_chosen_by_the_shape():
    case = Case(name="", rows=17, channels=512, out_channels=64, steps=1, weight_bits=4)
    for bits in (8, 4):
        assert_equal(launch(case.inputs(), bits, block_n=64))


def test_static_tables_serve_every_bucket():
    inputs = TEST_CASES[0].inputs() | {"step": np.array([41], np.int32)}
    assert_equal(launch(inputs, 8))
