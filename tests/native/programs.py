"""Any small torch module, traced and lowered as a denoiser is, and run on the CPU kernels next to torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from dq_kernels.cpu.library import Context

from dq_deploy.native.cpu.executor import CpuExecutor
from dq_deploy.native.lower.joined import joined_program
from dq_deploy.native.program import program as programs
from dq_deploy.native.trace.geometry import geometries
from dq_deploy.native.trace.graph import TracedGraph
from dq_deploy.native.trace.tracing import trace_module
from dq_deploy.numerics import step_bucket
from dq_deploy.record import Layer, Part
from dq_deploy.simulation.fake_quant import IntegerLayer, StepContext

Inputs = Mapping[str, tuple[tuple[int | str, ...], str]]
EDGES = np.array([100, 200], np.float32)
"""Three step buckets."""


def layer_of(
    name: str, shape: Sequence[int], *, seed: int = 0, split: int = 0, like: Layer | None = None, **changes: Any
) -> Layer:
    """A layer with random codes: [N, C] linear, [N, C, kh, kw] convolution.

    Args:
        name: module path.
        shape: of the weights, channels of a group.
        seed: of its values.
        split: channels of the first of two parts; 0 makes one.
        like: a layer whose quantizers it takes.
        changes: of the layer's fields.
    """
    rng = np.random.default_rng(seed)
    kind = "linear" if len(shape) == 2 else "conv2d"
    fields: dict[str, Any] = {
        "stride": (1, 1),
        "padding": (0, 0, 0, 0),
        "dilation": (1, 1),
        "groups": 1,
        "weight_bits": 4,
        "activation_bits": 8,
        "q_min": 0,
        "q_max": 255,
        "bias": rng.normal(size=shape[0]).astype(np.float32),
    } | changes
    groups = fields["groups"]
    counts = [shape[1]] if not split else [split, shape[1] - split]
    parts = []
    for index, count in enumerate(counts):
        own = None if like is None else like.parts[index]
        parts.append(
            Part(
                pre=rng.uniform(0.5, 1, count * groups).astype(np.float32) if own is None else own.pre,
                scale=rng.uniform(0.02, 0.04, 3).astype(np.float32) if own is None else own.scale,
                zero_point=rng.integers(100, 150, 3).astype(np.int32) if own is None else own.zero_point,
                w_code=rng.integers(-8, 8, (1, shape[0], count, *shape[2:])).astype(np.int8),
                w_zero_point=np.zeros((1, shape[0]), np.int32),
                weight_scale=rng.uniform(0.02, 0.1, (1, shape[0])).astype(np.float32),
            )
        )
    return Layer(name=name, kind=kind, parts=tuple(parts), **fields)


class Case:
    """A module, its inputs and its integer layers.

    Attributes:
        joined: its program for every batch.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        inputs: Inputs,
        layers: Sequence[Layer] = (),
        step: Callable[..., torch.Tensor] | None = None,
    ) -> None:
        self.module, self.inputs = module.eval(), {"timestep": (("B",), "float32"), **inputs}
        self.layers = {layer.name: layer for layer in layers}
        self._step = step or (lambda module, timestep, *values: module(*values))
        geometry = geometries(self.layers)

        def trace(batch: int) -> TracedGraph:
            shapes = [(self._shape(name, batch), dtype) for name, (_, dtype) in self.inputs.items()]
            return trace_module(self.module, lambda *values: (self._step(*values),), shapes, geometry)

        self.joined = programs.loads(programs.dumps(joined_program(trace, geometry, list(self.inputs), ["output"])))

    def _shape(self, name: str, batch: int) -> tuple[int, ...]:
        return tuple(batch if d == "B" else int(d) for d in self.inputs[name][0])

    def kinds(self) -> list[str]:
        """Kinds of the ops, in order."""
        return [op[0] for op in self.joined["ops"]]

    def feeds(self, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
        """Random inputs whose samples stand at different steps."""
        rng = np.random.default_rng(seed)
        feeds = {name: rng.normal(size=self._shape(name, batch)).astype(d) for name, (_, d) in self.inputs.items()}
        return feeds | {"timestep": np.linspace(50, 250, batch).astype(np.float32)}

    def executor(self, isa: str | None = None) -> CpuExecutor:
        """Its program on one thread; the context is the executor's. None takes the best instruction set."""
        parameters = {key: value.numpy().copy() for key, value in self.module.state_dict().items()}
        fields = {"float_parameters": parameters, "weight_only": {}, "attention": {}}
        record = SimpleNamespace(step_edges=EDGES, layers=self.layers, **fields)
        return CpuExecutor(self.joined, record, Context(threads=1, isa=isa))  # type: ignore[arg-type]

    def wanted(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """What torch gives, its integer layers by the numerics."""
        return wanted(self.module, self._step, feeds, self.layers)

    def difference(self, batches: Sequence[int] = (1, 2, 5), isa: str | None = None) -> float:
        """Largest difference from torch, over the largest value; infinite where a shape differs."""
        worst = 0.0
        executor = self.executor(isa)
        for batch in batches:
            feeds = self.feeds(batch)
            got, want = executor.run(feeds)["output"], self.wanted(feeds)
            if got.shape != want.shape:
                return np.inf
            worst = max(worst, float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-6)))
        executor.close()
        return worst


def wanted(
    module: torch.nn.Module,
    step: Callable[..., torch.Tensor],
    feeds: Mapping[str, np.ndarray],
    layers: Mapping[str, Layer],
) -> np.ndarray:
    """The module's output in torch, its integer layers by `fake_quant`, which is the numerics bit for bit."""
    twin, context = copy.deepcopy(module), StepContext()
    context.step = torch.from_numpy(step_bucket(feeds["timestep"], EDGES))
    for name, layer in layers.items():
        parent, _, last = name.rpartition(".")
        setattr(twin.get_submodule(parent), last, IntegerLayer(layer, context))
    with torch.no_grad():
        return step(twin, *(torch.from_numpy(value) for value in feeds.values())).numpy()


class Function(torch.nn.Module):
    """A function of itself and the inputs as a module, with children, parameters and buffers."""

    def __init__(self, function: Callable[..., torch.Tensor], **own: Any) -> None:
        super().__init__()
        self._function = function
        for name, value in own.items():
            if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        """The function's value."""
        return self._function(self, *values)
