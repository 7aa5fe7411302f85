"""Quantizers of attention as the kernels read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from dq_kernels.attention import Table
from dq_kernels.cpu import structs

from dq_deploy.numerics.arrays import I32
from dq_deploy.record import AttentionQuantizers, Record


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionTables:
    """Of one attention.

    Attributes:
        roles: q, k and v, and p for the softmax, whatever is coded of it.
        normed: whether that is its probabilities, not their numerators.
    """

    roles: Mapping[str, Table]
    normed: bool

    def largest_sum(self, keys: int, features: int) -> int:
        """What no accumulator of either product exceeds, nor any sum the kernels make on the way to it.

        They multiply bytes: uq = cq - low_q by sk = ck - low_k - 128, and put the rest right with the sums of both.
        """
        low = {role: self._farthest(role, 0) for role in "qkv"}
        shift = {role: self._farthest(role, 128) for role in "kv"}
        first = features * (255 * 128 + 255 * shift["k"] + low["q"] * (128 + shift["k"]))
        return max(first, keys * 255 * (128 + shift["v"]))

    def _farthest(self, role: str, add: int) -> int:
        table = self.roles[role]
        return int(np.abs(table.q_min - table.zero_point.astype(np.int64) + add).max())

    def struct(self, *, step: I32, nan_seen: int) -> Any:
        """The struct of a call; the arrays belong to this object.

        Args:
            step: int32 [entries], bucket of each entry of the leading axis; must stay where it is.
            nan_seen: address of the flag.
        """
        tables = {role: table.struct() for role, table in self.roles.items()}
        return structs.AttentionCodes(**tables, step=step.ctypes.data, nan_seen=nan_seen, normed=int(self.normed))


def attention_tables(record: Record) -> dict[str, AttentionTables]:
    """Of the attentions that can run on 8-bit codes, by module path."""
    return {name: _tables(own) for name, own in record.attention.items() if not own.why_not_int8}


def _tables(own: AttentionQuantizers) -> AttentionTables:
    roles = {}
    for role, table in own.tables.items():
        roles["p" if role == "e" else role] = Table(
            q_min=table.q_min,
            q_max=table.q_max,
            scale=np.ascontiguousarray(table.scale),
            inverse=np.float32(1) / np.ascontiguousarray(table.scale),
            zero_point=np.ascontiguousarray(table.zero_point),
        )
    return AttentionTables(roles=roles, normed=own.normed)
