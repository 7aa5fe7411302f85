"""A program for every batch, from graphs traced at a few."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dq_deploy.native.lower.lowering import Lowering
from dq_deploy.native.program import program as programs
from dq_deploy.native.trace.geometry import Geometry
from dq_deploy.native.trace.graph import TracedGraph, batch_dependent


def joined_program(
    trace: Callable[[int], TracedGraph], layers: Mapping[str, Geometry], inputs: Sequence[str], outputs: Sequence[str]
) -> dict[str, Any]:
    """Lower at two batch sizes and join the programs; a third checks sizes that are not in proportion to the batch.

    Args:
        trace: gives the graph of a batch.
        layers: quantized layers by module path.
        inputs: names, in the order of the graph's inputs.
        outputs: theirs.

    Raises:
        ModelError: an operation the native engine does not know.
        DqError: the program of another batch is another one.
    """
    first, second = (trace(batch) for batch in programs.TRACED_BATCHES)
    dependent = batch_dependent(first, second)

    def lowered(traced: TracedGraph) -> dict[str, Any]:
        return programs.to_json(Lowering(traced, layers, dependent).program(inputs, outputs))

    joined: dict[str, Any] = programs.join_batches(lowered(first), lowered(second))
    if programs.has_offsets(joined):
        programs.check_joined(joined, lowered(trace(programs.CHECKED_BATCH)))
    return joined
