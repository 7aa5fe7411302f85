"""Codes of a layer from its second-order statistics.

What is least is the error of the layer's output over the rows it saw, with W the float weight, Q the codes times their
scales, e = Q - W and H the sum of x^T x over rows x::

    sum over rows |x e^T|^2 = e H e^T = |e L|^2          H + damping = L L^T, L lower (Cholesky)
    (e L)[k] = L[k,k] * ( e[k] + sum over j > k of  e[j] L[j,k] / L[k,k] )

So the last column is rounded first, and each column k is rounded to the code nearest to w[k] less what the columns
behind it have done wrong, as far as their inputs correlate. This is GPTQ (arXiv 2210.17323) in the form of LDLQ (QuIP,
arXiv 2307.13304), in columns from the last to the first; one factorization is all that it needs, and no inverse.

Two things are free beside the codes. The bias takes the mean error over the rows: sums are then taken around the mean.
And W may be what fits the *float* layer's outputs best for the rows the *integer* layer reads (as in GPTAQ, arXiv
2504.02692): the errors of the codes of an input are noise, for which a regression has smaller weights::

    W* = W + (G - W H) (H + damping)^-1                  G the sum of y^T x
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from dq_deploy.errors import NonFiniteError
from dq_deploy.methods.prepare.preparation import PreparedLayer
from dq_deploy.methods.ranges.scales import weight_range
from dq_deploy.methods.ranges.step_ranges import batches
from dq_deploy.methods.second_order.statistics import AT_ONCE, TILE, LayerStatistics
from dq_deploy.numerics.arrays import F32
from dq_deploy.record import Layer, Part
from dq_deploy.record.checks import SCALE_MAX, SCALE_MIN

COLUMNS = 128
"""Columns that are rounded before their errors reach the columns before them by one product."""

MOST_MOVED = 0.5
"""Share of a scale by which fitting it to the codes moves it at most."""

TINY = 1e-300


@dataclass(frozen=True, kw_only=True)
class SecondOrder:
    """What rounding by second-order statistics does.

    Attributes:
        damping: added to H's diagonal, as a share of its mean.
        rows_a_column: rows for each column of a layer's weight, or all where there are fewer.
        feedback: errors of rounded columns are taken up by the others; without it codes are the nearest.
        float_targets: weights are first moved to fit the float layer's outputs.
        bias: it takes the mean error.
        rescale: scales are fitted to the codes, and these are rounded once more.
    """

    damping: float = 0.01
    rows_a_column: int = 16
    feedback: bool = True
    float_targets: bool = True
    bias: bool = True
    rescale: bool = True


_SAME = 1e-5
"""Share of the mean square below which what is around the mean is the rounding of float32 sums, and says nothing.

So it is where every row is the same, as what the time makes where a model takes a single step.
"""


class _Grid:
    """The values that the weights of one channel group may take; parts lie one behind the other along the columns.

    Attributes:
        scales: [C_out] float32 of each part.
        bounds: (first column, end) of each part.
    """

    def __init__(self, start: Layer, scales: Sequence[torch.Tensor], outs: slice) -> None:
        self.scales = list(scales)
        ends = np.cumsum([int(np.prod(part.w_code.shape[2:])) for part in start.parts]).tolist()
        self.bounds = list(zip([0, *ends[:-1]], ends, strict=True))
        low, high = weight_range(start.weight_bits)
        zeros = [torch.from_numpy(part.w_zero_point[0, outs].copy()).to(self.scales[0].device) for part in start.parts]
        # an 8-bit code with a zero point need not fit int8, so these have none: see `full_weight_range`
        self._low = [(low - zero).clamp(min=-128).double() for zero in zeros]
        self._high = [(high - zero).clamp(max=127).double() for zero in zeros]

    def of_rows(self, rows: slice) -> _Grid:
        """The grid of some output channels."""
        found = copy(self)
        found.scales = [scale[rows] for scale in self.scales]
        found._low, found._high = [end[rows] for end in self._low], [end[rows] for end in self._high]
        return found

    def part_of(self, column: int) -> int:
        """Which part a column is of."""
        return next(i for i, (_, end) in enumerate(self.bounds) if column < end)

    def rounded(self, values: torch.Tensor, part: int) -> torch.Tensor:
        """w_q nearest to weights of a part, [C_out] or [C_out, columns]."""
        shape = (-1,) + (1,) * (values.ndim - 1)
        q = torch.round(values / self.scales[part].double().reshape(shape))
        return torch.minimum(torch.maximum(q, self._low[part].reshape(shape)), self._high[part].reshape(shape))

    def nearest(self, target: torch.Tensor) -> torch.Tensor:
        """[C_out, K] w_q of every weight by itself."""
        return torch.cat([self.rounded(target[:, a:b], i) for i, (a, b) in enumerate(self.bounds)], 1)

    def values(self, q: torch.Tensor) -> torch.Tensor:
        """[C_out, K] float64 weights of codes."""
        pieces = [q[:, a:b] * self.scales[i].double()[:, None] for i, (a, b) in enumerate(self.bounds)]
        return torch.cat(pieces, 1)

    def fitted(self, q: torch.Tensor, target: torch.Tensor, factor: torch.Tensor) -> _Grid:
        """The grid with the scales that fit these codes best: d |(q s - target) L|^2 / ds = 0, part after part."""
        found = copy(self)
        found.scales = list(self.scales)
        error = (self.values(q) - target) @ factor
        for i, (a, b) in enumerate(self.bounds):
            slope = q[:, a:b] @ factor[a:b]
            square = slope.square().sum(1)
            moved = torch.where(square > 0, -(error * slope).sum(1) / square.clamp_min(TINY), 0.0)
            before = self.scales[i].double()
            moved = torch.minimum(torch.maximum(moved, -before * MOST_MOVED), before * MOST_MOVED)
            found.scales[i] = (before + moved).clamp(SCALE_MIN * 2, SCALE_MAX / 2).float()
            error += slope * (found.scales[i].double() - before)[:, None]
        return found


def rounded_layer(prepared: PreparedLayer, start: Layer, seen: LayerStatistics, settings: SecondOrder) -> Layer:
    """The layer with codes, and where asked for scales and bias, by the statistics of its rows; all else as it was.

    Args:
        prepared: the float weights.
        start: activation tables, weight scales and zero points.
        seen: of the layer; its sums are overwritten.
        settings: what is done.

    Raises:
        NonFiniteError: the statistics are not finite.
    """
    seen.finish()
    site, device, columns = prepared.site, seen.square.device, seen.square.shape[1]
    weight = torch.from_numpy(prepared.weight).to(device).reshape(site.groups, -1, columns)
    outs = weight.shape[1]
    pieces = []
    for g in range(site.groups):
        chosen = slice(g * outs, (g + 1) * outs)
        scales = [torch.from_numpy(part.weight_scale[0, chosen].copy()).to(device) for part in start.parts]
        bias = None if start.bias is None else torch.from_numpy(start.bias[chosen].copy()).to(device).double()
        grid = _Grid(start, scales, chosen)
        pieces.append(_rounded_group(weight[g], bias, grid, seen, g, settings))
    q = torch.cat([piece.q for piece in pieces]).reshape(prepared.weight.shape).cpu()
    found = [torch.cat([piece.scales[i] for piece in pieces]).cpu().numpy() for i in range(len(start.parts))]
    ends = np.cumsum(prepared.widths)[:-1].tolist()
    parts = [
        _with_codes(part, own.numpy(), scale)
        for part, own, scale in zip(start.parts, torch.tensor_split(q, ends, dim=1), found, strict=True)
    ]
    biases = [piece.bias for piece in pieces if piece.bias is not None]
    new = torch.cat(biases).float().cpu().numpy() if biases else None
    return replace(start, parts=tuple(parts), bias=new)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rounded:
    """A channel group: [C_out, K] int16 w_q, [C_out] scales of each part, [C_out] float64 bias or None."""

    q: torch.Tensor
    scales: list[torch.Tensor]
    bias: torch.Tensor | None


def _rounded_group(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    grid: _Grid,
    seen: LayerStatistics,
    g: int,
    settings: SecondOrder,
) -> _Rounded:
    count = max(seen.rows, 1)
    mean_x, mean_y = seen.sum_x[g] / count, seen.sum_y[g] / count
    square, free = seen.square[g], settings.bias and bias is not None
    power = float(square.diagonal().mean())
    if free:
        for piece in batches(len(square), TILE):  # a product of the whole would be a second matrix
            square[piece] -= torch.outer(mean_x[piece] * count, mean_x)
    away = _missed(weight, bias, seen, g, free) if settings.float_targets else None
    diagonal = square.diagonal()
    if free and float(diagonal.mean()) < _SAME * power:
        square.zero_()
        away = None
    diagonal += settings.damping * (float(diagonal.mean()) or 1.0)
    factor = lower_factor(square, seen.site.name)
    codes, scales, biases = [], [], []
    for rows in batches(len(weight), max(1, AT_ONCE // weight.shape[1])):
        own, part = weight[rows].double(), grid.of_rows(rows)
        target = own if away is None else own + solved(factor, away[rows])
        q = _codes(target, factor, part, settings)
        if settings.rescale:
            part = part.fitted(q, target, factor)
            q = _codes(target, factor, part, settings)
        if free:
            assert bias is not None
            wanted = mean_y[rows] if settings.float_targets else bias[rows] + own @ mean_x
            biases.append(wanted - part.values(q) @ mean_x)
        codes.append(q.to(torch.int16))
        scales.append(part.scales)
    return _Rounded(
        q=torch.cat(codes),
        scales=[torch.cat(of_part) for of_part in zip(*scales, strict=True)],
        bias=torch.cat(biases) if free else bias,
    )


def _missed(weight: torch.Tensor, bias: torch.Tensor | None, seen: LayerStatistics, g: int, free: bool) -> torch.Tensor:
    """G - W H: how the float outputs and those of the float weights differ over the rows, [C_out, K], in G's place."""
    given = seen.cross[g]
    if free:
        given -= torch.outer(seen.sum_y[g], seen.sum_x[g] / max(seen.rows, 1))
    elif bias is not None:
        given -= torch.outer(bias, seen.sum_x[g])
    for rows in batches(len(weight), max(1, AT_ONCE // weight.shape[1])):
        given[rows] -= weight[rows].double() @ seen.square[g]
    return given


def _codes(target: torch.Tensor, factor: torch.Tensor, grid: _Grid, settings: SecondOrder) -> torch.Tensor:
    """[C_out, K] w_q: see the module's equations."""
    q = grid.nearest(target)
    if not settings.feedback:
        return q
    diagonal, error = factor.diagonal(), torch.zeros_like(target)
    scales = [scale.double() for scale in grid.scales]
    for end in range(target.shape[1], 0, -COLUMNS):
        first = max(0, end - COLUMNS)
        taken = factor[first:end, first:end] / diagonal[first:end]
        wanted = target[:, first:end] - error[:, end:] @ (factor[end:, first:end] / diagonal[first:end])
        for k in range(end - 1, first - 1, -1):
            i, part = k - first, grid.part_of(k)
            q[:, k] = grid.rounded(wanted[:, i], part)
            error[:, k] = q[:, k] * scales[part] - target[:, k]
            wanted[:, :i] -= error[:, k, None] * taken[i, :i]
    return q


def lower_factor(square: torch.Tensor, name: str) -> torch.Tensor:
    """L of a symmetric positive matrix L L^T, lower; in its place where it is on the CPU.

    Raises:
        NonFiniteError: the matrix is not positive, as one with NaN is not.
    """
    if square.device.type == "cpu":
        from scipy.linalg.lapack import dpotrf

        # a C-ordered matrix read in Fortran's order is its transpose, whose upper factor is our lower one
        found, failed = dpotrf(square.numpy().T, lower=0, clean=0, overwrite_a=1)
        factor = torch.from_numpy(found.T)
    else:
        factor, info = torch.linalg.cholesky_ex(square)
        failed = int(info)
    if failed or not bool(torch.isfinite(factor.diagonal()).all()):
        raise NonFiniteError(
            f"layer {name}: the statistics of its input are not positive at column {failed}, expected finite inputs of "
            "the layer and damping above 0"
        )
    return factor.tril_()


def solved(factor: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """X with X L L^T = given, [C_out, K]."""
    if factor.device.type == "cpu":
        from scipy.linalg.lapack import dpotrs

        found, _ = dpotrs(factor.numpy().T, given.numpy().T, lower=0)
        return torch.from_numpy(np.ascontiguousarray(found.T))
    return torch.cholesky_solve(given.T, factor).T.contiguous()


def _with_codes(part: Part, q: NDArray[np.int16], scale: F32) -> Part:
    zero = part.w_zero_point[0].reshape((-1,) + (1,) * (q.ndim - 1))
    code = np.ascontiguousarray((q + zero).astype(np.int8)[None])
    return replace(part, w_code=code, weight_scale=np.ascontiguousarray(scale[None]))
