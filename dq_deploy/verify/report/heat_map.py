"""What quantization costs as a picture: layers down, steps across, beside what the engine adds to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dq_deploy.numerics.arrays import F64
from dq_deploy.verify.report.drawing import Drawn, Key, Picture, Rect, Word

if TYPE_CHECKING:
    from dq_deploy.verify.cost.quantization_error import QuantizationError, WorstLayer
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


@dataclass(frozen=True, kw_only=True)
class ErrorMap:
    """The section on what quantization costs.

    Attributes:
        inputs: how many and which, in words.
        source: the float model.
        scale: the colours in decibels.
        maps: of all layers.
        worst: the layers it costs most, each with the codes and accumulators of the engine that differ; None where
            none were compared.
    """

    inputs: str
    source: str
    scale: Picture
    maps: Picture
    worst: tuple[tuple[WorstLayer, int | None], ...]


def error_map(report: Report) -> ErrorMap | None:
    """Maps of the quantization error, the engine's error and the chosen bits; None where it was not measured."""
    found = report.quantization
    if found is None:
        return None
    low, high = scale_ends(np.concatenate([found.sqnr_db.ravel(), found.local_sqnr_db.ravel(), found.output_sqnr_db]))
    differences = _engine_differences(report)
    return ErrorMap(
        inputs=f"{int(found.samples.max(initial=0))} inputs a step: {found.inputs}",
        source=found.source,
        scale=_colour_bar(low, high),
        maps=_Maps(report, found, low, high).picture(),
        worst=tuple((layer, differences.get(layer.layer)) for layer in found.worst()),
    )


def scale_ends(values: F64) -> tuple[float, float]:
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
    """A CSS colour on the scale; the page's grey where nothing is known."""
    if not np.isfinite(value):
        return "none"
    at = float(np.clip((value - low) / (high - low), 0, 1)) * (len(RAMP) - 1)
    i = min(int(at), len(RAMP) - 2)
    mixed = (round(a + (b - a) * (at - i)) for a, b in zip(RAMP[i], RAMP[i + 1], strict=True))
    return "#" + "".join(f"{c:02x}" for c in mixed)


def _colour_bar(low: float, high: float) -> Picture:
    width, cells = 300, 60
    rects = [
        Rect(x=20 + i * width / cells, y=4, width=width / cells + 0.5, height=12,
             fill=colour_of(low + (high - low) * (i + 0.5) / cells, low, high))
        for i in range(cells)
    ]  # fmt: skip
    between = 5 if high - low <= 30 else 10
    words = []
    for level in np.arange(between * np.ceil(low / between), high + 1, between).tolist():
        last = level + between > high
        x = 20 + (level - low) / (high - low) * width
        # the last begins at its number, so that its words do not run into the number before
        words.append(
            Word(
                x=x - 7 if last else x,
                y=32,
                text=f"{level:g} dB and more" if last else f"{level:g}",
                anchor="start" if last else "middle",
                colour="soft",
                small=True,
            )
        )
    return Picture(
        width=width + 110, height=42, label="colour scale in decibels", rects=tuple(rects), words=tuple(words)
    )


class _Maps:
    """Both maps side by side: accumulated, each layer alone; then the engine's differences."""

    def __init__(self, report: Report, found: QuantizationError, low: float, high: float) -> None:
        self.report, self.found, self.low, self.high = report, found, low, high
        steps = len(found.timesteps)
        self.pitch = max(LEAST, min(MOST, MAPS // 2 // steps))
        self.bits = 8 * BIT_WIDTH + SPACE if report.mixed_bits else 0
        self.first = NAME + BITS + self.bits
        self.second = self.first + steps * self.pitch + SPACE
        self.engine = self.second + steps * self.pitch + 14
        self.rects: list[Rect] = []
        self.words: list[Word] = []

    def picture(self) -> Picture:
        found = self.found
        self._head()
        differences = _engine_differences(self.report)
        for i, name in enumerate(found.layers):
            y = TOP + i * ROW
            self._word(NAME - 10, y + 12, short_name(name), anchor="end")
            self._word(NAME, y + 12, found.bits[i], colour="soft", small=True)
            if self.report.mixed_bits is not None:
                self.rects += bit_bars(self.report.mixed_bits.layers.get(name), NAME + BITS, y)
            self._row(name, found.sqnr_db[i], self.first, y)
            self._row(f"{name} alone", found.local_sqnr_db[i], self.second, y)
            count = differences.get(name)
            text = "not compared" if count is None else f"{count:,}"
            colour = "soft" if count is None else "bad" if count else "ok"
            self._word(self.engine, y + 12, text, colour=colour)
        y = TOP + len(found.layers) * ROW + 6
        self._word(NAME - 10, y + 12, "output of the denoiser", anchor="end", bold=True)
        self._row("output", found.output_sqnr_db, self.first, y)
        return Picture(
            width=self.engine + ENGINE,
            height=TOP + (len(found.layers) + 1) * ROW + 12,
            label="quantization error, layers by steps",
            rects=tuple(self.rects),
            words=tuple(self.words),
        )

    def _word(self, x: float, y: float, text: str, **how: Any) -> None:
        self.words.append(Word(x=x, y=y, text=text, **how))

    def _head(self) -> None:
        """What each column is."""
        left = self.first - self.bits - 10
        self._word(self.first, 14, "accumulated")
        self._word(self.second, 14, "layer alone")
        self._word(self.engine, 14, "engine")
        self._word(self.engine, 50, "differences", colour="soft", small=True)
        self._word(left, 32, "step bucket", anchor="end", colour="soft", small=True)
        self._word(left, 50, "timestep", anchor="end", colour="soft", small=True)
        if self.bits:
            self._word(NAME + BITS, 14, "bits")
        for start in (self.first, self.second):
            for b in range(0, len(self.found.timesteps), max(1, -(-34 // self.pitch))):
                x = start + (b + 0.5) * self.pitch
                self._word(x, 32, str(b), anchor="middle", colour="soft", small=True)
                self._word(x, 50, f"{self.found.timesteps[b]:.0f}", anchor="middle", colour="soft", small=True)

    def _row(self, what: str, values: F64, x: float, y: float) -> None:
        """One row; the value at each cell."""
        size = self.pitch - (1 if self.pitch > 5 else 0)
        for b, value in enumerate(values.tolist()):
            words = f"{value:.1f} dB" if np.isfinite(value) else "not measured"
            self.rects.append(
                Rect(x=x + b * self.pitch, y=y, width=size, height=ROW - 2, fill=colour_of(value, self.low, self.high),
                     title=f"{what}, step {b}: {words}")
            )  # fmt: skip


def _engine_differences(report: Report) -> dict[str, int | None]:
    """Codes and accumulators that differ in the engine, by layer; None where nothing was compared."""
    return {
        layer.name: sum(cell.code_differences + cell.accumulator_differences for cell in layer.steps)
        if layer.codes_compared
        else None
        for layer in report.layers
    }


def bit_bars(bits: Sequence[int | None] | None, x: float, y: float) -> list[Rect]:
    """Two bars, one above the other: weight bits and activation bits; float activations have none."""
    if bits is None:
        return []
    half = (ROW - 4) / 2
    rects = [Rect(x=x, y=y, width=8 * BIT_WIDTH, height=ROW - 3, fill="line")]
    for i, (count, colour) in enumerate(zip(bits, ("ok", "sim"), strict=True)):
        if count is not None:
            rects.append(Rect(x=x, y=y + i * (half + 1), width=count * BIT_WIDTH, height=half, fill=colour))
    return rects


def bits_picture(report: Report) -> Drawn | None:
    """The bits of each layer alone; None where nobody chose any by layer."""
    if report.mixed_bits is None:
        return None
    rects: list[Rect] = []
    words = []
    for i, (name, bits) in enumerate(report.mixed_bits.layers.items()):
        y = i * ROW
        short = f"W{bits[0]}A{16 if bits[1] is None else bits[1]}"
        words.append(Word(x=NAME - 10, y=y + 12, text=short_name(name), anchor="end"))
        words.append(Word(x=NAME, y=y + 12, text=short, colour="soft", small=True))
        rects += bit_bars(bits, NAME + BITS, y)
    picture = Picture(
        width=NAME + BITS + 8 * BIT_WIDTH,
        height=len(report.mixed_bits.layers) * ROW + 6,
        label="bits by layer",
        rects=tuple(rects),
        words=tuple(words),
    )
    return Drawn(picture=picture, keys=(Key(fill="ok", text="weights"), Key(fill="sim", text="activations")))


def bits_text(report: Report) -> str:
    """How the bits were chosen by layer, in words; empty where they were not."""
    mixed = report.mixed_bits
    if mixed is None:
        return ""
    text = "bits chosen by layer"
    if mixed.average_bits is not None:
        text += f": {mixed.average_bits:.2f} a weight on average"
    if mixed.budget is not None:
        text += f", within a budget of {mixed.budget:g}"
    if mixed.activation_budget is not None:
        text += f"; activations {mixed.average_activation_bits or 0:.2f} on average by multiply-accumulates, "
        text += f"within a budget of {mixed.activation_budget:g}"
    return text
