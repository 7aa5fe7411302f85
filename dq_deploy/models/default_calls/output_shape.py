"""The shape of a denoiser's output, where only a run says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from dq_deploy.errors import ModelError, first_line, raise_if_out_of_memory
from dq_deploy.models.call import call_arguments, input_specs
from dq_deploy.models.sizes import sized
from dq_deploy.record import BATCH, Call

if TYPE_CHECKING:
    import torch

PROBE_BATCH = 3
"""Samples of the runs: no other size of a small model is likely to be as large."""

GROWTH = 16
"""A varying size is raised by this, so that whatever halves or patches it goes on evenly; the next by twice as much."""


def with_output(call: Call, module: torch.nn.Module) -> Call:
    """The call with the shape of the one output, by two runs on shapes alone where it does not say it.

    Args:
        call: of the denoiser.
        module: the denoiser, on any device; its values are not read.

    Raises:
        ModelError: it cannot run so, gives several tensors, or one whose sizes go with none of the inputs'.
    """
    if call.output:
        return call
    other = {name: size + GROWTH * (1 + index) for index, (name, size) in enumerate(call.sizes.items())}
    found = _output(module, call, call.sizes, PROBE_BATCH)
    grown = _output(module, call, other, PROBE_BATCH + 1)
    both = {(PROBE_BATCH, PROBE_BATCH + 1): BATCH}
    both |= {(size, other[name]): name for name, size in call.sizes.items()}
    output: list[int | str] = []
    for axis, pair in enumerate(zip(found, grown, strict=True)):
        if pair[0] != pair[1] and pair not in both:
            raise ModelError(
                f"axis {axis} of what a {type(module).__name__} gives goes with none of its inputs' sizes; give its "
                "pipeline folder, whose calls are recorded"
            )
        output.append(pair[0] if pair[0] == pair[1] else both[pair])
    return replace(call, output=tuple(output))


def _output(module: torch.nn.Module, call: Call, sizes: Mapping[str, int], batch: int) -> tuple[int, ...]:
    import torch

    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    meta = {name: value.detach().to("meta") for name, value in state.items()}
    inputs = {
        spec.name: torch.empty(sized(spec.shape, batch, sizes), dtype=getattr(torch, spec.dtype), device="meta")
        for spec in input_specs(call)
    }
    name = type(module).__name__
    try:
        with torch.no_grad():
            output = torch.func.functional_call(module, meta, kwargs=call_arguments(inputs, call.constants))
    except Exception as error:
        raise_if_out_of_memory(error)
        raise ModelError(
            f"a {name} cannot run on what is known of its inputs ({first_line(error)}); give its pipeline folder, "
            "whose calls are recorded"
        ) from error
    values = tuple(output) if isinstance(output, (tuple, list)) else tuple(dict(output).values())
    if len(values) != 1 or not isinstance(values[0], torch.Tensor):
        raise ModelError(f"a {name} gives {len(values)} outputs, expected one tensor; this is not supported")
    return tuple(values[0].shape)
