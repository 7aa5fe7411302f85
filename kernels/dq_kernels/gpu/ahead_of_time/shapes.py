"""Kernel calls of the shapes in `cases.py`, with arrays that are not there: for the compiler and for reports."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from dq_kernels.gpu.launch.calls import Blank, KernelCall
from dq_kernels.gpu.launch.float_calls import (
    CodeOutput,
    geglu_quantize_calls,
    group_norm_silu_quantize_calls,
    layer_norm_quantize_calls,
    quantize_calls,
)
from dq_kernels.gpu.launch.product_calls import Epilogue, Window, int_conv2d_calls, int_linear_calls
from dq_kernels.gpu.launch.weights import ALIGNMENT, Quantizer, Weights, int4_pitch
from dq_kernels.gpu.tune.configurations import Table, choose

MODELS = ("cifar", "sd15", "sdxl")
FLOAT_OPS = ("quantize", "group_norm_silu_quantize", "layer_norm_quantize", "geglu_quantize")
PRODUCT_OPS = ("int_linear", "int_conv2d")
EXTRAS = (("bias",), ("bias", "row"), ("bias", "residual"))
"""What the epilogues of a UNet's layers add: nothing but a bias, a time embedding's row, a residual."""


def calls_of_model(model: str, architecture: int, dtype: str, table: Table | None = None) -> Iterator[KernelCall]:
    """Calls of all shapes of a model, products with weights of 8 and of 4 bits."""
    for op in FLOAT_OPS + PRODUCT_OPS:
        for case in importlib.import_module(f"dq_kernels.{op}.cases").SHAPE_CASES:
            if case.model != model:
                continue
            if op in FLOAT_OPS:
                yield from float_calls_of(op, case, architecture, dtype, table)
                continue
            for bits in (8, 4):
                for extras in EXTRAS:
                    yield from product_calls_of(op, case, architecture, dtype, bits, extras, table)


def blank_output(batch: int, rows: int, channels: int, first: int = 0, steps: int = 2) -> CodeOutput:
    """Where codes would go, dense."""
    quantizer = Quantizer(
        pre=Blank((channels,), "float32"),
        inverse_scale=Blank((steps,), "float32"),
        zero_point=Blank((steps,), "int32"),
        q_min=0,
        q_max=255,
        first=first,
    )
    return CodeOutput(quantizer=quantizer, codes=Blank((batch, rows, channels), "int8"))


def float_calls_of(op: str, case: Any, architecture: int, dtype: str, table: Table | None = None) -> list[KernelCall]:
    """Calls of one case of a float op; codes alone, no float y."""
    batch, rows, channels = case.batch, case.rows, case.channels
    step, seen = Blank((batch,), "int32"), Blank((1,), "int32")
    given: dict[str, Any] = {"nan_seen": seen, "configuration": choose(op, architecture, float_facts(op, case), table)}
    if op == "quantize":
        x = Blank((batch, rows, case.width or channels), dtype)
        return quantize_calls(x, step, blank_output(batch, rows, channels, case.first), **given)
    if op == "geglu_quantize":
        x = Blank((batch, rows, 2 * channels), dtype)
        return geglu_quantize_calls(x, step, blank_output(batch, rows, channels), channels=channels, **given)
    x = Blank((batch, rows, channels), dtype)
    affine: dict[str, Any] = {
        "gamma": Blank((channels,), "float32"),
        "beta": Blank((channels,), "float32"),
        "eps": case.eps,
    }
    if op == "layer_norm_quantize":
        slices = ((0, channels),) if case.outputs is None else case.outputs
        outputs = [blank_output(batch, rows, width, first) for first, width in slices]
        return layer_norm_quantize_calls(x, step, outputs, **affine, **given)
    firsts = [sum(case.parts[:i]) for i in range(len(case.parts))]
    outputs = [blank_output(batch, rows, width, first) for first, width in zip(firsts, case.parts, strict=True)]
    return group_norm_silu_quantize_calls(
        x, step, outputs, **affine, groups=case.groups, silu=case.silu, workspace=lambda blank: blank, **given
    )


def float_facts(op: str, case: Any) -> dict[str, int]:
    """What rules of a float op may bound."""
    if op != "group_norm_silu_quantize":
        return {}
    return {"m": case.batch * case.groups, "k": case.rows * (case.channels // case.groups)}


def product_facts(op: str, case: Any, bits: int) -> dict[str, int]:
    """What rules of a product may bound."""
    rows, taps = case.rows if op == "int_linear" else case.out_size[0] * case.out_size[1], 1
    if op == "int_conv2d":
        taps = case.kernel[0] * case.kernel[1]
    return {"m": case.batch * rows, "n": case.out_channels, "k": taps * case.channels, "bits": bits}


def product_calls_of(
    op: str,
    case: Any,
    architecture: int,
    dtype: str,
    bits: int,
    extras: tuple[str, ...] = ("bias",),
    table: Table | None = None,
) -> list[KernelCall]:
    """Calls of one case of a product; codes without a pitch, steps in tables."""
    batch, channels, out = case.batch, case.channels, case.out_channels
    kernel = (1, 1) if op == "int_linear" else case.kernel
    pitch = int4_pitch(channels) if bits == 4 else ALIGNMENT * -(-channels // ALIGNMENT)
    facts = product_facts(op, case, bits)
    rows = facts["m"] // batch
    weights = Weights(
        data=Blank((out, kernel[0] * kernel[1], pitch), "int8"),
        sums=Blank((out,), "int32"),
        scale=Blank((out,), "float32"),
        bits=bits,
        kernel=kernel,
        channels=channels,
    )
    quantizer = Quantizer(
        scale=Blank((2,), "float32"),
        zero_point=Blank((2,), "int32"),
        pads=Blank((2, channels), "int8"),
        q_min=0,
        q_max=255,
    )
    possible = {
        "bias": Blank((out,), "float32"),
        "row": Blank((batch, out), dtype),
        "residual": Blank((batch, rows, out), dtype),
        "previous": Blank((batch, rows, out), "float32"),
    }
    epilogue = Epilogue(y=Blank((batch, rows, out), dtype), **{name: possible[name] for name in extras})
    # a 1x1 convolution that moves by one pixel is a linear layer
    plain = op == "int_linear" or (kernel == (1, 1) and case.stride == (1, 1) and not any(case.padding))
    given: dict[str, Any] = {"architecture": architecture, "workspace": lambda blank: blank}
    given["configuration"] = choose("int_linear" if plain else op, architecture, facts, table)
    step = Blank((batch,), "int32")
    if plain:
        codes = Blank((batch, rows, channels), "int8")
        return int_linear_calls(codes, weights, quantizer, step, epilogue, **given)
    window = Window(
        size=(case.height, case.width),
        out_size=case.out_size,
        stride=case.stride,
        padding=case.padding[:2],
        dilation=case.dilation,
    )
    codes = Blank((batch, case.height * case.width, channels), "int8")
    return int_conv2d_calls(codes, weights, quantizer, step, epilogue, window, **given)
