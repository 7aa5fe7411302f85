"""What a running method tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One report of a running method.

    Attributes:
        stage: `trajectory`, `ranges`, `sensitivity`, `scales`, `weights`, `rounding`, `distill`, `finetune`,
            `correction`, `pictures` or `outputs`.
        done: units done, of `total`; over all blocks for `distill`, all stages for `finetune`.
        total: units in this stage.
        block: name of the block in training, or "".
        loss: mean loss of the last iterations relative to the block output's mean square, or to the sample's for
            `pictures`; or None.
        note: a sentence to show once, or "".
    """

    stage: str
    done: int
    total: int
    block: str = ""
    loss: float | None = None
    note: str = ""


ProgressCallback = Callable[[Progress], None]


def silent(report: Progress) -> None:
    """A callback that shows nothing."""
