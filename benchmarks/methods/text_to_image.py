"""Whether a prompt still decides the picture when the emoji text-to-image model is quantized.

    python -m benchmarks.methods.text_to_image --work DIR             # 500 prompts, a picture each
    python -m benchmarks.methods.text_to_image --work DIR --count 2000 --seeds 0,1,2 --variants gptq-w4a8

Prompt i of examples/emoji-text-to-image/prompts.txt belongs to class i modulo 9, and a classifier that was trained on
real emojis says which class a picture shows. More pictures than prompts go through the prompts again with other noise;
the pictures of one prompt are alike, so intervals are over prompts, and with several training seeds over these too.
The float model draws with guidance, and one picture a prompt without; each quantized model draws with guidance,
natively, from the same noise. It is made by `dq-quantize`, calibrated with calibration.txt, which shares no prompt with
prompts.txt. One JSON line a variant and seed goes to benchmarks/results/text_to_image.jsonl, and one over all seeds
where there are several.
Records and pictures stay in DIR, and a second run takes them from there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.machine.commit import commit
from dq_deploy.artifacts import atomic_path
from dq_deploy.bench.environment import describe_environment
from dq_deploy.numerics.arrays import F64

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "emoji-text-to-image"
CLASSIFIER = ROOT / "examples" / "emoji-classifier" / "classifier.onnx"
RESULTS = ROOT / "benchmarks" / "results" / "text_to_image.jsonl"
CLASSES = 9
SEED = 1234  # calibration draws with seed 0
BATCH = 50

VARIANTS: Mapping[str, tuple[str, ...]] = {
    "minmax-w8a8": ("--method", "minmax", "--weights", "8", "--activations", "8", "--samples", "16"),
    "minmax-w4a8": ("--method", "minmax", "--weights", "4", "--activations", "8", "--samples", "16"),
    "gptq-w4a8": ("--method", "gptq", "--preset", "fast", "--weights", "4", "--activations", "8"),
    "gptq-w4a8-correction": (
        *("--method", "gptq", "--preset", "fast", "--weights", "4", "--activations", "8", "--step-correction"),
    ),
    "gptq-w4a8-pictures": ("--method", "gptq", "--preset", "fast,pictures", "--weights", "4", "--activations", "8"),
    "dilatequant-w4a8": ("--preset", "fast", "--weights", "4", "--activations", "8"),
    "dilatequant-w4a4-mixed": ("--preset", "fast,w4a4-mixed"),
    "dilatequant-w4a4-mixed-pictures": ("--preset", "fast,w4a4-mixed,pictures"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """What one model drew.

    Attributes:
        images: [N, 3, 32, 32] float32 in [-1, 1], image i of prompt i, counted round.
        right: [N], whether the classifier sees the prompt's class.
    """

    images: NDArray[np.float32]
    right: NDArray[np.bool_]


def chosen_prompts(folder: Path, count: int) -> tuple[str, ...]:
    """The prompts of `count` pictures: the first ones of a model's folder, or all, to be gone through several times."""
    lines = (folder / "prompts.txt").read_text(encoding="utf-8").splitlines()
    most = len(lines)
    if count < 1 or (count > most and count % most):
        raise SystemExit(
            f"error: count is {count}, expected 1 to {most}, the prompts of {folder}, or a multiple of them"
        )
    return tuple(lines[:count])


def by_prompt(values: NDArray[Any], prompts: int) -> F64:
    """The mean of each prompt's pictures, [prompts], of values [N] where picture i is of prompt i modulo `prompts`."""
    found: F64 = np.asarray(values, np.float64).reshape(-1, prompts).mean(0)
    return found


def draw(
    folder: Path, prompts: tuple[str, ...], *, count: int, guidance: float, steps: int, record: Path | None
) -> Pictures:
    """Draw `count` pictures, with the float model or with a record in its denoiser's place."""
    from dq_deploy import IntegerDenoiser
    from dq_deploy.models.pipeline import PipelineCall, open_pipeline
    from dq_deploy.pipelines.draw import draw_images
    from dq_deploy.quality.onnx_network import load_onnx_classifier

    denoiser = None if record is None else IntegerDenoiser(record)
    pipeline = open_pipeline(folder, denoiser=denoiser)
    call = PipelineCall(prompts=prompts, guidance=guidance, steps=steps, seed=SEED, count=count)
    images = draw_images(pipeline, call, batch=BATCH).images
    seen = load_onnx_classifier(CLASSIFIER)(images)
    return Pictures(images=images, right=seen == np.arange(len(images)) % len(prompts) % CLASSES)


def drawn_once(path: Path, make: Callable[[], Pictures]) -> Pictures:
    """The pictures in a file that an earlier run has left, or new ones, which are left there."""
    if path.is_file():
        with np.load(path) as file:
            return Pictures(images=file["images"], right=file["right"])
    pictures = make()
    with atomic_path(path) as temporary, Path(temporary).open("wb") as file:
        np.savez(file, images=pictures.images, right=pictures.right)
    return pictures


def quantize(
    folder: Path, options: tuple[str, ...], *, guidance: float, steps: int, seed: int, out: Path
) -> float | None:
    """Run `dq-quantize` and give its CPU seconds; None where an earlier run has left the record."""
    if out.is_file():
        return None
    calibration = ("--prompts", str(folder / "calibration.txt"), "--guidance", str(guidance), "--steps", str(steps))
    command = [sys.executable, "-m", "dq_deploy.cli.quantize", "--model", str(folder), *calibration, *options]
    before = os.times()
    code = subprocess.run([*command, "--seed", str(seed), "--out", str(out)], check=False).returncode
    if code:
        raise SystemExit(code)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def line_of(drawn: Sequence[Pictures], floats: Pictures, prompts: int) -> dict[str, Any]:
    """What one training seed's pictures, or those of several, are beside the float model's; intervals over prompts."""
    from dq_deploy.quality.bootstrap import Interval, interval_of_mean, interval_over_seeds
    from dq_deploy.quality.image import psnr_db

    def interval(values: Sequence[F64]) -> dict[str, Any]:
        over = [by_prompt(value, prompts) for value in values]
        found: Interval = interval_of_mean(over[0]) if len(over) == 1 else interval_over_seeds(np.stack(over))
        return dict(found.__dict__)

    return {
        "right": interval([own.right.astype(np.float64) for own in drawn]),
        "right_float": interval([floats.right.astype(np.float64)]),
        "right_difference": interval([own.right.astype(np.float64) - floats.right for own in drawn]),
        "psnr_db": interval([np.asarray(psnr_db(own.images, floats.images, data_range=2.0)) for own in drawn]),
    }


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add one line to the results, with the commit and the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {**line, "commit": commit(), "environment": describe_environment(threads=None)}
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(whole) + "\n")
    words = {name: line[name] for name in ("right", "right_difference", "psnr_db")}
    shown = ", ".join(f"{name} {v['mean']:.4f} [{v['low']:.4f}, {v['high']:.4f}]" for name, v in words.items())
    print(f"{line['variant']}, seeds {line['seeds']}: {shown}", flush=True)


def main(
    work: Annotated[Path, typer.Option(help="Folder for the records and the pictures.")],
    model: Annotated[Path, typer.Option(help="Pipeline folder.")] = MODEL,
    variants: Annotated[str, typer.Option(help="Comma list.")] = ",".join(VARIANTS),
    count: Annotated[int, typer.Option(help="Pictures.")] = 500,
    steps: Annotated[int, typer.Option(help="Sampling and calibration steps.")] = 5,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 3.0,
    seeds: Annotated[str, typer.Option(help="Comma list of seeds of calibration and training.")] = "0",
    out: Annotated[Path, typer.Option(help="JSON lines file to append to.")] = RESULTS,
) -> None:
    """Draw, quantize, draw again and compare; one JSON line a variant and seed, and one over several seeds."""
    from dq_deploy.quality.bootstrap import interval_of_mean

    prompts = chosen_prompts(model, count)
    work.mkdir(parents=True, exist_ok=True)
    drawing = partial(draw, model, prompts, count=count, steps=steps)
    terms = f"{steps}-steps-{count}.npz"
    floats = drawn_once(work / f"float-{guidance}-{terms}", partial(drawing, guidance=guidance, record=None))
    once = partial(draw, model, prompts, count=len(prompts), steps=steps, guidance=1.0, record=None)
    unguided = drawn_once(work / f"float-1-{steps}-steps-{len(prompts)}.npz", once)
    of_class = np.arange(count) % len(prompts) % CLASSES
    by_class = [round(float(floats.right[of_class == label].mean()), 3) for label in range(min(CLASSES, count))]
    print(f"float: right {floats.right.mean():.4f}, without guidance {unguided.right.mean():.4f}")
    print(f"by class: {by_class}", flush=True)
    for name in variants.split(","):
        drawn: dict[int, Pictures] = {}
        of_all = {
            "variant": name,
            "options": VARIANTS[name],
            "prompts": len(prompts),
            "pictures": count,
            "chance": 1 / CLASSES,
            "steps": steps,
            "guidance": guidance,
            "right_float_by_class": by_class,
            "right_float_without_guidance": interval_of_mean(unguided.right).__dict__,
        }
        for seed in (int(value) for value in seeds.split(",")):
            record = work / f"{name}-{guidance}-{steps}-steps-seed-{seed}.pt"
            seconds = quantize(model, VARIANTS[name], guidance=guidance, steps=steps, seed=seed, out=record)
            pictures = work / f"{name}-{guidance}-seed-{seed}-{terms}"
            drawn[seed] = drawn_once(pictures, partial(drawing, guidance=guidance, record=record))
            line = line_of([drawn[seed]], floats, len(prompts))
            append(out, {**of_all, "seeds": [seed], "quantizing_cpu_s": seconds, **line})
        if len(drawn) > 1:
            append(out, {**of_all, "seeds": list(drawn), **line_of(list(drawn.values()), floats, len(prompts))})


if __name__ == "__main__":
    typer.run(main)
