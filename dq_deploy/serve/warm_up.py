"""The first pictures, drawn while a server is opened: they show that it works, and what it cannot do."""

from __future__ import annotations

import inspect
import io
import logging
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from dq_deploy.errors import DqError
from dq_deploy.models.pipeline import PipelineCall
from dq_deploy.models.pipeline.pictures import PictureData
from dq_deploy.serve.orders import Kind, Order, Picture, Terms
from dq_deploy.serve.same_bytes import SameBytes
from dq_deploy.serve.service import Service

_LOGGER = logging.getLogger(__name__)

STEPS = 2
"""Denoising steps of each of these pictures."""


class WarmUp:
    """Draws one picture of each kind and completes the card by what is seen."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def run(self) -> None:
        """Draw, and put what was found on the service's card.

        Raises:
            DqError: no picture can be drawn.
        """
        service = self.service
        pipelines = service.painter.pipelines
        before = torch.random.get_rng_state()
        if service.card.draws:
            service.painter.check(replace(self._call(), steps=service.card.steps))
            picture = self._picture(self._call())
            card = replace(service.card, width=picture.width, height=picture.height)
            service.card = replace(card, channels=picture.channels)
        else:
            self._of_pictures_alone(pipelines.edits)
        if service.card.draws and service.card.edits and not self._works(self._call(picture=True), "changed"):
            pipelines = replace(pipelines, edits=None)
        masked = service.card.masks and self._works(self._call(picture=True, mask=True), "painted anew in part")
        pipelines = pipelines if masked else replace(pipelines, masks=None)
        service.painter.pipelines = pipelines
        card = replace(service.card, edits=pipelines.edits is not None, masks=pipelines.masks is not None)
        if not torch.equal(before, torch.random.get_rng_state()):
            how = "the pipeline takes random numbers that all requests share"
            card = replace(card, same_bytes=SameBytes(holds=False, proven=True, how=how))
        service.card = card

    def _of_pictures_alone(self, pipeline: Any) -> None:
        """Of a pipeline that makes no picture from nothing: one of its usual size is changed."""
        factor = int(getattr(pipeline, "vae_scale_factor", 1) or 1)
        size = next((part.config.sample_size for part in pipeline.components.values() if _has_size(part)), 64)
        width, height = (size * factor,) * 2 if isinstance(size, int) else (size[1] * factor, size[0] * factor)
        self.service.card = replace(self.service.card, width=width, height=height)
        self._picture(self._call(picture=True))

    def _call(self, *, picture: bool = False, mask: bool = False) -> PipelineCall:
        card = self.service.card
        return PipelineCall(
            prompts=("a picture",) if card.takes == "prompt" else (),
            labels=None if card.labels is None else (card.labels.low,),
            steps=min(card.steps, STEPS),
            image=self._plain("RGB") if picture else None,
            mask=self._plain("L") if mask else None,
            strength=1.0 if picture and self._takes_strength(mask) else None,
        )

    def _takes_strength(self, mask: bool) -> bool:
        pipelines = self.service.painter.pipelines
        kind = type(pipelines.masks if mask else pipelines.edits)
        return "strength" in inspect.signature(kind.__call__).parameters

    def _plain(self, mode: str) -> PictureData:
        """A picture of one colour, of the model's own size."""
        card, buffer = self.service.card, io.BytesIO()
        Image.new(mode, (card.width, card.height), 200 if mode == "L" else (200, 100, 50)).save(buffer, "PNG")
        return PictureData(name="a plain picture", data=buffer.getvalue())

    def _picture(self, call: PipelineCall) -> Picture:
        terms = Terms(time_limit_s=float("inf"))
        return self.service.painter.paint(Order(id="warm-up", kind=Kind.GENERATION, call=call, terms=terms), 0)

    def _works(self, call: PipelineCall, words: str) -> bool:
        try:
            self._picture(call)
        except DqError as error:
            _LOGGER.warning("no picture can be %s: %s", words, error)
            return False
        return True


def _has_size(part: Any) -> bool:
    """Whether a component is a denoiser whose configuration says the size of its sample."""
    config = getattr(part, "config", None)
    return hasattr(config, "sample_size") and hasattr(config, "in_channels") and not hasattr(part, "decode")
