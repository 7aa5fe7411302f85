"""Valid values for a denoiser's inputs, where there are no recorded ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from dq_deploy.errors import InputError
from dq_deploy.models.call import input_specs
from dq_deploy.models.sizes import HEIGHT, WIDTH, sized
from dq_deploy.numerics.arrays import Array

if TYPE_CHECKING:
    from dq_deploy.models.sizes import TensorSpec
    from dq_deploy.record import Call


class Shaped(Protocol):
    """An input by name and shape, whoever asks for it."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def shape(self) -> tuple[int | str, ...]:
        """Its shape, with names of the sizes that vary."""


SpecT = TypeVar("SpecT", bound=Shaped)

PIXELS_A_LATENT = 8
"""Pixels of the picture along each side of a latent pixel, for the sizes in `time_ids`."""
TRAIN_TIMESTEPS = 1000
"""Example timesteps lie below it, where nobody says which ones a model knows."""
USUAL_PIXELS = 1024.0
"""Height and width of a picture where no size of the call says it."""
AESTHETIC_SCORE = 6.0
"""What pipelines with such a number give."""
GUIDANCE = 3.5
"""Guidance scale for models that take it as an input."""
MASKED = -10000.0
"""What diffusers adds to the score of a token that does not count."""
SAMPLES = ("sample", "hidden_states")
"""What a denoiser's forward calls the noisy sample."""


LABELS = "class_labels"
"""Input that holds the class of each sample; in some models a vector for each sample, which is an embedding."""


def label_limits(call: Call) -> tuple[int, int] | None:
    """Lowest and highest class of a denoiser's labels; None for one without, or with a vector in their place.

    Raises:
        InputError: the call does not say which classes there are.
    """
    item = next((item for item in call.inputs if item.name == LABELS and len(item.shape) == 1), None)
    if item is None:
        return None
    if item.limits is None:
        raise InputError(f"the call has {LABELS} without limits, expected the lowest and the highest class")
    return int(item.limits[0]), int(item.limits[1])


def condition_specs(specs: Sequence[SpecT]) -> list[SpecT]:
    """The inputs that embeddings and other conditions are given by.

    Left out are what is sampled, where on the way, and classes, which options name.
    """
    return [
        spec
        for spec in specs
        if spec.name not in (*SAMPLES, "timestep") and not (spec.name == LABELS and len(spec.shape) == 1)
    ]


def condition_names(call: Call) -> list[str]:
    """Names of the inputs that conditions are given by."""
    return [spec.name for spec in condition_specs(input_specs(call))]


def sample_name(call: Call) -> str:
    """Name of the input that holds the noisy sample: the first of `SAMPLES` that there is, else the first input."""
    names = [spec.name for spec in input_specs(call)]
    return next((name for name in SAMPLES if name in names), names[0])


def example_inputs(call: Call, batch: int, seed: int, sizes: Mapping[str, int] | None = None) -> dict[str, Array]:
    """Random valid inputs by name: normal samples, whole timesteps from 1 (or by the call), conditions; by the seed.

    Args:
        call: of the denoiser.
        batch: samples.
        seed: of the values.
        sizes: of the axes that vary, by name; those left out are the call's own.
    """
    generator = np.random.default_rng(seed)
    sample = sample_name(call)
    specs = {spec.name: spec for spec in input_specs(call)}
    first = generator.standard_normal(
        sized(specs[sample].shape, batch, {**call.sizes, **(sizes or {})}), dtype=np.float32
    )
    times = _timesteps(call, batch, generator)
    others = random_conditions(call, batch, generator, sizes=sizes)
    every = {sample: first, "timestep": times, **others}
    return {name: every[name] for name in specs}


def _timesteps(call: Call, batch: int, generator: np.random.Generator) -> Array:
    limits = next((item.limits for item in call.inputs if item.name == "timestep"), None)
    if limits is not None:
        return generator.uniform(*limits, batch).astype(np.float32)
    return generator.integers(1, TRAIN_TIMESTEPS, batch).astype(np.float32)  # Fourier embeddings take their logarithm


def random_conditions(
    call: Call, batch: int, generator: np.random.Generator, *, sizes: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """Valid values of every input besides the sample and `timestep`.

    What has a name of `NAMED` gets the values said there. Whole numbers are drawn uniformly within the call's limits,
    embeddings from a normal distribution of unit variance. Masks leave out the ends of some texts.

    Args:
        call: of the denoiser.
        batch: number of samples.
        generator: where the numbers come from; drawn in the order of the inputs.
        sizes: of the axes that vary, by name; those left out are the call's own.
    """
    known = {**call.sizes, **(sizes or {})}
    left_out = (sample_name(call), "timestep")
    limits = {spec.name: item.limits for spec, item in zip(input_specs(call), call.inputs, strict=True)}
    return {
        spec.name: _drawn(spec, limits[spec.name], batch, generator, known)
        for spec in input_specs(call)
        if spec.name not in left_out
    }


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """An input whose values are made: its shape, and the sizes of the whole call."""

    shape: tuple[int, ...]
    sizes: Mapping[str, int]

    @property
    def pixels(self) -> tuple[float, float]:
        """Height and width of the picture; of a square one with as many image tokens where no size says it."""
        if HEIGHT in self.sizes and WIDTH in self.sizes:
            return float(PIXELS_A_LATENT * self.sizes[HEIGHT]), float(PIXELS_A_LATENT * self.sizes[WIDTH])
        return USUAL_PIXELS, USUAL_PIXELS


def _in_each_row(drawing: _Drawing, values: Sequence[float]) -> Array:
    """The same numbers for each sample, as many as the input has room for."""
    return np.broadcast_to(np.resize(np.array(values, np.float32), drawing.shape[-1]), drawing.shape).copy()


def _picture_ids(drawing: _Drawing) -> Array:
    """Original size, corner of the crop, target size; with five numbers the last is an aesthetic score."""
    height, width = drawing.pixels
    six = [height, width, 0.0, 0.0, height, width]
    return _in_each_row(drawing, six if drawing.shape[-1] == len(six) else [*six[:4], AESTHETIC_SCORE])


def _grid_places(drawing: _Drawing) -> Array:
    """(0, row, column) of each image token, the rows in turn."""
    places, count = np.zeros(drawing.shape, np.float32), drawing.shape[-2]
    height, width = (max(1, int(size) // PIXELS_A_LATENT) for size in drawing.pixels)
    columns = max(1, round((count * width / height) ** 0.5))
    index = np.arange(count)
    if drawing.shape[-1] >= 2:
        places[..., -2], places[..., -1] = index // columns, index % columns
    return places


def _sizes_and_corner(drawing: _Drawing) -> Array:
    height, width = drawing.pixels
    return _in_each_row(drawing, [height, width, height, width, 0.0, 0.0])


def _video_numbers(drawing: _Drawing) -> Array:
    """Frames a second less one, how much moves, noise of the first picture."""
    return _in_each_row(drawing, [6.0, 127.0, 0.02])


def _angles(drawing: _Drawing) -> Array:
    """An angle for each pair of features of each place, slower from pair to pair."""
    places, width = drawing.shape
    pairs = np.repeat(np.arange((width + 1) // 2), 2)[:width]
    found: Array = np.arange(places)[:, None] / 10000.0 ** (2.0 * pairs / width)[None]
    return found


def _picture_size(drawing: _Drawing) -> Array:
    return _in_each_row(drawing, drawing.pixels)


def _picture_ratio(drawing: _Drawing) -> Array:
    height, width = drawing.pixels
    return np.full(drawing.shape, height / width, np.float32)


def _cosines(drawing: _Drawing) -> Array:
    return np.cos(_angles(drawing)).astype(np.float32)


def _sines(drawing: _Drawing) -> Array:
    return np.sin(_angles(drawing)).astype(np.float32)


NAMED: Mapping[str, tuple[Callable[[_Drawing], Array], str]] = {
    "time_ids": (_picture_ids, "sizes in pixels, of which a model takes sines"),
    "resolution": (_picture_size, "likewise"),
    "aspect_ratio": (_picture_ratio, "height over width of the same picture"),
    "img_ids": (_grid_places, "places of the image tokens, of which a model takes angles"),
    "txt_ids": (lambda drawing: np.zeros(drawing.shape, np.float32), "text tokens have no place in the picture"),
    "image_meta_size": (_sizes_and_corner, "sizes in pixels and a corner, of which a model takes sines"),
    "added_time_ids": (_video_numbers, "numbers of a video, likewise"),
    **{
        f"{name}.{part}": (turned, "of places of tokens")
        for name in ("image_rotary_emb", "rotary_embedding")
        for part, turned in enumerate((_cosines, _sines))
    },
    "guidance": (lambda drawing: np.full(drawing.shape, GUIDANCE, np.float32), "a scale that guided models know"),
}
"""How inputs with these names, or with dots in front of them, are valued, and why they are no random numbers."""


def _drawn(
    spec: TensorSpec,
    limits: tuple[float, float] | None,
    batch: int,
    generator: np.random.Generator,
    sizes: Mapping[str, int],
) -> Array:
    shape = sized(spec.shape, batch, sizes)
    named = NAMED.get(spec.name) or NAMED.get(spec.name.rpartition(".")[2])
    if named is not None and shape:
        values = named[0](_Drawing(shape=shape, sizes=sizes))
        return values.astype(spec.dtype)
    if spec.name.endswith("mask") or spec.dtype == "bool":
        return _mask(spec, shape, generator)
    if spec.dtype.startswith(("int", "uint")):
        low, high = (0, 0) if limits is None else limits
        return generator.integers(int(low), int(high) + 1, shape, dtype=np.dtype(spec.dtype).type)
    if limits is not None:
        low, high = limits
        return generator.uniform(low, high, shape).astype(spec.dtype)
    return generator.standard_normal(shape, dtype=np.float32).astype(spec.dtype, copy=False)


def _mask(spec: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    """Which tokens count: all of the first sample, the first ones of the others; added to scores where it is a bias."""
    kept = np.ones(shape, bool)
    if len(shape) > 1:
        lengths = generator.integers(max(1, shape[-1] // 2), shape[-1] + 1, (shape[0], *(1,) * (len(shape) - 1)))
        lengths[0] = shape[-1]
        kept &= np.arange(shape[-1]) < lengths
    if np.dtype(spec.dtype).kind == "f" and len(shape) > 2:
        return np.where(kept, 0.0, MASKED).astype(spec.dtype)
    return kept.astype(spec.dtype)
