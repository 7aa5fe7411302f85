"""The ops as torch ops: the bits of their references, on every form of tensor, eager and traced."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from dq_kernels import torch_ops
from dq_kernels.cpu.library import KernelInputError, known_isas
from dq_kernels.cpu.structs import ISAS
from dq_kernels.geglu_quantize import cases as geglu_cases
from dq_kernels.geglu_quantize.reference import geglu_quantize
from dq_kernels.group_norm_silu_quantize import cases as group_cases
from dq_kernels.group_norm_silu_quantize.reference import group_norm_silu_quantize
from dq_kernels.int_conv2d.cases import TEST_CASES as CONVOLUTIONS
from dq_kernels.int_conv2d.reference import int_conv2d
from dq_kernels.int_linear.cases import TEST_CASES as LINEARS
from dq_kernels.int_linear.reference import int_linear
from dq_kernels.layer_norm_quantize import cases as layer_cases
from dq_kernels.layer_norm_quantize.reference import layer_norm_quantize
from dq_kernels.quantize import cases as quantize_cases
from dq_kernels.quantize.reference import quantize
from torch.fx.experimental.proxy_tensor import make_fx

OPS = torch.ops.dq_kernels


def tensor(array):
    return None if array is None else torch.from_numpy(np.array(array))


def assert_same(got, wanted):
    assert tuple(got.shape) == wanted.shape
    assert got.numpy().tobytes() == np.ascontiguousarray(wanted).tobytes()


def parts_of(quantizers):
    """Arguments pre .. first of the ops with several parts."""
    names = ("pre", "inverse_scale", "zero_point")
    return (
        *([tensor(getattr(q, name)) for q in quantizers] for name in names),
        *([getattr(q, name) for q in quantizers] for name in ("q_min", "q_max", "first")),
    )


def part_of(q):
    return tensor(q.pre), tensor(q.inverse_scale), tensor(q.zero_point), q.q_min, q.q_max


def quantize_arguments(inputs):
    return tensor(inputs["x"]), tensor(inputs["step"]), *part_of(inputs["quantizer"]), inputs["quantizer"].first


def norm_arguments(inputs, *names):
    outputs = parts_of(inputs.get("outputs", ()))
    affine = tensor(inputs.get("gamma")), tensor(inputs.get("beta"))
    return tensor(inputs["x"]), tensor(inputs["step"]), *affine, *(inputs[n] for n in names), *outputs, True


def product_arguments(inputs, **pack):
    """Arguments up to q_max, and the extras; codes and weights in the order of torch where they have 4 axes."""
    codes, weights = tensor(inputs["codes"]), tensor(inputs["weights"])
    if codes.dim() == 4:
        codes, weights = codes.permute(0, 3, 1, 2), weights.permute(0, 3, 1, 2)
    zero_point = tensor(inputs["zero_point"])
    bounds = {"q_min": inputs["q_min"], "q_max": inputs["q_max"]}
    packed = torch_ops.pack_weights(weights, zero_point=zero_point, **bounds, **pack)
    tables = [tensor(inputs[name]) for name in ("scale", "zero_point", "step", "weight_scale")]
    extras = {name: tensor(inputs[name]) for name in ("bias", "row", "residual", "previous")}
    if codes.dim() == 4:
        wide = {n: None if extras[n] is None else extras[n].permute(0, 3, 1, 2) for n in ("residual", "previous")}
        extras |= wide
    return [codes, packed, *tables, inputs["q_min"], inputs["q_max"]], extras


def convolution_arguments(case, **pack):
    given, extras = product_arguments(case.inputs(), padded=max(case.padding) > 0, **pack)
    top, left, bottom, right = case.padding
    window = [list(case.kernel), list(case.stride), [top, bottom, left, right], list(case.dilation)]
    return [*given, *window], extras


@pytest.mark.parametrize("case", quantize_cases.TEST_CASES, ids=lambda c: c.name)
def test_quantize_gives_the_codes_of_the_reference(case):
    inputs = case.inputs()
    codes, seen = OPS.quantize(*quantize_arguments(inputs))
    assert_same(codes, quantize(**inputs)[0])
    assert seen.tolist() == [0]


@pytest.mark.parametrize("case", group_cases.TEST_CASES, ids=lambda c: c.name)
def test_group_norm_gives_the_bits_of_the_reference(case):
    inputs = case.inputs()
    *codes, y, seen = OPS.group_norm_silu_quantize(*norm_arguments(inputs, "groups", "eps", "silu"))
    y_ref, codes_ref, seen_ref = group_norm_silu_quantize(**inputs)
    assert_same(y, y_ref)
    assert [c.numpy().tobytes() for c in codes] == [c.tobytes() for c in codes_ref]
    assert bool(seen) == seen_ref


@pytest.mark.parametrize("case", layer_cases.TEST_CASES, ids=lambda c: c.name)
def test_layer_norm_gives_the_bits_of_the_reference(case):
    inputs = case.inputs()
    *codes, y, seen = OPS.layer_norm_quantize(*norm_arguments(inputs, "eps"))
    y_ref, codes_ref, seen_ref = layer_norm_quantize(**inputs)
    assert_same(y, y_ref)
    assert [c.numpy().tobytes() for c in codes] == [c.tobytes() for c in codes_ref]
    assert bool(seen) == seen_ref


GEGLU = [case for case in geglu_cases.TEST_CASES if case.inputs().get("output") is not None]


@pytest.mark.parametrize("case", GEGLU, ids=lambda c: c.name)
def test_geglu_gives_the_bits_of_the_reference(case):
    inputs = case.inputs()
    got = OPS.geglu_quantize(tensor(inputs["x"]), tensor(inputs["step"]), *part_of(inputs["output"]), True)
    y_ref, codes_ref, _ = geglu_quantize(**inputs)
    assert_same(got[0], codes_ref)
    assert_same(got[1], y_ref)


@pytest.mark.parametrize("isa", known_isas())
@pytest.mark.parametrize("case", LINEARS, ids=lambda c: c.name)
def test_int_linear_gives_the_bits_of_the_reference(case, isa):
    given, extras = product_arguments(case.inputs(), isa=isa)
    assert_same(OPS.int_linear(*given, **extras), int_linear(**case.inputs())[0])


@pytest.mark.parametrize("isa", known_isas())
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda c: c.name)
def test_int_conv2d_gives_the_bits_of_the_reference(case, isa):
    given, extras = convolution_arguments(case, isa=isa)
    y = OPS.int_conv2d(*given, **extras)
    assert_same(y.permute(0, 2, 3, 1), int_conv2d(**case.inputs())[0])
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_a_channels_last_image_gives_the_codes_of_its_rows():
    inputs = group_cases.TEST_CASES[1].inputs()
    image = torch.randn(inputs["x"].shape[0], inputs["x"].shape[2], 5, 4).to(memory_format=torch.channels_last)
    _, step, *rest = norm_arguments(inputs, "groups", "eps", "silu")
    for got, rows in zip(
        OPS.group_norm_silu_quantize(image, step, *rest),
        OPS.group_norm_silu_quantize(image.permute(0, 2, 3, 1).flatten(1, 2), step, *rest),
        strict=True,
    ):
        if got.dim() == 4:
            assert got.is_contiguous(memory_format=torch.channels_last)
            got = got.permute(0, 2, 3, 1).flatten(1, 2)
        assert torch.equal(got, rows)


def middle(cases):
    return cases[len(cases) // 2]


def examples():
    inputs = [middle(c).inputs() for c in (group_cases.TEST_CASES, layer_cases.TEST_CASES, GEGLU)]
    linear, linear_extras = product_arguments(LINEARS[1].inputs())
    convolution, convolution_extras = convolution_arguments(next(c for c in CONVOLUTIONS if len(c.extras) == 4))
    yield "quantize", quantize_arguments(middle(quantize_cases.TEST_CASES).inputs()), {}
    yield "group_norm_silu_quantize", norm_arguments(inputs[0], "groups", "eps", "silu"), {}
    yield "layer_norm_quantize", norm_arguments(inputs[1], "eps"), {}
    yield "geglu_quantize", (tensor(inputs[2]["x"]), tensor(inputs[2]["step"]), *part_of(inputs[2]["output"]), True), {}
    yield "int_linear", linear, linear_extras
    yield "int_conv2d", convolution, convolution_extras


@pytest.mark.parametrize(("op", "given", "named"), examples(), ids=lambda v: v if isinstance(v, str) else "")
def test_torch_accepts_the_registration(op, given, named):
    torch.library.opcheck(getattr(OPS, op).default, tuple(given), named)


class Layer(torch.nn.Module):
    """Group norm, SiLU and codes, then an integer convolution."""

    def __init__(self, case):
        super().__init__()
        self.given, self.extras = convolution_arguments(case)
        self.register_buffer("packed", self.given[1])

    def forward(self, x, step):
        channels = x.shape[1]
        ones = torch.ones(channels)
        points = [self.given[3]]
        parts = [ones], [torch.full((len(points[0]),), 20.0)], points, [self.given[6]], [self.given[7]], [0]
        codes, _ = OPS.group_norm_silu_quantize(x, step, ones, 0 * ones, 1, 1e-5, True, *parts)
        _, _, scale, zero_point, _, *rest = self.given
        return OPS.int_conv2d(codes, self.packed, scale, zero_point, step, *rest, bias=self.extras["bias"])


@pytest.fixture(scope="module")
def layer():
    case = next(c for c in CONVOLUTIONS if c.batch > 1 and c.steps > 1)
    image = torch.randn(case.batch, case.channels, case.height, case.width).to(memory_format=torch.channels_last)
    return Layer(case), (image, tensor(case.inputs()["step"]))


def test_a_layer_is_exported_and_runs_as_before(layer):
    module, inputs = layer
    exported = torch.export.export(module, inputs, strict=False)
    names = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert {"dq_kernels.group_norm_silu_quantize.default", "dq_kernels.int_conv2d.default"} <= names
    assert torch.equal(exported.module()(*inputs), module(*inputs))


def test_a_layer_is_traced_and_compiled_without_a_break(layer):
    module, inputs = layer
    wanted = module(*inputs)
    trace = make_fx(module, tracing_mode="symbolic", _allow_non_fake_inputs=True)
    traced = trace(*inputs)
    assert torch.equal(traced(*inputs), wanted)
    assert torch.equal(torch.compile(module, backend="aot_eager", fullgraph=True)(*inputs), wanted)


def with_argument(given, index, value):
    return [*given[:index], value, *given[index + 1 :]]


def test_bad_input_is_one_clear_line():
    x, *rest = quantize_arguments(quantize_cases.TEST_CASES[1].inputs())
    linear, _ = product_arguments(LINEARS[1].inputs())
    other, _ = product_arguments(LINEARS[2].inputs())
    for call, message in (
        (lambda: OPS.quantize(x.double(), *rest), "x is torch.float64, expected torch.float32"),
        (lambda: OPS.quantize(torch.zeros(1, 3, 4, 5), *rest), "in channels_last"),
        (lambda: OPS.int_linear(*with_argument(linear, 0, linear[0].float())), "codes are torch.float32, expected"),
        (lambda: OPS.int_linear(*with_argument(linear, 1, other[1])), "expected (5, 1, 33)"),
        (lambda: OPS.int_linear(*with_argument(linear, 1, linear[1][1:])), "expected a multiple of 64"),
        (lambda: OPS.int_linear(*with_argument(linear, 1, torch.zeros(999, dtype=torch.uint8))), "packed weights"),
        (lambda: OPS.int_linear(*with_argument(linear, 4, linear[4] + 9)), "the tables have 3 rows"),
    ):
        with pytest.raises(KernelInputError) as caught:
            call()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_weights_packed_for_a_narrower_code_are_refused():
    inputs = dataclasses.replace(LINEARS[1], activation_bits=4).inputs()
    given, extras = product_arguments(inputs)
    with pytest.raises(KernelInputError, match="packed for codes up to 15, expected 255"):
        OPS.int_linear(*given[:6], -128, 127, **extras)


def test_packed_weights_begin_with_what_the_loader_reads():
    case = CONVOLUTIONS[-1]
    given, _ = convolution_arguments(case)
    head = torch_ops.check_packed(given[1].data_ptr(), given[1].numel(), head_layer(case), 1)
    assert ISAS[head.isa] == known_isas()[-1]
    assert head.code_span >= 15
    assert head.groups == -(-case.channels // 4)
    assert head.weights + head.panels * head.positions * head.groups * head.step_bytes <= given[1].numel()


def head_layer(case):
    return case.out_channels, case.kernel[0] * case.kernel[1], case.channels


INTERPRETED = """
import torch
from dq_kernels import torch_ops
from dq_kernels.gpu.launch import torch_kernels
from tests.kernels import test_torch_ops as t

def signed(codes):
    return (codes.int() - 128).to(torch.int8)

for op, given, named in t.examples():
    wanted = getattr(t.OPS, op)(*given, **named)
    given = list(given)
    if op.startswith("int_"):
        case = t.LINEARS[1] if op == "int_linear" else next(c for c in t.CONVOLUTIONS if len(c.extras) == 4)
        weights = t.tensor(case.inputs()["weights"])
        given[1] = torch_kernels.pack_weights(weights[:, None, None] if weights.dim() == 2 else weights, 4)
        codes = signed(given[0])
        given[0] = codes if codes.dim() == 3 else codes.contiguous(memory_format=torch.channels_last)
        got = getattr(torch_kernels, op)(*given, **named, weight_bits=4)
        assert torch.equal(got, wanted), op
        continue
    for mine, its in zip(getattr(torch_kernels, op)(*given, **named), wanted, strict=True):
        assert torch.equal(mine, signed(its) if its.dtype == torch.uint8 else its), op
print("same")
"""


def test_the_functions_behind_cuda_tensors_give_the_same_in_the_interpreter():
    pytest.importorskip("triton", reason="triton is not installed: pip install triton==3.7.1")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["same"]
