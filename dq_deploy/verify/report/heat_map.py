"""What quantization costs as a picture: layers down, steps across, beside what the engine adds to it."""

# ruff: noqa: E501 - markup reads better unbroken

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dq_deploy.verify.cost.quantization_error import QuantizationError
    from dq_deploy.verify.report.values import Report

ROW, NAME, BITS, ENGINE, SPACE, TOP = 17, 250, 52, 84, 26, 62
MAPS = 620
"""Width that both maps get together, unless there are so many steps that each would be under `LEAST` wide."""
LEAST, MOST = 3, 44

BIT_WIDTH = 5
"""Of the bar of bits, for each bit."""

RAMP = ((43, 12, 58), (126, 25, 90), (200, 58, 76), (240, 132, 80), (250, 205, 138), (255, 247, 224))
"""Colours from much noise to little: darker is worse, also without colour vision."""

LEAST_DB, MOST_DB = -10.0, 80.0
"""Ends of the scale at the widest."""


def short_name(name: str) -> str:
    """A module path with the usual words of a UNet shortened."""
    for long, brief in (("down_blocks.", "down."), ("up_blocks.", "up."), ("mid_block.", "mid."), ("resnets.", "res."),
                        ("attentions.", "attn."), ("downsamplers.", "downsample."), ("upsamplers.", "upsample."),
                        ("transformer_blocks.", "block.")):  # fmt: skip
        name = name.replace(long, brief)
    return name


def error_section(report: Report) -> str:
    """Maps of the quantization error, the engine's error and the chosen bits; an empty string where none is known."""
    found = report.quantization
    if found is None:
        return _bits_section(report)
    low, high = scale_ends(np.concatenate([found.sqnr_db.ravel(), found.local_sqnr_db.ravel(), found.output_sqnr_db]))
    samples = int(found.samples.max(initial=0))
    few = f"{samples} inputs a step: {found.inputs}. Float model: {found.source}."
    return (
        "<section><h2>Error of quantization, and error of the engine</h2><p>Signal to quantization noise of each layer's "
        "output against the float model's, by step; dark is noisy. Left: both models run from the same inputs, so a layer's "
        "noise holds what the layers before it caused. Right: each layer alone, fed the float model's input. Last: how many "
        "codes and accumulators of the engine differ from the numerics. Rows in order of execution; point at a cell for "
        f"its value. {escape(few)}</p>{_bits_words(report)}{_colour_bar(low, high)}{_maps(report, found, low, high)}"
        f"<h2 style='margin-top:22px'>Worst layers</h2>{_worst(report, found)}</section>"
    )


def scale_ends(values: NDArray[np.float64]) -> tuple[float, float]:
    """Ends of the colour scale in dB, multiples of 5: least and 80th percentile of what is known, at least 10 apart.

    A few layers of many bits would else take all the colours; beyond the upper end all look alike.
    """
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 40.0
    low = 5 * np.floor(np.clip(known.min(), LEAST_DB, MOST_DB) / 5)
    high = 5 * np.ceil(np.clip(np.percentile(known, 80), LEAST_DB, MOST_DB) / 5)
    return float(low), float(max(high, low + 10))


def colour_of(value: float, low: float, high: float) -> str:
    """A CSS colour on the scale; grey where nothing is known."""
    if not np.isfinite(value):
        return "var(--none)"
    at = float(np.clip((value - low) / (high - low), 0, 1)) * (len(RAMP) - 1)
    i = min(int(at), len(RAMP) - 2)
    mixed = (round(a + (b - a) * (at - i)) for a, b in zip(RAMP[i], RAMP[i + 1], strict=True))
    return "#" + "".join(f"{c:02x}" for c in mixed)


def _colour_bar(low: float, high: float) -> str:
    width, cells = 300, 60
    marks = [f'<svg width="{width + 90}" height="42" role="img" aria-label="colour scale in decibels">']
    for i in range(cells):
        value = low + (high - low) * (i + 0.5) / cells
        marks.append(
            f'<rect x="{20 + i * width / cells:g}" y="4" width="{width / cells + 0.5:g}" height="12" style="fill:{colour_of(value, low, high)}"/>'
        )
    every = 5 if high - low <= 30 else 10
    for level in np.arange(every * np.ceil(low / every), high + 1, every):
        x = 20 + (level - low) / (high - low) * width
        unit = " dB and more" if level + every > high else ""
        marks.append(f'<text class="soft" x="{x:g}" y="32" text-anchor="middle">{level:g}{unit}</text>')
    return "".join([*marks, "</svg>"])


def _maps(report: Report, found: QuantizationError, low: float, high: float) -> str:
    steps = len(found.timesteps)
    pitch = max(LEAST, min(MOST, MAPS // 2 // steps))
    bits = 8 * BIT_WIDTH + SPACE if report.mixed_bits else 0
    first = NAME + BITS + bits
    second = first + steps * pitch + SPACE
    engine = second + steps * pitch + 14
    height = TOP + (len(found.layers) + 1) * ROW + 12
    marks = [
        f'<svg width="{engine + ENGINE}" height="{height}" viewBox="0 0 {engine + ENGINE} {height}" role="img" aria-label="quantization error, layers by steps">',
        f'<text x="{first}" y="14">accumulated</text><text x="{second}" y="14">layer alone</text>',
        f'<text x="{engine}" y="14">engine</text><text class="soft" x="{engine}" y="50">differences</text>',
        f'<text class="soft" x="{first - bits - 10}" y="32" text-anchor="end">step bucket</text>'
        f'<text class="soft" x="{first - bits - 10}" y="50" text-anchor="end">timestep</text>',
        _step_axis(found, first, pitch) + _step_axis(found, second, pitch),
    ]
    if report.mixed_bits:
        marks.append(f'<text x="{NAME + BITS}" y="14">bits</text>')
    differences = _engine_differences(report)
    accumulated, alone = found.sqnr_db, found.local_sqnr_db
    for i, name in enumerate(found.layers):
        y = TOP + i * ROW
        marks.append(
            f'<text x="{NAME - 10}" y="{y + 12}" text-anchor="end">{escape(short_name(name))}</text>'
            f'<text class="soft" x="{NAME}" y="{y + 12}">{found.bits[i]}</text>'
        )
        if report.mixed_bits:
            marks.append(_bit_bars(report.mixed_bits["layers"].get(name), NAME + BITS, y))
        marks.append(_cells(name, accumulated[i], first, y, pitch, low, high))
        marks.append(_cells(f"{name} alone", alone[i], second, y, pitch, low, high))
        marks.append(_engine_text(differences.get(name), engine, y + 12))
    y = TOP + len(found.layers) * ROW + 6
    marks.append(
        f'<text x="{NAME - 10}" y="{y + 12}" text-anchor="end" font-weight="600">output of the denoiser</text>'
    )
    marks.append(_cells("output", found.output_sqnr_db, first, y, pitch, low, high))
    return "".join([*marks, "</svg>"])


def _step_axis(found: QuantizationError, x: int, pitch: int) -> str:
    every = max(1, -(-34 // pitch))
    return "".join(
        f'<text class="soft" x="{x + (b + 0.5) * pitch:g}" y="32" text-anchor="middle">{b}</text>'
        f'<text class="soft" x="{x + (b + 0.5) * pitch:g}" y="50" text-anchor="middle">{found.timesteps[b]:.0f}</text>'
        for b in range(0, len(found.timesteps), every)
    )


def _cells(what: str, values: NDArray[np.float64], x: int, y: int, pitch: int, low: float, high: float) -> str:
    """One row; its title once, the value at each cell."""
    size = pitch - (1 if pitch > 5 else 0)
    cells = "".join(
        f'<rect x="{b * pitch}" width="{size}" height="{ROW - 2}" style="fill:{colour_of(value, low, high)}"><title>'
        f"{escape(what)}, step {b}: {'not measured' if not np.isfinite(value) else f'{value:.1f} dB'}</title></rect>"
        for b, value in enumerate(values.tolist())
    )
    return f'<g transform="translate({x},{y})">{cells}</g>'


def _engine_differences(report: Report) -> dict[str, int | None]:
    """Codes and accumulators that differ in the engine, by layer; None where nothing was compared."""
    return {
        layer.name: sum(cell.code_differences + cell.accumulator_differences for cell in layer.steps)
        if layer.codes_compared
        else None
        for layer in report.layers
    }


def _engine_text(count: int | None, x: int, y: int) -> str:
    colour = "var(--soft)" if count is None else "var(--bad)" if count else "var(--ok)"
    words = "not compared" if count is None else f"{count:,}"
    return f'<text x="{x}" y="{y}" style="fill:{colour}">{words}</text>'


def _bit_bars(bits: Sequence[int | None] | None, x: int, y: int) -> str:
    """Two bars, one above the other: weight bits and activation bits; float activations have none."""
    if bits is None:
        return ""
    half = (ROW - 4) / 2
    pieces = [f'<rect x="{x}" y="{y}" width="{8 * BIT_WIDTH}" height="{ROW - 3}" style="fill:var(--line)"/>']
    for i, (count, colour) in enumerate(zip(bits, ("ok", "sim"), strict=True)):
        if count is not None:
            pieces.append(
                f'<rect x="{x}" y="{y + i * (half + 1):g}" width="{count * BIT_WIDTH}" height="{half:g}" style="fill:var(--{colour})"/>'
            )
    return "".join(pieces)


def _bits_words(report: Report) -> str:
    mixed = report.mixed_bits
    if not mixed:
        return ""
    text = "bits chosen by layer"
    if mixed["average_bits"] is not None:
        text += f": {mixed['average_bits']:.2f} a weight on average"
    if mixed["budget"] is not None:
        text += f", within a budget of {mixed['budget']:g}"
    return (
        f'<div class="key"><span>{text}</span><span><i class="dot" style="background:var(--ok)"></i>weights</span>'
        '<span><i class="dot" style="background:var(--sim)"></i>activations</span></div>'
    )


def _bits_section(report: Report) -> str:
    """The bits alone, where the error was not measured."""
    if not report.mixed_bits:
        return ""
    layers = report.mixed_bits["layers"]
    height = len(layers) * ROW + 6
    marks = [f'<svg width="{NAME + BITS + 8 * BIT_WIDTH}" height="{height}" role="img" aria-label="bits by layer">']
    for i, (name, bits) in enumerate(layers.items()):
        y = i * ROW
        marks.append(
            f'<text x="{NAME - 10}" y="{y + 12}" text-anchor="end">{escape(short_name(name))}</text>'
            f'<text class="soft" x="{NAME}" y="{y + 12}">W{bits[0]}A{16 if bits[1] is None else bits[1]}</text>'
            f"{_bit_bars(bits, NAME + BITS, y)}"
        )
    return f"<section><h2>Bits by layer</h2>{_bits_words(report)}{''.join(marks)}</svg></section>"


def _worst(report: Report, found: QuantizationError) -> str:
    differences = _engine_differences(report)
    rows = []
    for row in found.worst():
        engine = differences.get(row["layer"])
        rows.append(
            f"<tr><td><code>{escape(row['layer'])}</code></td><td>{row['bits']}</td>"
            f"<td class=n>{row['step']}</td><td class=n>{row['timestep']:g}</td><td class=n>{row['sqnr_db']:.1f} dB</td>"
            f"<td class=n>{row['local_sqnr_db']:.1f} dB</td><td class=n>{'not compared' if engine is None else f'{engine:,}'}</td></tr>"
        )
    head = (
        "<tr><th>layer</th><th>bits</th><th class=n>worst step</th><th class=n>timestep</th><th class=n>accumulated SQNR</th>"
        "<th class=n>layer alone, there</th><th class=n>engine: differing codes and accumulators</th></tr>"
    )
    return f"<table>{head}{''.join(rows)}</table>"
