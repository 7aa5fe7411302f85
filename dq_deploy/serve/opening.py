"""From files to a server: a pipeline, an engine in its denoiser's place, and what is known of both."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dq_deploy.errors import DqError, OptionError
from dq_deploy.models.conditions import condition_names, label_limits
from dq_deploy.models.load.json_file import read_json
from dq_deploy.models.load.pipeline_folder import INDEX, find_denoiser, is_pipeline
from dq_deploy.models.pipeline import PipelineCall, denoiser_name, scheduler_name
from dq_deploy.models.pipeline.call import PICTURE_CHANNELS
from dq_deploy.models.pipeline.denoiser_pipeline import DenoiserPipeline
from dq_deploy.models.pipeline.open import suited
from dq_deploy.models.pipeline.pictures import PictureData
from dq_deploy.pipelines.integer_denoiser import IntegerDenoiser
from dq_deploy.pipelines.quantized import (
    Quantized,
    check_same_kind,
    open_quantized,
    pipeline_around,
)
from dq_deploy.pipelines.same_scheduler import check_same_scheduler
from dq_deploy.serve import Served
from dq_deploy.serve.card import Labels, ModelCard, bits_of, integer_share, read_proof
from dq_deploy.serve.painting import Painter, Pipelines
from dq_deploy.serve.previews import why_no_preview
from dq_deploy.serve.same_bytes import SameBytes, try_same_bytes
from dq_deploy.serve.service import Service
from dq_deploy.serve.steps import SharedEngine
from dq_deploy.serve.turn import Turn
from dq_deploy.serve.warm_up import WarmUp


@contextmanager
def open_service(served: Served) -> Iterator[Service]:
    """Open what is to be served, draw a picture of two steps to see that it works, and take requests.

    Raises:
        DqError: it cannot be served; says why.
    """
    with ExitStack() as stack:
        quantized, *others = [_quantized(served, stack) for _ in range(served.limits.instances)]
        opening = _Opening(served, quantized)
        limits = opening.limits
        same = try_same_bytes(quantized.runner, quantized.call, limits.max_batch)
        service = Service(
            opening.painter, [quantized.runner, *(one.runner for one in others)], opening.card(same), limits
        )
        stack.callback(service.close)
        WarmUp(service).run()
        yield service


def _quantized(served: Served, stack: ExitStack) -> Quantized:
    return open_quantized(
        served.ckpt,
        served.engine,
        stack,
        threads=served.threads,
        isa=served.isa,
        device=served.device,
        attention=served.attention,
        hash_check=served.hash_check,
    )


class _Opening:
    """What is found out of a model while it is opened."""

    def __init__(self, served: Served, quantized: Quantized) -> None:
        self.served, self.quantized, self.limits = served, quantized, served.limits
        self.folder, self.component = self._place()
        config = quantized.manifest.scheduler_config
        if self.folder is None and config is None and served.scheduler is None:
            raise OptionError("no scheduler is known for the denoiser; give `scheduler`, or the pipeline as `model`")
        self.asked = PipelineCall(scheduler=served.scheduler)
        self.pipelines = self._opened()

    def _place(self) -> tuple[Path | None, str | None]:
        """Folder of the pipeline and its denoiser, or two times None for a denoiser alone."""
        model, component = self.served.model, self.served.component
        if model is None:
            if component is not None:
                raise OptionError(f"`component` is {component}, but no pipeline draws; leave it out or give `model`")
            return None, None
        recorded = self.quantized.provenance.get("component") if is_pipeline(model) else None
        place = find_denoiser(model, component or recorded)
        if place.pipeline is None or not (place.pipeline / INDEX).is_file():
            found, manifest = read_json(place.folder / "config.json"), self.quantized.manifest
            check_same_kind(manifest.family, manifest.model_config, found, str(place.folder))
            check_same_scheduler(manifest.scheduler_config, place.folder)
            return None, None
        return place.pipeline, place.component

    def _opened(self) -> Pipelines:
        quantized = self.quantized
        main = pipeline_around(quantized, self.folder, self.asked, component=self.component)
        name = denoiser_name(main, self.component)
        takes = inspect.signature(type(main).__call__).parameters
        if isinstance(main, DenoiserPipeline):
            given = [name for name in condition_names(quantized.call) if name != "class_labels"]
            if given:
                words = ", ".join(given)
                raise OptionError(
                    f"the denoiser takes {words}, made by a pipeline; give the pipeline's folder as `model`"
                )
            channels = quantized.manifest.outputs[0].shape[1]
            if channels not in (*PICTURE_CHANNELS, *(2 * c for c in PICTURE_CHANNELS)):
                raise OptionError(
                    f"the denoiser gives latents of {channels} channels, which are no picture; give the pipeline's "
                    "folder as `model`"
                )
        needs_picture = "image" in takes and "prompt" in takes
        blank = PictureData(name="blank", data=b"")
        edits = main if needs_picture else _other(main, PipelineCall(image=blank))
        masks = _other(main, PipelineCall(image=blank, mask=blank))
        return Pipelines(draws=None if needs_picture else main, edits=edits, masks=masks, component=name)

    def painter(self, shared: SharedEngine, turn: Turn) -> Painter:
        """What draws, with the shared engine in the denoiser's place."""
        self.pipelines.put_in_place(IntegerDenoiser(shared))
        return Painter(self.pipelines, shared, turn, threads=self.served.pipeline_threads)

    def card(self, same: SameBytes) -> ModelCard:
        """As far as it is known before a picture is drawn."""
        served, quantized, runner = self.served, self.quantized, self.quantized.runner
        main = self.pipelines.main
        takes = inspect.signature(type(main).__call__).parameters
        limits = label_limits(quantized.call) if "class_labels" in takes else None
        names = getattr(main, "labels", None)
        labels = None if limits is None else Labels(low=limits[0], high=limits[1], names=names or None)
        method, weight_bits, activation_bits = bits_of(quantized)
        denoiser = getattr(main, self.pipelines.component)
        scheduler = scheduler_name(main, denoiser)
        why = why_no_preview(main)
        guidance = takes["guidance_scale"].default if "guidance_scale" in takes else None
        steps = served.steps or quantized.steps or takes["num_inference_steps"].default
        return ModelCard(
            name=served.name or (served.model or served.engine).resolve().stem,
            created=int(served.engine.stat().st_mtime),
            takes="prompt" if "prompt" in takes else "nothing" if labels is None else "label",
            labels=labels,
            pipeline=type(main).__name__,
            scheduler=None if scheduler is None else type(getattr(main, scheduler)).__name__,
            denoiser=denoiser.float_class.__name__,
            width=0,
            height=0,
            sizes_vary={"height", "width"} <= set(runner.sizes),
            steps=steps,
            guidance=guidance,
            negative_prompt="negative_prompt" in takes,
            draws=self.pipelines.draws is not None,
            edits=self.pipelines.edits is not None,
            masks=self.pipelines.masks is not None,
            previews=why is None,
            no_previews=why or "",
            method=method,
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            integer_share=integer_share(quantized),
            engine=runner.engine,
            engine_version=runner.runtime_words,
            record_sha256=quantized.manifest.record_sha256,
            proof=None
            if served.proof is None
            else read_proof(served.proof, quantized.manifest.record_sha256, runner.engine),
            same_bytes=same,
            max_batch=self.limits.max_batch,
            queue=self.limits.queue,
        )


def _other(main: Any, asked: PipelineCall) -> Any | None:
    """Diffusers' pipeline of the same components that takes a picture, or a picture and a mask; None if it has none."""
    if isinstance(main, DenoiserPipeline):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = suited(main, asked)
    except DqError:
        return None
    found.set_progress_bar_config(disable=True)
    return found
