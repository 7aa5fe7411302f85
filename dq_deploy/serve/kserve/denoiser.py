"""One call of the engine as a model of KServe: its own inputs and outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from dq_deploy.engines.base import Runner, TensorSpec
from dq_deploy.models.sizes import BATCH
from dq_deploy.numerics.arrays import Array
from dq_deploy.serve.kserve.forms import FREE, ModelForm, TensorForm
from dq_deploy.serve.kserve.tensors import Tensor, datatype_of
from dq_deploy.serve.web.asked import MOST_TIMES_THE_DEFAULT
from dq_deploy.serve.web.errors import ApiError

NAME = "denoiser"


def denoiser_form(engine: Runner, most_rows: int) -> ModelForm:
    """The engine's inputs and outputs.

    Args:
        engine: that is served.
        most_rows: samples of one call.
    """
    specs = (*engine.inputs, *engine.outputs)
    rows = all(spec.shape and spec.shape[0] == BATCH for spec in specs)
    return ModelForm(
        name=NAME,
        platform=f"dq_{engine.engine}",
        inputs=tuple(_form(spec) for spec in engine.inputs),
        outputs=tuple(_form(spec) for spec in engine.outputs),
        most_rows=most_rows if rows else 0,
        absent={},
    )


def _form(spec: TensorSpec) -> TensorForm:
    shape = tuple(FREE if isinstance(size, str) else size for size in spec.shape)
    return TensorForm(name=spec.name, datatype=datatype_of(spec.dtype), shape=shape)


def feeds_of(given: Mapping[str, Tensor], engine: Runner, most_rows: int) -> dict[str, Array]:
    """Arrays for the engine.

    Raises:
        ApiError: more samples or larger ones than one request may bring.
    """
    usual = {} if engine.manifest is None else dict(engine.manifest.sizes or {})
    feeds: dict[str, Array] = {}
    for spec in engine.inputs:
        values = given[spec.name].values
        for size, have in zip(spec.shape, values.shape, strict=True):
            if size == BATCH and have > most_rows:
                raise ApiError(400, f"input {spec.name} has a batch of {have}, expected at most {most_rows}")
        most = _most_values(spec, usual)
        inner = math.prod(h for s, h in zip(spec.shape, values.shape, strict=True) if s != BATCH)
        if most is not None and inner > most:
            raise ApiError(400, f"input {spec.name} has {inner} values a sample, expected at most {most}")
        feeds[spec.name] = values if values.dtype == spec.dtype else values.view(spec.dtype)  # BF16 comes as its bits
    return feeds


def most_input_bytes(engine: Runner, most_rows: int) -> int | None:
    """Bytes of all inputs of the largest request; None where an input has a size that nothing limits."""
    usual = {} if engine.manifest is None else dict(engine.manifest.sizes or {})
    total = 0
    for spec in engine.inputs:
        most = _most_values(spec, usual)
        if most is None:
            return None
        total += most * spec.dtype.itemsize * (most_rows if BATCH in spec.shape else 1)
    return total


def _most_values(spec: TensorSpec, usual: Mapping[str, int]) -> int | None:
    """Values of one sample of an input: some times as many as in the calls the model was quantized with."""
    sizes = [usual.get(size) if isinstance(size, str) else size for size in spec.shape if size != BATCH]
    known = [size for size in sizes if size is not None]
    return MOST_TIMES_THE_DEFAULT * math.prod(known) if len(known) == len(sizes) else None


def tensors_of(outputs: Mapping[str, Array]) -> list[Tensor]:
    """The engine's outputs."""
    found = []
    for name, values in outputs.items():
        datatype = datatype_of(values.dtype)
        bits = np.ascontiguousarray(values).view(np.uint16) if datatype == "BF16" else values
        found.append(Tensor(name=name, datatype=datatype, values=bits))
    return found
