import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from dq_kernels.cpu.library import KernelInputError
from dq_kernels.gpu.ahead_of_time import cubins
from dq_kernels.gpu.ahead_of_time.shapes import blank_output, product_calls_of
from dq_kernels.gpu.launch import calls, float_calls, product_calls
from dq_kernels.gpu.launch.calls import Blank
from dq_kernels.gpu.launch.weights import Quantizer, Weights, make_quantizer
from dq_kernels.gpu.tune.configurations import BlockConfiguration, ProductConfiguration
from dq_kernels.int_conv2d.cases import TEST_CASES as CONVS

BLOCKS = BlockConfiguration(elements=1024, warps=4)
TILES = ProductConfiguration(block_m=64, block_n=64, block_k=64, warps=4, stages=2)
STEP = Blank((2,), "int32")
FLOAT32 = {name: Blank((40,), "float32") for name in ("gamma", "beta")}


def quantize(x=None, step=STEP, output=None, nan_seen=None):
    x = x or Blank((2, 7, 40), "float16")
    return float_calls.quantize_calls(
        x, step, output or blank_output(2, 7, 40), nan_seen=nan_seen, configuration=BLOCKS
    )


def group_norm(outputs=None, groups=8, form="split", x=None, y=None):
    return float_calls.group_norm_silu_quantize_calls(
        x or Blank((2, 7, 40), "float16"),
        STEP,
        [blank_output(2, 7, 40)] if outputs is None else outputs,
        **FLOAT32,
        groups=groups,
        eps=1e-5,
        y=y,
        configuration=replace(BLOCKS, form=form),
        workspace=lambda blank: blank,
    )


def linear(codes=None, channels=40, kernel=(1, 1), taps=1, **epilogue):
    weights = Weights(
        data=Blank((24, taps, 16 * -(-channels // 16)), "int8"),
        sums=Blank((24,), "int32"),
        scale=Blank((24,), "float32"),
        bits=8,
        kernel=kernel,
        channels=channels,
    )
    quantizer = Quantizer(scale=Blank((3,), "float32"), zero_point=Blank((3,), "int32"), q_min=0, q_max=255)
    return product_calls.int_linear_calls(
        codes or Blank((2, 7, channels), "int8"),
        weights,
        quantizer,
        STEP,
        product_calls.Epilogue(**{"y": Blank((2, 7, 24), "float16")} | epilogue),
        configuration=TILES,
        architecture=90,
        workspace=lambda blank: blank,
    )


def test_a_grid_covers_rows_channels_and_samples():
    assert quantize()[0].grid == (1, 3, 2)
    assert linear()[0].grid == (1, 1, 1)
    found = group_norm()
    assert [call.kernel for call in found] == [
        "clear_kernel",
        "statistics_kernel",
        "statistics_kernel",
        "statistics_kernel",
        "group_norm_silu_quantize_kernel",
    ]
    assert found[0].arguments["workspace"].shape == (3 * 2 * 8,)
    (whole,) = group_norm(form="whole")
    assert whole.grid == (8, 2, 1)
    assert whole.arguments["workspace"] is None


def test_a_wide_k_is_split_where_there_are_few_tiles():
    first, last = linear(channels=4096)
    assert first.grid == (1, 16, 1)
    assert first.arguments["partial"].shape == (16 * 14 * 24,)
    assert (last.kernel, last.arguments["splits"]) == ("finish_split_kernel", 16)


HUGE = {"groups": 1, "x": Blank((2, 1 << 20, 40), "float16")}
REFUSED = {
    "x is integer": (lambda: quantize(x=Blank((2, 7, 40), "int8")), "x is int8 [2, 7, 40], expected float16 or"),
    "x has two axes": (lambda: quantize(x=Blank((14, 40), "float16")), "x is [14, 40], expected [batch, rows, 40 or"),
    "x is narrow": (lambda: quantize(x=Blank((2, 7, 39), "float16")), "x is [2, 7, 39], expected [batch, rows, 40"),
    "x is empty": (lambda: quantize(x=Blank((2, 0, 40), "float16")), "x is [2, 0, 40]"),
    "step": (lambda: quantize(step=Blank((2,), "int64")), "step is int64 [2], expected int32 [2]"),
    "flag": (lambda: quantize(nan_seen=Blank((2,), "int32")), "nan_seen is int32 [2], expected int32 [1]"),
    "codes": (lambda: quantize(output=blank_output(2, 6, 40)), "codes is int8 [2, 6, 40], expected int8 [2, 7, 40]"),
    "part": (lambda: quantize(output=blank_output(2, 7, 20, first=21)), "x is [2, 7, 40], expected [batch, rows, 41"),
    "too many": (lambda: quantize(x=Blank((2, 7, 1 << 28), "float16")), "elements, at most 2147483647 fit; split"),
    "groups": (lambda: group_norm(groups=7), "7 groups of 40 channels and 7 rows, expected a divisor"),
    "group size": (lambda: group_norm(**HUGE, outputs=[blank_output(2, 1 << 20, 40)]), "at most 4194304 values"),
    "nothing": (lambda: group_norm(outputs=[]), "0 code outputs and no y, expected y or 1 to 3"),
    "four parts": (lambda: group_norm(outputs=[blank_output(2, 7, 40)] * 4), "4 code outputs and no y"),
    "y": (lambda: group_norm(y=Blank((2, 7, 39), "float16")), "y is [2, 7, 39], expected [2, 7, 40 or more]"),
    "window": (lambda: linear(kernel=(3, 3), taps=9), "weights have a window of (3, 3), expected none"),
    "wide codes": (lambda: linear(codes=Blank((2, 7, 39), "int8")), "codes are [2, 7, 39], expected [batch, rows, 40"),
    "uint8": (lambda: linear(codes=Blank((2, 7, 40), "uint8")), "codes is uint8 [2, 7, 40], expected int8"),
    "no result": (lambda: linear(y=None), "neither y nor accumulators are asked for"),
    "bias": (lambda: linear(bias=Blank((23,), "float32")), "bias is float32 [23], expected float32 [24]"),
    "residual": (lambda: linear(residual=Blank((2, 6, 24), "float16")), "residual is float16 [2, 6, 24]"),
    "saturation": (lambda: linear(channels=1 << 17), "1 x 131072 products in a sum, expected at most 131071"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arrays_of_another_kind_are_refused_in_one_line(name):
    call, reason = REFUSED[name]
    with pytest.raises(KernelInputError, match=re.escape(reason)) as found:
        call()
    assert "\n" not in str(found.value)


def test_a_tensor_that_is_not_dense_is_refused():
    x = torch.zeros(2, 40, 7, dtype=torch.float16).transpose(1, 2)
    with pytest.raises(KernelInputError, match="x is not contiguous, expected dense memory with channels last"):
        float_calls.quantize_calls(x, torch.zeros(2, dtype=torch.int32), blank_output(2, 7, 40), configuration=BLOCKS)


def test_without_a_gpu_and_without_the_interpreter_launching_says_so():
    from dq_kernels.gpu.launch import launching as launch

    made = make_quantizer(
        pre=np.ones(4, np.float32),
        inverse_scale=np.ones(1, np.float32),
        zero_point=np.zeros(1, np.int32),
        q_min=0,
        q_max=255,
    )
    quantizer = launch.to_device(made, "cpu")
    with pytest.raises(KernelInputError, match="a tensor is on cpu, expected a CUDA device; move it there"):
        launch.quantize(torch.zeros(1, 2, 4), torch.zeros(1, dtype=torch.int32), quantizer)


def test_every_array_type_has_a_pointer_type_and_every_kernel_a_module():
    import importlib

    assert set(calls.FLOATS) < set(calls.POINTERS)
    for kernel, module in calls.KERNELS.items():
        assert hasattr(importlib.import_module(module), kernel)
    assert cubins.DeviceArray((2, 3), "int8", 64).pointer == 64


def test_arguments_are_all_that_the_kernels_take():
    """Triton finds a missing argument on a GPU only."""
    import importlib

    found = [
        *quantize(),
        *group_norm(),
        *linear(channels=4096),
        *product_calls_of("int_conv2d", CONVS[1], 90, "float16", 4),
    ]
    found += float_calls.layer_norm_quantize_calls(
        Blank((2, 7, 40), "float16"), STEP, [blank_output(2, 7, 40)], **FLOAT32, eps=1e-5, configuration=BLOCKS
    )
    found += float_calls.geglu_quantize_calls(
        Blank((2, 7, 80), "float16"), STEP, blank_output(2, 7, 40), channels=40, configuration=BLOCKS
    )
    for call in found:
        kernel = getattr(importlib.import_module(calls.KERNELS[call.kernel]), call.kernel)
        assert {*call.arguments, *call.constants} == set(kernel.arg_names), call.kernel


def resident_calls(rows, channels, *, batch=2, dtype="float16"):
    """Calls for 8 groups that are asked to stay in registers."""
    affine = {name: Blank((channels,), "float32") for name in ("gamma", "beta")}
    return float_calls.group_norm_silu_quantize_calls(
        Blank((batch, rows, channels), dtype),
        Blank((batch,), "int32"),
        [blank_output(batch, rows, channels)],
        **affine,
        groups=8,
        eps=1e-5,
        configuration=replace(BLOCKS, form="resident"),
        workspace=lambda blank: blank,
    )


@pytest.mark.parametrize(
    ("rows", "channels", "dtype", "batch", "launches"),
    [
        (7, 40, "float16", 2, 1),
        (2048, 64, "float32", 2, 1),
        (2049, 64, "float16", 2, 5),
        (2049, 64, "float16", 32, 1),
        (4096, 80, "float16", 2, 1),  # 40,960 values in blocks of 8 and 2 channels, nothing masked
        (4096, 80, "float32", 2, 5),
        (4095, 80, "float16", 2, 5),
        (4096, 88, "bfloat16", 2, 5),
    ],
)
def test_a_group_that_does_not_fit_into_registers_takes_another_form(rows, channels, dtype, batch, launches):
    """At most 16,384 values with their padding, or 40,960 of 16 bits that have none; else by the number of groups."""
    found = resident_calls(rows, channels, batch=batch, dtype=dtype)
    assert len(found) == launches
    fits = rows * channels // 8 <= 16384 or (rows, channels, dtype) == (4096, 80, "float16")
    assert (found[-1].constants["RESIDENT"] > 0) is fits
    assert found[-1].constants["WHOLE_GROUPS"] is (launches == 1)


@pytest.mark.parametrize(("width", "blocks"), [(10, (8, 2)), (80, (64, 16)), (13, (16, 0)), (8, (8, 0)), (1, (4, 0))])
def test_channels_of_a_group_are_one_block_or_two_without_padding(width, blocks):
    assert float_calls.resident_blocks(width) == blocks
