"""Attention in float32, bfloat16 and 8-bit codes: how fast its kernels and whole steps are, and how near the pictures.

    python -m benchmarks.unets.attention kernels
    python -m benchmarks.unets.attention steps --model sd15 --work DIR
    python -m benchmarks.unets.attention pictures --work DIR --count 90

Kernels: the shapes of `dq_kernels.attention.cases`, the least of several runs, in turns. Steps: one record, opened once
for each type, in turns. Pictures: the emoji text-to-image model with guidance, quantized by `dq-quantize --attention
int8`, one picture a prompt from the same noise; PSNR at peak 2 to the float model's pictures and to those of the same
record with attention in float32, and the share of pictures in which a classifier sees the prompt's category. A line of
each goes to benchmarks/results/attention.jsonl.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.machine.commit import commit
from dq_deploy.bench.environment import describe_environment
from dq_deploy.engines.options import ATTENTION

RESULTS = Path(__file__).resolve().parents[1] / "results" / "attention.jsonl"
app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)


def note(row: Mapping[str, Any], threads: int | None) -> None:
    """Print a row, and append it to the results with where it was measured."""
    print(json.dumps(row), flush=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        place = {"commit": commit(), "environment": describe_environment(threads=threads)}
        file.write(json.dumps({**row, **place}) + "\n")


@app.command()
def kernels(
    threads: Annotated[int, typer.Option(help="Threads.")] = 2,
    isa: Annotated[str | None, typer.Option(help="Instruction set; by default the best.")] = None,
    runs: Annotated[int, typer.Option(help="Of each.")] = 7,
) -> None:
    """Milliseconds of each shape in each type."""
    from dq_kernels.attention import run, run_codes
    from dq_kernels.attention.cases import SHAPE_CASES
    from dq_kernels.cpu.library import Context

    with Context(threads, isa) as context:
        for case in SHAPE_CASES:
            inputs = case.inputs()
            codes = {"tables": tables_of(inputs), "step": np.zeros(case.batch, np.int32), "normed": False}
            calls = {
                "float32": lambda given=inputs: run(context, **given),
                "bf16": lambda given=inputs: run(context, **given, precision="bf16"),
                "int8": lambda given={**inputs, **codes}: run_codes(context, **given, integers=False),
            }
            spent: dict[str, float] = {}
            for _ in range(runs):
                for name, call in calls.items():
                    start = time.perf_counter()
                    call()
                    spent[name] = min(spent.get(name, np.inf), (time.perf_counter() - start) * 1e3)
            row = {"kind": "kernel", "model": case.model, "shape": case.name, "batch": case.batch, "isa": context.isa}
            note({**row, "gop": 2e-9 * case.macs, "ms": {k: round(v, 3) for k, v in spent.items()}}, threads)


def tables_of(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of one step that reach over all values; of the softmax the numerators are coded."""
    from dq_kernels.attention import Table

    found = {}
    for role in "qkvp":
        reach = 255 if role == "p" else 127 / np.abs(inputs[role]).max()
        scale, zero = np.array([1 / reach], np.float32), np.zeros(1, np.int32)
        low, high = (0, 255) if role == "p" else (-128, 127)
        found[role] = Table(q_min=low, q_max=high, scale=scale, inverse=np.float32(1) / scale, zero_point=zero)
    return found


@app.command()
def steps(
    work: Annotated[Path, typer.Option(help="Folder for the record.")],
    model: Annotated[str, typer.Option(help="demo, cifar, sd15 or dit-xl.")] = "sd15",
    bits: Annotated[int, typer.Option(help="Of the weights.")] = 8,
    threads: Annotated[int, typer.Option(help="Threads.")] = 2,
    rounds: Annotated[int, typer.Option(help="Turns.")] = 5,
    batch: Annotated[int | None, typer.Option(help="By default 2 of a large model, else 1.")] = None,
) -> None:
    """Milliseconds of a whole step in each type, the native engine in turns."""
    from benchmarks.unets.run import BATCHES, record_path
    from dq_deploy import load_record
    from dq_deploy.models import call_of_record, example_inputs
    from dq_deploy.native.runner import NativeRunner

    models = [name for name in BATCHES if name != "terrain"]
    if model not in models:
        raise typer.BadParameter(f"got {model!r}, expected one of {', '.join(models)}", param_hint="--model")
    work.mkdir(parents=True, exist_ok=True)
    record = load_record(record_path(model, bits, work, attention="int8"))
    batch = BATCHES[model] if batch is None else batch
    feeds = example_inputs(call_of_record(record), batch, 0)
    runners = {name: NativeRunner(record, threads=threads, attention=name) for name in ATTENTION}
    spent: dict[str, list[float]] = {name: [] for name in ATTENTION}
    outputs = {name: runner.run(feeds)["output"] for name, runner in runners.items()}
    for _ in range(rounds):
        for name, runner in runners.items():
            start = time.perf_counter()
            runner.run(feeds)
            spent[name].append((time.perf_counter() - start) * 1e3)
    want = outputs["float32"]
    off = {name: float(np.sqrt(((y - want) ** 2).mean() / (want**2).mean())) for name, y in outputs.items()}
    row = {"kind": "step", "model": model, "bits": f"W{bits}A8", "batch": batch, "isa": runners["bf16"].runs_on.isa}
    note({**row, "ms": {k: round(float(np.median(v)), 2) for k, v in spent.items()}, "rms_of_output": off}, threads)


@app.command()
def pictures(
    work: Annotated[Path, typer.Option(help="Folder for the record and the picture.")],
    bits: Annotated[int, typer.Option(help="Of the weights.")] = 8,
    count: Annotated[int, typer.Option(help="Prompts.")] = 90,
    sampling_steps: Annotated[int, typer.Option(help="Steps.")] = 5,
    guidance: Annotated[float, typer.Option(help="Scale.")] = 3.0,
) -> None:
    """Pictures of the emoji model in each type beside the float model's."""
    from benchmarks.methods.text_to_image import CLASSES, CLASSIFIER, MODEL, SEED, chosen_prompts
    from dq_deploy import IntegerDenoiser
    from dq_deploy.models.pipeline import PipelineCall, open_pipeline
    from dq_deploy.pipelines.draw import draw_images
    from dq_deploy.pipelines.grid import write_grid
    from dq_deploy.quality.bootstrap import interval_of_mean, interval_of_paired_difference
    from dq_deploy.quality.image import psnr_db
    from dq_deploy.quality.onnx_network import load_onnx_classifier

    work.mkdir(parents=True, exist_ok=True)
    record = work / f"emoji-w{bits}a8-attention.pt"
    if not record.is_file():
        options: tuple[str, ...] = (
            "--prompts",
            str(MODEL / "calibration.txt"),
            "--guidance",
            str(guidance),
            "--samples",
            "16",
        )
        options += ("--steps", str(sampling_steps), "--method", "minmax", "--weights", str(bits), "--activations", "8")
        command = [sys.executable, "-m", "dq_deploy.cli.quantize", "--model", str(MODEL), *options]
        subprocess.run([*command, "--attention", "int8", "--out", str(record)], check=True)
    prompts = chosen_prompts(MODEL, count)
    call = PipelineCall(prompts=prompts, guidance=guidance, steps=sampling_steps, seed=SEED, count=count)
    drawn = {}
    for name in ("float model", *ATTENTION):
        denoiser = None if name == "float model" else IntegerDenoiser(record, attention=name)
        drawn[name] = draw_images(open_pipeline(MODEL, denoiser=denoiser), call, batch=30).images
    right = {k: load_onnx_classifier(CLASSIFIER)(v) == np.arange(count) % CLASSES for k, v in drawn.items()}
    for name in ATTENTION:
        row: dict[str, Any] = {"kind": "pictures", "model": "emoji", "bits": f"W{bits}A8", "attention": name}
        for against in ("float model",) if name == "float32" else ("float model", "float32"):
            psnr = interval_of_mean(psnr_db(drawn[name], drawn[against], data_range=2.0))
            row[f"psnr_db to {against}"] = [round(v, 2) for v in (psnr.mean, psnr.low, psnr.high)]
        change = interval_of_paired_difference(right[name], right["float model"])
        row |= {
            "count": count,
            "right": float(right[name].mean()),
            "right of float": float(right["float model"].mean()),
        }
        note({**row, "right less float": [round(v, 3) for v in (change.mean, change.low, change.high)]}, None)
    rows = [(name if name == "float model" else f"attention {name}", images[:9]) for name, images in drawn.items()]
    write_grid(work / f"attention-w{bits}a8.png", rows, [prompt[:14] for prompt in prompts[:9]])


if __name__ == "__main__":
    app()
