"""By what a record's folds scaled the tensors between layers, so that they can be held against the float model.

A folded equivalent scale divides the rows of a producer and multiplies the columns of its consumers. The function
stays, but the tensor between the two is the float model's divided by the factor. The record does not store the factor:
it follows from the float weights and the record's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dq_deploy.models import call_of_record, fold_sites, lazy_weights
from dq_deploy.numerics.arrays import F64
from dq_deploy.record import Record

if TYPE_CHECKING:
    import torch

    from dq_deploy.models import FoldSite


@dataclass(frozen=True, kw_only=True, eq=False)
class Folds:
    """Factors by layer, where they are not one.

    Attributes:
        inputs: [C_in] float64: the layer of the record reads the float model's tensor divided by this.
        outputs: [C_out] float64: it returns the float model's tensor divided by this.
    """

    inputs: Mapping[str, F64]
    outputs: Mapping[str, F64]


def folds_of(record: Record, module: torch.nn.Module) -> Folds:
    """Factors of every fold that a record's layers name.

    A norm's factor is the ratio of its parameters, exact to float32. A linear producer may be quantized: its factor is
    the least-squares one of its rows and its consumer's columns, weighted by how well each is known.

    Args:
        record: the quantized denoiser.
        module: the float denoiser it was made from; it is not changed.
    """
    inputs: dict[str, F64] = {}
    outputs: dict[str, F64] = {}
    # in the order of the folds: a value projection is read by one, written by the next
    for site in fold_sites(module, call_of_record(record)):
        words = f"folded into {site.producer}"
        if not all(name in record.layers and record.layers[name].fold == words for name in site.consumers):
            continue
        if site.kind.endswith("_rows"):
            factor = _linear_factor(record, module, site, inputs.get(site.producer))
            rows = module.get_submodule(site.producer).weight.shape[0]
            outputs[site.producer] = np.concatenate([factor, np.ones(rows - len(factor))])
        else:
            factor = _norm_factor(record, module, site.producer)
        inputs.update(dict.fromkeys(site.consumers, factor))
    return Folds(inputs=inputs, outputs=outputs)


def _float_value(module: torch.nn.Module, name: str, parameter: str) -> F64 | None:
    value = getattr(module.get_submodule(name), parameter, None)
    return None if value is None else value.detach().numpy().astype(np.float64)


def _norm_factor(record: Record, module: torch.nn.Module, name: str) -> F64:
    """Float over folded, by the larger of weight and bias; 1 where a channel has neither."""
    over: F64 | None = None
    under: F64 | None = None
    for parameter in ("weight", "bias"):
        mine = _float_value(module, name, parameter)
        folded = record.float_parameters.get(f"{name}.{parameter}")
        if mine is None or folded is None:
            continue
        if over is None or under is None:
            over, under = mine, folded.astype(np.float64)
        else:
            larger = np.abs(mine) > np.abs(over)
            over, under = np.where(larger, mine, over), np.where(larger, folded, under)
    if over is None or under is None:
        return np.ones(1)
    return _ratio(over, under)


def _ratio(over: F64, under: F64) -> F64:
    good = (over != 0) & (under != 0)
    found = np.divide(over, under, out=np.ones_like(over), where=good)
    return np.where(found > 0, found, 1.0)


def _linear_factor(record: Record, module: torch.nn.Module, site: FoldSite, read: F64 | None) -> F64:
    """Factor by which a linear layer's first rows were divided.

    Args:
        record: the quantized denoiser.
        module: the float one.
        site: producer and consumers.
        read: factor of the producer's own input, or None.
    """
    rows = _float_value(module, site.producer, "weight")
    assert rows is not None
    rows = rows.reshape(len(rows), -1) if read is None else rows.reshape(len(rows), -1) * read
    columns = [_by_column(_float_value(module, name, "weight")) for name in site.consumers]
    folded_columns = [_by_column(_recorded(record, name)) for name in site.consumers]
    count = len(columns[0])
    folded = _recorded(record, site.producer).reshape(len(rows), -1)[:count]
    divided, spread = _slope(rows[:count], folded)
    multiplied, other = _slope(np.concatenate(columns, axis=1), np.concatenate(folded_columns, axis=1))
    return np.exp(_weighted(-np.log(divided), spread, np.log(multiplied), other))


def _by_column(weight: F64 | None) -> F64:
    """[C_in, everything else]."""
    assert weight is not None
    return np.moveaxis(weight, 1, 0).reshape(weight.shape[1], -1)


def _recorded(record: Record, name: str) -> F64:
    """The weight a record has for a layer, integer, weight-only or float."""
    key = f"{name}.weight"
    stored = record.float_parameters.get(key)
    return (lazy_weights(record)[key].read() if stored is None else stored).astype(np.float64)


def _slope(x: F64, y: F64) -> tuple[F64, F64]:
    """Least-squares a of y = a x, by row, and the variance of a as a share of a^2; 1 and infinity where there is none.

    Args:
        x: [rows, n] float weights.
        y: [rows, n] the same scaled and rounded.
    """
    square, product = (x * x).sum(1), (x * y).sum(1)
    good = (square > 0) & (product > 0)
    a = np.divide(product, square, out=np.ones_like(product), where=good)
    residual = np.square(y - a[:, None] * x).mean(1)
    variance = np.full_like(a, np.inf)
    np.divide(residual, square * a * a, out=variance, where=good)
    return a, variance


def _weighted(a: F64, a_variance: F64, b: F64, b_variance: F64) -> F64:
    """Mean of two estimates of one number, each by the inverse of its variance; 0 where neither is known."""
    tiny = np.finfo(np.float64).tiny
    first, second = 1 / np.maximum(a_variance, tiny**0.5), 1 / np.maximum(b_variance, tiny**0.5)
    total = first + second
    return np.divide(a * first + b * second, total, out=np.zeros_like(a), where=total > 0)
