"""The facts of a denoiser when it is called in one way; what was found once is kept."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace

import torch

from dq_deploy.errors import ModelError, first_line, raise_if_out_of_memory
from dq_deploy.models.call import call_arguments, input_specs, layer_of_error
from dq_deploy.models.capture.facts import PROBE_BATCH, Facts, facts_of
from dq_deploy.models.capture.recorder import record_graph
from dq_deploy.models.conditions import sample_name
from dq_deploy.models.layers import LayerSite
from dq_deploy.models.sizes import BATCH, TensorSpec, sized
from dq_deploy.record import Call

KEPT = 32
"""Denoisers whose facts are kept: names and numbers alone, no tensors."""

_KEPT: dict[str, Facts] = {}
_LOCK = threading.Lock()


def captured(module: torch.nn.Module, call: Call) -> Facts:
    """What a denoiser is made of, by one run on shapes alone.

    Args:
        module: the denoiser, on any device; its values are not read and it is not changed.
        call: how it is called; its own sizes are taken.

    Raises:
        ModelError: it cannot run so.
    """
    key = f"{sorted(getattr(module, 'config', {}).items())!r}\n{module!r}\n{replace(call, outputs={})!r}"
    with _LOCK:
        if key in _KEPT:
            return _KEPT[key]
    facts = _run(module, call)
    with _LOCK:
        while len(_KEPT) >= KEPT:
            _KEPT.pop(next(iter(_KEPT)))
        _KEPT[key] = facts
    return facts


def _run(module: torch.nn.Module, call: Call) -> Facts:
    specs = input_specs(call)
    _check_timestep(module, specs)
    inputs = {spec.name: (sized(spec.shape, PROBE_BATCH, call.sizes), spec.dtype) for spec in specs}

    def step(shapes: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> object:
        try:
            return shapes(**call_arguments(tensors, call.constants))
        except Exception as error:
            raise_if_out_of_memory(error)
            raise ModelError(
                f"the {type(module).__name__} cannot run as it is called: {first_line(error)} "
                f"(in {layer_of_error(error, shapes)})"
            ) from error

    graph = record_graph(module, step, inputs)
    if not graph.layers:
        raise ModelError(
            f"the {type(module).__name__} runs no linear layer and no 2-D convolution; nothing of it can be quantized"
        )
    return facts_of(module, graph, sample=sample_name(call), pooled=pooled_inputs(specs, sample_name(call)))


def _check_timestep(module: torch.nn.Module, specs: tuple[TensorSpec, ...]) -> None:
    """Refuse timesteps of which there is not one a sample."""
    shape = next((spec.shape for spec in specs if spec.name == "timestep"), None)
    if shape != (BATCH,):
        got = "no timestep" if shape is None else f"timesteps of shape {list(shape)}"
        raise ModelError(
            f"the {type(module).__name__} is called with {got}, expected one a sample, [{BATCH}]; a timestep that "
            "differs within a sample is not supported"
        )


def pooled_inputs(specs: tuple[TensorSpec, ...], sample: str) -> frozenset[str]:
    """Names of the inputs of one row a sample and no size that varies: the timestep, labels, pooled embeddings."""
    return frozenset(
        spec.name
        for spec in specs
        if spec.name != sample
        and spec.shape[:1] == (BATCH,)
        and len(spec.shape) <= 2
        and all(isinstance(size, int) for size in spec.shape[1:])
    )


def sites_at(facts: Facts, batch: int) -> list[LayerSite]:
    """The layers with their shapes at a number of samples."""
    return [
        replace(
            site,
            input_shape=_at(site.input_shape, batch),
            output_shape=_at(site.output_shape, batch),
        )
        for site in facts.sites
    ]


def _at(shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """A shape at `PROBE_BATCH` samples with another number of them, where its leading axis holds them."""
    rows, left = divmod(shape[0], PROBE_BATCH)
    return shape if left else (rows * batch, *shape[1:])
