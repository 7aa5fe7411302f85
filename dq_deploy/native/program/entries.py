"""How many entries the leading axes have that integer layers read; each belongs to one sample, see `row_steps`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dq_deploy.native.program.program import Program
from dq_deploy.numerics import is_static, row_steps
from dq_deploy.record import Layer, Record


def entry_counts(
    program: Program, record: Record, batch: int, layers: Mapping[str, Layer] | None = None
) -> tuple[int, ...]:
    """Lengths of the leading axes of what integer layers read and of what is quantized, the batch among them.

    Args:
        program: of one batch size.
        record: what it was traced from.
        batch: of the program.
        layers: that its products name; the record's by default.

    Raises:
        InputError: a layer with step tables reads entries that are not those of whole samples.
    """
    counts, known = {batch}, record.layers if layers is None else layers
    for op in program.ops:
        if op.kind in ("int_linear", "int_conv2d"):
            rows = op.reads["codes"].sizes[0]
            row_steps(np.zeros(batch, np.int32), rows, static=is_static(known[op.attributes["layer"]]))
            counts.add(rows)
        elif op.kind == "attention" and "name" in op.attributes:
            rows = op.reads["q"].sizes[0]
            row_steps(np.zeros(batch, np.int32), rows, static=record.steps == 1)
            counts.add(rows)
        elif op.attributes.get("outs") is not None:
            counts.add(op.reads["x"].sizes[0])
    return tuple(sorted(counts))
