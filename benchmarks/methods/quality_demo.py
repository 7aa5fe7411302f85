"""How close quantized models stay to the float demo model, from the same noise.

Each variant is quantized, its torch simulation (which equals the engines in mode exact) samples images with
DDIM, and each image is compared with the float model's image from the same noise and label.

    python -m benchmarks.methods.quality_demo                         # every variant, 500 images: more than an hour
    python -m benchmarks.methods.quality_demo --variants minmax-w4a4,dilatequant-w4a4 --count 100
"""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.machine.commit import commit

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "mnist-ddpm-32"
CLASSIFIER = ROOT / "examples" / "digit-classifier" / "weights.safetensors"
RESULTS = ROOT / "benchmarks" / "results" / "quality_demo.jsonl"

W4A4: dict[str, Any] = {"weight_bits": 4, "activation_bits": 4}
W4A8: dict[str, Any] = {"weight_bits": 4, "activation_bits": 8}

VARIANTS: dict[str, dict[str, Any]] = {
    "minmax-w4a8": {"method": "minmax", **W4A8},
    "dilatequant-w4a8": W4A8,
    "minmax-w4a4": {"method": "minmax", **W4A4},
    "dilatequant-w4a4": W4A4,
    "dilatequant-w4a4-no-dilation": {"without": ("weight-dilation",), **W4A4},
    "dilatequant-w4a4-no-temporal": {"without": ("temporal-quantizer",), **W4A4},
    "dilatequant-w4a4-no-distillation": {"without": ("distillation",), **W4A4},
    "dilatequant-w4a4-symmetric-bound": {"dilation_bound": "symmetric", **W4A4},
    "minmax-static-w4a4": {"method": "minmax", "static": True, **W4A4},
    "minmax-w8a8": {"method": "minmax", "weight_bits": 8, "activation_bits": 8},
    "dilatequant-w6a6": {"weight_bits": 6, "activation_bits": 6},
}
DEFAULT_VARIANTS = list(VARIANTS)[:7]


def environment() -> dict[str, Any]:
    """Machine, versions and commit of a measurement."""
    import diffusers
    import torch

    cpu = platform.processor()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "diffusers": diffusers.__version__,
        "commit": commit(),
    }


def draw(module: Any, denoiser: Any, count: int, steps: int) -> Any:
    """Images [N, 1, 32, 32] with labels 0..9 in turn, from a noise seed the calibration never uses."""
    from dq_deploy.models.pipeline import PipelineCall, build_scheduler
    from dq_deploy.models.pipeline.denoiser_pipeline import DenoiserPipeline
    from dq_deploy.pipelines.draw import draw_images

    pipeline = DenoiserPipeline(module, build_scheduler(denoiser.scheduler_config))
    pipeline.set_progress_bar_config(disable=True)
    asked = PipelineCall(steps=steps, seed=1234, count=count, labels=tuple(i % 10 for i in range(count)))
    return draw_images(pipeline, asked, batch=50).images


def simulated(record: Any) -> Any:
    """The simulation of a record as a denoiser of diffusers."""
    from dq_deploy import IntegerDenoiser
    from dq_deploy.pipelines.module_runner import ModuleRunner
    from dq_deploy.simulation.fake_quant import simulate
    from dq_deploy.targets.manifest import manifest_of_record

    return IntegerDenoiser(ModuleRunner(simulate(record), manifest_of_record(record, target="simulation")))


def recognised(images: Any) -> Any:
    """Per image, whether the classifier sees the asked digit."""
    from dq_deploy.quality.classifier import load_digit_classifier, recognised_labels

    found = recognised_labels(load_digit_classifier(CLASSIFIER), images)
    return found == np.arange(len(images)) % 10


def main(
    variants: Annotated[str, typer.Option(help="Comma list, or `all`.")] = ",".join(DEFAULT_VARIANTS),
    count: Annotated[int, typer.Option(help="Images a variant.")] = 500,
    steps: Annotated[int, typer.Option(help="Sampling and calibration steps.")] = 20,
    preset: Annotated[str, typer.Option(help="Preset of dq-quantize.")] = "balanced",
    overrides: Annotated[str, typer.Option(help="JSON of more options.")] = "{}",
    out: Annotated[Path, typer.Option(help="JSON lines file to append to.")] = RESULTS,
) -> None:
    """Quantize, sample and compare; one JSON line a variant."""
    import torch

    from dq_deploy import load_model, quantize
    from dq_deploy.methods import options_from_preset
    from dq_deploy.methods.options import json_of_options
    from dq_deploy.quality.bootstrap import interval_of_mean, interval_of_paired_difference
    from dq_deploy.quality.image import psnr_db

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    names = list(VARIANTS) if variants == "all" else variants.split(",")
    denoiser = load_model(MODEL)
    reference = draw(denoiser.module, denoiser, count, steps)
    right = recognised(reference)
    print(f"float: recognised {interval_of_mean(right)}", flush=True)
    for name in names:
        chosen = {**VARIANTS[name], **json.loads(overrides)}
        options = options_from_preset(preset, steps=steps, **chosen)
        start = time.perf_counter()
        record = quantize(denoiser, options)
        seconds = time.perf_counter() - start
        images = draw(simulated(record), denoiser, count, steps)
        psnr = psnr_db(images, reference, data_range=2.0)
        seen = recognised(images)
        line = {
            "variant": name,
            "preset": preset,
            "options": json_of_options(options),
            "images": count,
            "psnr_db": interval_of_mean(psnr).__dict__,
            "recognised": interval_of_mean(seen).__dict__,
            "recognised_float": interval_of_mean(right).__dict__,
            "recognised_difference": interval_of_paired_difference(seen, right).__dict__,
            "block_errors": {h["block"]: h["relative_error"] for h in record.provenance["history"] if "block" in h},
            "quantize_seconds": round(seconds, 1),
            **environment(),
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        print(
            f"{name}: PSNR {interval_of_mean(psnr)} dB, recognised {interval_of_mean(seen)}, {seconds:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    typer.run(main)
