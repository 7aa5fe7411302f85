"""What a benchmark is asked to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dq_deploy.errors import OptionError
from dq_deploy.processes.threads import check_threads


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """How an engine is timed.

    Attributes:
        batches: batch sizes; the first is the one that latency, speedup and memory are given for.
        rounds: rounds of the first batch; with a baseline at least 7, the two engines taking turns.
        runs: least number of timed runs of one engine in one round.
        seconds: a round goes on for about as long; a fast engine makes more runs.
        warmup: runs before them that are not counted.
        threads: threads of one run, or None for the engine's choice.
        finite_check: whether the Runner looks for NaN and infinity, as in use.
        engine: engine to run on, or None for what the manifest says.
        isa: instruction set of the native engine, or None for the best.
        device: of the native engine, as of `open_engine`.
        attention: what the native engine computes attention's products in, likewise.
        sizes: of the axes that vary, by name; those left out are those of the calls the model was quantized with.
        hash_check: likewise; the file is checked once, before it is timed.
    """

    batches: tuple[int, ...] = (1, 4, 8)
    rounds: int = 7
    runs: int = 10
    seconds: float = 0.3
    warmup: int = 3
    threads: int | None = None
    finite_check: bool = True
    engine: str | None = None
    isa: str | None = None
    device: str | None = None
    attention: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    hash_check: bool = True

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            OptionError: one is out of range.
        """
        for name in ("rounds", "runs", "warmup"):
            if not _is_count(getattr(self, name)):
                raise OptionError(f"{name} is {getattr(self, name)!r}, expected a whole number from 1")
        if not isinstance(self.batches, Sequence) or not self.batches or not all(map(_is_count, self.batches)):
            raise OptionError(f"batch sizes are {self.batches!r}, expected at least one, all whole numbers from 1")
        if not isinstance(self.seconds, (int, float)) or not 0 <= self.seconds <= 3600:
            raise OptionError(f"seconds is {self.seconds!r}, expected a number from 0 to 3600")
        check_threads(self.threads)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
