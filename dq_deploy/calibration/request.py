"""What a command asks of calibration, and the source that answers it: a pipeline, a denoiser alone, or files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dq_deploy.calibration.recorded import CALIBRATIONS, CalibrationSource, read_source
from dq_deploy.calibration.recording import read_prompts, ready_pipeline
from dq_deploy.calibration.recording.asked_pipeline import plain_config
from dq_deploy.errors import OptionError
from dq_deploy.models import Denoiser, condition_names, default_call, input_specs
from dq_deploy.models.default_calls.output_shapes import with_outputs
from dq_deploy.models.load.hub_files import snapshot_of
from dq_deploy.models.load.pipeline_folder import INDEX, sizes_of_picture
from dq_deploy.models.pipeline import PipelineCall, build_scheduler
from dq_deploy.models.pipeline.call_file import read_call

FILES = ("conditions", "latents", "prompts", "call")
"""Attributes of a request that are paths."""


@dataclass(frozen=True, kw_only=True)
class CalibrationRequest:
    """What calibrates a model, by options; files are named by path, so that another process can be told it.

    Attributes:
        kind: one of `CALIBRATIONS`, or None for what the other options mean.
        conditions: file of embeddings for a denoiser alone.
        latents: file of recorded inputs.
        prompts: text file with a prompt a line.
        negative_prompt: for every picture.
        guidance: `guidance_scale` of the pipeline.
        scheduler: class of diffusers or short name, in place of the model's own.
        height: of a pipeline's pictures in pixels, of a denoiser's folder in positions of the sample; and so width.
        width: likewise.
        call: YAML file of anything that the pipeline's `__call__` takes.
    """

    kind: str | None = None
    conditions: str | None = None
    latents: str | None = None
    prompts: str | None = None
    negative_prompt: str | None = None
    guidance: float | None = None
    scheduler: str | None = None
    height: int | None = None
    width: int | None = None
    call: str | None = None

    def asked(self, *, steps: int | None = None, seed: int | None = None) -> PipelineCall:
        """What is asked of a pipeline, the file of the call and the file of prompts read.

        Raises:
            DqError: a file is missing or damaged, or a value is given twice or out of range.
        """
        prompts = () if self.prompts is None else read_prompts(Path(self.prompts))
        return read_call(
            None if self.call is None else Path(self.call),
            prompts=prompts,
            negative_prompt=self.negative_prompt,
            guidance=self.guidance,
            scheduler=self.scheduler,
            height=self.height,
            width=self.width,
            steps=steps,
            seed=seed,
        )

    def for_pipelines(self) -> list[str]:
        """Names of the options that only a pipeline has a use for, of those that were given."""
        named = ("prompts", "negative_prompt", "guidance", "call")
        return [name for name in named if getattr(self, name) is not None]

    def for_denoisers(self) -> list[str]:
        """Names of the options that take the denoiser out of its pipeline, of those that were given."""
        found = [name for name in ("conditions", "latents") if getattr(self, name) is not None]
        return [*found, *(["kind"] if self.kind in ("random", "latents") else [])]


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedCalibration:
    """What a method is to be given.

    Attributes:
        denoiser: the float model, called as it is calibrated, with the scheduler that takes the steps.
        source: where inputs come from.
        remarks: what the user is to know, a line each.
    """

    denoiser: Denoiser
    source: CalibrationSource
    remarks: tuple[str, ...]


def is_pipeline(path: Path) -> bool:
    """Whether a folder is a whole pipeline, which can draw by itself."""
    return (snapshot_of(path) / INDEX).is_file()


def prepare_calibration(
    denoiser: Denoiser,
    path: Path,
    request: CalibrationRequest,
    asked: PipelineCall | None = None,
    *,
    variant: str | None = None,
) -> PreparedCalibration:
    """The source that a request means, with the denoiser as it will be called.

    A folder with model_index.json draws by its own pipeline, unless files or noise are to calibrate; any other is
    sampled alone, by its own scheduler.

    Args:
        denoiser: loaded from `path`.
        path: of the model; of a single file the folder with its configuration counts.
        request: the options.
        asked: what `request.asked` gave, where it was read already.
        variant: of the weight files.

    Raises:
        OptionError: options that contradict each other, or that the model has no use for.
        DqError: what cannot be opened or read.
    """
    if request.kind is not None and request.kind not in CALIBRATIONS:
        raise OptionError(f"`kind` is {request.kind!r}, expected one of {', '.join(CALIBRATIONS)}")
    asked = request.asked() if asked is None else asked
    path = path if denoiser.config_source is None else Path(denoiser.config_source)
    alone, whole = request.for_denoisers(), request.for_pipelines()
    if alone and whole:
        why = "a pipeline draws and encodes by itself, recorded or random inputs need none"
        raise OptionError(f"got `{whole[0]}` and `{alone[0]}`, expected one of them: {why}")
    if is_pipeline(path) and not alone:
        ready = ready_pipeline(denoiser, path, asked, component=denoiser.component, variant=variant)
        source = CalibrationSource(pipeline=ready.source)
        return PreparedCalibration(denoiser=ready.denoiser, source=source, remarks=ready.remarks)
    if whole:
        raise OptionError(
            f"got `{whole[0]}` for {path}, a denoiser alone: nothing in it reads a prompt; give the folder of its "
            "pipeline, with model_index.json, or embeddings by `conditions`"
        )
    denoiser = _alone(denoiser, path, asked)
    source = read_source(
        input_specs(denoiser.call),
        kind=request.kind,
        conditions=None if request.conditions is None else Path(request.conditions),
        latents=None if request.latents is None else Path(request.latents),
        scheduler_config=denoiser.scheduler_config,
    )
    return PreparedCalibration(denoiser=denoiser, source=source, remarks=tuple(_remarks(denoiser, source)))


def _alone(denoiser: Denoiser, path: Path, asked: PipelineCall) -> Denoiser:
    """The denoiser with the scheduler and the sample's size that were asked for."""
    if asked.scheduler is not None:
        scheduler = build_scheduler(denoiser.scheduler_config, asked.scheduler)
        denoiser = replace(denoiser, scheduler_config=plain_config(scheduler))
    sizes = sizes_of_picture(path, asked.height, asked.width)
    if sizes.items() <= denoiser.call.sizes.items():
        return denoiser
    call = default_call(denoiser.config, {**denoiser.call.sizes, **sizes})
    return replace(denoiser, call=with_outputs(call, denoiser.module))


def _remarks(denoiser: Denoiser, source: CalibrationSource) -> list[str]:
    names = condition_names(denoiser.call)
    if not names or source.conditions or source.kind == "latents":
        return []
    return [
        f"no `conditions` were given: {', '.join(names)} are random and stand for no text; give the pipeline's folder "
        "to calibrate with prompts"
    ]
