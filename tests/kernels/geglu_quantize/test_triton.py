import numpy as np
import pytest
import torch
from dq_kernels.geglu_quantize.cases import TEST_CASES
from dq_kernels.geglu_quantize.reference import geglu_quantize as reference

from tests.kernels.gpu.bridge import (
    FLOATS,
    assert_codes,
    assert_floats,
    code_buffer,
    flag,
    gpu_quantizer,
    rounded,
    tensor,
)


def launch(inputs, *, dtype="float32", elements=512, more=0):
    from dq_kernels.gpu.launch.float_calls import CodeOutput
    from dq_kernels.gpu.launch.launching import geglu_quantize
    from dq_kernels.gpu.tune.configurations import BlockConfiguration

    x = rounded(inputs["x"], dtype)
    channels = x.shape[2] // 2
    seen, y = flag(), torch.zeros(*x.shape[:2], channels, dtype=FLOATS[dtype])
    output = None
    if inputs["output"] is not None:
        codes = code_buffer(*x.shape[:2], inputs["output"].channels, more)
        output = CodeOutput(quantizer=gpu_quantizer(inputs["output"]), codes=codes)
    configuration = BlockConfiguration(elements=elements, warps=4)
    given = {"channels": channels, "y": y, "nan_seen": seen, "configuration": configuration}
    geglu_quantize(x, tensor(inputs["step"]), output, **given)
    expected = reference(x.float().numpy(), inputs["step"], inputs["output"])
    return y, output, bool(seen[0]), expected


@pytest.mark.parametrize("case", TEST_CASES, ids=lambda case: case.name)
def test_results_and_codes_are_those_of_the_reference(case):
    y, output, seen, (expected, codes, expected_seen) = launch(case.inputs(), elements=4096)
    assert_floats(y, expected)
    assert seen == expected_seen
    if output is not None:
        assert_codes(output.codes, codes)


def test_any_block_size_and_pitch_gives_the_same_bits():
    y, output, _, (expected, codes, _) = launch(TEST_CASES[3].inputs(), elements=64, more=7)
    assert_floats(y, expected)
    assert_codes(output.codes, codes)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_result_in_a_narrow_float_is_rounded_once(dtype):
    y, output, _, (expected, codes, _) = launch(TEST_CASES[2].inputs(), dtype=dtype)
    assert_floats(y, expected)
    assert_codes(output.codes, codes)


def test_a_nan_is_seen():
    inputs = TEST_CASES[2].inputs()
    inputs["x"][0, 1, 7] = np.nan
    *_, seen, expected = launch(inputs)
    assert seen
    assert expected[2]
