import pytest
import torch
from dq_kernels.int_conv2d.cases import TEST_CASES
from dq_kernels.int_conv2d.reference import int_conv2d as reference
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

SMALL = {"block_m": 256, "block_n": 64, "block_k": 32, "warps": 4, "stages": 2, "group_m": 2}


def launch(inputs, bits, *, dtype="float32", more=0, **blocks):
    from dq_kernels.gpu.launch.launching import int_conv2d
    from dq_kernels.gpu.launch.product_calls import Epilogue, Window
    from dq_kernels.gpu.tune.configurations import ProductConfiguration

    batch, height, width, channels = inputs["codes"].shape
    codes = padded(signed_codes(inputs["codes"]).reshape(batch, -1, channels), more)
    out, out_size = len(inputs["weights"]), inputs["out_size"]
    shape = (batch, out_size[0] * out_size[1], out)
    y, accumulators = torch.zeros(shape, dtype=FLOATS[dtype]), torch.zeros(shape, dtype=torch.int32)
    given = {name: inputs[name] for name in ("previous", "bias", "row", "residual") if inputs[name] is not None}
    arrays = {name: tensor(array) for name, array in given.items()}
    arrays |= {name: arrays[name].reshape(shape) for name in ("previous", "residual") if name in arrays}
    int_conv2d(
        codes,
        gpu_weights(inputs, bits),
        product_quantizer(inputs, pads_pitch=channels + more),
        tensor(inputs["step"]),
        Epilogue(y=y, accumulators=accumulators, **arrays),
        Window(size=(height, width), **{name: inputs[name] for name in ("out_size", "stride", "padding", "dilation")}),
        configuration=ProductConfiguration(**SMALL | blocks),
    )
    expected, expected_accumulators = reference(**inputs)
    return y, accumulators.numpy(), (expected.reshape(shape), expected_accumulators.reshape(shape))


def assert_equal(found):
    y, accumulators, (expected, expected_accumulators) = found
    assert_same(accumulators, expected_accumulators)
    assert_floats(y, expected)


def keeps(case):
    """Bits the weights of a case can be kept in."""
    return (8, 4) if case.weight_bits <= 4 else (8,)


PAIRS = [pytest.param(case, bits, id=f"{case.name}-W{bits}") for case in TEST_CASES for bits in keeps(case)[-1:]]


@pytest.mark.parametrize(("case", "bits"), PAIRS)
def test_accumulators_and_results_are_those_of_the_reference(case, bits):
    assert_equal(launch(case.inputs(), bits))


FORMS = {
    "codes first": {"weights_first": False},
    "two splits within a tap": {"splits": 2, "block_k": 32},
    "more splits than taps": {"splits": 10},
    "small tiles": {"block_m": 64, "block_n": 16},
    "pitch of the codes": {"more": 27},
}


FORM_PAIRS = [(form, bits) for form in FORMS for bits in (4, 8) if bits == 4 or form in ("codes first", "small tiles")]


@pytest.mark.parametrize(("form", "bits"), FORM_PAIRS)
def test_every_form_gives_the_same_bits(form, bits):
    assert_equal(launch(TEST_CASES[1].inputs(), bits, **FORMS[form]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_result_in_a_narrow_float_is_rounded_once(dtype):
    assert_equal(launch(TEST_CASES[1].inputs(), 4, dtype=dtype))
