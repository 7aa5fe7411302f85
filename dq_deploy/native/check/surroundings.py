"""What a record offers a program: its layers, its parameters, and the denoiser's inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from dq_deploy.models import TensorSpec, call_of_record, input_specs, output_specs
from dq_deploy.models.sizes import sized
from dq_deploy.native.check.lines import BatchNumber
from dq_deploy.native.check.memory import Surroundings, Tensor
from dq_deploy.record import Record


def surroundings_of(
    record: Record, constants: Mapping[str, Mapping[str, Any]]
) -> Callable[[BatchNumber], Surroundings]:
    """What a program of the record is checked against, by its batch.

    Args:
        record: the quantized denoiser.
        constants: values that tracing folded; they come before parameters of the same name.
    """
    call, named = call_of_record(record), _parameters(record)
    for name, value in constants.items():
        named[name] = Tensor(shape=tuple(value["shape"]), dtype=str(value["dtype"]))

    attentions = frozenset(name for name, own in record.attention.items() if not own.why_not_int8)

    def tensors(specs: Sequence[TensorSpec], batch: BatchNumber) -> dict[str, Tensor]:
        shapes = {spec.name: sized(spec.shape, cast(int, batch), call.sizes) for spec in specs}
        return {spec.name: Tensor(shape=shapes[spec.name], dtype=spec.dtype) for spec in specs}

    def around(batch: BatchNumber) -> Surroundings:
        return Surroundings(
            layers=record.layers,
            named=named,
            inputs=tensors(input_specs(call), batch),
            outputs=tensors(output_specs(call), batch),
            attentions=attentions,
        )

    return around


def _parameters(record: Record) -> dict[str, Tensor]:
    """Parameters as the kernels are given them: floats are float32."""
    found = {}
    for name, value in record.float_parameters.items():
        found[name] = Tensor(shape=value.shape, dtype="float32" if value.dtype.kind == "f" else value.dtype.name)
    for name, light in record.weight_only.items():
        found[f"{name}.weight"] = Tensor(shape=light.w_code.shape, dtype="float32")
        if light.bias is not None:
            found[f"{name}.bias"] = Tensor(shape=light.bias.shape, dtype="float32")
    return found
