"""Draw digits by a class-conditional denoiser, with and without guidance, and say how many show the asked digit.

    python examples/draw_digits_dit.py --model examples/digits-dit --guidance 1,2,3 --count 500
    python examples/draw_digits_dit.py --model examples/digits-dit --engine model.pt --guidance 2 --picture samples.png

Guidance 1 is the network as it is. Above 1, each step asks the network twice, with the label and with none, and goes
further in the direction from the second answer to the first. With --engine, a quantized model answers in its place.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from one_line_errors import one_line_errors
from train_digits_dit import CLASSES, NO_LABEL

CLASSIFIER = Path(__file__).parent / "digit-classifier" / "weights.safetensors"
SEED = 1234
ROWS = 8  # of the picture, one column a digit


class Guided(torch.nn.Module):
    """A denoiser that is asked with the label and without one; guidance as diffusers' DiTPipeline has it."""

    def __init__(self, denoiser: torch.nn.Module, scale: float) -> None:
        super().__init__()
        self.denoiser, self.scale = denoiser, scale

    @property
    def config(self) -> Any:
        """Of the denoiser."""
        return self.denoiser.config

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor, return_dict: bool = False
    ) -> tuple[torch.Tensor]:
        """Samples [B, 1, 32, 32], timesteps [B] and labels [B] to (prediction [B, 1, 32, 32],)."""
        if self.scale == 1:
            return (self.denoiser(sample, timestep=timestep, class_labels=class_labels, return_dict=False)[0],)
        labels = torch.cat([class_labels, torch.full_like(class_labels, NO_LABEL)])
        both = self.denoiser(
            torch.cat([sample, sample]), timestep=torch.cat([timestep] * 2), class_labels=labels, return_dict=False
        )[0]
        asked, without = both.chunk(2)
        return (without + self.scale * (asked - without),)


@contextmanager
def opened(model: Path, engine: Path | None) -> Iterator[tuple[torch.nn.Module, dict[str, Any]]]:
    """The float denoiser or an engine in its place, and the scheduler's configuration."""
    from dq_deploy import IntegerDenoiser, load_model, open_engine

    loaded = load_model(model)
    assert loaded.scheduler_config is not None
    if engine is None:
        yield loaded.module, loaded.scheduler_config
        return
    with open_engine(engine) as runner:
        yield IntegerDenoiser(runner), loaded.scheduler_config


def draw(denoiser: torch.nn.Module, scheduler: dict[str, Any], *, scale: float, count: int, steps: int) -> Any:
    """Images [count, 1, 32, 32] float32 in [-1, 1], digits 0 to 9 in turn, each from noise of its own."""
    from dq_deploy.models.pipeline import PipelineCall, build_scheduler
    from dq_deploy.models.pipeline.denoiser_pipeline import DenoiserPipeline
    from dq_deploy.pipelines.draw import draw_images

    pipeline = DenoiserPipeline(Guided(denoiser, scale), build_scheduler(scheduler))
    pipeline.set_progress_bar_config(disable=True)
    labels = tuple(i % CLASSES for i in range(count))
    return draw_images(pipeline, PipelineCall(steps=steps, seed=SEED, count=count, labels=labels), batch=50).images


def write_picture(images: Any, path: Path) -> None:
    """The first images as a grid, one column a digit."""
    from PIL import Image

    shown = images[: ROWS * CLASSES].reshape(-1, CLASSES, 32, 32).transpose(0, 2, 1, 3).reshape(-1, CLASSES * 32)
    pixels = np.round((np.clip(shown, -1, 1) + 1) * 127.5).astype(np.uint8)
    Image.fromarray(pixels).resize((CLASSES * 48, len(shown) * 48 // 32), Image.Resampling.LANCZOS).save(path)


def scales(text: str) -> list[float]:
    """Guidance scales, numbers with commas between."""
    return [float(word) for word in text.split(",")]


@one_line_errors()
def main(argv: list[str] | None = None) -> dict[float, float]:
    """Parse the arguments and draw; the recognised share by guidance."""
    from dq_deploy.quality.bootstrap import interval_of_mean
    from dq_deploy.quality.classifier import load_digit_classifier, recognised_labels

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the float model")
    parser.add_argument("--engine", type=Path, help="of the same model, as dq-quantize or dq-export wrote it")
    parser.add_argument("--guidance", type=scales, default="1", help="comma list")
    parser.add_argument("--count", type=int, default=500, help="images, a multiple of 10")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--picture", type=Path, help="PNG file of the first images at the last guidance")
    args = parser.parse_args(argv)
    if args.count < CLASSES or args.count % CLASSES:
        parser.error(f"--count is {args.count}, expected a multiple of {CLASSES}: as many of each digit")
    classifier, shares = load_digit_classifier(CLASSIFIER), {}
    with opened(args.model, args.engine) as (denoiser, scheduler):
        for scale in args.guidance:
            images = draw(denoiser, scheduler, scale=scale, count=args.count, steps=args.steps)
            right = recognised_labels(classifier, images) == np.arange(args.count) % CLASSES
            share = interval_of_mean(right)
            shares[scale] = share.mean
            percent = f"{100 * share.mean:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}]"
            print(f"guidance {scale:g}: {percent} of {args.count} images show the asked digit", flush=True)
    if args.picture is not None:
        write_picture(images, args.picture)
    return shares


if __name__ == "__main__":
    main()
