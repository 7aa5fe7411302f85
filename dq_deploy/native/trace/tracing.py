"""A denoiser as a graph of tensor operations, traced on shapes alone: no weights, a second of time.

The quantized layers are one operation each, `dq_native::integer_layer`; everything else is what torch does. Tensors of
images are channels last, and torch's own rules say how each view lies in memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from dq_deploy.errors import ModelError, raise_if_out_of_memory
from dq_deploy.models import build_denoiser, call_denoiser, input_specs
from dq_deploy.models.sizes import sized
from dq_deploy.native.trace.geometry import Geometry
from dq_deploy.record import Call

_DTYPES = {"float32": torch.float32, "int64": torch.int64, "int32": torch.int32}


@torch.library.custom_op("dq_native::integer_layer", mutates_args=())
def integer_layer(
    x: torch.Tensor, name: str, out_channels: int, kernel: Sequence[int], out_size: Sequence[int]
) -> torch.Tensor:
    """One integer layer; it is only traced, `lowering` says what runs."""
    raise NotImplementedError("dq_native::integer_layer stands for a layer in a traced graph and does not run")


@integer_layer.register_fake
def _(x: torch.Tensor, name: str, out_channels: int, kernel: Sequence[int], out_size: Sequence[int]) -> torch.Tensor:
    if not kernel:
        return x.new_empty((*x.shape[:-1], out_channels))
    return x.new_empty((x.shape[0], out_channels, *out_size)).contiguous(memory_format=torch.channels_last)


class TracedLayer(torch.nn.Module):
    """A layer that leaves one operation in the graph."""

    def __init__(self, name: str, geometry: Geometry) -> None:
        super().__init__()
        self.name, self.geometry = name, geometry

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output, in shape."""
        g = self.geometry
        kernel = [] if g.window is None else list(g.window.kernel)
        out_size = [] if g.window is None else list(g.window.size_out((x.shape[2], x.shape[3])))
        return torch.ops.dq_native.integer_layer(x, self.name, g.out_channels, kernel, out_size)


def trace(
    family: str,
    config: Mapping[str, Any],
    call: Call,
    layers: Mapping[str, Geometry],
    batch: int,
) -> tuple[torch.fx.GraphModule, dict[str, str]]:
    """The graph of one step for one batch size.

    Args:
        family: denoiser family.
        config: its diffusers configuration.
        call: its inputs, and the sizes to trace at.
        layers: quantized layers by module path.
        batch: samples.

    Returns:
        The graph, each node with its shape and strides under `meta["val"]`, and the state-dict key of each of its
        attributes.

    Raises:
        ModelError: torch cannot trace the denoiser.
    """
    specs = input_specs(call)
    module = build_denoiser(family, config, device="meta")
    inputs = [(sized(spec.shape, batch, call.sizes), spec.dtype) for spec in specs]

    def step(fake: torch.nn.Module, *values: torch.Tensor) -> torch.Tensor:
        return call_denoiser(fake, {spec.name: v for spec, v in zip(specs, values, strict=True)}, call.constants)

    return trace_module(module, step, inputs, layers)


def trace_module(
    module: torch.nn.Module,
    step: Callable[..., torch.Tensor],
    inputs: Sequence[tuple[tuple[int, ...], str]],
    layers: Mapping[str, Geometry],
) -> tuple[torch.fx.GraphModule, dict[str, str]]:
    """The graph of one call of any module.

    Args:
        module: its values are not read.
        step: called with a copy of the module without values, and the inputs.
        inputs: shape and dtype of each.
        layers: quantized layers by module path.

    Returns:
        As `trace`.

    Raises:
        ModelError: torch cannot trace it.
    """
    try:
        with FakeTensorMode(), torch.no_grad():
            fake = _shapes_of(module, layers)
            tensors = [_input(shape, dtype) for shape, dtype in inputs]
            graph = make_fx(lambda *values: step(fake, *values))(*tensors)
    except Exception as error:  # torch raises many unrelated types here
        raise_if_out_of_memory(error)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"torch could not trace the denoiser for the native engine: {reason}") from error
    names = {id(value): key for key, value in (*fake.named_parameters(), *fake.named_buffers())}
    keys = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value = getattr(graph, node.target)
            keys[node.target] = names.get(id(value), "")
    return graph, keys


def _input(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    value = torch.empty(shape, dtype=_DTYPES[dtype])
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


def _as_stored(value: torch.Tensor) -> torch.Tensor:
    """An empty tensor that lies as `views.stored_strides` says."""
    empty = torch.empty(value.shape, dtype=value.dtype)
    return empty.contiguous(memory_format=torch.channels_last) if empty.ndim == 4 else empty


def _shapes_of(module: torch.nn.Module, layers: Mapping[str, Geometry]) -> torch.nn.Module:
    """A copy without values whose quantized layers are `TracedLayer`s; called under a fake tensor mode."""
    memo: dict[int, Any] = {id(b): _as_stored(b) for b in module.buffers()}
    memo |= {id(p): torch.nn.Parameter(_as_stored(p), requires_grad=False) for p in module.parameters()}
    fake = copy.deepcopy(module, memo).eval()
    for name, geometry in layers.items():
        parent, _, last = name.rpartition(".")
        setattr(fake.get_submodule(parent), last, TracedLayer(name, geometry))
    return fake
