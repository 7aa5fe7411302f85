import numpy as np
import pytest
import torch
from dq_kernels.layer_norm_quantize.cases import TEST_CASES
from dq_kernels.layer_norm_quantize.reference import layer_norm_quantize as reference

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
    from dq_kernels.gpu.launch.launching import layer_norm_quantize
    from dq_kernels.gpu.tune.configurations import BlockConfiguration

    x = rounded(inputs["x"], dtype)
    channels = x.shape[2]
    seen, y = flag(), torch.zeros(x.shape, dtype=FLOATS[dtype])
    outputs = [
        CodeOutput(quantizer=gpu_quantizer(part), codes=code_buffer(*x.shape[:2], part.channels, more))
        for part in inputs["outputs"]
    ]
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    gamma = ones if inputs["gamma"] is None else inputs["gamma"]
    beta = zeros if inputs["beta"] is None else inputs["beta"]
    layer_norm_quantize(
        x,
        tensor(inputs["step"]),
        outputs,
        gamma=tensor(gamma),
        beta=tensor(beta),
        eps=inputs["eps"],
        y=y,
        nan_seen=seen,
        configuration=BlockConfiguration(elements=elements, warps=4),
    )
    return y, outputs, bool(seen[0]), reference(**inputs | {"x": x.float().numpy()})


@pytest.mark.parametrize("case", TEST_CASES, ids=lambda case: case.name)
def test_results_and_codes_are_those_of_the_reference(case):
    y, outputs, seen, (expected, codes, expected_seen) = launch(case.inputs(), elements=4096)
    assert seen == expected_seen
    assert_floats(y, expected)
    for output, part in zip(outputs, codes, strict=True):
        assert_codes(output.codes, part)


def test_any_block_size_and_pitch_gives_the_same_bits():
    y, outputs, _, (expected, codes, _) = launch(TEST_CASES[2].inputs(), elements=16, more=3)
    assert_floats(y, expected)
    assert_codes(outputs[0].codes, codes[0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_floats_are_read_exactly_and_rounded_once(dtype):
    y, outputs, _, (expected, codes, _) = launch(TEST_CASES[4].inputs(), dtype=dtype)
    assert_floats(y, expected)
    for output, part in zip(outputs, codes, strict=True):
        assert_codes(output.codes, part)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_seen_and_leaves_other_rows_alone(value):
    inputs = TEST_CASES[2].inputs()
    inputs["x"][1, 4, 0] = value
    y, _, seen, (expected, _, expected_seen) = launch(inputs)
    assert seen
    assert expected_seen
    keep = np.ones(y.shape[:2], bool)
    keep[1, 4] = False
    assert_floats(y[torch.from_numpy(keep)], expected[keep])
