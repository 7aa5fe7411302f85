"""Whether an engine gives a sample the same bytes alone and in any batch, tried on random inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dq_deploy.engines.base import Runner
from dq_deploy.models import example_inputs
from dq_deploy.models.sizes import BATCH
from dq_deploy.numerics.arrays import Array
from dq_deploy.record import Call
from dq_deploy.serve.steps import joins

SEED = 7


@dataclass(frozen=True, kw_only=True)
class SameBytes:
    """What was found.

    Attributes:
        holds: no byte of any output differed.
        how: what was tried, in words.
    """

    holds: bool
    how: str


def try_same_bytes(engine: Runner, call: Call, max_rows: int) -> SameBytes:
    """Run samples alone and in batches of every size up to `max_rows`, and compare the outputs byte for byte.

    Args:
        engine: that runs.
        call: of the denoiser: which inputs there are, at the sizes with which it was recorded.
        max_rows: of a batch.
    """
    if max_rows == 1 or not joins(engine):
        return SameBytes(holds=True, how="each sample runs alone")
    sizes = dict((engine.manifest.sizes if engine.manifest is not None else None) or {})
    feeds = example_inputs(call, max_rows, SEED, sizes)
    if engine.manifest is not None and engine.manifest.single_step_batch:
        feeds["timestep"] = np.full_like(feeds["timestep"], feeds["timestep"][0])
    alone = [engine.run(_rows(engine, feeds, i, i + 1)) for i in range(max_rows)]
    for rows in sorted({min(r, max_rows) for r in (2, 3, 4, 5, 7, 8, max_rows)}):
        for start in {0, max_rows - rows}:
            together = engine.run(_rows(engine, feeds, start, start + rows))
            for offset in range(rows):
                wanted = alone[start + offset]
                if any(value[offset].tobytes() != wanted[name][0].tobytes() for name, value in together.items()):
                    return SameBytes(holds=False, how=f"a sample in a batch of {rows} differed from the same alone")
    return SameBytes(holds=True, how=f"compared alone and in batches of up to {max_rows}")


def _rows(engine: Runner, feeds: dict[str, Array], start: int, end: int) -> dict[str, Array]:
    with_batch = {spec.name for spec in engine.inputs if spec.shape and spec.shape[0] == BATCH}
    return {name: value[start:end] if name in with_batch else value for name, value in feeds.items()}
