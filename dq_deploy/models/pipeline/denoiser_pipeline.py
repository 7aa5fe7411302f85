"""A pipeline around a denoiser alone: diffusers' scheduler takes the steps, nothing else is done to the sample."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from dq_deploy.errors import DqError, ModelError, OptionError
from dq_deploy.models.call import call_arguments
from dq_deploy.models.conditions import LABELS, label_limits, sample_name
from dq_deploy.models.default_calls import call_for
from dq_deploy.models.load.component_class import is_controlnet
from dq_deploy.models.pipeline.call import PICTURE_CHANNELS
from dq_deploy.models.pipeline.schedulers import set_steps
from dq_deploy.record import Call

OnStepEnd = Callable[[Any, int, torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]

DEFAULT_STEPS = 50

_READS_VARIANCE = ("DDPMScheduler", "DDPMParallelScheduler", "UnCLIPScheduler")
"""Schedulers whose step takes a learned variance behind the prediction; the others take the prediction alone."""

_GUIDED = ("FluxTransformer2DModel",)
"""Denoisers whose pipeline packs the sample and divides the timestep: no general rule calls them."""


class DenoiserPipeline(DiffusionPipeline):
    """Samples any denoiser of one sample tensor by any scheduler of diffusers, by the protocol that they share.

    The scheduler says the timesteps (`set_timesteps`), the size of the first noise (`init_noise_sigma`), what the
    denoiser is given (`scale_model_input`) and what comes behind its output (`step`, with what its signature takes
    besides: a generator, eta). A denoiser of twice the channels has learned a variance, which goes to the schedulers
    that read it.

    Attributes:
        denoiser: torch module with a `config`.
        scheduler: of diffusers.
    """

    model_cpu_offload_seq = "denoiser"

    def __init__(self, denoiser: torch.nn.Module, scheduler: Any) -> None:
        super().__init__()
        for name in ("set_timesteps", "step"):
            if not hasattr(scheduler, name):
                raise OptionError(
                    f"the scheduler {type(scheduler).__name__} has no {name}, expected one that steps a denoiser; give "
                    "another as `scheduler`, or the whole pipeline"
                )
        needed = [
            name
            for name, p in list(inspect.signature(scheduler.step).parameters.items())[3:]
            if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        if needed:
            raise OptionError(
                f"the scheduler {type(scheduler).__name__} asks for {', '.join(needed)} at each step, which a denoiser "
                "alone does not have; give the whole pipeline"
            )
        self.register_modules(denoiser=denoiser, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = DEFAULT_STEPS,
        eta: float = 0.0,
        class_labels: torch.Tensor | Sequence[int] | None = None,
        conditions: Mapping[str, torch.Tensor] | None = None,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
    ) -> Any:
        """Draw samples.

        Args:
            batch_size: B.
            num_inference_steps: of the scheduler.
            eta: DDIM's share of fresh noise, 0 to 1; refused by schedulers without one.
            class_labels: [B] of a denoiser with classes.
            conditions: [B, ...] further inputs of the denoiser by dotted name, as `added_cond_kwargs.text_embeds`.
            height: rows of the sample; by default as the configuration says, and so width.
            width: columns of the sample.
            generator: one for all, or a list with one for each sample, which then depends on its own alone.
            latents: [B, C, height, width] unit noise to begin with.
            output_type: `latent` (the sample as it is), `pt` and `np` (pictures from 0 to 1; [B, C, H, W] and
                [B, H, W, C]) or `pil`.
            return_dict: False for a tuple.
            callback_on_step_end: called with (pipeline, step, timestep, {"latents": ...}); what it returns for
                latents goes on.

        Raises:
            OptionError: a setting that the denoiser or the scheduler does not take.
            ModelError: a denoiser that cannot be sampled alone.
        """
        shape = (batch_size, *self.sample_shape(height, width))
        step_options = self._step_options(eta, generator)
        set_steps(self.scheduler, num_inference_steps)
        noise = randn_tensor(shape, generator=generator) if latents is None else latents
        if tuple(noise.shape) != shape:
            raise OptionError(f"latents have shape {tuple(noise.shape)}, expected {shape}")
        sample = noise * float(getattr(self.scheduler, "init_noise_sigma", 1.0))
        given = self._given(class_labels, conditions, batch_size)
        scale = getattr(self.scheduler, "scale_model_input", lambda latent, t: latent)
        timesteps = self.scheduler.timesteps
        for index, t in enumerate(self.progress_bar(timesteps)):
            scaled = scale(sample, t)
            time = t.to(torch.float32).expand(batch_size)
            output = self.denoiser(scaled, timestep=time, return_dict=False, **given)[0]
            output = self._prediction(output, sample.shape[1])
            sample = self.scheduler.step(output, t, sample, **step_options).prev_sample
            if callback_on_step_end is not None:
                changed = callback_on_step_end(self, index, t, {"latents": sample})
                sample = sample if changed is None else changed.get("latents", sample)
        images = self._finished(sample, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def sample_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """[C, H, W] of a sample.

        Args:
            height: rows; by default as the configuration says, and so width.
            width: columns.

        Raises:
            OptionError: the configuration does not say the size.
            ModelError: a denoiser that cannot be sampled alone.
        """
        config = self.denoiser.config
        kind = config.get("_class_name", type(self.denoiser).__name__)
        channels, gives = config["in_channels"], config.get("out_channels") or config["in_channels"]
        if kind in _GUIDED or is_controlnet(self.denoiser.__class__):
            raise ModelError(
                f"a {kind} is called by its pipeline in a way of its own; give the whole pipeline's folder"
            )
        call = self._call()
        axes = 4 if call is None else next(len(i.shape) for i in call.inputs if i.name == sample_name(call))
        if axes != 4:
            raise ModelError(
                f"the sample of a {kind} has {axes} axes, expected the 4 of pictures; give the whole pipeline's "
                "folder, or what the denoiser reads by `latents`"
            )
        if gives not in (channels, 2 * channels):
            raise ModelError(
                f"the denoiser takes {channels} channels and gives {gives}, expected as many, or twice with a learned "
                "variance; give the whole pipeline's folder, which knows what the others are"
            )
        size = config.get("sample_size")
        rows, columns = (size, size) if isinstance(size, int) else (size or (None, None))
        rows, columns = rows if height is None else height, columns if width is None else width
        if rows is None or columns is None:
            raise OptionError("the denoiser's configuration has no sample_size; give `height` and `width`")
        return int(channels), int(rows), int(columns)

    def _step_options(self, eta: float, generator: torch.Generator | list[torch.Generator] | None) -> dict[str, Any]:
        takes = inspect.signature(self.scheduler.step).parameters
        if not 0 <= eta <= 1:
            raise OptionError(f"eta is {eta}, expected a number from 0 to 1")
        if eta and "eta" not in takes:
            raise OptionError(f"eta is {eta}, expected 0: {type(self.scheduler).__name__} has no eta")
        options: dict[str, Any] = {"eta": eta} if "eta" in takes else {}
        if "generator" in takes:
            options["generator"] = generator
        return options

    def _given(self, labels: Any, conditions: Mapping[str, torch.Tensor] | None, batch: int) -> dict[str, Any]:
        """The denoiser's keyword arguments besides sample and timestep."""
        rows = dict(conditions or {})
        if labels is not None:
            rows[LABELS] = torch.as_tensor(labels)
        self._check_labels(rows.get(LABELS))
        for name, value in rows.items():
            if value.ndim and len(value) != batch:
                raise OptionError(f"{name} has {len(value)} rows, expected {batch}, one for each sample")
        return call_arguments(rows)

    def _check_labels(self, labels: torch.Tensor | None) -> None:
        """Refuse no label, or one without a row in the table, where the denoiser's configuration says its classes."""
        call = self._call()
        limits = None if call is None else label_limits(call)
        if limits is None:
            return
        low, high = limits
        if labels is None:
            raise OptionError(f"the model is class-conditional, expected labels from {low} to {high}; give `labels`")
        outside = labels[(labels < low) | (labels > high)]
        if len(outside):
            raise OptionError(f"label {outside[0]} is out of range, expected {low} to {high}")

    def _call(self) -> Call | None:
        """How the configuration says that the denoiser is called; None for a class that only a run knows."""
        config = self.denoiser.config
        try:
            return call_for({**config, "_class_name": config.get("_class_name", type(self.denoiser).__name__)})
        except DqError:
            return None

    def _prediction(self, output: torch.Tensor, channels: int) -> torch.Tensor:
        """What the scheduler takes: the prediction alone, unless it reads the variance behind it."""
        variance = str(self.scheduler.config.get("variance_type", ""))
        if type(self.scheduler).__name__ in _READS_VARIANCE and variance.startswith("learned"):
            return output
        return output[:, :channels]

    def _finished(self, sample: torch.Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return sample
        if sample.shape[1] not in PICTURE_CHANNELS:
            raise OptionError(
                f"the model gives latents of {sample.shape[1]} channels, which are no picture: ask for latents, or "
                "give a whole pipeline with a VAE"
            )
        pictures = (sample / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return pictures
        array = pictures.permute(0, 2, 3, 1).numpy()
        return array if output_type == "np" else self.numpy_to_pil(array)
