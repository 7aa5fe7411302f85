"""The integer layer simulated in torch, equal to `dq_deploy.numerics` bit for bit.

Codes and weights are whole numbers held in float32, or in float64 where a sum may pass 2^24; the products
are therefore exact, and everything behind them is done in the order `numerics` does it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dq_deploy.errors import InputError
from dq_deploy.models.call import call_arguments
from dq_deploy.numerics import FLOAT32_EXACT, channel_axis_of, is_static, reciprocal
from dq_deploy.record import Layer, Record
from dq_deploy.simulation.exact_arithmetic import check_exact_products, convolve, exact_products

TIMESTEP = "timestep"
"""The argument of a denoiser's forward that says the step."""


class StepContext:
    """The bucket of each sample of the batch in flight, shared by all layers of a module.

    Attributes:
        step: [B] int64.
    """

    def __init__(self) -> None:
        self.step: torch.Tensor = torch.zeros(1, dtype=torch.int64)

    def rows(self, table: torch.Tensor, count: int) -> torch.Tensor:
        """Rows of a [T, ...] or static [1, ...] table for each entry of a leading axis; see `numerics.row_steps`."""
        if table.shape[0] == 1:
            return table.expand(count, *table.shape[1:])
        samples = self.step.shape[0]
        if count == samples:
            return table[self.step]
        return table[self.step.repeat_interleave(count // samples)]


@dataclass(frozen=True, kw_only=True)
class LayerTensors:
    """What an integer layer computed: see `dq_deploy.numerics.LayerResult`.

    Attributes:
        codes: per part, whole numbers in a float type.
        accumulators: per part, whole numbers in a float type.
        output: float32.
    """

    codes: tuple[torch.Tensor, ...]
    accumulators: tuple[torch.Tensor, ...]
    output: torch.Tensor


def along(values: torch.Tensor, ndim: int, axis: int) -> torch.Tensor:
    """[B, C] or [C] values shaped to broadcast over a tensor with channels on `axis`."""
    shape = [1] * ndim
    shape[axis] = values.shape[-1]
    if values.ndim == 2:
        shape[0] = values.shape[0]
    return values.reshape(shape)


def per_sample(values: torch.Tensor, ndim: int) -> torch.Tensor:
    """[B] values shaped to broadcast over a tensor."""
    return values.reshape((-1,) + (1,) * (ndim - 1))


def _bound(layer: Layer, part_index: int) -> int:
    part = layer.parts[part_index]
    z = part.zero_point.astype(np.int64)
    reach = int(max(np.abs(layer.q_min - z).max(), np.abs(layer.q_max - z).max()))
    worst = max(int(np.abs(part.q_weight(g)).max(initial=0)) for g in range(part.w_code.shape[0]))
    return int(np.prod(part.w_code.shape[2:])) * reach * worst


class IntegerLayer(torch.nn.Module):
    """One layer of a record as a module that takes and gives float32.

    Equal to `numerics.integer_layer` bit for bit: codes, accumulators and output.
    """

    def __init__(self, layer: Layer, context: StepContext) -> None:
        super().__init__()
        self.layer = layer
        self.context = context
        self.static = is_static(layer)
        self.kinds: list[torch.dtype] = []
        for i, part in enumerate(layer.parts):
            kind = torch.float32 if _bound(layer, i) < FLOAT32_EXACT else torch.float64
            self.kinds.append(kind)
            q = np.stack([part.q_weight(g) for g in range(part.w_code.shape[0])])
            tensors: dict[str, Any] = {
                "pre": torch.from_numpy(part.pre.copy()),
                "scale": torch.from_numpy(part.scale.copy()),
                "inverse": torch.from_numpy(reciprocal(part.scale).copy()),
                "zero_point": torch.from_numpy(part.zero_point.astype(np.float32)),
                "q_weight": torch.from_numpy(q.astype(np.float32)).to(kind),
                "weight_scale": torch.from_numpy(part.weight_scale.copy()),
                "group_of_step": torch.from_numpy(part.group_of_step.astype(np.int64)),
            }
            for name, value in tensors.items():
                self.register_buffer(f"{name}_{i}", value, persistent=False)
        bias = None if layer.bias is None else torch.from_numpy(layer.bias.copy())
        self.register_buffer("bias", bias, persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        """Shape and type of the float weight, without values: some models look them up."""
        layer = self.layer
        shape = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel)
        return torch.empty(shape, device="meta")

    def extra_repr(self) -> str:
        """Bits and kind, for printing the module."""
        return f"{self.layer.kind}, W{self.layer.weight_bits}A{self.layer.activation_bits}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float32 output of the layer; see `evaluate`."""
        return self.evaluate(x).output

    def evaluate(self, x: torch.Tensor) -> LayerTensors:
        """Codes, accumulators and output for a float32 input at the context's steps."""
        if x.shape[0] % len(self.context.step) and not self.static:
            raise InputError(
                f"layer {self.layer.name} reads {x.shape[0]} entries for {len(self.context.step)} samples, expected "
                "entries of each sample, for its tables differ by step; keep it in float"
            )
        axis = channel_axis_of(self.layer.kind, x.ndim)
        widths = [len(part.pre) for part in self.layer.parts]
        codes, accumulators = [], []
        y: torch.Tensor | None = None
        for i, piece in enumerate(torch.split(x, widths, dim=axis)):
            c = self._codes(i, piece, axis)
            a, weight_scale = self._accumulate(i, c)
            scale = self.context.rows(getattr(self, f"scale_{i}"), x.shape[0])
            factor = scale[:, None] * weight_scale
            term = a.float() * along(factor, a.ndim, channel_axis_of(self.layer.kind, a.ndim))
            y = term if y is None else y + term
            codes.append(c)
            accumulators.append(a)
        assert y is not None
        if self.bias is not None:
            bias = self.bias if self.bias.ndim == 1 else self.context.rows(self.bias, y.shape[0])
            y = y + along(bias, y.ndim, channel_axis_of(self.layer.kind, y.ndim))
        return LayerTensors(codes=tuple(codes), accumulators=tuple(accumulators), output=y)

    def _codes(self, i: int, x: torch.Tensor, axis: int) -> torch.Tensor:
        batch = x.shape[0]
        z = per_sample(self.context.rows(getattr(self, f"zero_point_{i}"), batch), x.ndim)
        inverse = self.context.rows(getattr(self, f"inverse_{i}"), batch)
        m = inverse[:, None] * getattr(self, f"pre_{i}")[None, :]
        scaled = (x * along(m, x.ndim, axis)).round_()
        return torch.minimum(torch.maximum(scaled, self.layer.q_min - z), self.layer.q_max - z)

    def _accumulate(self, i: int, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Accumulators and [B, C_out] weight scales, each sample with the weight set of its step."""
        q_weight = getattr(self, f"q_weight_{i}")
        weight_scale = getattr(self, f"weight_scale_{i}")
        group = self.context.rows(getattr(self, f"group_of_step_{i}"), codes.shape[0])
        c = codes.to(self.kinds[i])
        if q_weight.shape[0] == 1:
            return self._product(c, q_weight[0]), weight_scale[group]
        pieces = [self._product(sample[None], q_weight[g]) for sample, g in zip(c, group.tolist(), strict=True)]
        return torch.cat(pieces), weight_scale[group]

    def _product(self, codes: torch.Tensor, q_weight: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        with exact_products():
            if layer.kind == "linear":
                return torch.nn.functional.linear(codes, q_weight)
            return convolve(codes, q_weight, layer.window, groups=layer.groups)


class Simulation(torch.nn.Module):
    """A record's denoiser whose quantized layers are `IntegerLayer`s.

    Attributes:
        denoiser: the diffusers module with integer layers in place.
        context: step context of its layers.
        constants: plain values that the denoiser is always called with, by argument of its forward.
    """

    def __init__(
        self,
        denoiser: torch.nn.Module,
        context: StepContext,
        step_edges: torch.Tensor,
        constants: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.constants = call_arguments({}, constants)
        self.denoiser = denoiser
        self.context = context
        self.register_buffer("step_edges", step_edges, persistent=False)

    def bucket(self, timestep: torch.Tensor) -> torch.Tensor:
        """[B] bucket of each timestep: count(edges <= float32(timestep))."""
        value = timestep.reshape(-1, 1).to(torch.float32)
        return (self.step_edges.reshape(1, -1) <= value).sum(1)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Output of the denoiser: a tensor, or the tuple of its outputs where there are several.

        Args:
            *args: arguments of the denoiser's own forward; the first tensor has the batch in front.
            **kwargs: likewise by name. `timestep` is [B], or one number for all samples.

        Raises:
            InputError: timesteps that are not one a sample.
        """
        bound = inspect.signature(self.denoiser.forward).bind(*args, **kwargs)
        given = {name: value for name, value in bound.arguments.items() if name != "kwargs"}
        given |= bound.kwargs
        first = next(value for name, value in given.items() if isinstance(value, torch.Tensor) and name != TIMESTEP)
        time = torch.as_tensor(given[TIMESTEP], device=first.device)
        batch = first.shape[0]
        if time.numel() not in (1, batch) or time.ndim > 1:
            raise InputError(f"timestep has shape {tuple(time.shape)}, expected one number for each of {batch} samples")
        given[TIMESTEP] = time.reshape(-1).expand(batch) if time.numel() == 1 else time
        self.context.step = self.bucket(given[TIMESTEP])
        outputs = self.denoiser(**{**_joined(self.constants, given), "return_dict": False})
        return outputs[0] if len(outputs) == 1 else outputs


def _joined(constants: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that are given beside those that never change, inside dicts too."""
    found = {**constants, **given}
    for name in constants.keys() & given.keys():
        if isinstance(constants[name], dict) and isinstance(given[name], dict):
            found[name] = _joined(constants[name], given[name])
    return found


def replace_layer(module: torch.nn.Module, name: str, layer: torch.nn.Module) -> None:
    """Put `layer` at a module path."""
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, layer)


def simulate(record: Record) -> Simulation:
    """The record as an inference module, called as its denoiser is; see `models.call_denoiser`.

    Raises:
        GuaranteeError: this machine's float32 products of integers are not exact.
        RecordError: the record does not fit its denoiser.
    """
    from dq_deploy.models import call_of_record, denoiser_from_record

    check_exact_products()
    context = StepContext()
    denoiser = denoiser_from_record(record, dequantize=False)
    for name, layer in record.layers.items():
        replace_layer(denoiser, name, IntegerLayer(layer, context))
    for name, light in record.weight_only.items():
        weight = torch.nn.Parameter(torch.from_numpy(light.weight()), requires_grad=False)
        denoiser.get_submodule(name).weight = weight
    edges = torch.from_numpy(np.array(record.step_edges, np.float32))
    simulation = Simulation(denoiser.eval(), context, edges, call_of_record(record).constants)
    simulation.requires_grad_(False)
    return simulation
