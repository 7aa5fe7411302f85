"""The shapes of a denoiser's outputs, where only a run says them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from dq_deploy.errors import ModelError, first_line, raise_if_out_of_memory
from dq_deploy.models.call import call_arguments, input_specs, named_outputs
from dq_deploy.models.sizes import HEIGHT, WIDTH, following, part_name, sized
from dq_deploy.record import BATCH, Call

if TYPE_CHECKING:
    import torch

PROBE_BATCH = 3
"""Samples of the runs: no other size of a small model is likely to be as large."""

GROWTH = 16
"""A varying size is raised by this, so that whatever halves or patches it goes on evenly; the next by twice as much."""


def with_outputs(call: Call, module: torch.nn.Module) -> Call:
    """The call with the shapes of the outputs, by two runs on shapes alone where it does not say them.

    Args:
        call: of the denoiser.
        module: the denoiser, on any device; its values are not read.

    Raises:
        ModelError: it cannot run so, or gives a tensor whose sizes go with none of the inputs'.
    """
    if call.outputs:
        return call
    other = _grown(call.sizes)
    found = _shapes(module, call, call.sizes, PROBE_BATCH)
    grown = _shapes(module, call, other, PROBE_BATCH + 1)
    both = {(PROBE_BATCH, PROBE_BATCH + 1): BATCH}
    both |= {(size, other[name]): name for name, size in call.sizes.items()}
    sizes = dict(call.sizes)
    outputs: dict[str, tuple[int | str, ...]] = {}
    for name in found:
        pairs = list(zip(found[name], grown[name], strict=True))
        for axis, pair in enumerate(pairs):
            if pair[0] == pair[1] or pair in both:
                continue
            part = next(filter(None, (part_name(base, known, pair) for known, base in both.items())), None)
            if part is None:
                raise ModelError(
                    f"axis {axis} of the {name} that a {type(module).__name__} gives goes with none of its inputs' "
                    "sizes; give its pipeline folder, whose calls are recorded"
                )
            both[pair], sizes[part] = part, pair[0]
        outputs[name] = tuple(pair[0] if pair[0] == pair[1] else both[pair] for pair in pairs)
    return replace(call, outputs=outputs, sizes=sizes)


def _grown(sizes: Mapping[str, int]) -> dict[str, int]:
    """Other sizes that go together: the multiples of a picture's sides grow as these do."""
    grown = {name: size + GROWTH * (1 + index) for index, (name, size) in enumerate(sizes.items())}
    return following(grown, {name: grown[name] for name in (HEIGHT, WIDTH) if name in grown})


def _shapes(module: torch.nn.Module, call: Call, sizes: Mapping[str, int], batch: int) -> dict[str, tuple[int, ...]]:
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
    return {key: tuple(value.shape) for key, value in named_outputs(output).items()}
