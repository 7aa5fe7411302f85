"""A model that nobody here trained: how near its integer maps are to the float ones, that they are exact, how fast.

    python examples/terrain.py terrain-pipeline
    python -m benchmarks.unets.terrain terrain-pipeline --work DIR --picture docs/pictures/terrain.png

Height maps of 128 x 128 pixels in one step of the model's own scheduler. For each of `VARIANTS`, into the folder work:
dq-quantize, dq-export, dq-verify --exact of the native engine and of ONNX Runtime; then 64 maps of all difficulties by
the float pipeline and by the native engine from the same noise; then the native engine and ONNX Runtime in float32 and
in integers, each in a process of its own, taking turns. What is in the folder already is not made again. A row goes to
benchmarks/results/terrain.jsonl. The exit code is 3 where a proof fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import quiet
from benchmarks.machine.commit import commit
from benchmarks.unets.denoisers import TERRAIN_FLOAT
from benchmarks.unets.run import NATIVE, Series, ratios, table, take_turns
from dq_deploy.bench.environment import describe_environment
from dq_deploy.errors import DqError

ROOT = Path(__file__).resolve().parents[1]
FLOAT, INTEGER = "onnxruntime float32", "onnxruntime int8"
RED = 3
TRAINING = """\
dilatequant: {{iterations: {iterations}, batch: {batch}, second_order_start: {start}}}
"""
"""A preset."""
LAST_FLOAT = ("--keep", ",".join(TERRAIN_FLOAT))
"""5 % of the work: the four layers that lose most, all behind sums of the last resolution that no norm evens out."""
SPEEDUP = 2.0
"""What the native engine is to be at least, over ONNX Runtime's float32."""
FILE_OVER_CODES = 1.15
"""What the ONNX file is to take at most, as a share of its weight codes' bytes."""
LARGEST_OUTPUT = 1e4
"""What no float output is to exceed in calibration."""
F32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to quantize the model.

    Attributes:
        name: of its files.
        method: of dq-quantize.
        bits: of the weights; activations have 8.
        options: further options of dq-quantize.
        attention: what the native engine computes attention's products in; None is its default.
        start: training begins at weights rounded as method gptq rounds them.
        psnr_db: what the mean over maps is to be at least.
    """

    name: str
    method: str
    bits: int
    options: tuple[str, ...] = ()
    attention: str | None = None
    start: bool = False
    psnr_db: float


VARIANTS = (
    Variant(name="w8-all", method="minmax", bits=8, options=("--channel-scales",), psnr_db=40),
    Variant(name="w8-minmax", method="minmax", bits=8, options=("--channel-scales", *LAST_FLOAT), psnr_db=40),
    Variant(
        name="w8-attention",
        method="minmax",
        bits=8,
        options=("--channel-scales", *LAST_FLOAT, "--attention", "int8"),
        attention="int8",
        psnr_db=40,
    ),
    Variant(name="w4-gptq", method="gptq", bits=4, options=LAST_FLOAT, psnr_db=30),
    Variant(name="w4-dilatequant", method="dilatequant", bits=4, options=LAST_FLOAT, psnr_db=30),
    Variant(
        name="w4-gptq-dilatequant",
        method="dilatequant",
        bits=4,
        options=(*LAST_FLOAT, "--without", "weight-dilation"),
        start=True,
        psnr_db=30,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Files:
    """What the commands make of one variant.

    Attributes:
        pipeline: folder of examples/terrain.py.
        record: by dq-quantize.
        graph: by dq-export for ONNX Runtime.
    """

    pipeline: Path
    record: Path
    graph: Path


def command(name: str, *options: object) -> float:
    """Run a command of the project to its end; seconds.

    Raises:
        DqError: it failed; the message is its last line.
    """
    start = time.perf_counter()
    words = [sys.executable, "-m", f"dq_deploy.cli.{name}", *map(str, options)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise DqError(f"dq-{name} ended with {done.returncode}: {lines[-1]}")
    return time.perf_counter() - start


def make_files(variant: Variant, arguments: argparse.Namespace) -> tuple[Files, dict[str, float]]:
    """Record and graph, with the seconds that each took; nothing for what was there."""
    stem = arguments.work / f"terrain-{variant.name}"
    files = Files(pipeline=arguments.pipeline, record=stem.with_suffix(".pt"), graph=stem.with_suffix(".onnx"))
    seconds = {}
    if not files.record.is_file():
        preset = arguments.work / f"training-{variant.name}.yaml"
        start = str(variant.start).lower()
        training = TRAINING.format(iterations=arguments.iterations, batch=arguments.batch, start=start)
        preset.write_text(training, encoding="utf-8")
        options: list[object] = ["--model", files.pipeline, "--preset", preset, "--method", variant.method]
        options += ["--weights", variant.bits, "--activations", 8, "--steps", 1, "--samples", arguments.samples]
        seconds["quantize"] = command("quantize", *options, *variant.options, "--out", files.record)
    if not files.graph.is_file() and not arguments.quality_only:
        seconds["export"] = command("export", "--ckpt", files.record, "--out", files.graph)
    return files, seconds


def proofs(files: Files, attention: str | None = None) -> dict[str, str]:
    """What dq-verify --exact says of each engine: `exact`, or why not.

    A proof that was found is a file of the engine's name beside the record, and is not looked for again.
    """
    said = {}
    for engine, options in (
        (NATIVE, ["--engine", files.record, *(["--attention", attention] if attention else [])]),
        ("onnxruntime", ["--engine", files.graph, "--ckpt", files.record]),
    ):
        kept = files.record.with_suffix(f".{engine}.exact.json")
        if not kept.is_file():
            report = kept.with_suffix(".unread")
            try:
                command("verify", *options, "--exact", "--no-quantization-error", "--inputs", 1, "--json", report)
            except DqError as error:
                said[engine] = str(error)
                continue
            report.rename(kept)
        said[engine] = "exact"
    return said


def draw(files: Files, count: int, *, integer: bool, batch: int = 8, attention: str | None = None) -> F32:
    """Maps [count, 1, 128, 128] from 0 to 1, of difficulties from the least to the greatest.

    Args:
        files: of the model.
        count: of maps.
        integer: by the native engine in the denoiser's place.
        batch: maps at a time.
        attention: of the native engine.
    """
    from dq_deploy.models.pipeline import PipelineCall, open_pipeline
    from dq_deploy.pipelines.draw import draw_images
    from dq_deploy.pipelines.integer_denoiser import IntegerDenoiser

    denoiser = IntegerDenoiser(files.record, attention=attention) if integer else None
    pipeline = open_pipeline(files.pipeline, denoiser=denoiser)
    pipeline.set_progress_bar_config(disable=True)
    classes = pipeline.unet.config["num_class_embeds"]
    labels = np.linspace(0, classes - 1, count).round().astype(int)
    call = PipelineCall(labels=tuple(labels.tolist()), count=count, steps=1)
    return np.asarray((draw_images(pipeline, call, batch=batch).images + 1) / 2, np.float32)


def quality(float_maps: F32, integer_maps: F32) -> dict[str, Any]:
    """Mean PSNR of the integer maps over the float ones at peak 1, with its interval, and the worst map's."""
    from dq_deploy.quality.bootstrap import interval_of_mean
    from dq_deploy.quality.image import psnr_db

    each = psnr_db(integer_maps, float_maps, data_range=1.0)
    mean = interval_of_mean(each)
    return {
        "maps": len(each),
        "psnr_db": {"mean": mean.mean, "low": mean.low, "high": mean.high, "least": float(each.min())},
        "largest_difference": float(np.abs(integer_maps - float_maps).max()),
    }


def shaded(maps: F32) -> NDArray[np.uint8]:
    """RGB of a map [128, 128] from 0 to 1: coloured by height, lit from the upper left."""
    colours = np.array([[38, 84, 70], [122, 150, 84], [205, 188, 122], [150, 112, 84], [246, 244, 240]], np.float64)
    places = np.linspace(0.1, 0.6, len(colours))
    colour = np.stack([np.interp(maps, places, colours[:, channel]) for channel in range(3)], axis=-1)
    down, right = np.gradient(maps.astype(np.float64) * 60)
    light = (1 + 0.7 * (down + right)) / np.sqrt(1 + down**2 + right**2)
    return np.clip(colour * np.clip(0.55 + 0.45 * light, 0.2, 1.2)[..., None], 0, 255).astype(np.uint8)


def draw_picture(rows: Mapping[str, F32], path: Path, *, columns: int = 5) -> None:
    """Draw some maps of each row, with its name beside them.

    Args:
        rows: maps [N, 1, 128, 128] by name.
        path: PNG to write.
        columns: maps of a row, from the flattest to the roughest.
    """
    from PIL import Image, ImageDraw

    gap, margin = 4, 100
    count, _, size, _ = next(iter(rows.values())).shape
    picture = Image.new("RGB", (margin + columns * (size + gap), len(rows) * (size + gap)), "white")
    pen = ImageDraw.Draw(picture)
    for y, (name, maps) in enumerate(rows.items()):
        pen.text((4, y * (size + gap) + size // 2), name.replace("-", " "), fill="black")
        for x, index in enumerate(np.linspace(0, count - 1, columns).round().astype(int)):
            picture.paste(Image.fromarray(shaded(maps[index, 0])), (margin + x * (size + gap), y * (size + gap)))
    picture.quantize(128).save(path, optimize=True)


def contents(files: Files) -> dict[str, Any]:
    """Sizes of the files that are there, and the largest float output of the calibration."""
    from dq_deploy import load_record

    record = load_record(files.record)
    parts = [(layer.weight_bits, part) for layer in record.layers.values() for part in layer.parts]
    # of 4 bits and fewer two codes share a byte
    codes = sum(part.w_code.size / (2 if bits <= 4 else 1) for bits, part in parts)
    place, largest = max(record.float_ranges.items(), key=lambda entry: entry[1])
    found = {"code_bytes": codes, "record_bytes": files.record.stat().st_size}
    if files.graph.is_file():
        size = files.graph.stat().st_size
        found |= {"onnx_bytes": size, "onnx_over_codes": size / codes}
    return {**found, "largest_float_output": {"at": place, "value": largest}}


def times(files: Files, arguments: argparse.Namespace, attention: str | None = None) -> tuple[dict[str, Series], float]:
    """The engines in turn at batch 1; and how busy others kept the machine."""
    from contextlib import ExitStack

    from dq_deploy import load_record
    from dq_deploy.bench.worker import Worker, WorkerSettings
    from dq_deploy.graph.onnx_file import read_manifest
    from dq_deploy.models import call_of_record
    from dq_deploy.targets import float_graph

    float_file = arguments.work / "terrain-float32.onnx"
    if not float_file.is_file():
        float_graph(read_manifest(files.graph), float_file, record=load_record(files.record))
    with ExitStack() as stack:
        running = {}
        for name, path in ((NATIVE, files.record), (FLOAT, float_file), (INTEGER, files.graph)):
            own = {"attention": attention} if name == NATIVE else {}
            settings = WorkerSettings(path=str(path), engine=name.partition(" ")[0], threads=arguments.threads, **own)
            running[name] = stack.enter_context(Worker(settings))
        sizes = call_of_record(load_record(files.record)).sizes
        series, busy = take_turns(running, 1, arguments.rounds, arguments.seconds, sizes)
    print("\n".join([*table(series, ratios(series)), *filter(None, [quiet.remark(busy)])]), flush=True)
    return series, float(np.mean(busy))


def claims(variant: Variant, row: dict[str, Any]) -> list[str]:
    """What was asked for, a line each with what was got; nothing of what was not measured."""
    sizes, found = row["files"], row["quality"]["psnr_db"]["mean"]
    largest = sizes["largest_float_output"]["value"]
    lines = [
        (found >= variant.psnr_db, f"mean PSNR {found:.2f} dB, asked for {variant.psnr_db:.0f}"),
        (largest < LARGEST_OUTPUT, f"largest float output {largest:.3g}, asked for below {LARGEST_OUTPUT:.0e}"),
    ]
    if "native_is" in row:
        speed = row["native_is"][FLOAT]["speedup"]
        lines.append((speed >= SPEEDUP, f"{speed:.2f}x {FLOAT}, asked for {SPEEDUP:.0f}x"))
    if "onnx_over_codes" in sizes:
        share = sizes["onnx_over_codes"]
        lines.append((share <= FILE_OVER_CODES, f"ONNX file {share:.3f} of its codes, asked for {FILE_OVER_CODES}"))
    return [f"{'met' if met else 'NOT MET'}: {text}" for met, text in lines]


def measure(variant: Variant, float_maps: F32, arguments: argparse.Namespace) -> int:
    """One row; the exit code."""
    files, seconds = make_files(variant, arguments)
    row: dict[str, Any] = {"variant": variant.name, "bits": f"W{variant.bits}A8", "method": variant.method}
    row |= {"options": variant.options, "commit": commit(), "samples": arguments.samples, "seconds": seconds}
    if variant.method == "dilatequant":
        row |= {"iterations": arguments.iterations, "batch": arguments.batch, "second_order_start": variant.start}
    if variant.attention is not None:
        row["attention"] = variant.attention
    row |= {"files": contents(files), "environment": describe_environment(threads=arguments.threads)}
    if not arguments.quality_only:
        row["proofs"] = said = proofs(files, variant.attention)
        print(f"{variant.name}: " + "; ".join(f"{engine} {word}" for engine, word in said.items()), flush=True)
        if any(word != "exact" for word in said.values()):
            write_row(row, arguments)
            return RED
        series, row["others_busy"] = times(files, arguments, variant.attention)
        row |= {"rounds": arguments.rounds, "native_is": ratios(series)}
        row["engines"] = {name: own.to_json() for name, own in series.items()}
    kept = arguments.work / f"maps-{variant.name}.npy"
    if not kept.is_file():
        np.save(kept, draw(files, arguments.maps, integer=True, attention=variant.attention))
    row["quality"] = quality(float_maps, np.load(kept))
    row["claims"] = claims(variant, row)
    print("\n".join(row["claims"]), flush=True)
    write_row(row, arguments)
    return 0


def write_row(row: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """Append a row to the results."""
    with arguments.results.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, sort_keys=True) + "\n")


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pipeline", type=Path, help="folder that examples/terrain.py writes")
    parser.add_argument("--work", type=Path, required=True, help="folder of records, graphs and maps")
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--variant", action="append", choices=names, help="repeatable; all by default")
    parser.add_argument("--maps", type=int, default=64)
    parser.add_argument("--samples", type=int, default=64, help="maps to calibrate with")
    parser.add_argument("--iterations", type=int, default=200, help="of training, a block")
    parser.add_argument("--batch", type=int, default=32, help="inputs an iteration")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn")
    parser.add_argument("--quality-only", action="store_true", help="no export, no proofs and no times")
    parser.add_argument("--picture", type=Path, help="PNG to draw: float maps, and each variant's below")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "terrain.jsonl")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Measure what the options ask for; 3 where a proof fails."""
    arguments = parsed(words)
    arguments.work.mkdir(parents=True, exist_ok=True)
    code = 0
    try:
        nothing = Files(pipeline=arguments.pipeline, record=Path(), graph=Path())
        float_file = arguments.work / "maps-float.npy"
        if not float_file.is_file():
            np.save(float_file, draw(nothing, arguments.maps, integer=False))
        float_maps = np.load(float_file)
        for variant in VARIANTS:
            if arguments.variant is None or variant.name in arguments.variant:
                code = max(code, measure(variant, float_maps, arguments))
        if arguments.picture is not None:
            kept = {v.name: arguments.work / f"maps-{v.name}.npy" for v in VARIANTS}
            rows = {name: np.load(path) for name, path in kept.items() if path.is_file()}
            draw_picture({"float": float_maps, **rows}, arguments.picture)
    except DqError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return code


if __name__ == "__main__":
    sys.exit(main())
