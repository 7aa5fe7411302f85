"""Programs by the sizes that vary besides the batch: one for each choice of them, a bounded number kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dq_deploy.errors import InputError, ModelError
from dq_deploy.native.program.layer_constants import FloatConstants
from dq_deploy.numerics.arrays import Array
from dq_deploy.record import Record

KEPT_PROGRAMS = 4
"""Sizes besides the batch whose programs are kept."""

KEPT_REFUSALS = 1000
"""Sizes that the denoiser was found not to take."""

Sizes = tuple[tuple[str, int], ...]
"""Sizes that vary besides the batch, by name, in the order of the denoiser's inputs; empty where none does."""

Retrace = Callable[[Mapping[str, int]], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Varying:
    """What varies besides the batch, and how a program for other sizes is had.

    Attributes:
        retrace: makes the program at other sizes; without it there is but the first.
        sizes: of the first program, by the names of `axes`.
        axes: input and axis where each size that varies besides the batch can be read, by its name.
    """

    retrace: Retrace | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    axes: Mapping[str, tuple[str, int]] = field(default_factory=dict)


_Program = tuple[Mapping[str, Any], FloatConstants]


class ProgramsBySize:
    """Joined programs of one record with their constants. Threads may share it; one at a time makes a program.

    Attributes:
        first: sizes of the program it was made with, which is always kept.
        floats: constants of that program; those of the others share its parameters.
    """

    def __init__(self, joined: Mapping[str, Any], record: Record, varying: Varying | None = None) -> None:
        """Take the first program.

        Args:
            joined: the program for every batch size.
            record: its parameters.
            varying: sizes of that program, and how others are made; None where no size varies.
        """
        self._record, self._varying = record, varying or Varying()
        self.floats = FloatConstants(record, joined["constants"])
        self.first: Sizes = tuple((size, self._varying.sizes[size]) for size in self._varying.axes)
        self._kept: dict[Sizes, _Program] = {self.first: (joined, self.floats)}
        self._making, self._keeping = threading.Lock(), threading.Lock()
        self._refused: dict[Sizes, str] = {}

    def sizes_of(self, feeds: Mapping[str, Array]) -> Sizes:
        """Sizes that inputs have."""
        return tuple((size, feeds[name].shape[axis]) for size, (name, axis) in self._varying.axes.items())

    def of(self, sizes: Sizes) -> _Program:
        """The program at some sizes and its constants; those used last are kept.

        Raises:
            InputError: other sizes that the denoiser does not take, or nothing that makes a program for them.
        """
        found = self._used(sizes)
        if found is None:
            with self._making:
                found = self._used(sizes) or self._made(sizes)
                self._keep(sizes, found)
        return found

    def preparation(self, feeds: Mapping[str, Array]) -> Callable[[], object] | None:
        """Makes the program for the sizes that inputs have; None where it is kept."""
        sizes = self.sizes_of(feeds)
        return None if sizes in self.kept() else partial(self.of, sizes)

    def _made(self, sizes: Sizes) -> _Program:
        if sizes in self._refused:  # to trace again would take seconds and end as before
            raise InputError(self._refused[sizes])
        if self._varying.retrace is None:
            raise InputError(f"sizes are {dict(sizes)}, expected {dict(self.first)}: there is no other program")
        try:
            joined = self._varying.retrace(dict(sizes))
        except ModelError as error:  # it was traced at others, so these are to blame
            words = ", ".join(f"{name} {size}" for name, size in sizes)
            message = f"the denoiser cannot be computed at {words} ({error}); ask for other sizes"
            self._refused[sizes] = message
            while len(self._refused) > KEPT_REFUSALS:
                self._refused.pop(next(iter(self._refused)))
            raise InputError(message) from error
        return joined, FloatConstants(self._record, joined["constants"], parameters=self.floats)

    def _used(self, sizes: Sizes) -> _Program | None:
        """A program that is kept, from now on the one used last."""
        with self._keeping:
            found = self._kept.get(sizes)
            if found is not None and sizes != self.first:
                self._kept[sizes] = self._kept.pop(sizes)
        return found

    def _keep(self, sizes: Sizes, found: _Program) -> None:
        """What was not used for longest goes, but the first one."""
        with self._keeping:
            self._kept[sizes] = found
            while len(self._kept) > KEPT_PROGRAMS:
                self._kept.pop(next(key for key in self._kept if key != self.first))

    def kept(self) -> Mapping[Sizes, _Program]:
        """What is kept now, by sizes."""
        with self._keeping:
            return dict(self._kept)

    def clear(self) -> None:
        """Forget all programs."""
        with self._keeping:
            self._kept.clear()
