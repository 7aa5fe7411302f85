import numpy as np
import pytest
from dq_kernels.quantize.cases import TEST_CASES
from dq_kernels.quantize.reference import Quantizer
from dq_kernels.quantize.reference import quantize as reference

from tests.kernels.gpu.bridge import assert_codes, code_buffer, flag, gpu_quantizer, rounded, tensor


def launch(inputs, *, dtype="float32", elements=512, more=0):
    from dq_kernels.gpu.launch.launching import quantize
    from dq_kernels.gpu.tune.configurations import BlockConfiguration

    x = rounded(inputs["x"], dtype)
    seen = flag()
    codes = code_buffer(*x.shape[:2], inputs["quantizer"].channels, more)
    configuration = BlockConfiguration(elements=elements, warps=4)
    given = {"codes": codes, "nan_seen": seen, "configuration": configuration}
    quantize(x, tensor(inputs["step"]), gpu_quantizer(inputs["quantizer"]), **given)
    expected, expected_seen = reference(x.float().numpy(), inputs["step"], inputs["quantizer"])
    return codes, expected, bool(seen[0]), expected_seen


@pytest.mark.parametrize("case", TEST_CASES, ids=lambda case: case.name)
def test_codes_are_those_of_the_reference(case):
    codes, expected, seen, _ = launch(case.inputs(), elements=4096)
    assert_codes(codes, expected)
    assert not seen


def test_any_block_size_and_pitch_gives_the_same_codes():
    codes, expected, *_ = launch(TEST_CASES[3].inputs(), elements=64, more=5)
    assert_codes(codes, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_floats_are_read_exactly(dtype):
    codes, expected, *_ = launch(TEST_CASES[4].inputs(), dtype=dtype)
    assert_codes(codes, expected)


def test_ties_round_to_even_and_infinities_clamp():
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, np.inf, -np.inf, 3e38, -3e38, 0.49999997], np.float32)
    quantizer = Quantizer(np.ones(1, np.float32), np.ones(1, np.float32), np.zeros(1, np.int32), -128, 127)
    inputs = {"x": values.reshape(1, -1, 1), "step": np.zeros(1, np.int32), "quantizer": quantizer}
    codes, expected, seen, _ = launch(inputs)
    assert_codes(codes, expected)
    assert not seen


def test_a_nan_is_seen_and_nothing_else_changes():
    inputs = TEST_CASES[2].inputs()
    inputs["x"][1, 3, 2] = np.nan
    codes, expected, seen, expected_seen = launch(inputs)
    assert seen
    assert expected_seen
    codes[1, 3, 2] = 0
    expected[1, 3, 2] = 128
    assert_codes(codes, expected)
