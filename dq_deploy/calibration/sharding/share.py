"""Which calibration inputs are whose: shards are runs of neighbours in the order of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from dq_deploy.calibration.sharding.workers import Workers
from dq_deploy.errors import OptionError
from dq_deploy.numerics.arrays import I64

T = TypeVar("T")


def bounds_of(count: int, shards: int) -> list[int]:
    """Where each shard of so many entries begins, and where the last one ends; the first ones are larger by one."""
    each, more = divmod(count, shards)
    return [shard * each + min(shard, more) for shard in range(shards + 1)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Share:
    """The inputs of one process among those of all; its arrays hold its shards one behind the other.

    Attributes:
        step: [M] step bucket of every input of all processes.
        workers: whose they are.
    """

    step: I64
    workers: Workers = field(default_factory=Workers)

    def __post_init__(self) -> None:
        """Check that no process is without inputs.

        Raises:
            OptionError: there are fewer inputs than processes.
        """
        if len(self.step) < self.workers.count:
            raise OptionError(
                f"there are {self.workers.count} processes and {len(self.step)} calibration inputs, expected an input "
                "for each process; give more `samples`"
            )

    @property
    def count(self) -> int:
        """M, inputs of all processes."""
        return len(self.step)

    def everyones(self, shard: int) -> slice:
        """The inputs of a shard among all."""
        bounds = bounds_of(self.count, self.workers.shards)
        return slice(bounds[shard], bounds[shard + 1])

    def own(self, shard: int) -> slice:
        """The inputs of one of this process's shards in its arrays."""
        sizes = {other: _size(self.everyones(other)) for other in self.workers.mine if other <= shard}
        end = sum(sizes.values())
        return slice(end - sizes[shard], end)

    def chunks(self, batch: int) -> list[slice]:
        """This process's inputs, at most so many at a time, each of one shard."""
        return [piece for shard in self.workers.mine for piece in self.chunks_of(shard, batch)]

    def chunks_of(self, shard: int, batch: int) -> list[slice]:
        """The inputs of one of this process's shards, at most so many at a time."""
        own = self.own(shard)
        return [slice(start, min(start + batch, own.stop)) for start in range(own.start, own.stop, batch)]

    def of_shards(self, work: Callable[[int], T]) -> list[T]:
        """As `Workers.of_shards`."""
        return self.workers.of_shards(work)


def _size(piece: slice) -> int:
    return int(piece.stop - piece.start)
