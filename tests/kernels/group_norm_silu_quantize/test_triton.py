import numpy as np
import pytest
import torch
from dq_kernels.group_norm_silu_quantize.cases import TEST_CASES
from dq_kernels.group_norm_silu_quantize.reference import group_norm_silu_quantize as reference

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


def launch(inputs, *, dtype="float32", form="whole", elements=8192, more=0):
    from dq_kernels.gpu.launch.float_calls import CodeOutput
    from dq_kernels.gpu.launch.launching import group_norm_silu_quantize
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
    group_norm_silu_quantize(
        x,
        tensor(inputs["step"]),
        outputs,
        gamma=tensor(gamma),
        beta=tensor(beta),
        **{name: inputs[name] for name in ("groups", "eps", "silu")},
        y=y,
        nan_seen=seen,
        configuration=BlockConfiguration(elements=elements, warps=4, form=form, chunk=2),
    )
    return y, outputs, bool(seen[0]), reference(**inputs | {"x": x.float().numpy()})


def assert_equal(found):
    y, outputs, seen, (expected, codes, expected_seen) = found
    assert seen == expected_seen
    assert_floats(y, expected)
    for output, part in zip(outputs, codes, strict=True):
        assert_codes(output.codes, part)


# a program for each of many groups is slow to interpret
FORMS = [
    (case, form)
    for case in TEST_CASES
    for form in ("whole", "resident", "split")
    if form == "split" or case.groups < 12
]


@pytest.mark.parametrize(("case", "form"), FORMS, ids=lambda value: getattr(value, "name", value))
def test_results_and_codes_are_those_of_the_reference(case, form):
    assert_equal(launch(case.inputs(), form=form))


@pytest.mark.parametrize(
    ("form", "elements", "more"), [("whole", 32, 3), ("split", 64, 9), ("whole", 512, 130), ("resident", 32, 3)]
)
def test_any_block_size_and_pitch_gives_the_same_bits(form, elements, more):
    assert_equal(launch(TEST_CASES[2].inputs(), form=form, elements=elements, more=more))


@pytest.mark.parametrize(("rows", "channels"), [(16, 10), (16, 24), (8, 13), (5, 10)])
def test_a_group_that_stays_in_registers_is_one_block_or_two(rows, channels):
    """10 channels are 8 and 2, 13 are 16; 16 rows of 10 or 24 fill their blocks, so that nothing is masked."""
    inputs = TEST_CASES[0].inputs()
    rng = np.random.default_rng(rows)
    x = rng.normal(0, 3, (2, rows, channels)).astype(np.float32)
    changes = {"x": x, "gamma": None, "beta": None, "groups": 1, "outputs": [], "step": np.zeros(2, np.int32)}
    assert_equal(launch(inputs | changes, dtype="float16", form="resident"))


@pytest.mark.parametrize(("dtype", "form"), [("float16", "whole"), ("bfloat16", "split"), ("float16", "resident")])
def test_narrow_floats_are_read_exactly_and_rounded_once(dtype, form):
    assert_equal(launch(TEST_CASES[10].inputs(), dtype=dtype, form=form))


@pytest.mark.parametrize(
    ("form", "value"), [("whole", np.nan), ("split", np.inf), ("split", -np.inf), ("resident", np.nan)]
)
def test_a_value_that_is_not_finite_is_seen_and_leaves_other_samples_alone(form, value):
    inputs = TEST_CASES[3].inputs()
    inputs["x"][1, 4, 0] = value
    y, _, seen, (expected, _, expected_seen) = launch(inputs, form=form)
    assert seen
    assert expected_seen
    assert_floats(y[[0, 2]], expected[[0, 2]])
