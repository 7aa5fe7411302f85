"""Whether an engine gives a sample the same bytes alone and in any batch, tried on random inputs."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from dq_deploy.engines.base import Runner
from dq_deploy.models import example_inputs
from dq_deploy.models.sizes import BATCH
from dq_deploy.native.runner import NativeRunner
from dq_deploy.numerics.arrays import Array
from dq_deploy.record import Call
from dq_deploy.serve.steps import joins

SEED = 7

SECONDS = 3.0
"""After which no larger batch is tried: a server is to open soon."""


@dataclass(frozen=True, kw_only=True)
class SameBytes:
    """What was found.

    Attributes:
        holds: no byte of any output differed.
        proven: of what computes it is known that the batch changes nothing, so what was tried stands for all inputs.
        how: what was tried, in words.
    """

    holds: bool
    proven: bool
    how: str


def try_same_bytes(engine: Runner, call: Call, max_rows: int) -> SameBytes:
    """Run samples alone and in batches of up to `max_rows`, and compare the outputs byte for byte.

    Batches are tried for `SECONDS`: those of two samples first, then the largest, then the others.

    Args:
        engine: that runs.
        call: of the denoiser: which inputs there are, at the sizes with which it was recorded.
        max_rows: of a batch.
    """
    if max_rows == 1 or not joins(engine):
        return SameBytes(holds=True, proven=True, how="each picture's calls run alone")
    feeds = _feeds(engine, call, max_rows)
    alone: dict[int, dict[str, Array]] = {}
    compared: list[int] = []
    end = time.monotonic() + SECONDS
    for rows in dict.fromkeys((2, max_rows, *range(3, max_rows))):
        together = engine.run(_rows(engine, feeds, 0, rows))
        for index in range(rows):
            alone[index] = alone.get(index) or engine.run(_rows(engine, feeds, index, index + 1))
            if any(value[index].tobytes() != alone[index][name][0].tobytes() for name, value in together.items()):
                return SameBytes(
                    holds=False, proven=True, how=f"a sample in a batch of {rows} differed from the same alone"
                )
        compared.append(rows)
        if time.monotonic() > end:
            break
    proven = isinstance(engine, NativeRunner)
    proof = "" if proven else f"; that is no proof for {engine.engine}"
    return SameBytes(holds=True, proven=proven, how=f"compared alone and in batches of {_list(compared)}{proof}")


def _feeds(engine: Runner, call: Call, rows: int) -> dict[str, Array]:
    sizes = dict((engine.manifest.sizes if engine.manifest is not None else None) or {})
    feeds = example_inputs(call, rows, SEED, sizes)
    if engine.manifest is not None and engine.manifest.single_step_batch:
        feeds["timestep"] = np.full_like(feeds["timestep"], feeds["timestep"][0])
    return feeds


def _list(numbers: list[int]) -> str:
    """As `2 to 8` or `2, 8`."""
    found = sorted(numbers)
    whole = found == list(range(found[0], found[-1] + 1))
    return f"{found[0]} to {found[-1]}" if whole and len(found) > 2 else ", ".join(map(str, found))


def _rows(engine: Runner, feeds: dict[str, Array], start: int, end: int) -> dict[str, Array]:
    with_batch = {spec.name for spec in engine.inputs if spec.shape and spec.shape[0] == BATCH}
    return {name: value[start:end] if name in with_batch else value for name, value in feeds.items()}
