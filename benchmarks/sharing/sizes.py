"""Hours, memory and bytes on the wire of quantizing published models by many processes, by formula.

    python -m benchmarks.sharing.sizes

What a model's layers are follows from its configuration, without weights. Rates are measured elsewhere and stand in
`Rates`; the formulas are those of docs/scale-out.md, which this prints the tables for.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.unets.denoisers import SD15, SDXL
from dq_deploy.models import Denoiser, blocks_of, describe_model, quantizable_layers

FLUX: dict[str, Any] = {"_class_name": "FluxTransformer2DModel", "guidance_embeds": True}
MODELS = {
    "Stable Diffusion 1.5, 512 x 512": (SD15, {}, 2),
    "SDXL, 1024 x 1024": (SDXL, {}, 2),
    "FLUX.1-dev, 1024 x 1024": (FLUX, {"image": 4096, "text": 512}, 1),
}
"""Configuration, sizes of its inputs, inputs a picture and step (two with guidance)."""

PICTURES, STEPS, ITERATIONS, BATCH = 64, 20, 200, 32
ROWS_A_COLUMN = 16
PASSES_GPTQ, PASSES_TRAINED, FORTH_AND_BACK = 4, 5, 3


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Of one process.

    Attributes:
        pass_macs: multiply-accumulates a second of a float pass.
        sums: a second, of statistics.
        rounding: a second, of rounding (a third of K^3, and n K^2, a layer).
        wire: bytes a second.
    """

    pass_macs: float
    sums: float
    rounding: float
    wire: float


# a thread: docs/measured.md, "At the size of Stable Diffusion 1.5"; 32 threads taken as 24 times one, 10 Gbit/s
THREAD_MACS, THREAD_SUMS, THREAD_ROUNDING = 50e9, 4096 * 11520**2 / 7.5, (11520**3 / 3 + 1280 * 11520**2) / 48.0
HOST = Rates(pass_macs=24 * THREAD_MACS, sums=24 * THREAD_SUMS, rounding=24 * THREAD_ROUNDING, wire=1.25e9)
# float32 without TF32, half of the 33.5 TMAC/s that NVIDIA states for an H100, and its links; nothing was run on one
GPU = Rates(pass_macs=16e12, sums=8e12, rounding=8e12, wire=200e9)


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model in numbers."""

    macs: float
    weights: float
    layers: int
    largest_block: float
    sums: float
    rounding: float
    square_bytes: float
    widest_bytes: float
    row_bytes: float


def described(config: dict[str, Any], sizes: dict[str, int]) -> Denoiser:
    """From its configuration alone."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return describe_model(folder, sizes=sizes)


def size_of(denoiser: Denoiser) -> Size:
    """What the formulas ask of a model."""
    from dq_deploy.models.sizes import sized

    sites = {site.name: site for site in quantizable_layers(denoiser.module, denoiser.call)}
    weights = {name: float(denoiser.module.get_submodule(name).weight.numel()) for name in sites}
    columns = {name: weights[name] / site.out_channels for name, site in sites.items()}
    square = {name: 8 * site.groups * columns[name] ** 2 for name, site in sites.items()}
    blocks = blocks_of(denoiser.module, denoiser.call)
    shapes = [sized(item.shape, 1, denoiser.call.sizes) for item in denoiser.call.inputs if "B" in item.shape]
    return Size(
        macs=float(sum(site.macs for site in sites.values())),
        weights=sum(weights.values()),
        layers=len(sites),
        largest_block=max(sum(weights[name] for name in block.layers if name in weights) for block in blocks),
        sums=sum(ROWS_A_COLUMN * k**3 for k in columns.values()),
        rounding=sum(columns[n] ** 3 / 3 + site.out_channels * columns[n] ** 2 for n, site in sites.items()),
        square_bytes=sum(square.values()),
        widest_bytes=max(s + 22 * weights[n] + 64 * min(weights[n], 1 << 22) for n, s in square.items()),
        row_bytes=float(sum(4 * int(np.prod(shape)) for shape in shapes)),
    )


def gptq(size: Size, inputs: int, rates: Rates, count: int) -> tuple[float, float]:
    """Hours, and bytes that a process sends."""
    busy = PASSES_GPTQ * inputs * size.macs / rates.pass_macs + size.sums / rates.sums + size.rounding / rates.rounding
    others = (count - 1) / count
    sent = 2 * inputs * size.row_bytes / count + (size.square_bytes + 2 * size.weights) * others
    return (busy / count + sent / rates.wire) / 3600, sent


def trained(size: Size, inputs: int, rates: Rates, count: int) -> tuple[float, float]:
    """Hours, and bytes that a process sends, of DilateQuant."""
    passes = PASSES_TRAINED * inputs + FORTH_AND_BACK * ITERATIONS * BATCH
    busy = passes * size.macs / rates.pass_macs + size.sums / rates.sums + size.rounding / rates.rounding
    others = (count - 1) / count
    _, before = gptq(size, inputs, rates, count)
    sent = before + ITERATIONS * 4 * size.weights * others * (8 / count + 1)
    return (busy / count + sent / rates.wire) / 3600, sent


def main() -> None:
    """Print the tables."""
    print("| model | layers | weights, 10^9 | GMAC a pass | an input | largest block, 10^6 | widest layer, GiB |")
    print("|---|---|---|---|---|---|---|")
    found = {}
    for name, (config, sizes, each) in MODELS.items():
        size = size_of(described(config, sizes))
        found[name] = size, PICTURES * STEPS * each
        print(
            f"| {name} | {size.layers} | {size.weights / 1e9:.2f} | {size.macs / 1e9:,.0f} | "
            f"{size.row_bytes / 2**20:.2f} MiB | {size.largest_block / 1e6:.0f} | {size.widest_bytes / 2**30:.1f} |"
        )
    print()
    print("| model | method | one host, h | 8 hosts, h | sent by each, GB | 8 GPUs, h | memory of a process, GiB |")
    print("|---|---|---|---|---|---|---|")
    for name, (size, inputs) in found.items():
        for method, cost in (("gptq", gptq), ("dilatequant", trained)):
            alone, many = cost(size, inputs, HOST, 1)[0], cost(size, inputs, HOST, 8)
            cards = cost(size, inputs, GPU, 8)[0]
            memory = 0.5 + 6 * size.weights / 2**30 + size.widest_bytes / 2**30
            if method == "dilatequant":
                memory += 32 * size.largest_block / 2**30
            hours = f"{alone:,.1f} | {many[0]:,.1f} | {many[1] / 1e9:,.0f} | {cards:,.2f}"
            print(f"| {name} | {method} | {hours} | {memory:.0f} |")


if __name__ == "__main__":
    main()
