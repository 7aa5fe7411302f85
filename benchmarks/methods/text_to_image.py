"""Whether a prompt still decides the picture when the emoji text-to-image model is quantized.

    python -m benchmarks.methods.text_to_image --work DIR             # 500 prompts
    python -m benchmarks.methods.text_to_image --work DIR --variants minmax-w8a8 --count 90

Each prompt of examples/emoji-text-to-image/prompts.txt is drawn once, line i belongs to class i modulo 9, and a
classifier that was trained on real emojis says which class it sees. The float model draws with guidance and without;
each quantized model draws with guidance, natively, from the same noise. It is made by `dq-quantize`, calibrated with
calibration.txt, which shares no prompt with prompts.txt. One JSON line a variant goes to
benchmarks/results/text_to_image.jsonl. Records and pictures stay in DIR, and a second run takes them from there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.machine.commit import commit
from dq_deploy.artifacts import atomic_path
from dq_deploy.bench.environment import describe_environment

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "emoji-text-to-image"
CLASSIFIER = ROOT / "examples" / "emoji-classifier" / "classifier.onnx"
RESULTS = ROOT / "benchmarks" / "results" / "text_to_image.jsonl"
CLASSES = 9
SEED = 1234  # calibration draws with seed 0
BATCH = 50

VARIANTS: Mapping[str, tuple[str, ...]] = {
    "minmax-w8a8": ("--method", "minmax", "--weights", "8", "--activations", "8"),
    "minmax-w4a8": ("--method", "minmax", "--weights", "4", "--activations", "8"),
    "dilatequant-w4a8": ("--preset", "fast", "--weights", "4", "--activations", "8"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """What one model drew.

    Attributes:
        images: [N, 3, 32, 32] float32 in [-1, 1], image i of prompt i.
        right: [N], whether the classifier sees the prompt's class.
    """

    images: NDArray[np.float32]
    right: NDArray[np.bool_]


def chosen_prompts(folder: Path, count: int) -> tuple[str, ...]:
    """The first prompts of a model's folder."""
    lines = (folder / "prompts.txt").read_text(encoding="utf-8").splitlines()
    if not 1 <= count <= len(lines):
        raise SystemExit(f"error: count is {count}, expected 1 to {len(lines)}, the prompts of {folder}")
    return tuple(lines[:count])


def draw(folder: Path, prompts: tuple[str, ...], *, guidance: float, steps: int, record: Path | None) -> Pictures:
    """Draw a picture of each prompt, with the float model or with a record in its denoiser's place."""
    from dq_deploy import IntegerDenoiser
    from dq_deploy.models.pipeline import PipelineCall, open_pipeline
    from dq_deploy.pipelines.draw import draw_images
    from dq_deploy.quality.onnx_network import load_onnx_classifier

    denoiser = None if record is None else IntegerDenoiser(record)
    pipeline = open_pipeline(folder, denoiser=denoiser)
    call = PipelineCall(prompts=prompts, guidance=guidance, steps=steps, seed=SEED, count=len(prompts))
    images = draw_images(pipeline, call, batch=BATCH).images
    seen = load_onnx_classifier(CLASSIFIER)(images)
    return Pictures(images=images, right=seen == np.arange(len(images)) % CLASSES)


def drawn_once(path: Path, make: Callable[[], Pictures]) -> Pictures:
    """The pictures in a file that an earlier run has left, or new ones, which are left there."""
    if path.is_file():
        with np.load(path) as file:
            return Pictures(images=file["images"], right=file["right"])
    pictures = make()
    with atomic_path(path) as temporary, Path(temporary).open("wb") as file:
        np.savez(file, images=pictures.images, right=pictures.right)
    return pictures


def quantize(folder: Path, options: tuple[str, ...], *, guidance: float, steps: int, out: Path) -> None:
    """Run `dq-quantize`, unless an earlier run has left the record."""
    if out.is_file():
        return
    calibration = ("--prompts", str(folder / "calibration.txt"), "--guidance", str(guidance), "--steps", str(steps))
    calibration += ("--samples", "16")
    command = [sys.executable, "-m", "dq_deploy.cli.quantize", "--model", str(folder), *calibration, *options]
    code = subprocess.run([*command, "--out", str(out)], check=False).returncode
    if code:
        raise SystemExit(code)


def main(
    work: Annotated[Path, typer.Option(help="Folder for the records and the pictures.")],
    model: Annotated[Path, typer.Option(help="Pipeline folder.")] = MODEL,
    variants: Annotated[str, typer.Option(help="Comma list.")] = ",".join(VARIANTS),
    count: Annotated[int, typer.Option(help="Prompts.")] = 500,
    steps: Annotated[int, typer.Option(help="Sampling and calibration steps.")] = 5,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 3.0,
    out: Annotated[Path, typer.Option(help="JSON lines file to append to.")] = RESULTS,
) -> None:
    """Draw, quantize, draw again and compare; one JSON line a variant."""
    from dq_deploy.quality.bootstrap import interval_of_mean, interval_of_paired_difference
    from dq_deploy.quality.image import psnr_db

    prompts = chosen_prompts(model, count)
    work.mkdir(parents=True, exist_ok=True)
    drawing = partial(draw, model, prompts, steps=steps)
    terms = f"{steps}-steps-{count}.npz"
    reference = drawn_once(work / f"float-{guidance}-{terms}", partial(drawing, guidance=guidance, record=None))
    unguided = drawn_once(work / f"float-1-{terms}", partial(drawing, guidance=1.0, record=None))
    by_class = [round(float(reference.right[label::CLASSES].mean()), 3) for label in range(min(CLASSES, count))]
    print(f"float: right {interval_of_mean(reference.right)}, without guidance {interval_of_mean(unguided.right)}")
    print(f"by class: {by_class}", flush=True)
    for name in variants.split(","):
        record = work / f"{name}-{guidance}-{steps}-steps.pt"
        quantize(model, VARIANTS[name], guidance=guidance, steps=steps, out=record)
        drawn = drawn_once(work / f"{name}-{guidance}-{terms}", partial(drawing, guidance=guidance, record=record))
        psnr = interval_of_mean(psnr_db(drawn.images, reference.images, data_range=2.0))
        difference = interval_of_paired_difference(drawn.right, reference.right)
        line = {
            "variant": name,
            "options": VARIANTS[name],
            "prompts": count,
            "chance": 1 / CLASSES,
            "steps": steps,
            "guidance": guidance,
            "right": interval_of_mean(drawn.right).__dict__,
            "right_float": interval_of_mean(reference.right).__dict__,
            "right_float_by_class": by_class,
            "right_float_without_guidance": interval_of_mean(unguided.right).__dict__,
            "right_difference": difference.__dict__,
            "psnr_db": psnr.__dict__,
            "commit": commit(),
            "environment": describe_environment(threads=None),
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        print(f"{name}: right {interval_of_mean(drawn.right)}, difference {difference}, PSNR {psnr} dB", flush=True)


if __name__ == "__main__":
    typer.run(main)
