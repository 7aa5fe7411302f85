"""A denoiser as a graph of tensor operations, traced on shapes alone: no weights, a second of time.

The quantized layers are one operation each, `dq_native::integer_layer`; everything else is what torch does. Tensors of
images are channels last, and torch's own rules say how each view lies in memory.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from dq_kernels.attention import WIDEST_HEAD
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from dq_deploy.errors import ModelError, first_line, raise_if_out_of_memory
from dq_deploy.models import build_denoiser, denoiser_outputs, input_specs
from dq_deploy.models.attention_calls import AttentionCall, Instead, attention_calls
from dq_deploy.models.buffers import plain_tensors
from dq_deploy.models.sizes import sized
from dq_deploy.native.trace.functional import functional
from dq_deploy.native.trace.geometry import Geometry
from dq_deploy.native.trace.graph import TracedGraph
from dq_deploy.record import Call


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


@torch.library.custom_op("dq_native::attention", mutates_args=())
def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, name: str) -> torch.Tensor:
    """Attention that has quantizers, by the path of its module; it is only traced."""
    raise NotImplementedError("dq_native::attention stands for attention in a traced graph and does not run")


@attention.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, name: str) -> torch.Tensor:
    batch, heads, rows, dim = q.shape
    return q.new_empty((batch, rows, heads, dim)).transpose(1, 2)  # as torch's own kernel for a CPU lays it


def _named(attentions: Collection[str]) -> Instead:
    """What stands for calls of these attentions in the graph."""

    def instead(call: AttentionCall) -> torch.Tensor | None:
        runs = call.plain and call.q.dtype == torch.float32 and call.q.shape[-1] <= WIDEST_HEAD
        if call.name not in attentions or not runs:
            return None
        named: torch.Tensor = torch.ops.dq_native.attention(call.q, call.k, call.v, call.scale, call.name)
        return named

    return instead


def _leave_one_operation(module: torch.nn.Module, name: str, geometry: Geometry) -> None:
    """Make a layer leave one operation in the graph; it stays what it is, for whoever looks up its attributes."""
    kernel = [] if geometry.window is None else list(geometry.window.kernel)

    def forward(input: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        window = geometry.window
        out_size = [] if window is None else list(window.size_out((input.shape[2], input.shape[3])))
        return torch.ops.dq_native.integer_layer(input, name, geometry.out_channels, kernel, out_size)

    module.forward = forward


def trace(
    family: str,
    config: Mapping[str, Any],
    call: Call,
    layers: Mapping[str, Geometry],
    batch: int,
    attentions: Collection[str] = (),
) -> TracedGraph:
    """The graph of one step for one batch size.

    Args:
        family: denoiser family.
        config: its diffusers configuration.
        call: its inputs, and the sizes to trace at.
        layers: quantized layers by module path.
        batch: samples.
        attentions: module paths of those that keep their name in the graph.

    Raises:
        ModelError: torch cannot trace the denoiser.
    """
    specs = input_specs(call)
    module = build_denoiser(family, config, device="meta")
    inputs = [(sized(spec.shape, batch, call.sizes), spec.dtype) for spec in specs]

    def step(fake: torch.nn.Module, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return denoiser_outputs(fake, {spec.name: v for spec, v in zip(specs, values, strict=True)}, call.constants)

    return trace_module(module, step, inputs, layers, attentions)


def trace_module(
    module: torch.nn.Module,
    step: Callable[..., Sequence[torch.Tensor]],
    inputs: Sequence[tuple[tuple[int, ...], str]],
    layers: Mapping[str, Geometry],
    attentions: Collection[str] = (),
) -> TracedGraph:
    """The graph of one call of any module.

    Args:
        module: the values of its parameters and of the buffers that a checkpoint holds are not read.
        step: called with a copy of the module without values, and the inputs; gives its outputs.
        inputs: shape and dtype of each.
        layers: quantized layers by module path.
        attentions: as of `trace`.

    Raises:
        ModelError: torch cannot trace it.
    """
    try:
        fake, computed, graph = _traced(module, step, inputs, layers, attentions, torch.channels_last)
    except Exception as error:  # torch raises many unrelated types here
        raise_if_out_of_memory(error)
        try:  # some models view an image as rows of its memory, which takes torch's own order
            fake, computed, graph = _traced(module, step, inputs, layers, attentions, torch.contiguous_format)
        except Exception:
            raise ModelError(
                f"torch could not trace the denoiser for the native engine: {first_line(error)}"
            ) from error
    held = {id(value): key for key, value in fake.named_parameters()}
    held |= {id(value): key for key, value in fake.named_buffers() if id(value) not in computed}
    names, constants = {}, {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value = getattr(graph, node.target)
            if id(value) in held:
                names[node.target] = held[id(value)]
            else:
                constants[node.target] = _constant(node.target, value, computed)
    return TracedGraph(graph=graph, names=names, constants=constants)


def _traced(
    module: torch.nn.Module,
    step: Callable[..., Sequence[torch.Tensor]],
    inputs: Sequence[tuple[tuple[int, ...], str]],
    layers: Mapping[str, Geometry],
    attentions: Collection[str],
    images: torch.memory_format,
) -> tuple[torch.nn.Module, dict[int, torch.Tensor], torch.fx.GraphModule]:
    """The copy without values, the values it computed, and the graph; images lie in the order `images`."""
    with _quiet(), FakeTensorMode(), torch.no_grad():
        fake, computed = _shapes_of(module, layers)
        tensors = [_input(shape, dtype, images) for shape, dtype in inputs]
        with attention_calls(fake, _named(attentions)) if attentions else contextlib.nullcontext():
            graph = make_fx(lambda *values: step(fake, *values))(*tensors)
        return fake, computed, functional(graph, tensors)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside, torch does not log the traceback of what it cannot trace: the error that is raised says it."""
    log = logging.getLogger(FakeTensorMode.__module__)
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _constant(target: str, value: torch.Tensor, computed: Mapping[int, torch.Tensor]) -> torch.Tensor:
    real = computed.get(id(value), value)
    if real.is_meta or isinstance(real, FakeTensor):
        raise ModelError(
            f"the denoiser reads a tensor {target} of shape {list(real.shape)} that no checkpoint holds and that "
            "has no values where only shapes are built; expected a buffer"
        )
    return real.detach()


def _input(shape: tuple[int, ...], dtype: str, images: torch.memory_format) -> torch.Tensor:
    value = torch.empty(shape, dtype=getattr(torch, dtype))
    return value.contiguous(memory_format=images) if value.ndim == 4 else value


def _as_stored(value: torch.Tensor) -> torch.Tensor:
    """An empty tensor that lies as `views.stored_strides` says."""
    empty = torch.empty(value.shape, dtype=value.dtype)
    return empty.contiguous(memory_format=torch.channels_last) if empty.ndim == 4 else empty


def _shapes_of(
    module: torch.nn.Module, layers: Mapping[str, Geometry]
) -> tuple[torch.nn.Module, dict[int, torch.Tensor]]:
    """A copy without values whose quantized layers are one operation each; called under a fake tensor mode.

    Returns:
        The copy, and the values of what no checkpoint holds by the `id` of its copy: buffers that are not persistent,
        and tensors that are plain attributes.
    """
    stored = set(module.state_dict(keep_vars=True))
    memo: dict[int, Any] = {id(p): torch.nn.Parameter(_as_stored(p), requires_grad=False) for p in module.parameters()}
    computed: dict[int, torch.Tensor] = {}
    loose = {f"{i}": value for i, value in enumerate(plain_tensors(module))}
    for name, value in (*module.named_buffers(), *loose.items()):
        if id(value) not in memo:
            empty = memo[id(value)] = _as_stored(value)
            if name not in stored:
                computed[id(empty)] = value
    fake = copy.deepcopy(module, memo).eval()
    for name, geometry in layers.items():
        _leave_one_operation(fake.get_submodule(name), name, geometry)
    return fake, computed
