"""Processes started by torchrun, over torch.distributed: gloo for the CPU, nccl between GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dq_deploy.calibration.sharding.workers import SHARDS, Tally, Workers
from dq_deploy.errors import LostProcessError, OptionError, words_of

TIME_LIMIT = timedelta(days=7)
"""A process may wait so long for another, whose share of a large model takes hours; its end is noticed at once."""


class ProcessGroup(Workers):
    """The processes of a group of torch.distributed.

    Args:
        store: of the group, for counts.
        rank: of this process.
        count: of processes.
        device: where tensors are that are summed, "cpu" or "cuda".
    """

    def __init__(self, store: dist.Store, *, rank: int, count: int, device: str) -> None:
        super().__init__(shards=SHARDS, rank=rank, count=count)
        self._store, self._tallies = store, 0
        backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
        with _noticed():
            dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=TIME_LIMIT)

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()

    def ordered_sum(self, part: Callable[[int], torch.Tensor]) -> torch.Tensor:
        """See `Workers.ordered_sum`: each process adds one piece of the vector for all, and hands it out.

        In round r the processes have the shards r * count, r * count + 1, ...: the next ones in order.
        """
        total: torch.Tensor | None = None
        size = 0
        for begin in range(0, self.shards, self.count):
            shard, there = begin + self.rank, min(self.count, self.shards - begin)
            value = part(shard) if shard < self.shards else None
            if value is not None:
                size, like = len(value), value
            width = -(-size // self.count)
            given = like.new_zeros(width * self.count)
            if value is not None:
                given[:size] = value
            taken = torch.empty_like(given)
            with _noticed():
                dist.all_to_all_single(taken, given)
            for piece in taken.view(self.count, width)[:there]:
                total = piece.clone() if total is None else total.add_(piece)
        assert total is not None
        whole = total.new_empty(len(total) * self.count)
        with _noticed():
            dist.all_gather(list(whole.view(self.count, -1)), total)
        return whole[:size]

    def exact_sum(self, value: torch.Tensor, to: int) -> None:
        """See `Workers.exact_sum`."""
        with _noticed():
            dist.reduce(value, dst=to)

    def tally(self) -> Tally:
        """A count in the store, of all processes: each makes its tallies in the same order."""
        self._tallies += 1
        name = f"tally/{self._tallies}"
        return Tally(lambda more: int(self._store.add(name, more)))

    def send(self, value: Any, to: int) -> None:
        """See `Workers.send`."""
        with _noticed():
            dist.send_object_list([value], dst=to, device=torch.device("cpu"))

    def receive(self, source: int) -> Any:
        """See `Workers.receive`."""
        found: list[Any] = [None]
        with _noticed():
            dist.recv_object_list(found, src=source, device=torch.device("cpu"))
        return found[0]

    def _gathered(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.count
        with _noticed():
            dist.all_gather_object(found, value)
        return found

    def _from_first(self, value: Any) -> Any:
        found = [value]
        with _noticed():
            dist.broadcast_object_list(found, src=0, device=torch.device("cpu"))
        return found[0]


def check_alike(workers: Workers) -> None:
    """Refuse processes that differ in what decides the bits of their results.

    Raises:
        OptionError: names the first difference.
    """
    import platform

    import numpy

    import dq_deploy

    mine = {
        "dq_deploy": dq_deploy.__version__,
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "CPU": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
    }
    first, *others = workers.everywhere(lambda: mine)
    for rank, other in enumerate(others, start=1):
        for name, value in first.items():
            if other[name] != value:
                raise OptionError(
                    f"processes 0 and {rank} differ: {name} {value} and {other[name]}, expected the same everywhere, "
                    "or a result would depend on who computes it; OMP_NUM_THREADS sets the threads of a process"
                )


@contextmanager
def _noticed() -> Iterator[None]:
    """Say in one line that another process is gone, which torch tells as a closed connection."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise LostProcessError(
            f"another process of this run ended or cannot be reached ({words_of(error)}); run the same command, with "
            "any number of processes, to go on"
        ) from error


def joined(device: str = "cpu") -> ProcessGroup:
    """The processes that torchrun started, for a program of one's own."""
    from torch.distributed.rendezvous import rendezvous

    store, rank, count = next(iter(rendezvous("env://")))
    return ProcessGroup(store, rank=rank, count=count, device=device)
