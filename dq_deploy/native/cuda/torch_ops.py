"""The operations of a program that are not our kernels', by torch on strided tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dq_deploy.errors import DqError
from dq_deploy.native.program.program import Op, View

ELEMENTWISE: dict[str, Callable[[Tensor, Any, float], Tensor]] = {
    "copy": lambda a, b, s: a,
    "add": lambda a, b, s: a + b,
    "sub": lambda a, b, s: a - b,
    "mul": lambda a, b, s: a * b,
    "div": lambda a, b, s: a / b,
    "silu": lambda a, b, s: functional.silu(a),
    "gelu": lambda a, b, s: functional.gelu(a),
    "gelu_tanh": lambda a, b, s: functional.gelu(a, approximate="tanh"),
    "sigmoid": lambda a, b, s: torch.sigmoid(a),
    "tanh": lambda a, b, s: torch.tanh(a),
    "relu": lambda a, b, s: functional.relu(a),
    "add_scalar": lambda a, b, s: a + s,
    "mul_scalar": lambda a, b, s: a * s,
    "div_scalar": lambda a, b, s: a / s,
}
"""By the names of `dq_kernels.cpu.structs.ELEMENTWISE_KINDS`."""


def function(op: Op, tensor: Callable[[View], Tensor]) -> Callable[[], None]:
    """What runs an op.

    Args:
        op: elementwise, attention, float_linear, float_conv2d or host.
        tensor: gives the memory of a view.

    Raises:
        DqError: another kind of op.
    """
    reads = {role: tensor(view) for role, view in op.reads.items()}
    if op.kind == "host":
        return _host(op, reads, {role: tensor(view) for role, view in op.writes.items()})
    y = tensor(op.writes["y"])
    if op.kind == "elementwise":
        act, scalar = ELEMENTWISE[op.attributes["function"]], op.attributes["scalar"]
        a, b = reads["a"], reads.get("b")
        return lambda: y.copy_(act(a, b, scalar))
    if op.kind == "attention":
        return lambda: y.copy_(attention(op, tensor))
    if op.kind in ("float_linear", "float_conv2d"):
        return _product(op, reads, y)
    raise DqError(f"op {op.kind} is none of torch's")


def attention(op: Op, tensor: Callable[[View], Tensor]) -> Tensor:
    """What an attention makes, in torch's own memory."""
    q, k, v = (tensor(op.reads[role]) for role in "qkv")
    return functional.scaled_dot_product_attention(q, k, v, scale=op.attributes["scale"])


def _product(op: Op, reads: dict[str, Tensor], y: Tensor) -> Callable[[], None]:
    x = reads["x"]
    weights = reads["weights"].to(x.dtype)
    bias = reads["bias"].to(x.dtype) if "bias" in reads else None
    if op.kind == "float_linear":
        return lambda: y.copy_(functional.linear(x, weights, bias))
    sizes = {key: tuple(op.attributes[key]) for key in ("stride", "padding", "dilation")}
    groups = op.attributes["groups"]
    return lambda: y.copy_(functional.conv2d(x, weights, bias, groups=groups, **sizes))


def _host(op: Op, reads: dict[str, Tensor], writes: dict[str, Tensor]) -> Callable[[], None]:
    def filled(value: Any) -> Any:
        if isinstance(value, dict) and value.keys() == {"read"}:
            return reads[value["read"]]
        return [filled(entry) for entry in value] if isinstance(value, list) else value

    given, first = op.attributes, next(iter(writes.values()))
    run = _torch_op(str(given["function"]), first)
    arguments, named = filled(given["args"]), {key: filled(value) for key, value in given["kwargs"].items()}

    def write() -> None:
        result = run(*arguments, **named)
        for role, y in writes.items():
            y.copy_(result[int(role[1:])] if isinstance(result, (tuple, list)) else result)

    return write


def _torch_op(name: str, y: Tensor) -> Callable[..., Any]:
    """Torch's function for an operation of the host, by its name with the overload."""
    if name in _OWN:
        return _OWN[name]
    packet, _, overload = name.partition(".")
    function: Callable[..., Any] = getattr(getattr(torch.ops.aten, packet), overload)
    schema: Any = getattr(function, "_schema")  # noqa: B009
    arguments = schema.arguments
    makes = any(a.name == "dtype" for a in arguments) and not any("Tensor" in str(a.type) for a in arguments)
    return partial(function, dtype=y.dtype, device=y.device) if makes else function


def _attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, is_causal: bool = False, **more: Any) -> Any:
    mask = more.pop("attn_mask", None)
    shared = k.shape[1] != q.shape[1]
    return (functional.scaled_dot_product_attention(q, k, v, mask, 0.0, is_causal, enable_gqa=shared, **more),)


_OWN: dict[str, Callable[..., Any]] = {
    "inverse_rms": lambda x, eps: torch.rsqrt(x.square().mean(-1, keepdim=True) + eps),
    "_scaled_dot_product_flash_attention_for_cpu.default": _attention,
    "_to_copy.default": lambda x: x,
    "clone.default": lambda x: x,
    "lift_fresh_copy.default": lambda x: x,
    "view_as_complex.default": lambda x: torch.view_as_complex(x.contiguous()),
}
"""Operations that torch has by another name on a GPU, or that a copy does."""
