"""The operations of a program that are not our kernels', by torch on strided tensors."""

from __future__ import annotations

from collections.abc import Callable
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
    y = tensor(op.writes["y"])
    reads = {role: tensor(view) for role, view in op.reads.items()}
    if op.kind == "elementwise":
        act, scalar = ELEMENTWISE[op.attributes["function"]], op.attributes["scalar"]
        a, b = reads["a"], reads.get("b")
        return lambda: y.copy_(act(a, b, scalar))
    if op.kind == "attention":
        q, k, v, scale = reads["q"], reads["k"], reads["v"], op.attributes["scale"]
        return lambda: y.copy_(functional.scaled_dot_product_attention(q, k, v, scale=scale))
    if op.kind in ("float_linear", "float_conv2d"):
        return _product(op, reads, y)
    if op.kind == "host":
        return _host(op, reads, y)
    raise DqError(f"op {op.kind} is none of torch's")


def _product(op: Op, reads: dict[str, Tensor], y: Tensor) -> Callable[[], None]:
    x = reads["x"]
    weights = reads["weights"].to(x.dtype)
    bias = reads["bias"].to(x.dtype) if "bias" in reads else None
    if op.kind == "float_linear":
        return lambda: y.copy_(functional.linear(x, weights, bias))
    sizes = {key: tuple(op.attributes[key]) for key in ("stride", "padding", "dilation")}
    groups = op.attributes["groups"]
    return lambda: y.copy_(functional.conv2d(x, weights, bias, groups=groups, **sizes))


def _host(op: Op, reads: dict[str, Tensor], y: Tensor) -> Callable[[], None]:
    name = op.attributes["function"]
    run = getattr(torch.ops.aten, name)

    def filled(value: Any) -> Any:
        if isinstance(value, dict) and value.keys() == {"read"}:
            return reads[value["read"]]
        if isinstance(value, dict):
            return {key: filled(entry) for key, entry in value.items()}
        return [filled(entry) for entry in value] if isinstance(value, list) else value

    if name in ("_to_copy", "clone"):
        source = filled(op.attributes["args"])[0]
        return lambda: y.copy_(source)
    if name in ("ones", "zeros", "full", "arange"):
        made = run(*filled(op.attributes["args"]), dtype=y.dtype, device=y.device)
        return lambda: y.copy_(made)
    arguments, named = filled(op.attributes["args"]), op.attributes["kwargs"]
    return lambda: y.copy_(run(*arguments, **named))
