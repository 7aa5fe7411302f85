"""One picture of a request: diffusers' own pipeline draws it, its denoiser's steps go to the scheduler of steps."""

from __future__ import annotations

import copy
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dq_deploy.errors import NonFiniteError, OptionError, library_errors
from dq_deploy.models.pipeline import PipelineCall
from dq_deploy.models.pipeline.call import what_to_check
from dq_deploy.models.pipeline.denoiser_pipeline import DenoiserPipeline
from dq_deploy.numerics.arrays import F32, Array
from dq_deploy.pipelines.draw import images_of
from dq_deploy.pipelines.grid import bytes_from_unit
from dq_deploy.pipelines.integer_denoiser import IntegerDenoiser
from dq_deploy.pipelines.watch import StepWatch, collected_warnings
from dq_deploy.serve.orders import Order, PartialPicture, Picture, PictureFormat, StepDone
from dq_deploy.serve.previews import preview_of
from dq_deploy.serve.steps import SharedEngine
from dq_deploy.serve.turn import Turn

_PIL_NAMES = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Pipelines:
    """Diffusers' pipelines of the same components, by what they do.

    Attributes:
        draws: makes pictures from nothing but the prompt or the label; None where there is none, and so the others.
        edits: changes a picture.
        masks: paints what a mask shows anew.
        component: name of the denoiser in each.
    """

    draws: Any | None
    edits: Any | None
    masks: Any | None
    component: str

    @property
    def main(self) -> Any:
        """The one of the folder itself."""
        return self.edits if self.draws is None else self.draws

    def put_in_place(self, denoiser: IntegerDenoiser) -> None:
        """Put a denoiser into each."""
        for pipeline in (self.draws, self.edits, self.masks):
            if pipeline is not None:
                setattr(pipeline, self.component, denoiser)

    def for_call(self, call: PipelineCall) -> Any:
        """The one that takes what is asked for.

        Raises:
            OptionError: there is none.
        """
        kind = type(self.main).__name__
        if call.mask is not None:
            found, words = self.masks, "paints no part of a picture anew; leave the mask out"
        elif call.image is not None:
            found, words = self.edits, "changes no picture; ask it for a new one"
        else:
            found, words = self.draws, "works on a picture; give one"
        if found is None:
            raise OptionError(f"the {kind} {words}")
        return found


class Painter:
    """Draws the pictures of requests, each with a scheduler and a random generator of its own.

    Several threads use it at once. What is computed besides the engine is done by the thread that has the turn.
    """

    def __init__(self, pipelines: Pipelines, shared: SharedEngine, turn: Turn, *, threads: int) -> None:
        """Take over pipelines.

        Args:
            pipelines: whose denoiser is of `shared`.
            shared: the engine.
            turn: of all the painter's threads.
            threads: of torch, in each of them.
        """
        self.pipelines = pipelines
        self._shared, self._turn, self._threads = shared, turn, threads

    def begin_thread(self) -> None:
        """To be called once by each thread that draws."""
        torch.set_num_threads(self._threads)

    def check(self, call: PipelineCall) -> None:
        """Refuse what the pipeline does not take, before it waits for a place.

        Raises:
            DqError: says what.
        """
        with self._turn:
            call.arguments(self.pipelines.for_call(call), [0])

    def paint(self, order: Order, index: int) -> Picture:
        """Draw one picture of a request, and tell the request of its steps.

        Raises:
            Stopped: the request ended meanwhile.
            DqError: the pipeline refuses what is asked, or a number is not finite.
        """
        assert order.call is not None
        self._shared.serving(order)
        with self._turn, torch.inference_mode(), collected_warnings() as remarks:
            order.check_going_on()
            pipeline = own_pipeline(self.pipelines.for_call(order.call))
            raw = isinstance(pipeline, DenoiserPipeline)
            kind = "latent" if raw else "np"
            arguments = order.call.arguments(pipeline, [index], output_type=kind, effects=False)  # checked when taken
            if index == 0:
                order.text_tokens = _tokens(pipeline, order.call)
            with _OrderWatch(pipeline, self.pipelines.component, order, index) as watch:
                images = _drawn(pipeline, watch, arguments)
        pixels = np.moveaxis(bytes_from_unit(images[0]), 0, -1)
        order.check_going_on()
        return picture_of(pixels, index, order.format, tuple(remarks))


def _tokens(pipeline: Any, call: PipelineCall) -> int:
    """Tokens of the prompt as the pipeline's first tokenizer counts them."""
    tokenizer = getattr(pipeline, "tokenizer", None)
    return len(tokenizer(call.prompts[0]).input_ids) if tokenizer is not None and call.prompts else 0


def own_pipeline(pipeline: Any) -> Any:
    """A pipeline for one picture: all parts shared but the schedulers, which remember their steps."""
    own = copy.copy(pipeline)
    for name, part in pipeline.components.items():
        if "scheduler" in name and part is not None:
            setattr(own, name, copy.deepcopy(part))
    return own


def _drawn(pipeline: Any, watch: StepWatch, arguments: dict[str, Any]) -> F32:
    """Pictures [1, C, H, W] in [-1, 1]."""
    try:
        with library_errors(lambda error: watch.place(), what_to_check(pipeline)):
            found = pipeline(**arguments).images
    except NonFiniteError as error:
        if hasattr(error, "arguments"):
            raise
        raise watch.stopped(str(error)) from error
    return images_of(found)


def picture_of(pixels: Array, index: int, file: PictureFormat, remarks: tuple[str, ...] = ()) -> Picture:
    """A picture as bytes; pixels [H, W, C] uint8 with one or three channels."""
    height, width, channels = pixels.shape
    data = pixels.tobytes() if file.name == "raw" else _encoded(pixels, file)
    return Picture(index=index, data=data, width=width, height=height, channels=channels, remarks=remarks)


def _encoded(pixels: Array, file: PictureFormat) -> bytes:
    from PIL import Image

    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    buffer = io.BytesIO()
    settings: dict[str, Any] = {} if file.name == "png" else {"quality": file.quality}
    image.save(buffer, format=_PIL_NAMES[file.name], **settings)
    return buffer.getvalue()


class _OrderWatch(StepWatch):
    """Tells an order of each step of one of its pictures."""

    def __init__(self, pipeline: Any, component: str, order: Order, index: int) -> None:
        super().__init__(pipeline, component, self._stepped)
        self._order, self._index = order, index
        self._partial = 0

    def _watch_denoiser(self) -> None:
        """The denoiser is shared: its calls are not watched."""

    def _after(self, result: Any) -> None:
        self._result = result
        super()._after(result)

    def _stepped(self, step: int, steps: int) -> None:
        order, terms = self._order, self._order.terms
        preview = None
        due = partial_step(self._partial, terms.partial_images, steps)
        each = terms.preview_every
        wants_preview = bool(terms.step_events and each and step % each == 0 and step < steps)
        if (due is not None and step >= due) or wants_preview:
            pixels = preview_of(self.pipeline, self._result, order.call)
            preview = picture_of(pixels, self._index, order.format)
        if due is not None and step >= due and preview is not None:
            order.tell(PartialPicture(number=self._partial, picture=preview))
            self._partial += 1
        order.tell(StepDone(index=self._index, step=step, steps=steps, preview=preview if wants_preview else None))
        order.check_going_on()


def partial_step(done: int, wanted: int, steps: int) -> int | None:
    """Behind which step the next of the wanted pictures on the way is due: they are spread evenly over the steps.

    Args:
        done: pictures on the way so far.
        wanted: in all.
        steps: of the picture.

    Returns:
        The step, from 1; None where no more is wanted, or there are too few steps.
    """
    if done >= wanted:
        return None
    step = max(done + 1, (done + 1) * steps // (wanted + 1))
    return step if step < steps else None
