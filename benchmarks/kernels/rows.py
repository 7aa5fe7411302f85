"""What a row of the kernels' table holds and how it is printed, for the kernels of the CPU and of the GPU."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.kernels.shapes import PRODUCTS, Shape, all_shapes
from benchmarks.machine import quiet

RED = 3
"""Exit code where a kernel is wrong."""


def variants(arguments: argparse.Namespace) -> Iterator[Shape]:
    """The shapes that the options ask for, products with each width of weights."""
    for shape in all_shapes(tuple(arguments.model), tuple(arguments.op), quick=arguments.quick):
        if arguments.shape and not any(text in shape.name for text in arguments.shape):
            continue
        if shape.op in PRODUCTS:
            yield from (shape.with_bits(bits) for bits in arguments.weights)
        else:
            yield shape


def figures(shape: Shape, us: Mapping[str, float], peak: float | None) -> dict[str, Any]:
    """Rate of the best run in GOP/s (GB/s where no products are), and its share of the peak, a best of bursts too."""
    product = shape.op in PRODUCTS
    rate = (shape.operations if product else shape.nbytes) / us["min"] / 1e3
    return {
        "rate": rate,
        "unit": "GOP/s" if product else "GB/s",
        "peak": peak,
        "share": None if peak is None else rate / peak,
    }


def compared(us: Mapping[str, Mapping[str, float]], name: str, error: float | None) -> dict[str, Any]:
    """A baseline's numbers; the ratio is its median over the kernel's, above 1 where the kernel is faster."""
    ratios = {kind: us[name][kind] / us["kernel"][kind] for kind in ("median", "min")}
    values: dict[str, Any] = {"us": dict(us[name]), "ratio": ratios["median"], "ratio_of_min": ratios["min"]}
    return values if error is None else {**values, "max_error": error}


def key_of(shape: Shape, isa: str, threads: int) -> dict[str, Any]:
    """What tells a row apart from others of the same commit."""
    bits = f"W{shape.case.weight_bits}A8" if shape.op in PRODUCTS else "A8"
    return {"op": shape.op, "model": shape.model, "shape": shape.name, "bits": bits, "isa": isa, "threads": threads}


def line_of(key: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """A row of the table."""
    title = f"{key['op']} {key['model']} {key['shape']}"
    if "red" in row:
        return f"{title:58}{key['bits']:>5}  RED: {row['red']}"
    share = "" if row["share"] is None else f"{row['share']:.0%}"
    rate = f"{row['rate']:.0f} {row['unit']}"
    note = " (busy)" if row.get("others_busy", 0.0) > quiet.TOO_BUSY else ""
    text = f"{title:58}{key['bits']:>5}{row['us']['min']:11.1f}{row['us']['median']:11.1f}{rate:>14}{share:>9}{note}"
    return text + "".join(
        f"  {name}: missing" if "missing" in other else f"  {name}: x{other['ratio']:.2f}{_note(other)}"
        for name, other in row["baselines"].items()
    )


def _note(other: Mapping[str, Any]) -> str:
    """A baseline that computed something else says so."""
    return f" (WRONG by {other['max_error']:.0%})" if other.get("max_error", 0.0) > 0.01 else ""
