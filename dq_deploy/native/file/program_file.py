"""What an opened program file holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dq_deploy.record import Record

PartPlace = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class ProgramFile:
    """An opened program file, checked whole.

    Attributes:
        path: of the file.
        record: the quantized denoiser; its weights are read from the packed ones each time they are asked for.
        joined: its program for every batch, at the record's own sizes.
        isa: instruction set that the weights are packed for.
        packed: packed weights, over the mapped file, by layer and part.
        nbytes: of the file.
    """

    path: Path
    record: Record
    joined: Mapping[str, Any]
    isa: str
    packed: Mapping[PartPlace, NDArray[np.uint8]]
    nbytes: int
