"""What `dq-sample` prints and writes of the images it drew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.cli.frame import console

if TYPE_CHECKING:
    from dq_deploy.models.pipeline import PipelineCall
    from dq_deploy.quality.image import ImageDistances


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What was drawn.

    Attributes:
        name: what drew: `engine` or `simulation`.
        latents: whether the images are latents.
        asked: of the pipeline.
        pipeline: its class.
        scheduler: class of diffusers that took the steps, or None where there is none.
        batch: images at a time.
        conditions: what the embeddings are, or None where there are none.
        captions: of each image.
        furthest_from_calibrated: largest distance of a timestep from that of its bucket.
        seconds: of drawing.
        float_seconds: of the float model's images, where they were drawn.
        distances: to those.
        constant_images: indices of images that hold one single value.
    """

    name: str
    latents: bool
    asked: PipelineCall
    pipeline: str
    scheduler: str | None
    batch: int
    conditions: str | None
    captions: tuple[str, ...]
    furthest_from_calibrated: float
    seconds: float
    float_seconds: float | None
    distances: ImageDistances | None
    constant_images: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values; what belongs to the float model only where it was drawn."""
        values: dict[str, Any] = {
            "options": self._options(),
            "labels": None if self.asked.labels is None else list(self.asked.labels),
            "conditions": self.conditions,
            "count": len(self.captions),
            "furthest_from_calibrated": self.furthest_from_calibrated,
            "seconds": self.seconds,
        }
        if self.distances is not None:
            values |= {"float_seconds": self.float_seconds, **self.distances.to_json()}
        return values | {"constant_images": list(self.constant_images)}

    def _options(self) -> dict[str, Any]:
        """What was asked for, with what the pipeline was driven by."""
        asked = self.asked
        values = {
            "pipeline": self.pipeline,
            "scheduler": self.scheduler,
            "steps": asked.steps,
            "eta": asked.eta or 0.0,
            "seed": asked.seed,
            "batch": self.batch,
        }
        given = {
            "prompts": list(asked.prompts),
            "negative_prompt": asked.negative_prompt,
            "guidance": asked.guidance,
            "strength": asked.strength,
            "height": asked.height,
            "width": asked.width,
            "arguments": sorted(asked.extra),
        }
        return values | {name: value for name, value in given.items() if value not in (None, [])}


def show_samples(samples: Samples, out: Path) -> None:
    """Print the distances to the float model's images, and how long drawing took."""
    if samples.distances is not None:
        _show_distances(samples.distances)
    count, what = len(samples.captions), "latents" if samples.latents else "images"
    rate = count / samples.seconds
    print(f"{count} {what} by the {samples.name} in {samples.seconds:.1f} s, {rate:.2f} a second; wrote {out}")


def _show_distances(distances: ImageDistances) -> None:
    from rich.table import Table

    def cell(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    table = Table(title=f"against the float model, same noise, peak {distances.data_range:.4g}")
    for heading in ("image", "PSNR, dB", "SSIM"):
        table.add_column(heading, justify="right")
    for entry in distances.images:
        psnr = "identical" if entry.psnr_db == float("inf") else cell(entry.psnr_db, 2)
        table.add_row(entry.caption, psnr, cell(entry.ssim, 4))
    mean = "identical" if distances.mean_psnr_db is None else cell(distances.mean_psnr_db, 2)
    table.add_row("mean", mean, cell(distances.mean_ssim, 4))
    console().print(table)
    if 0 < distances.identical_images < len(distances.images):
        print(f"{distances.identical_images} images are identical and not in the mean PSNR")
