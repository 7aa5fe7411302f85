"""The processes that quantize one model together, as a method sees them.

Work over calibration inputs is cut into shards. How many there are never depends on how many processes there are, and
nothing that is computed of one shard depends on another: so a sum over shards in their order has the same bits with
any number of processes. Shard s is computed by process s % count.

    one process by itself         1 shard: no cuts, nothing is exchanged
    started by torchrun           8 shards, 1 to 8 processes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from dq_deploy.errors import DqError, OptionError

if TYPE_CHECKING:
    import torch

SHARDS = 8
"""Of a run that several processes may share; it decides the bits of a record, so it is no option."""

MOST_PROCESSES = SHARDS

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class _Failed:
    """What a process tells in place of a result: every process then raises it."""

    error: Exception


class Tally:
    """Counts what all processes have done of one piece of work."""

    def __init__(self, add: Callable[[int], int]) -> None:
        self._add = add

    def add(self, more: int) -> int:
        """So many more are done here; returns how many are done in all processes."""
        return self._add(more)


class Workers:
    """All processes of a run, in one of them. This class is the process that is alone.

    Every process calls the same methods in the same order.

    Attributes:
        rank: of this process, from 0; process 0 alone writes files and prints.
        count: of processes.
        shards: that work is cut into.
    """

    def __init__(self, *, shards: int = 1, rank: int = 0, count: int = 1) -> None:
        if not 1 <= count <= shards:
            raise OptionError(
                f"there are {count} processes, expected at most {shards}: work is cut into {shards} shards; start fewer"
            )
        self.shards, self.rank, self.count = shards, rank, count

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    @property
    def mine(self) -> range:
        """Shards of this process."""
        return range(self.rank, self.shards, self.count)

    def owner(self, shard: int) -> int:
        """The process that has a shard."""
        return shard % self.count

    def everywhere(self, work: Callable[[], T]) -> list[T]:
        """What the work gives in each process, in their order, in every process.

        Raises:
            DqError: that of the first process whose work raised one, in every process.
        """
        if self.count == 1:
            return [work()]
        found = self._gathered(_outcome(work))
        for one in found:
            if isinstance(one, _Failed):
                raise one.error
        return found

    def first(self, work: Callable[[], T]) -> T:
        """What the work gives in process 0, where alone it is done, in every process.

        Raises:
            DqError: that of the work, in every process.
        """
        if self.count == 1:
            return work()
        found = self._from_first(_outcome(work) if self.is_first else None)
        if isinstance(found, _Failed):
            raise found.error
        result: T = found
        return result

    def of_shards(self, work: Callable[[int], T]) -> list[T]:
        """What the work gives for each shard, in their order, in every process.

        Raises:
            DqError: that of the work, in every process.
        """
        found = self.everywhere(lambda: [work(shard) for shard in self.mine])
        return [found[self.owner(shard)][shard // self.count] for shard in range(self.shards)]

    def owners(self, costs: Mapping[str, float]) -> dict[str, int]:
        """Which process does what: the costliest first, each to the process that has least to do."""
        loads = [0.0] * self.count
        found: dict[str, int] = {}
        for name in sorted(costs, key=lambda name: -costs[name]):
            found[name] = loads.index(min(loads))
            loads[found[name]] += costs[name]
        return found

    def split(self, costs: Mapping[str, float], work: Callable[[str], T]) -> dict[str, T]:
        """What the work gives for each name, in the order of the names, in every process; each is done by its owner.

        Raises:
            DqError: that of the work, in every process.
        """
        owners = self.owners(costs)
        found = self.everywhere(lambda: {name: work(name) for name in costs if owners[name] == self.rank})
        return {name: found[owners[name]][name] for name in costs}

    def ordered_sum(self, part: Callable[[int], torch.Tensor]) -> torch.Tensor:
        """The sum over shards of a flat tensor, ((0 + 1) + 2) + ..., in every process.

        Args:
            part: of a shard, called in the order of this process's shards; the same type and size for each.
        """
        total: torch.Tensor | None = None
        for shard in self.mine:
            value = part(shard)
            total = value if total is None else total.add_(value)
        assert total is not None
        return total

    def exact_sum(self, value: torch.Tensor, to: int) -> None:
        """Add up what the processes have, in place at process `to`; elsewhere what is left is of no use.

        The order is not fixed: the values have to be such that every sum of them is exact.
        """

    def tally(self) -> Tally:
        """A count that starts at 0."""
        done = 0

        def add(more: int) -> int:
            nonlocal done
            done += more
            return done

        return Tally(add)

    def send(self, value: Any, to: int) -> None:
        """Give a value to another process, which receives it."""
        raise NotImplementedError

    def receive(self, source: int) -> Any:
        """A value that another process sends."""
        raise NotImplementedError

    def _gathered(self, value: Any) -> list[Any]:
        raise NotImplementedError

    def _from_first(self, value: Any) -> Any:
        raise NotImplementedError


def _outcome(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except (DqError, MemoryError) as error:
        return _Failed(error=error)
