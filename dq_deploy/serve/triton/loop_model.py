"""The denoising loop as a Python model of Triton Inference Server; `write_triton_repository` copies it as model.py.

It imports nothing of the package that wrote it: what it needs lies beside it, in `loop.json` and `pipeline/`. The
pipeline is diffusers' own; a module in its denoiser's place asks the server for each step.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the libraries are loaded: nothing is downloaded

import diffusers
import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from diffusers.utils.torch_utils import randn_tensor

_set_promotion = getattr(np, "_set_promotion_state", None)
if _set_promotion is not None and np.__version__.startswith("1."):
    _set_promotion("weak")  # a number beside an array as numpy 2 takes it: else some schedulers' noise levels differ

SEED_STRIDE = 1_000_003
LARGEST_SEED = 2**32 - 1
LONGEST_PROMPT = 10_000
MOST_STEPS = 1000
SAMPLES = ("sample", "hidden_states")
PLAIN = (bool, int, float, str, type(None))
READS_VARIANCE = ("DDPMScheduler", "DDPMParallelScheduler", "UnCLIPScheduler")
SHOWN = 200


class Refused(Exception):
    """What a request asks for cannot be done; the text says what was got and what was expected."""


class Cancelled(Exception):
    """The client does not wait for the pictures any more."""


class RemoteDenoiser:
    """The float denoiser's class without weights, whose forward is a request to the denoiser's model.

    Attributes:
        module: what a pipeline takes for its denoiser.
        request: the request that is answered at the moment, which may be cancelled.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.request: Any = None
        kind = getattr(diffusers, settings["class_name"])
        self._signature = inspect.signature(kind.forward)
        place, name = settings["returns"]
        self._returns = getattr(importlib.import_module(place), name)
        with torch.device("meta"):
            module = kind.from_config(dict(settings["config"]))
        members = {
            "__module__": kind.__module__,
            "forward": lambda module, *args, **kwargs: self._forward(module, *args, **kwargs),
            "to": lambda module, *args, **kwargs: module,
            "device": property(lambda module: torch.device("cpu")),
            "dtype": property(lambda module: torch.float32),
        }
        module.__class__ = type(kind.__name__, (kind,), members)
        self.module = module.eval()

    def _forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        bound = self._signature.bind(module, *args, **kwargs)
        tensors, plain = self._sorted(bound)
        sample = next((tensors[name] for name in SAMPLES if name in tensors), None)
        if sample is None:
            raise Refused(f"the denoiser is called without {' and '.join(SAMPLES)}, expected one of them")
        if "timestep" in {*tensors, *plain}:
            tensors["timestep"] = _one_a_sample(tensors.get("timestep", plain.pop("timestep", None)), len(sample))
        self._check_plain(plain)
        output = torch.from_numpy(self._ask(self._arrays(tensors))).to(sample.dtype)
        return self._returns(output) if bound.arguments.get("return_dict", True) else (output,)

    def _sorted(self, bound: inspect.BoundArguments) -> tuple[dict[str, Any], dict[str, Any]]:
        """The arguments by dotted name: tensors, and plain values that are not the class's own defaults."""
        tensors: dict[str, Any] = {}
        plain: dict[str, Any] = {}
        for name, value in list(bound.arguments.items())[1:]:
            parameter = self._signature.parameters[name]
            if name == "return_dict":
                continue
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                for key, entry in value.items():
                    _sort(key, entry, tensors, plain)
            elif name == "timestep" and isinstance(value, (int, float, np.integer, np.floating)):
                plain[name] = value
            elif name == "timestep" or not _is_default(value, parameter.default):
                _sort(name, value, tensors, plain)
        return tensors, plain

    def _check_plain(self, plain: Mapping[str, Any]) -> None:
        wanted = self.settings["constants"]
        if dict(plain) != dict(wanted):
            raise Refused(f"the pipeline gives its denoiser {_short(dict(plain))}, expected {_short(wanted)}")

    def _arrays(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs of the denoiser's model."""
        specs = {spec["name"]: spec for spec in self.settings["inputs"]}
        arrays = {}
        for argument, value in tensors.items():
            short = argument.removeprefix("added_cond_kwargs.")
            name = short if short in ("text_embeds", "time_ids") else argument
            if name not in specs:
                raise Refused(f"the pipeline gives its denoiser {argument}, expected {', '.join(specs)}")
            wanted = np.dtype(specs[name]["dtype"])
            if value.is_floating_point() and wanted.kind != "f":
                raise Refused(f"{name} is {value.dtype}, expected {wanted}: a fraction would be cut off")
            array = (value.float() if value.is_floating_point() else value).cpu().numpy()
            self._check_sizes(specs[name], array)
            array = np.ascontiguousarray(array.astype(wanted, copy=False))
            arrays[name] = array.reshape(-1, 1) if specs[name]["as_column"] else array
        missing = [name for name in specs if name not in arrays]
        if missing:
            raise Refused(f"the pipeline does not give its denoiser {', '.join(missing)}, expected it")
        return arrays

    def _check_sizes(self, spec: Mapping[str, Any], array: Any) -> None:
        for size, have in zip(spec["shape"], array.shape, strict=False):
            step = self.settings["multiples"].get(size, 1)
            if have % step:
                raise Refused(f"{spec['name']} has a {size} of {have}, expected a multiple of {step}")

    def _ask(self, arrays: Mapping[str, Any]) -> Any:
        if self.request is not None and self.request.is_cancelled():
            raise Cancelled
        output = self.settings["output"]
        asked = pb_utils.InferenceRequest(
            model_name=self.settings["denoiser"],
            requested_output_names=[output],
            inputs=[pb_utils.Tensor(name, array) for name, array in arrays.items()],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = asked.exec()
        if response.has_error():
            raise Refused(f"{self.settings['denoiser']} says: {_explained(response.error().message())}")
        found = np.array(pb_utils.get_output_tensor_by_name(response, output).as_numpy(), np.float32)
        if not np.isfinite(found).all():
            raise Refused(f"the output of {self.settings['denoiser']} holds NaN or infinity; verify the engine")
        return found


def _explained(message: str) -> str:
    if "got 0" in message and int(np.__version__.partition(".")[0]) >= 2:
        return f"{message}; this server's Python hands on no arrays of numpy {np.__version__}: install numpy below 2"
    return message


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _is_default(value: Any, default: Any) -> bool:
    if value is None or (isinstance(value, Mapping) and not value):
        return default is None
    return isinstance(value, PLAIN) and type(value) is type(default) and bool(value == default)


def _sort(name: str, value: Any, tensors: dict[str, Any], plain: dict[str, Any]) -> None:
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach()
    elif isinstance(value, PLAIN):
        plain[name] = value
    elif isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        for key, entry in value.items():
            _sort(f"{name}.{key}", entry, tensors, plain)
    elif isinstance(value, (list, tuple)) and any(isinstance(entry, torch.Tensor) for entry in value):
        for index, entry in enumerate(value):
            _sort(f"{name}.{index}", entry, tensors, plain)
    elif isinstance(value, (list, tuple)):
        plain[name] = list(value)
    else:
        raise Refused(f"the pipeline gives its denoiser {name}, a {type(value).__name__}, expected tensors and numbers")


def _one_a_sample(timestep: Any, batch: int) -> Any:
    """A timestep as float32 [B], given as one number for all samples or one for each."""
    value = timestep if isinstance(timestep, torch.Tensor) else torch.tensor(timestep)
    value = value.detach().to(torch.float32).reshape(-1)
    if value.numel() not in (1, batch):
        raise Refused(f"timestep has {value.numel()} values for a batch of {batch}, expected one a sample")
    return value.repeat(batch) if value.numel() == 1 else value


class Asked:
    """The tensors of a request, checked.

    Attributes:
        count: pictures.
        prompts: of the pictures in turn; empty for a model without text.
        labels: of the pictures in turn; empty for a model without classes.
        negative_prompt: None where it is not given, and so the next four.
        steps: None is the pipeline's own number.
        guidance: as the decimal number that was meant.
        height: of a picture.
        width: likewise.
        seed: of all pictures.
    """

    def __init__(self, request: Any, settings: Mapping[str, Any], limits: Mapping[str, int]) -> None:
        self._request = request
        seed = self._number("SEED")
        if seed is None or not 0 <= seed <= LARGEST_SEED:
            raise Refused(f"SEED is {seed}, expected 0 to {LARGEST_SEED}")
        self.seed = int(seed)
        self.prompts = self._texts("PROMPT")
        self.labels = self._labels(settings["labels"])
        self.negative_prompt = self._negative_prompt()
        steps = self._whole("STEPS", MOST_STEPS)
        self.steps = settings["steps"] if steps is None else steps
        guidance = self._number("GUIDANCE")
        if guidance is not None and not np.isfinite(guidance):
            raise Refused(f"GUIDANCE is {guidance}, expected a finite number")
        # the shortest decimal number of an FP32, as a command line would have it
        self.guidance = None if guidance is None else float(str(guidance))
        self.height, self.width = (self._whole(name, limits["max_side"]) for name in ("HEIGHT", "WIDTH"))
        if (self.height is None) != (self.width is None):
            raise Refused("got one of HEIGHT and WIDTH, expected both or none")
        self.count = self._count(limits["max_pictures"])

    def _values(self, name: str) -> Any:
        tensor = pb_utils.get_input_tensor_by_name(self._request, name)
        return None if tensor is None else tensor.as_numpy().reshape(-1)

    def _number(self, name: str) -> Any:
        values = self._values(name)
        if values is None:
            return None
        if len(values) != 1:
            raise Refused(f"{name} has {len(values)} values, expected one")
        return values[0]

    def _whole(self, name: str, most: int) -> int | None:
        value = self._number(name)
        if value is not None and not 1 <= value <= most:
            raise Refused(f"{name} is {value}, expected 1 to {most}")
        return None if value is None else int(value)

    def _texts(self, name: str) -> list[str]:
        values, texts = self._values(name), []
        for value in [] if values is None else values:
            try:
                text = value.decode("utf-8") if isinstance(value, bytes) else str(value)
            except UnicodeDecodeError as error:
                raise Refused(f"{name} is no UTF-8") from error
            if len(text) > LONGEST_PROMPT:
                raise Refused(f"{name} has {len(text)} characters, expected at most {LONGEST_PROMPT}")
            texts.append(text)
        if values is not None and not texts:
            raise Refused(f"{name} has no value, expected at least one")
        if name == "PROMPT" and not all(text.strip() for text in texts):
            raise Refused("PROMPT is empty, expected words")
        return texts

    def _negative_prompt(self) -> str | None:
        texts = self._texts("NEGATIVE_PROMPT")
        if len(texts) > 1:
            raise Refused(f"NEGATIVE_PROMPT has {len(texts)} values, expected one")
        return texts[0] if texts else None

    def _labels(self, limits: Sequence[int] | None) -> list[int]:
        values = self._values("LABEL")
        if values is None:
            return []
        if not len(values):
            raise Refused("LABEL has no value, expected at least one")
        for value in values:
            if limits is not None and not limits[0] <= value <= limits[1]:
                raise Refused(f"LABEL is {value}, expected {limits[0]} to {limits[1]}")
        return [int(value) for value in values]

    def _count(self, most: int) -> int:
        fixed = len(self.prompts) or len(self.labels)
        if fixed > most:
            raise Refused(f"got {fixed} pictures, expected at most {most} in a request")
        count = self._whole("COUNT", most)
        if count is not None and count < fixed:
            raise Refused(f"COUNT is {count}, expected at least {fixed}, one for each prompt or label")
        return (fixed or 1) if count is None else count


class PipelineDrawing:
    """Pictures by a pipeline of diffusers."""

    def __init__(self, pipeline: Any, settings: Mapping[str, Any], steps_name: str | None) -> None:
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline, self._settings, self._steps_name = pipeline, settings, steps_name
        self._takes = inspect.signature(type(pipeline).__call__).parameters

    def draw(self, asked: Asked, index: int, generator: Any) -> Any:
        """Picture [1, C, H, W] from -1 to 1."""
        if self._steps_name is not None:
            scheduler = _fresh(getattr(self._pipeline, self._steps_name))
            _check_steps(scheduler, asked.steps)
            setattr(self._pipeline, self._steps_name, scheduler)
        given: dict[str, Any] = {"generator": [generator]} if "generator" in self._takes else {}
        if asked.labels:
            given["class_labels"] = [asked.labels[index % len(asked.labels)]]
        if asked.prompts:
            given["prompt"] = [asked.prompts[index % len(asked.prompts)]]
        elif "batch_size" in self._takes:
            given["batch_size"] = 1
        if asked.negative_prompt is not None:
            self._check_negative_prompt(asked)
            given["negative_prompt"] = [asked.negative_prompt]
        numbers = {
            "guidance_scale": asked.guidance,
            "num_inference_steps": asked.steps,
            "height": asked.height,
            "width": asked.width,
        }
        given |= {name: value for name, value in numbers.items() if value is not None}
        if "output_type" in self._takes:
            given["output_type"] = "np"
        found = self._pipeline(**given).images
        pictures = [np.asarray(one, np.float32) / (255 if np.asarray(one).dtype == np.uint8 else 1) for one in found]
        array = np.stack([one[..., None] if one.ndim == 2 else one for one in pictures])
        return np.ascontiguousarray(np.moveaxis(array, -1, 1) * np.float32(2) - np.float32(1), np.float32)

    def _check_negative_prompt(self, asked: Asked) -> None:
        default = self._takes["guidance_scale"].default if "guidance_scale" in self._takes else None
        scale = default if asked.guidance is None else asked.guidance
        if isinstance(scale, (int, float)) and scale <= 1:
            raise Refused(f"NEGATIVE_PROMPT would change nothing with a guidance of {scale:g}, expected one above 1")


class LoneDrawing:
    """Samples of a denoiser alone: the scheduler takes the steps, nothing else is done to the sample."""

    def __init__(self, denoiser: Any, scheduler: Any, settings: Mapping[str, Any]) -> None:
        self._denoiser, self._scheduler, self._settings = denoiser, scheduler, settings

    def draw(self, asked: Asked, index: int, generator: Any) -> Any:
        """Sample [1, C, H, W]; a picture is cut to -1 to 1."""
        settings, scheduler = self._settings, _fresh(self._scheduler)
        steps = settings["default_steps"] if asked.steps is None else asked.steps
        _check_steps(scheduler, steps)
        scheduler.set_timesteps(steps)
        _check_table(scheduler, steps)
        takes = inspect.signature(scheduler.step).parameters
        options: dict[str, Any] = {"eta": 0.0} if "eta" in takes else {}
        if "generator" in takes:
            options["generator"] = [generator]
        rows, columns = settings["size"] if asked.height is None else (asked.height, asked.width)
        channels = settings["channels"]
        noise = randn_tensor((1, channels, rows, columns), generator=[generator])
        sample = noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
        given = {}
        if asked.labels:
            given["class_labels"] = torch.as_tensor([asked.labels[index % len(asked.labels)]])
        scale = getattr(scheduler, "scale_model_input", lambda latent, t: latent)
        learned = str(scheduler.config.get("variance_type", "")).startswith("learned")
        whole = learned and type(scheduler).__name__ in READS_VARIANCE
        for t in scheduler.timesteps:
            time = t.to(torch.float32).expand(1)
            output = self._denoiser(scale(sample, t), timestep=time, return_dict=False, **given)[0]
            sample = scheduler.step(output if whole else output[:, :channels], t, sample, **options).prev_sample
        found = sample.float().numpy()
        return found if settings["latents"] else np.clip(found, -1, 1)


def _fresh(scheduler: Any) -> Any:
    """A scheduler of the same configuration that has taken no step yet: each picture has its own."""
    return type(scheduler).from_config(scheduler.config)


def _check_steps(scheduler: Any, steps: int | None) -> None:
    trained = scheduler.config.get("num_train_timesteps")
    if steps is not None and isinstance(trained, int) and "beta_start" in scheduler.config and steps > trained:
        raise Refused(f"STEPS is {steps}, expected 1 to {trained}: the model was trained with at most {trained}")


def _check_table(scheduler: Any, steps: int) -> None:
    """Every whole timestep has its own noise level: diffusers would index past the table, or from its end."""
    levels, timesteps = getattr(scheduler, "alphas_cumprod", None), scheduler.timesteps
    if levels is None or hasattr(scheduler, "sigmas") or timesteps.is_floating_point():
        return
    out = bool(((timesteps < 0) | (timesteps >= len(levels))).any())
    single = type(scheduler).__name__ in ("DDIMScheduler", "DDPMScheduler")
    if out or (single and len(torch.unique(timesteps)) != steps):
        raise Refused(f"STEPS is {steps}, whose timesteps are not all different ones of the model; give another number")


def _opened(folder: Path, settings: Mapping[str, Any], denoiser: Any) -> PipelineDrawing | LoneDrawing:
    """What draws: the pipeline of the folder, or the denoiser alone with its scheduler."""
    config, scheduler = settings["scheduler"], None
    if config is not None:
        scheduler = getattr(diffusers, config["_class_name"]).from_config(dict(config))
    if settings["component"] is not None:
        name = settings["scheduler_name"]
        given = {settings["component"]: denoiser, **dict.fromkeys(settings["left_out"])}
        replaces = settings["scheduler_replaces"]
        if scheduler is not None and not replaces:
            given[name] = scheduler
        diffusers.utils.logging.set_verbosity_error()
        diffusers.utils.logging.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipeline = diffusers.DiffusionPipeline.from_pretrained(
                folder,
                torch_dtype=torch.float32,
                local_files_only=True,
                variant=settings["variant"],
                **given,
            )
        if scheduler is not None and replaces:
            setattr(pipeline, name, scheduler)
        return PipelineDrawing(pipeline, settings, name)
    if type(scheduler).__name__ == "ScoreSdeVeScheduler":
        return PipelineDrawing(diffusers.ScoreSdeVePipeline(unet=denoiser, scheduler=scheduler), settings, "scheduler")
    return LoneDrawing(denoiser, scheduler, settings)


class TritonPythonModel:
    """Answers requests for pictures, one at a time."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open what lies beside this file.

        Args:
            args: of Triton; `model_config` is JSON.
        """
        here = Path(__file__).resolve().parent
        parameters = json.loads(args["model_config"])["parameters"]
        limits = {name: int(parameters[name]["string_value"]) for name in ("torch_threads", "max_pictures", "max_side")}
        torch.set_num_threads(limits["torch_threads"])
        self._limits = limits
        self._settings = json.loads((here / "loop.json").read_text(encoding="utf-8"))
        self._denoiser = RemoteDenoiser(self._settings)
        self._drawing = _opened(here / "pipeline", self._settings, self._denoiser.module)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response a request; what goes wrong is its error, and the next request is answered all the same."""
        return [self._answered(request) for request in requests]

    def _answered(self, request: Any) -> Any:
        code, message = pb_utils.TritonError.INTERNAL, ""
        try:
            return self._response(request)
        except Refused as error:
            code, message = pb_utils.TritonError.INVALID_ARG, str(error)
        except Cancelled:
            code, message = pb_utils.TritonError.CANCELLED, "the request was cancelled"
        except Exception as error:
            message = f"{type(error).__name__}: {_short(error)}"
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))

    def _response(self, request: Any) -> Any:
        asked = Asked(request, self._settings, self._limits)
        self._denoiser.request = request
        drawn = []
        with torch.inference_mode():
            for index in range(asked.count):
                generator = torch.Generator().manual_seed(asked.seed * SEED_STRIDE + index)
                drawn.append(self._drawing.draw(asked, index, generator))
        samples = np.concatenate(drawn)
        if self._settings["latents"]:
            return _of("LATENTS", samples.astype(np.float32))
        pictures = np.clip(np.rint((np.asarray(samples, np.float64) + 1) * 127.5), 0, 255).astype(np.uint8)
        return _of("IMAGES", np.moveaxis(pictures, 1, -1))


def _of(name: str, array: Any) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(name, np.ascontiguousarray(array))])
