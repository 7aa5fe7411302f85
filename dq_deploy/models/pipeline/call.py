"""What is asked of a pipeline, and the arguments of its `__call__` for that."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import OptionError
from dq_deploy.models.pipeline.effects import check_effects
from dq_deploy.models.pipeline.pictures import PictureData, check_same_size, read_mask, read_picture

if TYPE_CHECKING:
    import torch

SEED_STRIDE = 1_000_003
"""Keeps the generators of neighbouring seeds apart."""

LONGEST_PROMPT = 10_000
LARGEST_SEED = 2**32 - 1

PICTURE_CHANNELS = (1, 3)
"""Channels of a sample that is a picture; any other number is of latents."""


MOST_PIXELS_A_SIDE = 16384
"""Of a picture; attention over the pixels of a larger one would run for hours before memory ends."""

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def undecoded_output(pipeline: Any) -> str:
    """The output type that costs least behind the last step: `latent` where something decodes the sample, else `np`.

    A pipeline whose sample is the picture has no latents, and some, as ConsistencyModelPipeline, refuse to give any.
    """
    import torch

    parts = getattr(pipeline, "components", {}).values()
    decodes = any(isinstance(part, torch.nn.Module) and hasattr(part, "decode") for part in parts)
    return "latent" if decodes or "denoiser" in getattr(pipeline, "components", {}) else "np"


def generators_of(seed: int, indices: Sequence[int]) -> list[torch.Generator]:
    """A random generator for each image: image i depends on the seed and i only, not on its batch."""
    import torch

    return [torch.Generator().manual_seed(seed * SEED_STRIDE + index) for index in indices]


def lacks_text_encoder(pipeline: Any) -> bool:
    """Whether a pipeline is of a class with text encoders and none is there to read a prompt."""
    names = _of_text(pipeline)
    return bool(names) and all(getattr(pipeline, name) is None for name in names)


def what_to_check(pipeline: Any) -> str:
    """What to do where a pipeline fails: a text encoder that its folder leaves out may be needed by its class."""
    absent = [name for name in _of_text(pipeline) if getattr(pipeline, name) is None]
    if not absent:
        return "check what the pipeline is given"
    return (
        f"it has no {', '.join(absent)}, which its class may need: copy them into its folder, or check what it is given"
    )


def _of_text(pipeline: Any) -> list[str]:
    return [name for name in pipeline.components if name.startswith(("text_encoder", "tokenizer"))]


def has_half_characters(text: str) -> bool:
    """Whether a text holds a lone surrogate: half a character, or a byte that is no UTF-8 as Python reads names."""
    return _HALF_CHARACTER.search(text) is not None


def _check_characters(name: str, text: str) -> None:
    """Refuse a text that no tokenizer reads.

    Raises:
        OptionError: it holds half a character.
    """
    if has_half_characters(text):
        raise OptionError(f"{name} is no UTF-8 text, expected one; type it in a terminal that uses UTF-8")


@dataclass(frozen=True, kw_only=True)
class PipelineCall:
    """What is asked of a pipeline, as one value for calibration and sampling.

    Attributes:
        prompts: image i is of prompt i, counted round; empty for a pipeline without text.
        negative_prompt: for every image.
        guidance: `guidance_scale` of the pipeline.
        steps: denoising steps; None is the pipeline's own default.
        scheduler: class of diffusers or short name that `open_pipeline` is to build; None is the folder's own.
        image: path or bytes of the picture to begin from, or to look at.
        mask: likewise of the mask of what is painted anew.
        strength: how far an `image` is changed, 0 to 1.
        control_image: path of the picture a ControlNet follows.
        height: of the pictures in pixels (of a bare denoiser: of the sample), and so width.
        width: likewise.
        eta: DDIM's share of fresh noise, 0 to 1.
        labels: image i is of class i, counted round; None for a model without classes.
        conditions: rows [count, ...] by input name of a bare denoiser, image i has row i.
        seed: of the first noise and of every step's.
        count: images in all.
        extra: further arguments of the pipeline's `__call__` by name.
    """

    prompts: tuple[str, ...] = ()
    negative_prompt: str | None = None
    guidance: float | None = None
    steps: int | None = None
    scheduler: str | None = None
    image: Path | PictureData | None = None
    mask: Path | PictureData | None = None
    strength: float | None = None
    control_image: Path | None = None
    height: int | None = None
    width: int | None = None
    eta: float | None = None
    labels: tuple[int, ...] | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    count: int = 1
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            OptionError: one is out of range.
        """
        for name, least in (("steps", 1), ("count", 1), ("height", 1), ("width", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise OptionError(f"{name} is {value}, expected at least {least}")
        for name in ("height", "width"):
            if (getattr(self, name) or 0) > MOST_PIXELS_A_SIDE:
                raise OptionError(f"{name} is {getattr(self, name)}, expected at most {MOST_PIXELS_A_SIDE}")
        if self.seed > LARGEST_SEED:
            raise OptionError(f"seed is {self.seed}, expected at most {LARGEST_SEED}")
        if (self.height is None) != (self.width is None):
            named, other = ("height", "width") if self.width is None else ("width", "height")
            raise OptionError(
                f"got `{named}` without `{other}`, expected both: where one is missing, pipelines of diffusers take "
                "their own size for both"
            )
        for name in ("strength", "eta"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise OptionError(f"{name} is {value}, expected a number from 0 to 1")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise OptionError(f"guidance is {self.guidance}, expected a finite number")
        if self.guidance is not None and self.guidance < 0:
            raise OptionError(f"guidance is {self.guidance}, expected at least 0: pipelines take less for no guidance")
        for position, prompt in enumerate(self.prompts, 1):
            _check_characters(f"prompt {position}", prompt)
            if not prompt.strip():
                raise OptionError(f"prompt {position} is empty, expected words")
            if len(prompt) > LONGEST_PROMPT:
                raise OptionError(f"prompt {position} has {len(prompt)} characters, expected at most {LONGEST_PROMPT}")
        _check_characters("negative_prompt", self.negative_prompt or "")
        if len(self.negative_prompt or "") > LONGEST_PROMPT:
            raise OptionError(
                f"negative_prompt has {len(self.negative_prompt or '')} characters, expected at most {LONGEST_PROMPT}"
            )

    def arguments(
        self, pipeline: Any, indices: Sequence[int], *, output_type: str | None = None, effects: bool = True
    ) -> dict[str, Any]:
        """Keyword arguments of the pipeline's `__call__` for some of the images.

        Args:
            pipeline: of diffusers, or a `DenoiserPipeline`.
            indices: of the images, from 0 to count - 1.
            output_type: `latent`, `np`, `pt` or `pil`; None leaves it to the pipeline.
            effects: refuse what would change nothing; False where that was done for the same call and pipeline.

        Raises:
            OptionError: the pipeline does not take what is asked, or needs what is missing.
            FileProblemError: a picture cannot be read, or does not fit.
        """
        found = _Arguments(self, pipeline, list(indices), output_type).collected()
        if effects:
            check_effects(pipeline, found)
        return found


class _Arguments:
    """Collects the arguments of one `__call__`."""

    def __init__(self, call: PipelineCall, pipeline: Any, indices: list[int], output_type: str | None) -> None:
        self.call, self.pipeline, self.indices, self.output_type = call, pipeline, indices, output_type
        self.kind = type(pipeline).__name__
        self.takes = inspect.signature(type(pipeline).__call__).parameters
        self.found: dict[str, Any] = {}

    def collected(self) -> dict[str, Any]:
        call = self.call
        self._what_is_drawn()
        plain = {
            "negative_prompt": (call.negative_prompt, "negative_prompt"),
            "guidance": (call.guidance, "guidance_scale"),
            "steps": (call.steps, "num_inference_steps"),
            "strength": (call.strength, "strength"),
            "height": (call.height, "height"),
            "width": (call.width, "width"),
            "eta": (call.eta or None, "eta"),
        }
        for option, (value, name) in plain.items():
            if value is not None:
                self._put(option, value, name)
        if call.negative_prompt is not None:
            self.found["negative_prompt"] = [call.negative_prompt] * len(self.indices)
        self._pictures()
        if "generator" in self.takes:
            self.found["generator"] = generators_of(call.seed, self.indices)
        if self.output_type is not None and "output_type" in self.takes:
            self.found["output_type"] = self.output_type
        for name, value in call.extra.items():
            if name in self.found:
                raise OptionError(f"got {name} twice, as an option and in the file of the call; give one")
            self._put(name, value, name)
            self._check_kind(name, value)
        self._check_complete()
        return self.found

    def _check_complete(self) -> None:
        for name, parameter in self.takes.items():
            needed = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            if needed and name != "self" and name not in self.found:
                option = {"class_labels": "labels"}.get(name)
                how = f"give `{option}`" if option else f"give {name} in a file as `call`"
                raise OptionError(f"the {self.kind} cannot draw without {name}; {how}")

    def _check_kind(self, name: str, value: Any) -> None:
        """Refuse a value of another kind than the pipeline's own, which it would fail on late, or take for a number."""
        parameter = self.takes[name]
        own, words = parameter.default, str(parameter.annotation)
        plain = isinstance(value, (bool, int, float, str, list, dict))  # as a file of the call holds them
        if plain and "Tensor" in words and not re.search("Image|list|List|tuple|Tuple|int|float|str", words):
            raise OptionError(
                f"{name} of {self.kind} is a tensor; give the path of a .npy file, as numpy's save writes it"
            )
        kinds = {bool: (bool,), int: (int,), float: (int, float), str: (str, list)}.get(type(own))
        if kinds is None or value is None or "|" in words or "Union" in words:
            return
        if not isinstance(value, kinds) or (isinstance(value, bool) and own.__class__ is not bool):
            raise OptionError(f"{name} is {short(value)}, expected {type(own).__name__} as the {self.kind} takes")

    def _put(self, option: str, value: Any, *names: str) -> None:
        """Give a value under the first of the names that the pipeline takes."""
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        for name in names:
            if name in self.takes and name != "self" and self.takes[name].kind in named:
                self.found[name] = value
                return
        others = ", ".join(n for n in self.takes if n not in ("self", "kwargs", "return_dict"))
        raise OptionError(f"got `{option}`, which {self.kind} does not take; it takes {others}")

    def _what_is_drawn(self) -> None:
        """Prompts, classes or a number of images."""
        call, number = self.call, len(self.indices)
        if call.labels is not None:
            labels = [call.labels[i % len(call.labels)] for i in self.indices]
            self._put("labels", labels, "class_labels")
        if call.conditions:
            self._put("conditions", {n: v[self.indices] for n, v in call.conditions.items()}, "conditions")
        if call.prompts:
            if lacks_text_encoder(self.pipeline):
                raise OptionError(
                    f"the {self.kind} has no text encoder, expected one for `prompt`; copy text_encoder/ and "
                    "tokenizer/ into its folder"
                )
            self._put("prompt", [call.prompts[i % len(call.prompts)] for i in self.indices], "prompt")
        elif "prompt" in self.takes and not any(name.endswith("prompt_embeds") for name in call.extra):
            raise OptionError(f"the {self.kind} draws what a prompt says; give `prompt`")
        if call.prompts or (call.labels is not None and "batch_size" not in self.takes):
            return
        if "batch_size" in self.takes:
            self.found["batch_size"] = number
        elif number > 1:
            self._put("count", number, "num_images_per_prompt")

    def _pictures(self) -> None:
        call = self.call
        follows = "control_image" not in self.takes and "ControlNet" in self.kind
        if follows and call.image is not None:
            raise OptionError(f"the `image` of {self.kind} is what its ControlNet follows; give it as `control_image`")
        given = {}
        factor = int(getattr(self.pipeline, "vae_scale_factor", 1) or 1)
        for option, path, names in (
            ("image", call.image, ("image",)),
            ("control_image", call.control_image, ("control_image", "image") if follows else ("control_image",)),
        ):
            if path is not None:
                given[option] = read_picture(path, multiple_of=factor, height=call.height, width=call.width)
                self._put(option, given[option], *names)
        if call.mask is not None:
            given["mask"] = read_mask(call.mask)
            self._put("mask", given["mask"], "mask_image", "mask")
            if call.image is None:
                raise OptionError("got `mask` without `image`, expected both: a mask is of a picture")
        check_same_size(given)
        for picture in given.values():  # else some pipelines scale it to the size of their configuration
            for name, size in zip(("width", "height"), picture.size, strict=True):
                if name in self.takes:
                    self.found.setdefault(name, size)
        if "image" in self.takes and "image" not in self.found and self._needs("image"):
            raise OptionError(f"the {self.kind} works on a picture; give `{'control_image' if follows else 'image'}`")

    def _needs(self, name: str) -> bool:
        """Whether the pipeline cannot do without an argument, though its signature has None for it."""
        if name in self.call.extra:
            return False
        words = ("Img2Img", "Inpaint", "ControlNet", "Upscale", "InstructPix2Pix", "ImageVariation", "VideoDiffusion")
        return any(word in self.kind for word in words)
