"""Weight codes that are held in another form than the record's, and made each time they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dq_deploy.numerics.arrays import F32, I32
from dq_deploy.record.values import Part


@dataclass(frozen=True, kw_only=True)
class StoredCodes:
    """Codes of one part.

    Attributes:
        shape: of `w_code`.
        code_span: least and greatest code.
        q_weight_span: least and greatest w_q.
        read: makes `w_code`, int8 of that shape.
    """

    shape: tuple[int, ...]
    code_span: tuple[int, int]
    q_weight_span: tuple[int, int]
    read: Callable[[], NDArray[np.int8]]


class StoredPart(Part):
    """A part whose codes are made when they are asked for and not kept: its weights are held once.

    Attributes:
        codes: where they come from.
    """

    codes: StoredCodes

    def __init__(
        self,
        codes: StoredCodes,
        *,
        pre: F32,
        scale: F32,
        zero_point: I32,
        w_zero_point: I32,
        weight_scale: F32,
        group_of_step: I32,
    ) -> None:
        """Check the invariants of `Part`."""
        fields = {"pre": pre, "scale": scale, "zero_point": zero_point, "w_zero_point": w_zero_point}
        fields |= {"weight_scale": weight_scale, "group_of_step": group_of_step}
        known = {"code_span": codes.code_span, "q_weight_span": codes.q_weight_span}
        self.__dict__.update(fields, codes=codes, **known)  # the spans are cached properties
        self.__post_init__()

    @property
    def w_code(self) -> NDArray[np.int8]:
        """The codes, made now."""
        return self.codes.read()

    @property
    def w_shape(self) -> tuple[int, ...]:
        """Shape of `w_code`; they are not made for it."""
        return self.codes.shape

    def _check_codes(self) -> None:
        """Of the reader."""
