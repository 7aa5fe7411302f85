"""Large embedding tables: compared as a whole, where looking up each row in the engine would take too long."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dq_deploy.record import Record
from dq_deploy.verify.file.same_values import array_difference
from dq_deploy.verify.onnx.instrument import ShippedGraph, initializer
from dq_deploy.verify.path_inputs import SMALL_TABLE

if TYPE_CHECKING:
    import torch


def table_problems(shipped: ShippedGraph, record: Record, module: torch.nn.Module) -> tuple[str, ...]:
    """What is wrong with the large tables of a graph, in words.

    Args:
        shipped: the graph.
        record: whose parameters the tables must hold.
        module: the denoiser, whose values are not read.
    """
    import torch

    found = []
    tables = [name for name, child in module.named_modules() if isinstance(child, torch.nn.Embedding)]
    for name in tables:
        key = f"{name}.weight"
        table = record.float_parameters.get(key)
        if table is None or len(table) <= SMALL_TABLE:
            continue
        got = initializer(shipped.proto, key, shipped.path.parent)
        if got is None:
            found.append(f"table {key} of {len(table)} rows is not in the engine by its name, so its rows are unproven")
            continue
        difference = array_difference(f"table {key}", got, np.asarray(table).astype(got.dtype))
        if difference is not None:
            found.append(difference.text())
    return tuple(found)
