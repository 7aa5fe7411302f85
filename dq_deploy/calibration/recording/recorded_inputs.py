"""What a denoiser was given in sampling runs: rows, and of which step and picture each is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from dq_deploy.calibration.recording.calls import TIMESTEP
from dq_deploy.calibration.recording.rows import InputRows
from dq_deploy.calibration.sharding.rows import in_pieces
from dq_deploy.numerics.arrays import F32, I64, Array


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedInputs:
    """What the denoiser was given on the way from noise to pictures.

    Attributes:
        rows: inputs, as they came.
        timesteps: [T] float32, strictly increasing.
        step: [M] int64, index of each row's timestep.
        picture: [M] int64, which picture a row is of.
        pictures: how many were drawn.
        asked: how many were asked for; more than `pictures` where neither memory nor disk held them.
    """

    rows: InputRows
    timesteps: F32
    step: I64
    picture: I64
    pictures: int
    asked: int

    @property
    def least(self) -> int:
        """Rows of the step that has the fewest."""
        return int(np.bincount(self.step, minlength=len(self.timesteps)).min())

    def flat(self) -> dict[str, Array]:
        """Every row, the steps in turn: the first of each step from the lowest timestep up, the second of each ...

        Returns:
            The inputs by name [M, ...], `step` [M] int64 and `trajectory` [M] int64, the picture.
        """
        return self._taken(np.lexsort((self.step, self._nth())))

    def at(self, step: I64, nth: I64) -> dict[str, Array]:
        """Inputs by name, as `flat` gives them: entry i is the nth[i]-th row of step[i]."""
        order = np.lexsort((self._nth(), self.step))
        first = np.concatenate([[0], np.cumsum(np.bincount(self.step, minlength=len(self.timesteps)))])
        return self._taken(order[first[step] + nth])

    def _nth(self) -> I64:
        """Which row of its step each is, [M] from 0."""
        order = np.argsort(self.step, kind="stable")
        first = np.concatenate([[0], np.cumsum(np.bincount(self.step, minlength=len(self.timesteps)))])
        nth = np.empty(len(self.step), np.int64)
        nth[order] = np.arange(len(order)) - first[self.step[order]]
        return nth

    def _taken(self, index: I64) -> dict[str, Array]:
        return {**self.rows.ordered(index), "step": self.step[index], "trajectory": self.picture[index]}


class Drawn:
    """Rows as they are recorded, and of which timestep and picture each is."""

    def __init__(self, rows: InputRows) -> None:
        self.rows = rows
        self._times: list[F32] = []
        self._owners: list[I64] = []

    def note(self, own: Mapping[str, Array], owners: I64) -> None:
        """Of which timesteps, as the rows say, and pictures the next rows are."""
        self._times.append(np.asarray(own[TIMESTEP]))
        self._owners.append(owners)

    def pieces(self) -> Iterator[tuple[dict[str, Array], dict[str, Array], I64]]:
        """The rows, what they share, and their pictures, some at a time."""
        if not self.rows.count:
            return
        found = self.rows.ordered(np.arange(self.rows.count, dtype=np.int64))
        shared = {name: np.array(value[0]) for name, value in found.items() if value.ndim and not value.strides[0]}
        own = {name: value for name, value in found.items() if name not in shared}
        owners, start = np.concatenate(self._owners), 0
        for piece in in_pieces(own, 0, self.rows.count):
            stop = start + len(piece[TIMESTEP])
            yield piece, shared, owners[start:stop]
            start = stop

    def recorded(self, rows: InputRows, *, pictures: int, asked: int) -> RecordedInputs:
        """All rows with their steps."""
        timesteps, step = np.unique(np.concatenate(self._times), return_inverse=True)
        return RecordedInputs(
            rows=rows,
            timesteps=timesteps,
            step=step.reshape(-1).astype(np.int64),
            picture=np.concatenate(self._owners),
            pictures=pictures,
            asked=asked,
        )
