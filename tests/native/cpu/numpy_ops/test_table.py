"""Each operation in numpy gives what torch gives, in every type and for broadcast shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_deploy.native.cpu import host_ops
from dq_deploy.native.cpu.numpy_ops.table import TABLE

aten = torch.ops.aten
Tensor = torch.Tensor


def values(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, low: float = -3, high: float = 3) -> Tensor:
    """Numbers between two limits; whole ones, and none of them 0, where the type has no fractions."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low
    if dtype.is_floating_point:
        return drawn.to(dtype)
    if dtype == torch.bool:
        return drawn > 0
    if dtype.is_complex:
        return torch.complex(drawn, drawn.flip(-1)).to(dtype)
    whole = drawn.round().to(dtype)
    return torch.where(whole == 0, torch.ones_like(whole), whole)


def in_numpy(
    function: Any, args: Sequence[Any], kwargs: dict[str, Any], results: Sequence[Tensor], several: bool
) -> list[np.ndarray]:
    """The operation by its function of the table, called as a program calls it."""
    reads: dict[str, np.ndarray] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            reads[f"x{len(reads)}"] = value.numpy()
            return {"read": f"x{len(reads) - 1}"}
        return [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value

    tensors = [a for a in args if isinstance(a, Tensor)]
    numbers = [a for a in args if isinstance(a, (int, float)) and not isinstance(a, bool)]
    result = results[0].dtype
    if result == torch.bool and tensors:
        result = tensors[0].dtype
        for other in (*tensors[1:], *numbers):
            result = torch.result_type(torch.zeros(1, dtype=result), other)
    compute = "float32" if result in (torch.float16, torch.bfloat16) else str(result).removeprefix("torch.")
    name = str(function).removeprefix("aten.")
    given = {"function": name, "args": plain(list(args)), "kwargs": plain_kwargs(kwargs, plain), "compute": compute}
    writes = {f"y{i}" if several else "y": np.empty(r.shape, r.numpy().dtype) for i, r in enumerate(results)}
    host_ops.call(given, reads, writes)
    return list(writes.values())


def plain_kwargs(kwargs: dict[str, Any], plain: Callable[[Any], Any]) -> dict[str, Any]:
    return {key: plain(value) for key, value in kwargs.items() if key != "dtype"}


def check(function: Any, *args: Any, results: int | None = None, **kwargs: Any) -> None:
    """Compare; floats to their rounding, everything else exactly."""
    given = function(*args, **kwargs)
    wanted = list(given) if isinstance(given, (tuple, list)) else [given]
    wanted = [w.resolve_conj().resolve_neg() for w in wanted[:results]]
    for got, want in zip(
        in_numpy(function, args, kwargs, wanted, isinstance(given, (tuple, list))), wanted, strict=True
    ):
        loose = {torch.float16: 2e-3, torch.float32: 2e-5, torch.complex64: 2e-5}.get(want.dtype, 1e-10)
        if want.dtype.is_floating_point or want.dtype.is_complex:
            scale = float(want[torch.isfinite(want)].abs().max()) if torch.isfinite(want).any() else 1.0
            np.testing.assert_allclose(
                got, want.numpy(), rtol=loose, atol=loose * max(scale, 1e-3), err_msg=str(function)
            )
        else:
            np.testing.assert_array_equal(got, want.numpy(), err_msg=str(function))


FLOATS = (torch.float32, torch.float64, torch.float16)
WHOLE = (torch.int64, torch.int32, torch.uint8)
OF_FLOATS = (
    *("exp", "exp2", "expm1", "sin", "cos", "tan", "sinh", "cosh", "tanh", "asinh", "atan", "sigmoid", "silu", "gelu"),
    *("softplus", "elu", "mish", "hardsigmoid", "hardswish", "leaky_relu", "erf", "erfc", "frac", "reciprocal"),
    *("square", "lgamma", "digamma", "i0", "sinc", "log_sigmoid_forward"),
)
OF_POSITIVE = ("log", "log2", "log10", "log1p", "sqrt", "rsqrt")
OF_SMALL = ("asin", "acos", "atanh", "erfinv")
OF_ALL = (
    "abs",
    "neg",
    "sign",
    "sgn",
    "relu",
    "isnan",
    "isinf",
    "isfinite",
    "signbit",
    "ceil",
    "floor",
    "trunc",
    "round",
)
PAIRS = (
    *("add", "sub", "mul", "div", "pow", "fmod", "remainder", "maximum", "minimum", "fmax", "fmin", "eq", "ne", "lt"),
    *("le", "gt", "ge", "logical_and", "logical_or", "logical_xor"),
)


@pytest.mark.parametrize("dtype", FLOATS)
def test_functions_of_one_number(dtype):
    for name in OF_FLOATS:
        check(getattr(aten, name).default, values(4, 5, dtype=dtype), results=1)
    for name in OF_POSITIVE:
        check(getattr(aten, name).default, values(4, 5, dtype=dtype, low=0.1))
    for name in OF_SMALL:
        check(getattr(aten, name).default, values(4, 5, dtype=dtype, low=-0.9, high=0.9))
    for name in (*OF_ALL, "logical_not"):
        check(getattr(aten, name).default, values(4, 5, dtype=dtype))
    check(aten.acosh.default, values(4, dtype=dtype, low=1.1))
    check(aten.gelu.default, values(4, dtype=dtype), approximate="tanh")
    check(aten.hardtanh.default, values(9, dtype=dtype), -0.5, 1.5)
    check(aten.round.decimals, values(9, dtype=dtype), decimals=1)


@pytest.mark.parametrize("dtype", WHOLE)
def test_functions_of_one_whole_number(dtype):
    for name in OF_ALL:
        check(getattr(aten, name).default, values(4, 5, dtype=dtype, low=0 if dtype == torch.uint8 else -3))
    check(aten.bitwise_not.default, values(4, 5, dtype=dtype))
    for name in ("exp", "sin", "sigmoid", "sqrt"):
        check(getattr(aten, name).default, values(4, 5, dtype=dtype, low=1))


@pytest.mark.parametrize("one", [*FLOATS, torch.int64])
@pytest.mark.parametrize("other", [torch.float32, torch.int32])
def test_functions_of_two_numbers_with_broadcasting(one, other):
    a, b = values(3, 1, 4, dtype=one, low=0.5), values(2, 4, dtype=other, seed=1)
    for name in PAIRS:
        if name == "pow" and not (one.is_floating_point or other.is_floating_point):
            continue
        packet = getattr(aten, name)
        check(
            getattr(packet, next(o for o in ("Tensor", "Tensor_Tensor", "default") if o in packet.overloads())),
            *pair(name, a, b),
        )
    for rounding in (None, "floor", "trunc"):
        check(aten.div.Tensor_mode, a, b, rounding_mode=rounding)
    check(aten.add.Tensor, a, b, alpha=2)
    check(aten.rsub.Scalar, a, 2)
    check(aten.where.self, a > 1, a, b)
    check(aten.clamp.Tensor, a, b.to(one), None)


def pair(name: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return (a, b.abs()) if name == "pow" else (a, b)


def test_numbers_beside_arrays_keep_the_arrays_type():
    for x in (values(5), values(5, dtype=torch.float16), values(5, dtype=torch.int64)):
        for name in ("add", "mul", "div", "eq", "lt"):
            check(getattr(aten, name).Scalar, x, 2)
            check(getattr(aten, name).Scalar, x, 1.5)
        check(aten.pow.Tensor_Scalar, x, 3)
        check(aten.clamp.default, x, -1, 2)
        check(aten.masked_fill.Scalar, x, x > 0, 7)
    check(aten.pow.Scalar, 2, values(5))
    check(aten.bitwise_and.Tensor, values(5, dtype=torch.int64), values(5, dtype=torch.int64, seed=1))
    check(aten.lerp.Scalar, values(5), values(5, seed=1), 0.7)
    check(aten.addcmul.default, values(5), values(5, seed=1), values(5, seed=2), value=0.5)
    check(aten.nan_to_num.default, torch.tensor([1.0, float("nan"), float("inf")]), 2.0, 9.0)
    check(aten.atan2.default, values(5), values(5, seed=1))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64])
@pytest.mark.parametrize("dims", [[1], [-1, 0], [0, 1, 2]])
@pytest.mark.parametrize("keep", [False, True])
def test_reductions(dtype, dims, keep):
    x = values(3, 4, 5, dtype=dtype)
    check(aten.sum.dim_IntList, x, dims, keep)
    check(aten.amax.default, x, dims, keep)
    check(aten.amin.default, x, dims, keep)
    check(aten.any.dims, x > 2, dims, keep)
    if dtype.is_floating_point:
        check(aten.mean.dim, x, dims, keep)
        check(aten.var.correction, x, dims, correction=1, keepdim=keep)
        check(aten.std.correction, x, dims, correction=0, keepdim=keep)
        check(aten.var_mean.correction, x, dims, correction=0, keepdim=keep)
        check(aten.linalg_vector_norm.default, x, 2, dims, keep)
        check(aten.logsumexp.default, x, dims, keep)
    if len(dims) == 1:
        check(aten.max.dim, x + torch.arange(4)[:, None].to(dtype), dims[0], keep)
        check(aten.argmax.default, x + torch.arange(4)[:, None].to(dtype) * 9, dims[0], keep)
        check(aten.prod.dim_int, x, dims[0], keep)
        check(aten.cumsum.default, x, dims[0])


def test_whole_reductions_and_orders():
    x = torch.randperm(60, generator=torch.Generator().manual_seed(0)).reshape(3, 4, 5).float()
    for function in (aten.sum.default, aten.mean.default, aten.max.default, aten.min.default, aten.argmin.default):
        check(function, x)
    for descending in (False, True):
        check(aten.sort.default, x, 1, descending)
        check(aten.sort.stable, (x / 20).floor(), stable=True, dim=-1, descending=descending)
        check(aten.topk.default, x, 2, 1, descending)
    check(aten.any.default, x > 100)
    check(aten.all.dim, x > 1, 1)
    check(aten.cumprod.default, x / 30, 2)


def test_arrays_made_new():
    for args in ((7,), (2, 9), (1.5, 4.0, 0.3)):
        overload = (aten.arange.default, aten.arange.start, aten.arange.start_step)[len(args) - 1]
        check(overload, *args, dtype=torch.float32)
    check(aten.linspace.default, -1.0, 2.0, 7)
    check(aten.full.default, [2, 3], 1.5)
    check(aten.full_like.default, values(2, 3), 4)
    check(aten.zeros_like.default, values(2, 3))
    check(aten.new_ones.default, values(2), [3])
    check(aten.scalar_tensor.default, 2.5)
    check(aten.eye.m, 3, 4)
    check(aten._to_copy.default, values(3, 4) * 50, dtype=torch.int32)
    check(aten.copy.default, values(3, 4), values(4, seed=1))
    check(aten.view.dtype, values(3, 4), torch.int32)


def test_look_ups_and_writes_at_places():
    x, i = values(4, 5, 6), torch.tensor([[0, 3], [2, 1]])
    check(aten.index.Tensor, x, [None, i])
    check(aten.index.Tensor, x, [i, None, i])
    check(aten.index_put.default, x, [i], values(2, 2, 5, 6, seed=1))
    check(aten.index_put.default, x, [torch.tensor([1, 1])], values(2, 5, 6, seed=1), True)
    check(aten.index_select.default, x, 1, torch.tensor([4, 0]))
    check(aten.embedding.default, values(7, 3), i)
    g = torch.randint(0, 5, (4, 2, 6), generator=torch.Generator().manual_seed(0))
    check(aten.gather.default, x, 1, g)
    order = torch.tensor([3, 1])[None, :, None].expand(4, 2, 6)
    check(aten.scatter.src, x, 1, order, values(4, 2, 6, seed=1))
    check(aten.scatter.value, x, 1, order, 2.0)
    check(aten.scatter_add.default, x, 1, g, values(4, 2, 6, seed=1))
    check(aten.scatter_reduce.two, x, 1, g, values(4, 2, 6, seed=1), "amax")
    check(aten.slice_scatter.default, x, values(4, 2, 6, seed=1), 1, 1, 5, 2)
    check(aten.select_scatter.default, x, values(4, 6, seed=1), 1, -2)
    check(aten.diagonal_scatter.default, x, values(4, 5, seed=1), 1, 1, 2)
    check(aten.as_strided_scatter.default, values(20), values(3, 2, seed=1), [3, 2], [6, 2], 1)
    check(aten.searchsorted.Tensor, torch.arange(5.0), values(7), right=True)
    check(aten.bucketize.Tensor, values(7), torch.arange(5.0))


def test_paddings_and_orders_of_elements():
    x = values(2, 3, 5, 6)
    check(aten.constant_pad_nd.default, x, [1, 2, -1, 3], 1.5)
    check(aten.constant_pad_nd.default, x, [-2, 0])
    for name in ("reflection_pad2d", "replication_pad2d"):
        check(getattr(aten, name).default, x, [1, 2, 0, 3])
    check(aten.roll.default, x, [1, -2], [1, 3])
    check(aten.roll.default, x, [3])
    check(aten.flip.default, x, [0, -1])
    check(aten.repeat.default, x, [2, 1, 3, 1, 2])
    check(aten.cat.default, [x, x[:, :1]], 1)
    check(aten.stack.default, [x, x * 2], 2)
    check(aten.tril.default, x, 1)
    check(aten.triu.default, x, -1)


def test_products():
    a, b = values(2, 3, 4), values(2, 4, 5, seed=1)
    check(aten.bmm.default, a, b)
    check(aten.bmm.default, a.transpose(1, 2), a)
    check(aten.mm.default, a[0].half(), b[0].half())
    check(aten.mm.default, (a[0] * 3).long(), (b[0] * 3).long())
    check(aten.addmm.default, values(5), a[0], b[0], beta=2, alpha=0.5)
    check(aten.baddbmm.default, torch.full((2, 3, 5), float("nan")), a, b, beta=0, alpha=0.5)
    check(aten._softmax.default, a, 1, False)
    check(aten._log_softmax.default, a, -1, False)


@given(
    st.sampled_from([1, 2, 3]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 2),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_convolutions_of_every_rank(rank, kernel, stride, padding, groups, transposed):
    x = values(2, 4, *(7, 6, 5)[:rank])
    shape = (4, 2, *[kernel] * rank) if transposed else (6, 4 // groups, *[kernel] * rank)
    bias = values(2 * groups if transposed else 6, seed=2)
    more = [stride - 1] * rank if transposed else [0] * rank
    sizes = ([stride] * rank, [min(padding, kernel - 1)] * rank, [1 + kernel % 2] * rank)
    check(aten.convolution.default, x, values(*shape, seed=1), bias, *sizes, transposed, more, groups)


def test_attention_with_masks():
    q, k, v = (values(2, 4, 5, 8, seed=i) for i in range(3))
    flash = aten._scaled_dot_product_flash_attention_for_cpu.default
    check(flash, q, k, v, results=1)
    check(flash, q, k, v, 0.0, True, results=1)
    check(flash, q, k, v, attn_mask=values(2, 1, 1, 5), scale=0.3, results=1)
    check(flash, q, k, v, attn_mask=torch.full((5, 5), float("-inf")).triu(1), results=1)


def test_norms():
    x, w, b = values(2, 6, 3, 4), values(6, seed=1), values(6, seed=2)
    check(aten.native_group_norm.default, x, w, b, 2, 6, 12, 3, 1e-5)
    check(aten.native_layer_norm.default, x.double(), [3, 4], values(3, 4).double(), None, 1e-6)
    norm = aten._native_batch_norm_legit_no_training.default
    check(norm, x, w, b, values(6, seed=3), values(6, low=0.1, seed=4), 0.1, 1e-5, results=1)


def test_pools_and_pixels_moved():
    x = values(2, 4, 7, 6)
    check(aten.avg_pool2d.default, x, [3, 2], [2, 2], [1, 0])
    check(aten.avg_pool2d.default, x, [3, 3], [2, 2], [1, 1], True, False)
    check(aten.avg_pool2d.default, x, [2], [], 0, True)
    check(aten.avg_pool2d.default, x, [2, 2], [2, 2], [0, 0], False, True, 3)
    check(aten.max_pool2d_with_indices.default, x, [3, 3], [2, 2], [1, 1], 1, True)
    check(aten._adaptive_avg_pool2d.default, x, [3, 4])
    check(aten.pixel_shuffle.default, x, 2)
    check(aten.pixel_unshuffle.default, x[:, :, :6], 2)
    check(aten.channel_shuffle.default, x, 2)
    check(aten.im2col.default, x, [2, 3], [1, 2], [1, 0], [2, 1])
    check(
        aten.col2im.default,
        aten.im2col.default(x, [2, 3], [1, 1], [1, 0], [2, 1]),
        [7, 6],
        [2, 3],
        [1, 1],
        [1, 0],
        [2, 1],
    )


@pytest.mark.parametrize("size", [[9, 11], [3, 4], [14, 12]])
def test_images_of_another_size(size):
    x = values(1, 2, 7, 6)
    for name in ("upsample_nearest2d", "_upsample_nearest_exact2d"):
        check(getattr(aten, name).default, x, size)
    check(aten.upsample_nearest2d.default, x, [11, 9], 1.6, 1.5)
    for name in ("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"):
        for corners in (False, True):
            check(getattr(aten, name).default, x, size, corners)
    check(aten.upsample_bilinear2d.default, x, [11, 9], False, 1.6, 1.5)
    check(aten.upsample_linear1d.default, x[0], [size[0]], False)
    check(aten.upsample_trilinear3d.default, values(1, 2, 3, 4, 5), [4, *size], True)


def test_complex_numbers():
    z = values(3, 4, dtype=torch.complex64)
    check(aten.view_as_real.default, z)
    check(aten.view_as_complex.default, values(3, 4, 2))
    check(aten.polar.default, values(3, 4), values(4, seed=1))
    check(aten.complex.default, values(3, 4), values(4, seed=1))
    check(aten._conj_physical.default, z)
    check(aten.mul.Tensor, z, values(3, 4, dtype=torch.complex64, seed=1))
    check(aten.abs.default, z)
    check(aten.angle.default, z)
    for normalization in (0, 1, 2):
        check(aten._fft_r2c.default, values(4, 6), [0, 1], normalization, True)
        check(aten._fft_c2c.default, z, [0, 1], normalization, True)
        check(aten._fft_c2c.default, z, [0, 1], normalization, False)
        check(aten._fft_c2r.default, values(4, 4, dtype=torch.complex64), [1], normalization, 6)


def test_arrays_of_no_axis():
    x = torch.tensor(2.5)
    for function in (aten.exp.default, aten.sum.default, aten.mean.default, aten.max.default, aten.clone.default):
        check(function, x)
    check(aten.add.Tensor, x, values(3))
    check(aten.cumsum.default, x, 0)
    check(aten.sort.default, x)


def test_every_name_is_torchs():
    own = {"inverse_rms"}
    unknown = [name for name in TABLE if name not in own and not hasattr(aten, name.split(".")[0])]
    assert unknown == []
