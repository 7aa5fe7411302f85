"""Random edits of a program file's header, and what may come of one: a refusal in words, or a run.

By hand, or under a sanitizer: `python -m tests.native.file.mutations FILE.dqn COUNT`.
"""

from __future__ import annotations

import copy
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dq_deploy.errors import DqError, FileProblemError
from dq_deploy.models import call_of_record, example_inputs
from dq_deploy.native.cpu import executor
from dq_deploy.native.cpu.executor import ArenaMemory
from dq_deploy.native.file.content import program_of
from dq_deploy.native.file.layout import MappedFile, read_file
from dq_deploy.native.program.program import View
from dq_deploy.native.runner import NativeRunner

BATCHES = (1, 3)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container with every key of it, all the way down."""
    if not isinstance(value, (dict, list)):
        return []
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


def other(rng: random.Random, value: Any, everything: list[tuple[Any, Any]]) -> Any:
    """Another value, often one that might pass for it."""
    if rng.random() < 0.3:
        holder, key = rng.choice(everything)
        return copy.deepcopy(holder[key])
    if type(value) is int:
        near = [value + 1, value - 1, value + 16, value * 2, -value, 0, 1, 1 << 20, 1 << 41]
        lines = [
            {"B": value, "plus": 0},
            {"B": 1, "plus": value},
            {"B": value, "plus": -value},
            {"B": -1, "plus": value},
        ]
        return rng.choice([*near, *lines])
    if isinstance(value, list) and len(value) > 1:
        return rng.choice([value[::-1], value[:-1], [*value, value[0]]])
    return rng.choice([None, True, 0, 1.5, float("1e300"), "", "x0", [], {}])


def mutated(header: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The header with one to three edits, most of them in its program."""
    bad = copy.deepcopy(header)
    whole = places(bad)
    inside = places(bad["program"])
    for _ in range(rng.randint(1, 3)):
        holder, key = rng.choice(inside if rng.random() < 0.8 else whole)
        if isinstance(holder, list) and key >= len(holder):
            continue
        if isinstance(holder, dict) and rng.random() < 0.1:
            holder.pop(key, None)
        else:
            holder[key] = other(rng, holder.get(key) if isinstance(holder, dict) else holder[key], whole)
    return bad


def outcome(mapped: MappedFile, seed: int) -> str:
    """`refused` or `ran`, of the file with the edits of a seed; anything else is an exception.

    An edit of a hash of the header is no matter here: that stands for a file whose author writes the hashes, too.
    """
    header = mutated(dict(mapped.header), random.Random(seed))
    try:
        held = program_of(replace(mapped, header=header))
    except FileProblemError as error:
        return refused(error)
    try:
        with NativeRunner(held, threads=1, isa="portable", finite_check=False) as runner:
            for batch in BATCHES:
                runner.run(example_inputs(call_of_record(held.record), batch, 0))
    except DqError as error:
        return refused(error)
    return "ran"


def refused(error: DqError) -> str:
    """That it is, in one line."""
    assert "\n" not in str(error)
    return "refused"


class SeparateMemory(ArenaMemory):
    """A buffer each, as long as the program says and no longer: a sanitizer sees every step outside of it."""

    def base(self, view: View) -> np.ndarray[Any, Any]:
        """The flat array a view looks into."""
        if isinstance(view.buffer, str):
            return self.constants.base(view)
        if not hasattr(self, "own"):
            self.own = [np.zeros(buffer.elements, buffer.dtype) for buffer in self.program.buffers]
        return self.own[view.buffer]


if __name__ == "__main__":
    executor.ArenaMemory = SeparateMemory  # type: ignore[misc]
    opened = read_file(Path(sys.argv[1]))
    results = [outcome(opened, seed) for seed in range(int(sys.argv[2]))]
    print(results.count("refused"), results.count("ran"))
