"""The call of a denoiser, derived from calls that were seen: which sizes vary, and what never changes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dq_deploy.calibration.recording.calls import TIMESTEP, SeenCall, array_of
from dq_deploy.errors import InputError
from dq_deploy.models.sizes import BATCH, HEIGHT, TOKENS, WIDTH, part_name
from dq_deploy.record import Call, CallInput

if TYPE_CHECKING:
    import torch

TEXT = "encoder_hidden_states"
IMAGE_TOKENS = "image_tokens"

Sizes = tuple[int, ...]
"""What one axis was in each of the calls that are compared."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Observation:
    """A call that was seen and the shapes of what the denoiser gave for it, by the names of `output_specs`."""

    call: SeenCall
    outputs: Mapping[str, tuple[int, ...]]


def derive_call(seen: Sequence[Observation], limits: Mapping[str, tuple[float, float] | None]) -> Call:
    """The call that all of these are, the first with the sizes it is calibrated at.

    An axis of the same size in all is fixed. One that is as long as the batch is `B`. The last two axes of a sample of
    rank 4 are `height` and `width`; the second of a sample of rank 3 is `image_tokens`, that of the text `tokens`. An
    axis that goes with a named one has its name; one that is always its k-th part, or k times as long, is as
    `height_2` or `height_times_2`; any other is named after its input.

    Args:
        seen: at least one; whatever varies must differ between two of them.
        limits: lowest and highest value of inputs of whole numbers, by name, where they are known; otherwise those
            that were seen.

    Raises:
        InputError: the calls have other inputs, ranks or plain values.
    """
    first = seen[0].call
    for other in seen[1:]:
        check_same_arguments(first, other.call)
    names = _Names({tuple(one.call.batch for one in seen): BATCH} if len(seen) > 1 else {})
    shapes = {name: [tuple(one.call.tensors[name].shape) for one in seen] for name in first.tensors}
    _name_well_known(names, shapes, first.sample)
    inputs = [
        CallInput(
            name=name,
            dtype=array_of(name, tensor[:1] if tensor.ndim else tensor).dtype.name,
            shape=names.shape_of(name, shapes[name], [one.call.batch for one in seen]),
            limits=_limits_of(name, tensor, limits),
        )
        for name, tensor in first.tensors.items()
    ]
    batches = [one.call.batch for one in seen]
    outputs = {name: names.shape_of(name, [one.outputs[name] for one in seen], batches) for name in seen[0].outputs}
    shown = (*(item.shape for item in inputs), *outputs.values())
    used = {size for shape in shown for size in shape if isinstance(size, str)}
    sizes = {name: known[0] for known, name in names.by_sizes.items() if name in used and name != BATCH}
    return Call(inputs=tuple(inputs), constants=dict(first.plain), sizes=sizes, outputs=outputs)


def check_same_arguments(first: SeenCall, other: SeenCall) -> None:
    """Refuse a call that gives other arguments, ranks or plain values than an earlier one.

    Raises:
        InputError: names the first argument that differs.
    """
    for name in (*first.tensors, *other.tensors):
        if (name in first.tensors) != (name in other.tensors):
            raise InputError(
                f"the pipeline gives the denoiser {name} in some calls and not in others, expected the same inputs in "
                "each; one record holds one call"
            )
        ranks = [len(call.tensors[name].shape) for call in (first, other)]
        if ranks[0] != ranks[1]:
            raise InputError(f"the denoiser's input {name} has {ranks[0]} axes in one call and {ranks[1]} in another")
    for name in (*first.plain, *other.plain):
        values = [call.plain.get(name) for call in (first, other)]
        if values[0] != values[1] or (name in first.plain) != (name in other.plain):
            raise InputError(
                f"the pipeline gives the denoiser {name} {values[0]!r} in one call and {values[1]!r} in another, "
                "expected a value that never changes: only tensors may"
            )


def _name_well_known(names: _Names, shapes: Mapping[str, list[tuple[int, ...]]], sample: str) -> None:
    rank = len(shapes[sample][0])
    if rank == 4:
        names.add(HEIGHT, [shape[2] for shape in shapes[sample]])
        names.add(WIDTH, [shape[3] for shape in shapes[sample]])
    elif rank == 3:
        names.add(IMAGE_TOKENS, [shape[1] for shape in shapes[sample]])
    if TEXT in shapes and len(shapes[TEXT][0]) >= 2:
        names.add(TOKENS, [shape[-2] for shape in shapes[TEXT]])


class _Names:
    """Names of what varies, by what it was in each call."""

    def __init__(self, known: dict[Sizes, str]) -> None:
        self.by_sizes = {sizes: name for sizes, name in known.items() if len(set(sizes)) > 1}

    def add(self, name: str, sizes: Sequence[int]) -> None:
        """Name a size, if it varies and has no name yet."""
        if len(set(sizes)) > 1:
            self.by_sizes.setdefault(tuple(sizes), name)

    def shape_of(
        self, argument: str, shapes: Sequence[tuple[int, ...]], batches: Sequence[int]
    ) -> tuple[int | str, ...]:
        """A shape with names where it varies; the first axis is the batch where it is as long in every call."""
        found: list[int | str] = []
        for axis in range(len(shapes[0])):
            sizes = tuple(shape[axis] for shape in shapes)
            if axis == 0 and sizes == tuple(batches):
                found.append(BATCH)
            elif len(set(sizes)) == 1:
                found.append(sizes[0])
            else:
                found.append(self._name_of(f"{argument.replace('.', '_')}_{axis}", sizes))
        return tuple(found)

    def _name_of(self, own: str, sizes: Sizes) -> str:
        if sizes in self.by_sizes:
            return self.by_sizes[sizes]
        name = next(filter(None, (part_name(base, known, sizes) for known, base in self.by_sizes.items())), own)
        self.by_sizes[sizes] = name
        return name


def _limits_of(
    name: str, tensor: torch.Tensor, known: Mapping[str, tuple[float, float] | None]
) -> tuple[float, float] | None:
    """Range of an input of whole numbers: what is known, or what was seen; a mask may always hold 0 and 1."""
    import torch

    if known.get(name) is not None:
        return known[name]
    if tensor.is_floating_point() or tensor.dtype == torch.bool or not tensor.numel() or name == TIMESTEP:
        return None
    low, high = float(tensor.min()), float(tensor.max())
    return (min(low, 0.0), max(high, 1.0)) if name.endswith("mask") else (low, high)


def output_shapes(module: torch.nn.Module, call: SeenCall) -> dict[str, tuple[int, ...]]:
    """Shapes of what a denoiser gives for a call, computed on shapes alone where its operations allow it.

    Raises:
        Exception: what the module raises for shapes that it does not take.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from dq_deploy.models import call_arguments, named_outputs

    def run(called: Callable[..., Any], tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        with torch.no_grad():
            found = named_outputs(called(**call_arguments(tensors, call.plain)))
        return {name: tuple(int(size) for size in value.shape) for name, value in found.items()}

    def on_meta(**arguments: Any) -> Any:
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        bare = {name: value.detach().to("meta") for name, value in state.items()}
        return torch.func.functional_call(module, bare, kwargs=arguments)

    # an operation that wants one device, or looks at values, is left to the next: the last computes
    with contextlib.suppress(Exception):
        return run(on_meta, {name: value.to("meta") for name, value in call.tensors.items()})
    with contextlib.suppress(Exception), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return run(module, {name: mode.from_tensor(value) for name, value in call.tensors.items()})
    return run(module, call.tensors)
