"""Calibration inputs brought to the first process in the order of their shards, and handed out in shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from dq_deploy.calibration.recorded import CalibrationInputs
from dq_deploy.calibration.recording.rows import InputRows
from dq_deploy.calibration.sharding.share import Share
from dq_deploy.calibration.sharding.workers import Workers
from dq_deploy.numerics.arrays import Array

AT_ONCE_BYTES = 1 << 26
"""Sent at once."""


def brought_together(workers: Workers, of_shard: Callable[[int], Iterator[Any]]) -> Iterator[Any]:
    """At the first process what each shard's owner has of it, in order; elsewhere nothing, and what is there is sent.

    Args:
        workers: of the run.
        of_shard: pieces of a shard of this process.
    """
    for shard in range(workers.shards):
        owner = workers.owner(shard)
        if owner == workers.rank:
            for piece in of_shard(shard):
                if workers.is_first:
                    yield piece
                else:
                    workers.send(piece, 0)
            if not workers.is_first:
                workers.send(None, 0)
        elif workers.is_first:
            while (piece := workers.receive(owner)) is not None:
                yield piece


def in_pieces(arrays: Mapping[str, Array], start: int, stop: int) -> Iterator[dict[str, Array]]:
    """Some rows of arrays, so many at a time as may be sent at once."""
    each = max(1, sum(int(value[:1].nbytes) for value in arrays.values()))
    step = max(1, AT_ONCE_BYTES // each)
    for first in range(start, stop, step):
        yield {name: np.ascontiguousarray(value[first : min(first + step, stop)]) for name, value in arrays.items()}


def handed_out(workers: Workers, whole: CalibrationInputs | None, *, limit_bytes: float) -> CalibrationInputs:
    """Each process's shards of the inputs that the first one has.

    Args:
        workers: of the run.
        whole: at the first process.
        limit_bytes: of inputs in memory; what is more goes to the disk.

    Raises:
        OptionError: there are fewer inputs than processes.
        FileProblemError: the disk is full.
    """
    if workers.count == 1:
        assert whole is not None
        inputs, timesteps, provenance = whole.inputs, whole.timesteps, _said(workers, whole)
        share = Share(step=np.asarray(inputs["step"]), workers=workers)
        return CalibrationInputs(inputs=inputs, timesteps=timesteps, provenance=provenance, share=share)
    shared = {} if whole is None else {n: v for n, v in whole.inputs.items() if v.ndim and not v.strides[0]}
    own = {} if whole is None else {n: v for n, v in whole.inputs.items() if n not in shared}

    def facts() -> tuple[Any, ...]:
        assert whole is not None
        step = np.asarray(whole.inputs["step"])
        return step, whole.timesteps, _said(workers, whole), {name: value[0] for name, value in shared.items()}

    step, timesteps, provenance, common = workers.first(facts)
    share = Share(step=step, workers=workers)
    rows = InputRows(limit_bytes)
    for shard in range(workers.shards):
        owner, whole_slice = workers.owner(shard), share.everyones(shard)
        if workers.is_first:
            for piece in in_pieces(own, whole_slice.start, whole_slice.stop):
                if owner == 0:
                    rows.add(piece, {})
                else:
                    workers.send(piece, owner)
            if owner:
                workers.send(None, owner)
        elif owner == workers.rank:
            while (received := workers.receive(0)) is not None:
                rows.add(received, {})
    found = rows.ordered(np.arange(rows.count, dtype=np.int64))
    found |= {name: np.broadcast_to(value, (rows.count, *value.shape)) for name, value in common.items()}
    return CalibrationInputs(inputs=found, timesteps=timesteps, provenance=provenance, share=share)


def _said(workers: Workers, whole: CalibrationInputs) -> dict[str, Any]:
    """What a record says of its inputs: how many shards decide its bits, and never how many processes there were."""
    return {**whole.provenance, **({"shards": workers.shards} if workers.shards > 1 else {})}
