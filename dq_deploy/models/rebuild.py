"""A denoiser module from a record."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dq_deploy.errors import ModelError, RecordError
from dq_deploy.models.family import build_denoiser
from dq_deploy.numerics.arrays import F32
from dq_deploy.record import check_can_run

if TYPE_CHECKING:
    import torch

    from dq_deploy.record import Layer, Record


def dequantized_weight(layer: Layer) -> F32:
    """w_q * s_w * pre of weight set 0 over all parts: float32 [C_out, C_in / groups, ...]."""
    pieces = []
    for part in layer.parts:
        q = part.q_weight(0).astype(np.float32)
        tail = (1,) * (q.ndim - 2)
        scaled = (q * part.weight_scale[0].reshape(-1, 1, *tail)).astype(np.float32)
        # output channel n of group g reads input channels g * C_in / groups onwards
        per_group = part.pre.reshape(layer.groups, -1)
        pre = np.repeat(per_group, q.shape[0] // layer.groups, axis=0).reshape(q.shape[:2] + tail)
        pieces.append((scaled * pre).astype(np.float32))
    return np.concatenate(pieces, axis=1)


def _check_geometry(record: Record, module: torch.nn.Module) -> None:
    """Each layer of the record must be the module's own: same kind, stride, padding, dilation, groups."""
    import torch

    modules = dict(module.named_modules())
    for name, layer in record.layers.items():
        child = modules.get(name)
        if isinstance(child, torch.nn.Linear):
            got: tuple[Any, ...] = ("linear", (1, 1), (0, 0, 0, 0), (1, 1), 1)
        elif isinstance(child, torch.nn.Conv2d):
            ph, pw = int(child.padding[0]), int(child.padding[1])
            got = ("conv2d", tuple(child.stride), (ph, pw, ph, pw), tuple(child.dilation), child.groups)
        else:
            kind = "missing" if child is None else f"a {type(child).__name__}"
            raise RecordError(f"layer {name} is {kind} in the denoiser, expected a Linear or Conv2d there")
        mine = (layer.kind, layer.stride, layer.padding, layer.dilation, layer.groups)
        for what, value, expected in zip(("kind", "stride", "padding", "dilation", "groups"), mine, got, strict=True):
            if value != expected:
                raise RecordError(f"layer {name}: {what} is {value!r}, expected {expected!r} as the denoiser has")
    for name in record.weight_only:
        if not isinstance(modules.get(name), torch.nn.Linear):
            kind = f"a {type(modules[name]).__name__}" if name in modules else "missing"
            raise RecordError(f"layer {name} is {kind} in the denoiser, expected a Linear there")


def module_from_record(record: Record, *, dequantize: bool = True) -> torch.nn.Module:
    """See `dq_deploy.models.denoiser_from_record`."""
    import torch

    from dq_deploy.models.load.state import fit_state

    check_can_run(record)
    try:
        module = build_denoiser(record.family, record.model_config, device="meta")
    except ModelError as error:
        raise RecordError(f"model_config of the record: {error}") from error
    _check_geometry(record, module)
    _check_extensions(record, module)
    state = {key: torch.from_numpy(np.array(value)) for key, value in record.float_parameters.items()}
    for key, weight in lazy_weights(record).items():
        state[key] = torch.from_numpy(weight.read()) if dequantize else torch.empty(weight.shape, device="meta")
    biases = {name: layer.mean_bias for name, layer in record.layers.items()}
    biases |= {name: layer.bias for name, layer in record.weight_only.items()}
    for name, bias in biases.items():
        if bias is not None:
            state[f"{name}.bias"] = torch.from_numpy(bias.copy())
    _take_buffers(module, state)
    fit_state(module, state, "record", RecordError)
    return module


def _take_buffers(module: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Move out of a state what belongs to buffers that no state dict holds; records may be silent about them."""
    from dq_deploy.models.buffers import computed_buffers, set_computed_buffer

    for name, own in computed_buffers(module).items():
        value = state.pop(name, None)
        if value is None:
            continue
        if (value.shape, value.dtype) != (own.shape, own.dtype):
            raise RecordError(
                f"record: {name} is {value.dtype}{tuple(value.shape)}, expected {own.dtype}{tuple(own.shape)}"
            )
        set_computed_buffer(module, name, value)


def _check_extensions(record: Record, module: torch.nn.Module) -> None:
    """Folds and attention quantizers name modules of the denoiser; the call gives what the denoiser's forward takes."""
    modules = {name for name, _ in module.named_modules()}
    named = [(f"layer {n} is folded into", layer.folded.producer) for n, layer in record.layers.items() if layer.folded]
    named += [("there are quantizers of the attention", name) for name in record.attention]
    for what, name in named:
        if name not in modules:
            raise RecordError(f"{what} {name}, expected a module of the denoiser; the record is of another model")
    if record.call is None:
        return
    taken = inspect.signature(type(module).forward).parameters
    for name in (*(item.name for item in record.call.inputs), *record.call.constants):
        if name.partition(".")[0] not in taken:
            raise RecordError(
                f"the record's denoiser is called with {name[:100]}, which {type(module).__name__} does not take; "
                f"expected some of {', '.join(list(taken)[1:])}"
            )


@dataclass(frozen=True, kw_only=True)
class LazyWeight:
    """The float weight of a quantized layer, computed when it is read.

    Attributes:
        shape: of the weight.
        read: gives it, float32, anew each time.
    """

    shape: tuple[int, ...]
    read: Callable[[], F32]


def lazy_weights(record: Record) -> dict[str, LazyWeight]:
    """The float weights of a record's quantized layers by state-dict key; nothing is computed yet."""
    found = {}
    for name, layer in record.layers.items():
        rows = layer.parts[0].w_code.shape
        columns = sum(part.w_code.shape[2] for part in layer.parts)
        shape = (rows[1], columns, *rows[3:])
        found[f"{name}.weight"] = LazyWeight(shape=shape, read=partial(dequantized_weight, layer))
    for name, light in record.weight_only.items():
        found[f"{name}.weight"] = LazyWeight(shape=light.w_code.shape, read=light.weight)
    return found
