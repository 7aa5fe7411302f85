"""Second-order statistics of one layer: sums over rows of what its integer product multiplies.

A row x is one output position's input, dequantized: the centred codes times the activation scale of their step, by
which `weight` (with every equivalent scale in it) is multiplied. Sums are float64 of float32 products, over rows in a
fixed order::

    H = sum x^T x      G = sum y^T x      y: the float layer's output at the same position, bias included

Where several processes have the rows, what is added is first rounded to a multiple of a unit so small that nothing is
lost, and so large that a float64 holds every sum of them exactly: then the order in which they are added is free. A
sum of R products is at most R times the largest factors, which are known: of x by its codes, of y by its range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from dq_deploy.errors import GuaranteeError
from dq_deploy.methods.prepare.preparation import PreparedLayer
from dq_deploy.methods.ranges.step_ranges import SEEDS_OF_A_SHARD
from dq_deploy.models import LayerSite
from dq_deploy.numerics import channel_axis_of
from dq_deploy.record import Layer
from dq_deploy.simulation.fake_quant import IntegerLayer, along

TILE = 1024
"""Columns of H that one product gives; only its lower triangle is computed."""

TINY = 2.0**-500
"""Least bound of a sum; of nothing but zeros any unit will do."""

AT_ONCE = 1 << 21
"""Weights of output channels that are rounded at once; the others wait as float32."""

ROWS_A_SUM, LEAST_ROWS = 2048, 256
VALUES_A_SUM = 1 << 23
"""Rows that are multiplied at once, and values where a row is long."""


class DequantizedInput(IntegerLayer):
    """What an integer layer multiplies of a float input."""

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """The centred codes of an input times their scale, float32 [B, ...] in its form."""
        axis = channel_axis_of(self.layer.kind, x.ndim)
        pieces = []
        for i, piece in enumerate(torch.split(x, [len(part.pre) for part in self.layer.parts], dim=axis)):
            codes = self._codes(i, piece, axis)
            scale = self.context.rows(getattr(self, f"scale_{i}"), x.shape[0])
            pieces.append(codes * along(scale[:, None], x.ndim, axis))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, axis)


def rows_of_input(site: LayerSite) -> int:
    """Rows that a layer sees of one calibration input."""
    axes = site.output_shape[2:] if site.kind == "conv2d" else site.output_shape[:-1]
    entries = site.output_shape[0] if site.kind == "conv2d" else 1
    return int(np.prod(axes)) * entries


def statistics_bytes(prepared: PreparedLayer, *, exact: bool = False) -> int:
    """Most bytes that rounding one layer takes.

    H (8 a pair of columns), four forms of its weights (22 bytes each together), and what is larger: rows that wait in
    five forms of float32, or eight float64 forms of the weights that are rounded at once. Where sums are exact, also
    one product as float64.
    """
    columns, outs, groups = columns_of(prepared), prepared.site.out_channels, prepared.site.groups
    rows = 20 * rows_a_sum(columns * groups) * columns * groups
    product = 8 * groups * columns * max(min(TILE, columns), outs // groups) if exact else 0
    return product + 8 * groups * columns**2 + 22 * outs * columns + max(rows, 64 * min(outs * columns, AT_ONCE))


def rows_a_sum(columns: int) -> int:
    """Rows of so many columns that are multiplied at once."""
    return max(LEAST_ROWS, min(ROWS_A_SUM, VALUES_A_SUM // columns))


def columns_of(prepared: PreparedLayer) -> int:
    """Weights of an output channel, K."""
    return int(np.prod(prepared.weight.shape[1:]))


def largest_input(layer: Layer) -> float:
    """Largest |x| that an integer layer can multiply: a code times its scale."""
    ends = [
        np.maximum(np.abs(layer.q_min - part.zero_point), np.abs(layer.q_max - part.zero_point)) * part.scale
        for part in layer.parts
    ]
    return float(max(np.max(of_part) for of_part in ends))


@dataclass(frozen=True, kw_only=True)
class ExactSums:
    """Units of which everything added is a multiple; None adds what there is.

    Attributes:
        x: of sums of x.
        y: of sums of y.
        xx: of sums of products of x.
        xy: of those of x and y.
    """

    x: float | None = None
    y: float | None = None
    xx: float | None = None
    xy: float | None = None

    @staticmethod
    def of(rows: int, x: float, y: float) -> ExactSums:
        """Of so many rows of |x| and |y| at most these; y, which is measured in float, may be twice as large."""
        return ExactSums(x=_unit(rows * x), y=_unit(2 * rows * y), xx=_unit(rows * x * x), xy=_unit(2 * rows * x * y))

    @property
    def exact(self) -> bool:
        """Whether there are units."""
        return self.x is not None

    def on_grid(self, value: torch.Tensor, unit: float | None) -> torch.Tensor:
        """The nearest multiples, float64; the value as it is where there is no unit."""
        if unit is None:
            return value
        # beside 1.5 * 2^52 units a float64 holds whole units and nothing below
        return value.double().add_(1.5 * 2.0**52 * unit).sub_(1.5 * 2.0**52 * unit)

    def check(self, seen: LayerStatistics) -> None:
        """No sum has reached a size at which it would be rounded."""
        pairs = ((seen.square, self.xx), (seen.cross, self.xy), (seen.sum_x, self.x), (seen.sum_y, self.y))
        for value, unit in pairs:
            if unit is not None and value.numel():
                held = value.diagonal(dim1=1, dim2=2) if value is seen.square else value
                if float(held.abs().max()) > 2.0**52 * unit:
                    raise GuaranteeError(
                        f"layer {seen.site.name}: sums of its statistics pass 2^52 units, expected exact ones; give "
                        "fewer `samples`"
                    )


def _unit(largest: float) -> float:
    """2^-50 of the next power of two, far below the rounding of float32 products."""
    return math.ldexp(1.0, math.frexp(max(largest, TINY))[1] - 50)


class LayerStatistics:
    """Sums of one layer over rows, a share of which is drawn.

    Attributes:
        rows: so many are in the sums.
        square: [groups, K, K] float64, H; its lower triangle holds.
        cross: [groups, C_out / groups, K] float64, G.
        sum_x: [groups, K] float64.
        sum_y: [groups, C_out / groups] float64.
    """

    def __init__(
        self,
        prepared: PreparedLayer,
        *,
        share: float,
        seed: int,
        outputs: bool,
        device: str = "cpu",
        exact: ExactSums | None = None,
    ) -> None:
        """Empty sums.

        Args:
            prepared: the layer.
            share: of the rows that are taken, 0 to 1.
            seed: of which they are.
            outputs: outputs of the float layer are given too.
            device: of the sums.
            exact: units that make sums exact, where several processes have them.
        """
        self._exact = exact or ExactSums()
        self.site, self.share = prepared.site, share
        self._generator = torch.Generator().manual_seed(seed)
        groups, columns = self.site.groups, columns_of(prepared)
        outs = self.site.out_channels // groups
        kind = {"dtype": torch.float64, "device": device}
        self.rows = 0
        self.square = torch.zeros((groups, columns, columns), **kind)
        self.cross = torch.zeros((groups, outs, columns) if outputs else (0, 0, 0), **kind)
        self.sum_x = torch.zeros((groups, columns), **kind)
        self.sum_y = torch.zeros((groups, outs), **kind)
        self._rows_a_sum = rows_a_sum(groups * columns)
        self._waiting: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def add(self, x: torch.Tensor, y: torch.Tensor | None) -> None:
        """Take in what a layer read of some inputs, and what the float layer gave for them."""
        rows, outputs = self._drawn(x, y)
        self._waiting.append((rows, outputs))
        if sum(len(waiting) for waiting, _ in self._waiting) >= self._rows_a_sum:
            self.flush()

    def flush(self) -> None:
        """Bring every row that waits into the sums."""
        if not self._waiting:
            return
        x = torch.cat([rows for rows, _ in self._waiting])  # [R, groups, K]
        outputs = [given for _, given in self._waiting if given is not None]
        self._waiting.clear()
        self.rows += len(x)
        exact = self._exact
        self.sum_x += exact.on_grid(x.sum(0, dtype=torch.float64), exact.x)
        x = x.transpose(0, 1).contiguous()
        if outputs:
            y = torch.cat(outputs)
            self.sum_y += exact.on_grid(y.sum(0, dtype=torch.float64), exact.y)
            self.cross += exact.on_grid(torch.bmm(y.permute(1, 2, 0), x), exact.xy)
        for start in range(0, x.shape[2], TILE):
            end = min(start + TILE, x.shape[2])
            product = torch.bmm(x[:, :, start:end].transpose(1, 2), x[:, :, :end])
            self.square[:, start:end, :end] += exact.on_grid(product, exact.xx)

    def begin(self, shard: int, seed: int) -> None:
        """The rows that follow are of another shard, whose draw does not depend on what was before."""
        self.flush()
        if self._exact.exact:
            self._generator.manual_seed(seed + SEEDS_OF_A_SHARD * shard)

    def sums(self) -> list[torch.Tensor]:
        """What is added up over rows."""
        return [value for value in (self.square, self.cross, self.sum_x, self.sum_y) if value.numel()]

    def finish(self) -> None:
        """Bring every row into the sums, and fill the upper triangle of `square`."""
        self.flush()
        self._exact.check(self)
        size = self.square.shape[2]
        for start in range(0, size, TILE):
            end = min(start + TILE, size)
            self.square[:, start:end, end:] = self.square[:, end:, start:end].transpose(1, 2)

    def _drawn(self, x: torch.Tensor, y: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rows [R, groups, K] and float outputs [R, groups, C_out / groups]."""
        groups, site = self.site.groups, self.site
        if site.kind == "linear":
            flat = x.reshape(-1, x.shape[-1])
            index = self._index(len(flat), x.device)
            given = None if y is None else y.reshape(-1, y.shape[-1])[index][:, None]
            return flat[index][:, None], given
        height, width = site.window.size_out((x.shape[2], x.shape[3]))
        index = self._index(len(x) * height * width, x.device)
        sample, place = index // (height * width), index % (height * width)
        above, left = place // width, place % width
        rows = self._patches(x, sample, above, left).reshape(len(index), groups, -1)
        if y is None:
            return rows, None
        return rows, y[sample, :, above, left].reshape(len(index), groups, -1)

    def _index(self, count: int, device: torch.device) -> torch.Tensor:
        """Which of so many rows are taken, in rising order."""
        if self.share >= 1:
            return torch.arange(count, device=device)
        keep = max(1, round(count * self.share))
        chosen = torch.randint(0, count, (keep,), generator=self._generator)
        return chosen.sort().values.to(device)

    def _patches(self, x: torch.Tensor, sample: torch.Tensor, above: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        """[R, C_in, kh, kw]: what the convolution reads at output pixels (above, left) of samples."""
        window = self.site.window
        top, west, bottom, east = window.padding
        image = torch.nn.functional.pad(x, (west, east, top, bottom)).permute(0, 2, 3, 1).contiguous()
        rows, columns = (
            first[:, None] * stride + torch.arange(size, device=x.device) * dilation
            for first, stride, size, dilation in zip(
                (above, left), window.stride, window.kernel, window.dilation, strict=True
            )
        )
        return image[sample[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
