"""A lowered program computes what torch does, or the operation is refused by its name."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as f

from dq_deploy.errors import DqError, InputError, ModelError
from dq_deploy.record import Layer
from tests.native.programs import Case, Function, layer_of
from tests.native.random_modules import Writer

IMAGE = {"x": (("B", 6, 4, 4), "float32")}
TOKENS = {"x": (("B", 5, 6), "float32")}
SQUARE = {"x": (("B", 6, 6), "float32")}
TOLERANCE = 2e-3


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(0)))


def linear(name: str, n: int, c: int, like: Layer | None = None) -> Layer:
    return layer_of(name, [n, c], seed=ord(name), like=like)


def conv(name: str, n: int, c: int, k: int = 1, like: Layer | None = None, **changes: object) -> Layer:
    return layer_of(name, [n, c, k, k], seed=ord(name), like=like, **changes)


def halves(h: torch.Tensor, axis: int = -1) -> torch.Tensor:
    value, gate = h.chunk(2, axis)
    return value * f.gelu(gate)


def late_value(h: torch.Tensor) -> torch.Tensor:
    gate = f.gelu(h[..., 4:])
    return h[..., :4] * gate


def twice(h: torch.Tensor) -> torch.Tensor:
    return h + h.transpose(1, 2)


def padded_twice(m: Function, x: torch.Tensor) -> torch.Tensor:
    p = f.pad(f.silu(x), (0, 1, 0, 1))
    return m.a(p) + m.b(p)


def many_readers(m: Function, x: torch.Tensor) -> torch.Tensor:
    h = f.silu(f.group_norm(x, 2))
    return m.a(h) + m.b(h) + m.c(h) + m.d(h) + h[:, :3]


def plain_readers(m: Function, x: torch.Tensor) -> torch.Tensor:
    h = f.group_norm(x, 2)
    return f.silu(h) + m.a(h)


def dead_reader(m: Function, x: torch.Tensor) -> torch.Tensor:
    h = f.group_norm(x, 2)
    m.b(h)
    return m.a(h)


def unity(m: Function, x: torch.Tensor) -> torch.Tensor:
    return (f.group_norm(x, 2) * 1.0).flatten(1) * 2


def in_place(m: Function, x: torch.Tensor) -> torch.Tensor:
    y = x * 3
    y.add_(1.0)
    y[:, :2] /= 2
    y[:, 3].copy_(x[:, 0])
    y.transpose(1, 2)[:, 1:3].mul_(x.mean((1, 2, 3), keepdim=True))
    return y * 2


def filled(m: Function, x: torch.Tensor) -> torch.Tensor:
    y = torch.zeros(len(x), 7, 6)
    y[:, 1:6] += x
    return y.view(-1, 6) @ torch.ones(6, 3) + y.reshape(-1, 6)[:, 3:]


def heads_turned(m: Function, x: torch.Tensor) -> torch.Tensor:
    q = x.view(len(x), -1, 2, 3).transpose(1, 2) * x[:, :2, :1, None]
    q = torch.cat([q, q[:, :, 1:] + 1], 2)
    return (f.scaled_dot_product_attention(q, q * 2, q).transpose(1, 2) + 1).flatten(2)


def rotated(m: Function, x: torch.Tensor) -> torch.Tensor:
    pairs = torch.view_as_complex(x.unflatten(2, (3, 2)))
    turns = torch.polar(torch.ones(5, 3), torch.arange(15.0).view(5, 3))
    return torch.view_as_real((pairs * turns)[:, 1:].conj().resolve_conj()).flatten(2)


def attended(x: torch.Tensor, **more: object) -> torch.Tensor:
    q = x.view(x.shape[0], -1, 2, 3).transpose(1, 2)
    return f.scaled_dot_product_attention(q, q * 2, q, **more).transpose(1, 2).reshape(x.shape)


def masked_attention(m: Function, x: torch.Tensor) -> torch.Tensor:
    return attended(x, attn_mask=(x[:, None, None, :, 0] > -1)) + attended(x, attn_mask=x[:, None, :, :1] * x[0, 0, 0])


def shared_keys(m: Function, x: torch.Tensor) -> torch.Tensor:
    q = x.view(x.shape[0], -1, 2, 3).transpose(1, 2)
    k = q[:, :1]
    return f.scaled_dot_product_attention(q, k, k * 2, enable_gqa=True).transpose(1, 2).reshape(x.shape)


FLOATS = {
    "a parameter of an image broadcast": (IMAGE, lambda m, x: x + m.w, {"w": parameter(1, 6, 4, 4)}),
    "a buffer of an image broadcast": (IMAGE, lambda m, x: x + m.w, {"w": torch.rand(1, 6, 4, 4)}),
    "a slice of a parameter": (IMAGE, lambda m, x: x[:, :2] + m.w[0, 2:4], {"w": parameter(1, 6, 4, 4)}),
    "a transposed square parameter": (SQUARE, lambda m, x: x + m.w.t(), {"w": parameter(6, 6)}),
    "a slice of a kernel": (IMAGE, lambda m, x: f.conv2d(x[:, :3], m.w[:, 2:5]), {"w": parameter(4, 6, 3, 3)}),
    "a buffer as kernel": (IMAGE, lambda m, x: f.conv2d(x, m.w), {"w": torch.rand(6, 6, 3, 3)}),
    "norm parameters apart": (IMAGE, lambda m, x: f.group_norm(x, 2, m.w[:, 0], m.w[:, 1]), {"w": parameter(6, 2)}),
    "row norm parameters apart": (TOKENS, lambda m, x: f.layer_norm(x, (6,), m.w[:, 0], None), {"w": parameter(6, 2)}),
    "add with a factor": (IMAGE, lambda m, x: torch.add(x, x * 2, alpha=3), {}),
    "add a number with a factor": (IMAGE, lambda m, x: torch.add(x, 2, alpha=3), {}),
    "subtract with a factor": (IMAGE, lambda m, x: torch.sub(x, x * 2, alpha=3), {}),
    "times one of another order": (IMAGE, unity, {}),
    "whole numbers joined to floats": (TOKENS, lambda m, x: torch.cat([x, x.to(torch.int64)], 1), {}),
    "whole numbers": (TOKENS, lambda m, x: (x * 3).to(torch.int64) * 2.0, {}),
    "float16 between": (IMAGE, lambda m, x: (x.half() * 2).float(), {}),
    "folded and transposed": (SQUARE, lambda m, x: x + torch.arange(36).reshape(6, 6).t() * 1.0, {}),
    "a repeat by expansion": (
        TOKENS,
        lambda m, x: (x * 2)[:, :, None].expand(-1, -1, 3, -1).reshape(-1, 15, 6) + 1,
        {},
    ),
    "overlapping windows": (IMAGE, lambda m, x: f.group_norm(x, 2).unfold(2, 2, 1) * 1.5, {}),
    "steps in every axis": (IMAGE, lambda m, x: f.group_norm(x, 2)[:, ::2, ::3, 1::2] * 1.5, {}),
    "a diagonal": (IMAGE, lambda m, x: torch.diagonal(f.group_norm(x, 2), 0, 2, 3) * 1.5, {}),
    "padding by a value": (IMAGE, lambda m, x: f.pad(x, (1, 2, 0, 1), value=2.0), {}),
    "upsampling": (IMAGE, lambda m, x: f.interpolate(x, scale_factor=(2.0, 3.0)), {}),
    "the input": (IMAGE, lambda m, x: x, {}),
    "a view of the input": (IMAGE, lambda m, x: x[:, 1:3].transpose(1, 2), {}),
    "halves of adjacent features": (TOKENS, lambda m, x: halves(x * 2), {}),
    "writes in place": (IMAGE, in_place, {}),
    "an image viewed as rows of its memory": (IMAGE, lambda m, x: x.view(-1, 12, 8).transpose(1, 2) * 2, {}),
    "an activation in place": (IMAGE, lambda m, x: f.relu(x * 3, inplace=True) * 2, {}),
    "division rounded down": (IMAGE, lambda m, x: torch.div(x, 0.3, rounding_mode="floor"), {}),
    "a scaled sum behind a product": (TOKENS, lambda m, x: torch.addmm(x[0], x[0][:, :5], x[0], beta=2) + x, {}),
    "bits of floats as whole numbers": (IMAGE, lambda m, x: ((x.view(torch.int32) >> 8) + 1).to(torch.float32), {}),
    "complex numbers": (TOKENS, rotated, {}),
    "padding by less than nothing": (IMAGE, lambda m, x: f.pad(x, (-1, 2, 0, 1)), {}),
    "upsampling by parts": (IMAGE, lambda m, x: f.interpolate(x, size=(7, 9)), {}),
    "bfloat16 between": (IMAGE, lambda m, x: (x.bfloat16() * 1.7).float(), {}),
    "constants as long as the batch": (TOKENS, lambda m, x: x + torch.arange(6.0).expand(len(x), 5, 6).cumsum(0), {}),
    "the batch with one more": (TOKENS, lambda m, x: torch.cat([x, x[:1]])[1:] * 2, {}),
    "values filled with one number": (
        TOKENS,
        lambda m, x: (x * torch.ones(len(x), 1, 1)).tril() + torch.full_like(x, 2),
        {},
    ),
    "a fill written into": (TOKENS, filled, {}),
    "nothing joined to something": (TOKENS, lambda m, x: torch.cat([x[:, :0], x * 2], 1) + x[:, 5:].sum(), {}),
    "means of windows side by side": (
        IMAGE,
        lambda m, x: f.avg_pool2d(f.silu(x), 2) + f.avg_pool2d(x, (4, 1))[..., :2],
        {},
    ),
    "means of windows that overlap": (IMAGE, lambda m, x: f.avg_pool2d(x, 3, stride=1, padding=1), {}),
    "padding of other axes": (TOKENS, lambda m, x: f.pad(x * 2, (1, 0, 2, 3)), {}),
    "values of four axes that are no image": (TOKENS, heads_turned, {}),
    "a mask of keys": (TOKENS, masked_attention, {}),
    "attention to the past": (TOKENS, lambda m, x: attended(x, is_causal=True), {}),
    "heads that share keys": (TOKENS, shared_keys, {}),
    "a RMS norm": (TOKENS, lambda m, x: f.rms_norm(x, (6,), m.w, 1e-6), {"w": parameter(6)}),
    "a norm of two axes": (TOKENS, lambda m, x: f.layer_norm(x, (5, 6)), {}),
    "a norm in float64": (IMAGE, lambda m, x: f.group_norm(x.double(), 2).float(), {}),
    "a linear layer on other strides": (
        SQUARE,
        lambda m, x: f.linear(x.transpose(1, 2), m.w, m.b),
        {"w": parameter(3, 6), "b": parameter(3)},
    ),
    "a convolution of rows": (TOKENS, lambda m, x: f.conv1d(x, m.w, padding=1), {"w": parameter(4, 5, 3)}),
    "a transposed convolution": (
        IMAGE,
        lambda m, x: f.conv_transpose2d(x, m.w, stride=2, padding=1, output_padding=1, groups=2),
        {"w": parameter(6, 2, 3, 3)},
    ),
    "a constant made in the module": (TOKENS, lambda m, x: x * torch.tensor([1.0, 2, 3, 4, 5, 6]), {}),
    "group norm of rows": (TOKENS, lambda m, x: f.group_norm(x, 1) * 2, {}),
}
LINEAR, CONV = nn.Linear(6, 6), nn.Conv2d(6, 6, 1)
ALIKE_A, ALIKE_6 = linear("a", 4, 3), linear("a", 4, 6)
INTEGERS = {
    "equal quantizers of two halves": (
        TOKENS,
        lambda m, x: m.a(x[..., :3]) + m.b(x[..., 3:]),
        {"a": nn.Linear(3, 4), "b": nn.Linear(3, 4)},
        [ALIKE_A, linear("b", 4, 3, like=ALIKE_A)],
    ),
    "equal quantizers of a tensor and its transpose": (
        SQUARE,
        lambda m, x: m.a(x) + m.b(x.transpose(1, 2)),
        {"a": nn.Linear(6, 4), "b": nn.Linear(6, 4)},
        [ALIKE_6, linear("b", 4, 6, like=ALIKE_6)],
    ),
    "equal quantizers read on two axes": (
        IMAGE,
        lambda m, x: m.a(x) + m.b(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        {"a": nn.Conv2d(6, 4, 1), "b": nn.Linear(6, 4)},
        [conv("a", 4, 6, like=ALIKE_6), linear("b", 4, 6, like=ALIKE_6)],
    ),
    "a linear layer on pixels": (
        IMAGE,
        lambda m, x: x + m.a(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        {"a": LINEAR},
        [linear("a", 6, 6)],
    ),
    "a row added to a linear layer on four axes": (
        {**IMAGE, "t": (("B", 6), "float32")},
        lambda m, x, t: m.a(x) + t[:, :, None, None],
        {"a": nn.Linear(4, 8)},
        [linear("a", 8, 4)],
    ),
    "a row of whole numbers": (
        {**IMAGE, "t": (("B", 6), "int64")},
        lambda m, x, t: m.a(x) + t[:, :, None, None],
        {"a": CONV},
        [conv("a", 6, 6)],
    ),
    "a row whose features lie apart": (
        {**IMAGE, "t": (("B", 6, 3), "float32")},
        lambda m, x, t: m.a(x) + (t * 2)[:, :, 1, None, None],
        {"a": CONV},
        [conv("a", 6, 6)],
    ),
    "a row of one number a sample": (
        {**IMAGE, "t": (("B", 1), "float32")},
        lambda m, x, t: m.a(x) + (t * 2).expand(-1, 6)[:, :, None, None],
        {"a": CONV},
        [conv("a", 6, 6)],
    ),
    "a residual lowered later, in another order": (
        SQUARE,
        lambda m, x: m.a(x) + (x * 2).transpose(1, 2).contiguous(),
        {"a": LINEAR},
        [linear("a", 6, 6)],
    ),
    "a tensor added to its transpose": (SQUARE, lambda m, x: twice(m.a(x)), {"a": LINEAR}, [linear("a", 6, 6)]),
    "halves of some rows": (
        TOKENS,
        lambda m, x: halves(m.a(x)[:, 1:4]),
        {"a": nn.Linear(6, 8)},
        [linear("a", 8, 6)],
    ),
    "the value of a GEGLU taken last": (
        TOKENS,
        lambda m, x: late_value(m.a(x)),
        {"a": nn.Linear(6, 8)},
        [linear("a", 8, 6)],
    ),
    "a GEGLU of channels": (IMAGE, lambda m, x: halves(m.a(x), 1), {"a": CONV}, [conv("a", 6, 6)]),
    "a norm read with its columns split": (
        IMAGE,
        lambda m, x: m.a(f.group_norm(x, 2).view(-1, 6, 4, 2, 2)),
        {"a": nn.Linear(2, 3)},
        [linear("a", 3, 2)],
    ),
    "a norm read transposed": (
        IMAGE,
        lambda m, x: m.a(f.group_norm(x, 2).transpose(2, 3)),
        {"a": nn.Conv2d(6, 3, 3, padding=1)},
        [conv("a", 3, 6, 3, padding=(1, 1, 1, 1))],
    ),
    "a norm read by more layers than its kernel writes for": (
        IMAGE,
        many_readers,
        {name: nn.Conv2d(6, 3, 1) for name in "abcd"},
        [conv(name, 3, 6) for name in "abcd"],
    ),
    "a norm read before and behind its activation": (IMAGE, plain_readers, {"a": CONV}, [conv("a", 6, 6)]),
    "a norm with a reader whose result is dropped": (
        IMAGE,
        dead_reader,
        {"a": CONV, "b": nn.Linear(4, 3)},
        [conv("a", 6, 6), linear("b", 3, 4)],
    ),
    "zeros read by two layers": (
        IMAGE,
        padded_twice,
        {name: nn.Conv2d(6, 3, 3, stride=2) for name in "ab"},
        [conv(name, 3, 6, 3, stride=(2, 2)) for name in "ab"],
    ),
    "repeated rows": (
        TOKENS,
        lambda m, x: m.a((x * 2)[:, :1].expand(-1, 4, -1)),
        {"a": LINEAR},
        [linear("a", 6, 6)],
    ),
    "a parameter": (
        TOKENS,
        lambda m, x: m.a(m.p.expand(x.shape[0], 3, 6)) + x[:, :3],
        {"a": LINEAR, "p": parameter(1, 1, 6)},
        [linear("a", 6, 6)],
    ),
    "images of one pixel": (
        {"x": (("B", 6, 1, 1), "float32")},
        lambda m, x: m.a(f.silu(x)) + x,
        {"a": nn.Conv2d(6, 6, 3, padding=1)},
        [conv("a", 6, 6, 3, padding=(1, 1, 1, 1))],
    ),
    "images of one channel": (
        {"x": (("B", 1, 4, 4), "float32")},
        lambda m, x: torch.cat([m.a(f.silu(x)) + x, x * 2], 1),
        {"a": nn.Conv2d(1, 1, 3, padding=1)},
        [conv("a", 1, 1, 3, padding=(1, 1, 1, 1))],
    ),
    "one layer twice": (TOKENS, lambda m, x: m.a(m.a(x) * 0.1), {"a": LINEAR}, [linear("a", 6, 6)]),
    "the sum of two layers": (
        TOKENS,
        lambda m, x: m.a(x) + m.b(x),
        {"a": LINEAR, "b": nn.Linear(6, 6)},
        [linear("a", 6, 6), linear("b", 6, 6)],
    ),
    "two parts of a concatenation": (
        IMAGE,
        lambda m, x: m.a(torch.cat([f.silu(x), x], 1)),
        {"a": nn.Conv2d(12, 3, 1)},
        [conv("a", 3, 12, split=6)],
    ),
    "padding of its own on two sides and zeros on others": (
        IMAGE,
        lambda m, x: m.a(f.pad(x, (2, 0, 1, 3))),
        {"a": nn.Conv2d(6, 6, 2, padding="same")},
        [conv("a", 6, 6, 2, padding=(0, 0, 1, 1))],
    ),
}
REFUSED = {
    "draws random numbers": (IMAGE, lambda m, x: x + torch.randn(4)),
    "is not known to the native engine": (SQUARE, lambda m, x: torch.linalg.inv(x)),
    "a value is float8_e4m3fn": (IMAGE, lambda m, x: (x.to(torch.float8_e4m3fn)).float()),
    "not on the line": (TOKENS, lambda m, x: x.chunk(2, 0)[0] * 2),
    "of 2 and 3, expected sizes that grow": (
        TOKENS,
        lambda m, x: (x[:, None, :, 0] - x[None, :, :, 0]).flatten() * 2,
    ),
    "for one batch and": (TOKENS, lambda m, x: x * 2 if len(x) == 2 else x + 2),
    "for another in the same place": (TOKENS, lambda m, x: x * 2 if len(x) == 2 else x * 2 * 3),
    "could not trace": (TOKENS, lambda m, x: x[x > 0].sum() + x),
}


@pytest.mark.parametrize("what", FLOATS)
def test_float_operations_are_torchs(what):
    inputs, function, own = FLOATS[what]
    assert Case(Function(function, **own), inputs).difference() < TOLERANCE


@pytest.mark.parametrize("what", INTEGERS)
def test_integer_layers_read_and_write_what_torch_says(what):
    inputs, function, own, layers = INTEGERS[what]
    assert Case(Function(function, **own), inputs, layers).difference() < TOLERANCE


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_known_is_refused_by_name(message):
    inputs, function = REFUSED[message]
    with pytest.raises(DqError, match=message):
        Case(Function(function), inputs)


def test_a_layer_that_reads_another_width_is_refused():
    with pytest.raises(ModelError, match="expected 5 channels on axis 1"):
        Case(Function(lambda m, x: m.a(x), a=CONV), IMAGE, [conv("a", 6, 5)])


def test_a_layer_whose_weights_are_read_outside_it_is_refused():
    module = Function(lambda m, x: m.a(x.to(m.a.weight.dtype)) + f.linear(x, m.a.weight), a=LINEAR)
    with pytest.raises(ModelError, match="reads the weights of layer a outside it"):
        Case(module, TOKENS, [linear("a", 6, 6)])


def test_entries_that_fold_other_axes_into_the_batch_take_their_samples_step():
    folded = Function(lambda m, x: m.a(x.flatten(0, 1)).unflatten(0, (-1, 5)), a=LINEAR)
    assert Case(folded, TOKENS, [linear("a", 4, 6)]).difference() < TOLERANCE


def test_entries_that_belong_to_no_sample_are_refused_where_there_are_steps():
    shared = Function(lambda m, x: x + m.a(m.p), a=LINEAR, p=parameter(5, 6))
    with pytest.raises(InputError, match="leading axis has 5 entries, expected a multiple of the 2 samples"):
        Case(shared, TOKENS, [linear("a", 6, 6)]).difference(batches=[2])


def test_a_copy_that_two_layers_need_is_made_once():
    module = Function(lambda m, x: m.a(x.transpose(1, 2)) + m.b(x.transpose(1, 2)), a=LINEAR, b=nn.Linear(6, 6))
    case = Case(module, SQUARE, [linear("a", 6, 6), linear("b", 6, 6)])
    assert case.kinds().count("elementwise") == 1
    assert case.difference() < TOLERANCE


@pytest.mark.parametrize("seed", range(24))
def test_random_modules_are_torchs(seed):
    assert Writer(seed).case().difference() < 0.05  # codes at ties may flip


def test_a_mask_of_truth_values_is_an_input() -> None:
    class Masked(torch.nn.Module):
        def forward(self, x, mask):
            return torch.where(mask, x, x * 0.5)

    case = Case(Masked(), {"x": (("B", 4), "float32"), "mask": (("B", 4), "bool")})
    assert case.difference() < 1e-6
