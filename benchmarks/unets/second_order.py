"""Method gptq at the size of Stable Diffusion 1.5, from a few layers of a UNet with random weights.

    python -m benchmarks.unets.second_order                    # about five minutes of one core, CPU seconds
    python -m benchmarks.unets.second_order --columns 2880,5760 --prompts 8 --steps 20

Neither time nor memory depends on the weights' values. What is timed: a forward pass, the search of weight scales, and
for one layer of each width (columns of its weight) the sums over rows and the rounding. The hours of the whole follow
from these rates and every layer's size; peak memory is read behind the widest layer that was measured, and the formula
of docs/methods.md gives that of every other. A line of JSON is printed at the end.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.machine.commit import commit
from benchmarks.unets.denoisers import sd15_denoiser
from dq_deploy.methods.options import options_for
from dq_deploy.methods.prepare.assembly import build_layer
from dq_deploy.methods.prepare.preparation import PreparedLayer, prepare
from dq_deploy.methods.ranges.scales import quantized_weight
from dq_deploy.methods.second_order.rounding import SecondOrder, rounded_layer
from dq_deploy.methods.second_order.statistics import LayerStatistics, columns_of, rows_of_input, statistics_bytes
from dq_deploy.models import Denoiser, call_denoiser, example_inputs, macs_of
from dq_deploy.processes import own_peak_mib

GIB = 1 << 30


def forward_seconds(denoiser: Denoiser) -> float:
    """Of one input, the second pass."""
    inputs = {name: torch.from_numpy(value) for name, value in example_inputs(denoiser.call, 1, 0).items()}
    with torch.inference_mode():
        call_denoiser(denoiser.module, inputs, denoiser.call.constants)
        start = time.process_time()
        call_denoiser(denoiser.module, inputs, denoiser.call.constants)
    return time.process_time() - start


def measured_layer(layer: PreparedLayer, rows: int) -> dict[str, float]:
    """Seconds of a layer's scale search, of its sums over so many rows, and of its rounding."""
    start = time.process_time()
    weights = [quantized_weight(layer.weight, layer.weight_bits, asymmetric=False)]
    table = (np.full(1, 0.02, np.float32), np.zeros(1, np.int32))
    first = build_layer(layer, tables=[table], weights=weights, bias=layer.bias, output=None, symmetric=False)
    search = time.process_time() - start
    seen = LayerStatistics(layer, share=1, seed=0, outputs=True)
    generator, columns, outs = torch.Generator().manual_seed(0), columns_of(layer), layer.site.out_channels
    sums = 0.0
    for at in range(0, rows, 1024):
        x = torch.randn((min(1024, rows - at), 1, columns), generator=generator)
        y = torch.randn((len(x), 1, outs), generator=generator)
        start = time.process_time()
        seen._waiting.append((x, y))
        seen.flush()
        sums += time.process_time() - start
    start = time.process_time()
    rounded_layer(layer, first, seen, SecondOrder())
    return {"search_s": search, "sums_s": sums, "rounding_s": time.process_time() - start}


def whole(layers: Sequence[PreparedLayer], rates: dict[str, float], inputs: int, forward_s: float) -> dict[str, float]:
    """Hours of each stage: three forward passes (sampling, ranges, rows), scale search, sums, rounding."""
    search = sums = rounding = 0.0
    for layer in layers:
        columns, outs = columns_of(layer), layer.site.out_channels
        rows = min(16 * columns, inputs * rows_of_input(layer.site))
        search += layer.weight.size * rates["search"]
        sums += rows * (columns**2 / 2 + columns * outs) * rates["sums"]
        rounding += (columns**3 / 6 + 4 * outs * columns**2) * rates["rounding"]
    passes = 3 * inputs * forward_s
    return {
        name: seconds / 3600
        for name, seconds in {"passes": passes, "search": search, "sums": sums, "rounding": rounding}.items()
    }


def most_beside_model(layers: Sequence[PreparedLayer]) -> int:
    """Most bytes at a time: the codes of layers up to one, in execution order, and what rounding that one takes."""
    codes, most = 0, 0
    for layer in layers:
        codes += layer.weight.size
        most = max(most, codes + statistics_bytes(layer))
    return most


def main() -> None:
    """Measure, extrapolate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", default="2880,5760,11520", help="widths of the layers that are measured")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=4096, help="that are summed a layer")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start_mib = own_peak_mib()
    denoiser = sd15_denoiser()
    options = options_for("gptq")
    prepared = prepare(denoiser, options)
    layers = list(prepared.layers.values())
    inputs = 2 * arguments.prompts * arguments.steps  # with guidance each step calls the denoiser with two rows
    forward_s = forward_seconds(denoiser)
    model_mib = own_peak_mib()
    found: list[dict[str, Any]] = []
    for columns in (int(text) for text in arguments.columns.split(",")):
        layer = max((one for one in layers if columns_of(one) == columns), key=lambda one: one.weight.size)
        line = measured_layer(layer, arguments.rows)
        predicted = model_mib + statistics_bytes(layer) / (1 << 20)
        found.append(
            {"layer": layer.site.name, "columns": columns, **line, "peak_mib": own_peak_mib(), "formula_mib": predicted}
        )
        print(found[-1], flush=True)
    rates = _rates(found, {one.site.name: one for one in layers}, arguments.rows)
    hours = whole(layers, rates, inputs, forward_s)
    widest = max(layers, key=statistics_bytes)
    result = {
        "commit": commit(),
        "inputs": inputs,
        "forward_s": forward_s,
        "gmacs_a_second": macs_of(denoiser.module, denoiser.call).of_all / forward_s / 1e9,
        "libraries_mib": start_mib,
        "model_mib": model_mib,
        "layers": found,
        "hours": hours,
        "hours_in_all": sum(hours.values()),
        "widest": {"layer": widest.site.name, "columns": columns_of(widest), "gib": statistics_bytes(widest) / GIB},
        "peak_gib_by_formula": model_mib / 1024 + most_beside_model(layers) / GIB,
    }
    print(json.dumps(result))


def _rates(found: list[dict[str, Any]], layers: dict[str, PreparedLayer], rows: int) -> dict[str, float]:
    """Seconds a weight searched, a product summed and a product of the rounding: of all that was measured together."""
    weights = sums = rounding = 0.0
    for line in found:
        layer, columns = layers[line["layer"]], line["columns"]
        outs = layer.site.out_channels
        weights += layer.weight.size
        sums += rows * (columns**2 / 2 + columns * outs)
        rounding += columns**3 / 6 + 4 * outs * columns**2
    return {
        "search": sum(line["search_s"] for line in found) / weights,
        "sums": sum(line["sums_s"] for line in found) / sums,
        "rounding": sum(line["rounding_s"] for line in found) / rounding,
    }


if __name__ == "__main__":
    main()
