"""First calls of a pipeline's denoiser with one thing changed each: two pictures, another size, another text length.

No denoiser is computed for them: a pipeline is stopped where it calls it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dq_deploy.calibration.recording.calls import SeenCall, watch_calls
from dq_deploy.calibration.recording.derived_call import TEXT, Observation, derive_call, output_shapes
from dq_deploy.errors import InputError, library_errors, raise_if_out_of_memory, words_of
from dq_deploy.models.pipeline.call import undecoded_output, what_to_check
from dq_deploy.record import Call

if TYPE_CHECKING:
    import torch

    from dq_deploy.models.pipeline import PipelineCall

LENGTH = "max_sequence_length"
"""The argument by which pipelines with long texts say how many tokens these have."""

MOST_STEP = 16
"""A second size is at most so many positions of the sample higher, and twice as many wider."""


class _Stop(BaseException):
    """Ends a pipeline at the first call of its denoiser; no pipeline catches it."""

    def __init__(self, call: SeenCall) -> None:
        super().__init__()
        self.call = call


@dataclass(frozen=True, kw_only=True, eq=False)
class DerivedCall:
    """A call as a pipeline makes it.

    Attributes:
        call: with the sizes of the pictures that were asked for.
        notes: which sizes stay fixed though they might vary, and why, a line each.
    """

    call: Call
    notes: tuple[str, ...]


def call_of_pipeline(
    pipeline: Any,
    module: torch.nn.Module,
    asked: PipelineCall,
    limits: Mapping[str, tuple[float, float] | None],
) -> DerivedCall:
    """Derive the call of a pipeline's denoiser.

    Args:
        pipeline: of diffusers, with `module` as its denoiser.
        module: the float denoiser.
        asked: of the pipeline; two pictures of it are tried.
        limits: of inputs of whole numbers, see `derive_call`.

    Raises:
        InputError: the pipeline does not call the denoiser, or in a way that no record holds.
        LibraryError: diffusers fails in the pipeline.
    """
    asked = replace(asked, count=max(2, asked.count))
    gives = undecoded_output(pipeline)
    one = asked.arguments(pipeline, [0], output_type=gives)
    first = _seen(pipeline, module, one)
    second = _SecondCalls(pipeline, module, one, first)
    second.take("the number of samples", "B", lambda: asked.arguments(pipeline, [0, 1], output_type=gives))
    second.take_size()
    second.take_length()
    return DerivedCall(call=derive_call(second.seen, limits), notes=tuple(second.notes))


def first_call(pipeline: Any, module: torch.nn.Module, arguments: Mapping[str, Any]) -> SeenCall:
    """The first call of the denoiser in a run of the pipeline, which ends there.

    Raises:
        InputError: it is never called.
    """

    def stop(call: SeenCall) -> None:
        raise _Stop(call)

    try:
        with watch_calls(module, stop):
            pipeline(**arguments)
    except _Stop as found:
        return found.call
    raise InputError(f"the {type(pipeline).__name__} ended without a call of its denoiser, expected one a step")


def _seen(pipeline: Any, module: torch.nn.Module, arguments: Mapping[str, Any]) -> Observation:
    with library_errors(f"the {type(pipeline).__name__}, before the first step", what_to_check(pipeline)):
        call = first_call(pipeline, module, arguments)
        return Observation(call=call, outputs=output_shapes(module, call))


class _SecondCalls:
    """The calls seen so far, the first as it was asked for, and why others could not be had."""

    def __init__(self, pipeline: Any, module: torch.nn.Module, arguments: dict[str, Any], first: Observation) -> None:
        self.pipeline, self.module, self.arguments = pipeline, module, arguments
        self.takes = inspect.signature(type(pipeline).__call__).parameters
        self.seen, self.notes = [first], list[str]()

    @property
    def first(self) -> SeenCall:
        return self.seen[0].call

    def take(self, what: str, axes: str, arguments: Any) -> bool:
        """Run the pipeline to its first call with other arguments; a refusal becomes a note."""
        try:
            found = first_call(self.pipeline, self.module, arguments())
            return self._keep(found)
        except Exception as error:
            raise_if_out_of_memory(error)
            self.notes.append(
                f"{what} ({axes}) stays as recorded: {type(self.pipeline).__name__} says {words_of(error)}"
            )
        return False

    def _keep(self, call: SeenCall) -> bool:
        """Add a call that the denoiser takes; whether one of its inputs has another shape.

        Raises:
            InputError: height and width grew alike, so that nothing tells a part of one from a part of the other.
        """
        before, after = (list(one.tensors[one.sample].shape) for one in (self.first, call))
        if len(before) == len(after) == 4 and before[2] != after[2] and before[2] * after[3] == before[3] * after[2]:
            raise InputError(f"the sample went from {before} to {after}, expected height and width to differ by more")
        derive_call([self.seen[0], seen := Observation(call=call, outputs=output_shapes(self.module, call))], {})
        self.seen.append(seen)
        known = self.first.tensors
        return any(value.shape != known[name].shape for name, value in call.tensors.items())

    def take_size(self) -> None:
        """Another height and width, by the pipeline where it takes them, else by the denoiser alone."""
        sample = self.first.tensors[self.first.sample]
        may = {"height", "width"} <= self.takes.keys() or any(map(_is_picture, self.arguments.values()))
        if may and (pixels := self._pixels()) is not None:
            height, width = pixels
            size = grown_size(height, width, MOST_STEP * self._factor())
            self.take("the size of pictures", "height, width", lambda: self._resized(*size))
        elif sample.ndim == 4:
            rows, columns = sample.shape[2:]
            height, width = grown_size(rows, columns, MOST_STEP)
            name = self.first.sample
            grown = self._grown({name: (2, height - rows)}, {name: (3, width - columns)})
            self._try_alone("the size of samples (height, width)", grown)

    def take_length(self) -> None:
        """Another number of text tokens, by the pipeline where it takes one, else by the denoiser alone."""
        text = self.first.tensors.get(TEXT)
        if text is None or text.ndim < 2:
            return
        default = self.arguments.get(LENGTH, self.takes[LENGTH].default if LENGTH in self.takes else None)
        if isinstance(default, int) and default > 1:
            before = len(self.seen)
            self.take("the length of texts", "tokens", lambda: {**self.arguments, LENGTH: default // 2})
            if len(self.seen) > before and self.seen[-1].call.tensors[TEXT].shape != text.shape:
                return
        tokens = text.shape[-2]
        changed = {
            name: (axis, tokens)
            for name, value in self.first.tensors.items()
            if name.startswith("encoder_")
            for axis, size in enumerate(value.shape)
            if size == tokens and (axis == value.ndim - 2 if name == TEXT else axis > 0)
        }
        self._try_alone("the length of texts (tokens)", self._grown(changed))

    def _try_alone(self, what: str, call: SeenCall) -> None:
        try:
            self._keep(call)
        except Exception as error:
            raise_if_out_of_memory(error)
            self.notes.append(f"{what} stays as recorded: the denoiser says {words_of(error)}")

    def _grown(self, *changes: Mapping[str, tuple[int, int]]) -> SeenCall:
        """The first call with axes of some inputs longer: their values again from the start."""
        tensors = dict(self.first.tensors)
        for change in changes:
            for name, (axis, more) in change.items():
                value = tensors[name]
                parts = [value] + [value] * -(-more // value.shape[axis])
                tensors[name] = _cat(parts, axis).narrow(axis, 0, value.shape[axis] + more)
        return replace(self.first, tensors=tensors)

    def _factor(self) -> int:
        """Pixels of a picture along each side of a position of the sample, by the names that pipelines have for it."""
        names = ("vae_scale_factor", "movq_scale_factor")
        return next((int(f) for name in names if isinstance(f := getattr(self.pipeline, name, None), int)), 1)

    def _pixels(self) -> tuple[int, int] | None:
        """(height, width) of the pictures, None where nothing says it."""
        if self.arguments.get("height") and self.arguments.get("width"):
            return int(self.arguments["height"]), int(self.arguments["width"])
        for value in self.arguments.values():
            if _is_picture(value):
                return int(value.height), int(value.width)
        sample = self.first.tensors[self.first.sample]
        if sample.ndim == 4:
            return int(sample.shape[2]) * self._factor(), int(sample.shape[3]) * self._factor()
        side = getattr(self.pipeline, "default_sample_size", None)
        return (side * self._factor(),) * 2 if isinstance(side, int) else None

    def _resized(self, height: int, width: int) -> dict[str, Any]:
        changed = {
            name: value.resize((width, height)) if _is_picture(value) else value
            for name, value in self.arguments.items()
        }
        asked = {"height": height, "width": width}
        return {**changed, **{name: size for name, size in asked.items() if name in self.takes}}


def grown_size(height: int, width: int, most: int) -> tuple[int, int]:
    """Another height and width, both larger, and never in the same proportion.

    Where they grew alike, the half of a width could not be told from a height.

    Args:
        height: as it is, and so width.
        width: likewise.
        most: that is added to one of them, and twice that to the other.
    """
    step = min(_power_of_two(math.gcd(height, width)), most)
    return (height + 2 * step, width + step) if width == 2 * height else (height + step, width + 2 * step)


def _is_picture(value: Any) -> bool:
    from PIL import Image

    return isinstance(value, Image.Image)


def _power_of_two(number: int) -> int:
    """The largest power of two that divides a number."""
    return number & -number


def _cat(parts: list[torch.Tensor], axis: int) -> torch.Tensor:
    import torch

    return torch.cat(parts, axis)
