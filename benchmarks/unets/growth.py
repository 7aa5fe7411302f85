"""How time and memory grow with batch, height, text, channels and threads, beside what the machine allows.

    python -m benchmarks.unets.growth                                    # measures all points, some minutes
    python -m benchmarks.unets.growth --page docs/growth.md --measure 0  # the page and its pictures from the rows

A UNet of diffusers with text and random weights, W8A8: two levels with attention, one block each. One size varies at a
time, the others are those of `BASE`; the width stays 32. The native engine, OpenVINO as it comes and ONNX Runtime in
float32 take turns, each in a fresh process a point, so that its peak memory is that point's. The machine's limit is
that of `benchmarks.unets.roofline`: for each operation of the native engine the longer of its work at the rate of the
instruction and its bytes at the rate of a copy, both measured in the same run. The exponent of a line is the slope of a
straight line through its points when both axes are logarithmic: 1 is in proportion, 2 with the square. Rows
in benchmarks/results/growth.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import quiet
from benchmarks.machine.commit import commit
from benchmarks.peers.float_files import write_float_graph
from benchmarks.unets.denoisers import SD15, SD15_SCHEDULER
from benchmarks.unets.engines import NATIVE, Cpu, NotRunError, start_native, start_peer
from benchmarks.unets.float_model import write_openvino
from benchmarks.unets.peer_process import PeerSettings
from benchmarks.unets.run import Options, take_turns
from dq_deploy.errors import DqError

ROOT = Path(__file__).resolve().parents[1]
PICTURES = Path(__file__).resolve().parents[2] / "docs" / "pictures"
PEERS = ("openvino", "onnxruntime float32")
WORDS = {NATIVE: "native W8A8", "openvino": "OpenVINO as it comes", "onnxruntime float32": "ONNX Runtime float32"}
COLOURS = {NATIVE: "#1f6f8b", "openvino": "#d1772a", "onnxruntime float32": "#7a7a7a"}
LIMIT, LIMIT_COLOUR = "limit", "#b03a48"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One size of everything.

    Attributes:
        batch: samples.
        height: of the latents; the width is 32.
        tokens: of the text.
        channels: of the first level; the second has twice as many.
        threads: of a call.
    """

    batch: int = 1
    height: int = 32
    tokens: int = 64
    channels: int = 128
    threads: int = 2


BASE = Point()
AXES = {
    "batch": (1, 2, 4, 8, 16),
    "height": (16, 32, 64, 128),
    "tokens": (16, 64, 256, 1024),
    "channels": (32, 64, 128, 256),
    "threads": (1, 2),
}
TITLES = {
    "batch": "batch",
    "height": "height of the latents",
    "tokens": "tokens of the text",
    "channels": "channels of the first level",
    "threads": "threads",
}


def points() -> list[Point]:
    """Every point once."""
    found = [replace(BASE, **{axis: value}) for axis, values in AXES.items() for value in values]
    return list(dict.fromkeys(found))


def config_of(channels: int) -> dict[str, Any]:
    """The UNet's configuration."""
    own = {"block_out_channels": [channels, 2 * channels], "layers_per_block": 1, "sample_size": BASE.height}
    own |= {"down_block_types": ["CrossAttnDownBlock2D"] * 2, "up_block_types": ["CrossAttnUpBlock2D"] * 2}
    return {**SD15, **own, "cross_attention_dim": 64, "attention_head_dim": 4}


def files_of(channels: int, work: Path) -> Path:
    """A folder with `record.pt`, `float.onnx` and `float.xml` of the UNet; made where it is not complete."""
    folder = work / f"growth-{channels}"
    if (folder / "record.pt").is_file():
        return folder
    import torch

    import dq_deploy
    from dq_deploy.calibration import CalibrationSource
    from dq_deploy.models import Denoiser, build_denoiser, default_call

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = config_of(channels)
    denoiser = Denoiser(
        family="unet2d_condition",
        module=build_denoiser("unet2d_condition", config),
        config=config,
        call=default_call(config),
        scheduler_config=dict(SD15_SCHEDULER),
        source="a small UNet, random weights, seed 0",
        source_sha256="0" * 64,
    )
    write_float_graph(denoiser, folder / "float.onnx", vary=True)
    write_openvino(denoiser, folder / "float.xml")
    random = CalibrationSource(kind="random")
    options = {"method": "minmax", "weight_bits": 8, "activation_bits": 8, "steps": 4, "samples": 1}
    record = dq_deploy.quantize(denoiser, calibration=random, **options)
    dq_deploy.save_record(record, folder / "record.pt")
    return folder


def sizes_of(point: Point) -> dict[str, int]:
    """The axes that vary besides the batch."""
    return {"height": point.height, "width": BASE.height, "tokens": point.tokens}


def inputs_of(point: Point) -> dict[str, Any]:
    """Random inputs of the float model."""
    draw = np.random.default_rng(0)
    return {
        "sample": draw.standard_normal((point.batch, 4, point.height, BASE.height), dtype=np.float32),
        "timestep": np.full(point.batch, 500, np.float32),
        "encoder_hidden_states": draw.standard_normal((point.batch, point.tokens, 64), dtype=np.float32),
    }


def limits(record: Path, point: Point, isa: str) -> dict[str, float]:
    """What the native engine has to take at least: `ms` of a step, and `mib` of weights and values."""
    from benchmarks.unets.roofline import costs
    from dq_deploy.native.runner import NativeRunner

    with NativeRunner(record, isa=isa, threads=point.threads) as runner:
        executor = runner.executor
        sizes = executor.programs.sizes_of(inputs_of(point))
        each = costs(executor, point.batch, isa, point.threads, sizes)
        weights = sum(own.packed.nbytes for own in executor.constants.values() if own.packed is not None)
        values = executor.plan(point.batch, sizes).memory.arena.nbytes
    return {"ms": sum(cost.limit_us for cost in each) / 1e3, "mib": (weights + values) / 2**20}


def measure(point: Point, given: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    from dq_deploy.bench.environment import describe_environment

    files = files_of(point.channels, given.work)
    cpu = Cpu(isa=given.isa, hide_bf16=False, folder=given.work / "machine")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=given.work)))
        for name in ("float.onnx", "float.xml", "float.bin"):
            if (files / name).is_file():
                (folder / name).symlink_to((files / name).resolve())
        np.savez(folder / f"inputs-{point.batch}.npz", **inputs_of(point))
        running: dict[str, Any] = {}
        running[NATIVE] = stack.enter_context(start_native(files / "record.pt", cpu, point.threads))
        not_run = {}
        for name in PEERS:
            settings = PeerSettings(engine=name, folder=str(folder), batch=point.batch, threads=point.threads)
            try:
                running[name] = stack.enter_context(start_peer(name, folder, cpu, settings, given.environments))
            except NotRunError as error:
                not_run[name] = str(error)
        series, busy = take_turns(running, point.batch, given.rounds, given.seconds, sizes_of(point))
    return {
        "point": asdict(point),
        "isa": given.isa,
        "engines": {name: own.to_json() for name, own in series.items()},
        "not_run": not_run,
        "limit": limits(files / "record.pt", point, given.isa),
        "commit": commit(),
        "environment": describe_environment(threads=point.threads),
        "others_busy": float(np.mean(busy)),
        "goes_first": quiet.goes_first(),
    }


def words_of(row: Mapping[str, Any]) -> str:
    """A row in a line."""
    own = ", ".join(f"{size} {row['point'][size]}" for size in AXES)
    times = "; ".join(
        f"{name} {value['ms']['p50']:.1f} ms, {value['peak_mib']:.0f} MiB" for name, value in row["engines"].items()
    )
    refused = "".join(f"; {name}: not run: {why}" for name, why in row["not_run"].items())
    return f"{own}: {times}{refused}; limit {row['limit']['ms']:.1f} ms"


def along(rows: Sequence[Mapping[str, Any]], axis: str) -> list[Mapping[str, Any]]:
    """The rows of one axis, in its order; the last of each point counts.

    Raises:
        DqError: a point has no row.
    """
    by_point = {json.dumps(row["point"], sort_keys=True): row for row in rows}
    found = []
    for value in AXES[axis]:
        key = json.dumps(asdict(replace(BASE, **{axis: value})), sort_keys=True)
        if key not in by_point:
            raise DqError(f"no row has {axis} {value}, expected one; measure it: python -m benchmarks.unets.growth")
        found.append(by_point[key])
    return found


def lines_of(rows: Sequence[Mapping[str, Any]], kind: str) -> Iterator[tuple[str, list[float]]]:
    """The values of each engine along rows, and of the limit; `kind` is ms or mib."""
    for name in (NATIVE, *PEERS):
        if all(name in row["engines"] for row in rows):
            own = [row["engines"][name] for row in rows]
            yield name, [value["ms"]["p50"] if kind == "ms" else value["peak_mib"] for value in own]
    yield LIMIT, [row["limit"][kind] for row in rows]


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of a straight line through the logarithms."""
    return round(float(np.polyfit(np.log(sizes), np.log(values), 1)[0]), 2) + 0.0  # no -0.00


def draw(rows: Sequence[Mapping[str, Any]], kind: str, path: Path) -> None:
    """A panel for each axis, both of its scales logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator, StrMethodFormatter

    unit = {"ms": "milliseconds of a step", "mib": "peak memory, MiB"}[kind]
    limit = {"ms": "machine's limit", "mib": "weights and values"}[kind]
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    panels = figure.subplots(2, 3).ravel()
    for panel, (axis, sizes) in zip(panels, AXES.items(), strict=False):
        for name, values in lines_of(along(rows, axis), kind):
            style = {"linestyle": "--"} if name == LIMIT else {"marker": "o", "markersize": 4}
            colour = LIMIT_COLOUR if name == LIMIT else COLOURS[name]
            label = f"{exponent(sizes, values):.2f}"
            panel.plot(sizes, values, color=colour, label=label, **style)
        panel.set(xscale="log", yscale="log", xlabel=TITLES[axis], ylabel=unit)
        panel.xaxis.set_major_locator(FixedLocator(sizes))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_minor_formatter(NullFormatter())
        for one in (panel.xaxis, panel.yaxis):
            one.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.grid(color="#e4e4e4", linewidth=0.6)
        tight = {"ncols": 4, "frameon": False, "fontsize": 8, "columnspacing": 0.9, "handlelength": 1.6}
        panel.legend(loc="lower left", bbox_to_anchor=(-0.04, 1), **tight)
    names = [limit if name == LIMIT else WORDS[name] for name, _ in lines_of(along(rows, "batch"), kind)]
    panels[-1].axis("off")
    panels[-1].legend(panels[0].get_lines(), names, loc="center", frameon=False, title="exponents above the panels")
    figure.savefig(path, format="png", dpi=110)


HEAD = """# How cost grows

What a step of a denoiser costs when its sizes grow, for the native engine, for OpenVINO as it comes and for ONNX
Runtime in float32. `python -m benchmarks.unets.growth` measures it, `--page docs/growth.md` writes this page; rows in
`benchmarks/results/growth.jsonl`.

The model is a small UNet of diffusers with text and random weights, in W8A8: two levels with attention, one block each.
One size varies at a time. The others are batch 1, latents of 32 x 32, 64 tokens, 128 channels in the first level, 2
threads. The engines take turns, each in a fresh process for every point.

**Exponent**: the slope of a straight line through all points of a line when both axes are logarithmic. 1 means that the
cost grows in proportion, 2 with the square, 0 not at all. Between small sizes it is lower, because part of the cost
does not grow.
"""
TIME = """## Time

**The machine's limit** is a count for the native engine's operations: for each the longer of its work at the rate of
the instruction and its bytes at the rate of a copy, both measured in the same run, as in [How far from the
limit](roofline.md). A library that computes in bfloat16 or float32 has another, higher limit.

![Time of a step against each size](pictures/growth-time.png)
"""
MEMORY = """## Memory

Highest resident size of the whole process, with Python and the engine's library. The dashed line is what the native
engine needs for packed weights and values between operations, without anything else.

![Peak memory against each size](pictures/growth-memory.png)
"""


def table(rows: Sequence[Mapping[str, Any]], kind: str) -> list[str]:
    """A Markdown table: the exponent of each line, then its first and last value."""
    names = [name for name, _ in lines_of(along(rows, "batch"), kind)]
    words = {**WORDS, LIMIT: {"ms": "machine's limit", "mib": "weights and values"}[kind]}
    lines = ["| size | from, to | " + " | ".join(words[name] for name in names) + " |"]
    lines.append("|---|---|" + "---:|" * len(names))
    for axis, sizes in AXES.items():
        cells = []
        for _, values in lines_of(along(rows, axis), kind):
            digits = 1 if kind == "ms" else 0
            ends = f"{values[0]:.{digits}f} to {values[-1]:.{digits}f}"
            cells.append(f"**{exponent(sizes, values):.2f}** ({ends})")
        lines.append(f"| {TITLES[axis]} | {sizes[0]}, {sizes[-1]} | " + " | ".join(cells) + " |")
    return lines


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The page of the last row of each point."""
    counted = [row for axis in AXES for row in along(rows, axis)]
    machine = ", ".join(sorted({f"{row['environment']['cpu']}, {row['environment']['date'][:10]}" for row in counted}))
    commits, isas = (", ".join(sorted({row[name] for row in counted})) for name in ("commit", "isa"))
    machine += f", commit {commits}, native kernels {isas}."
    if all(row["goes_first"] for row in counted):
        machine += "\nOther work on the machine had to wait (`chrt -f 1`)."
    time = [
        TIME,
        "Exponent of each line, and in brackets its first and last value in ms.",
        "\n".join(table(rows, "ms")),
    ]
    memory = [MEMORY, "The same in MiB.", "\n".join(table(rows, "mib"))]
    return "\n\n".join(part.strip() for part in (HEAD, machine, *time, *memory)) + "\n"


def main(words: Sequence[str] | None = None) -> int:
    """Measure what is asked for, and write the page."""
    from dq_kernels.cpu.library import known_isas

    temporary = Path(tempfile.gettempdir()) / "dq-unets"
    parser = Options(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--measure", type=int, default=len(points()), help="so many points, from the first; 0 is none")
    parser.add_argument("--first", type=int, default=0, help="the point to begin with, to measure in pieces")
    parser.add_argument("--isa", choices=known_isas()[1:], default=known_isas()[-1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a turn")
    parser.add_argument("--work", type=Path, default=temporary, help="folder of records and graphs")
    parser.add_argument("--environments", type=Path, help="folder of the peers' environments; below --work by default")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "growth.jsonl")
    parser.add_argument("--page", type=Path, help="the page to write, with its pictures in docs/pictures")
    given = parser.parse_args(words)
    given.work.mkdir(parents=True, exist_ok=True)
    given.environments = given.environments or given.work / "environments"
    try:
        for point in points()[given.first : given.first + given.measure]:
            row = measure(point, given)
            print(words_of(row), flush=True)
            with given.results.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row, sort_keys=True) + "\n")
        if given.page is not None:
            rows = [json.loads(line) for line in given.results.read_text(encoding="utf-8").splitlines()]
            for kind, name in (("ms", "growth-time.png"), ("mib", "growth-memory.png")):
                draw(rows, kind, PICTURES / name)
            given.page.write_text(page(rows), encoding="utf-8")
    except (DqError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
