"""Quantizers of attention's two products in a foreign state dict: kept in the record, which runs those in float."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from dq_deploy.errors import DqError
from dq_deploy.numerics.arrays import F32, I32, Array
from dq_deploy.readers.architectures.module_paths import Architecture
from dq_deploy.readers.formats.quantizer_tensors import Source, positive, whole
from dq_deploy.readers.tensors import Tensors
from dq_deploy.record import AttentionQuantizers, CodeTable

_QUANTIZER = re.compile(r"(?P<path>.+?)(?:\.attention\.(?:qkv|smv)_matmul)?\.act_quantizer_(?P<role>[qkvw])")
_QUERIES = ("qkv", "to_q", "q")
"""Names of the projection that makes queries, beside which a source keeps the quantizers."""
_ROLES = {"q": "q", "k": "k", "v": "v", "w": "p"}


class _LeftOut(Exception):
    """Why a quantizer has no place in the record."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """How a source stores such a quantizer.

    Attributes:
        scale: of the tensor beside the quantizer's name.
        zero_point: likewise.
        signed: whether symmetric activations have codes around zero.
    """

    scale: str
    zero_point: str
    signed: bool


def read_attention(
    tensors: Tensors, source: Source, names: Names, *, one_table: Callable[[Array, str], Array], steps: int
) -> tuple[dict[str, dict[str, CodeTable]], dict[str, str]]:
    """Tables by diffusers attention and role, in the file's order of steps, and why others are left out, by name.

    Args:
        tensors: of the file; what belongs to these quantizers counts as asked for.
        source: settings and network.
        names: of the source's tensors.
        one_table: [T] or [1] numbers of a tensor, as for layers.
        steps: entries of the layers' tables; others do not fit the record.
    """
    found: dict[str, dict[str, CodeTable]] = {}
    left_out: dict[str, str] = {}
    quantizers = sorted({n.rpartition(".")[0] for n in tensors if _QUANTIZER.fullmatch(n.rpartition(".")[0])})
    for quantizer in quantizers:
        match = _QUANTIZER.fullmatch(quantizer)
        assert match is not None
        tensors.set_aside(f"{quantizer}.")
        try:
            attention = _attention(match["path"], source.architecture)
            role = _ROLES[match["role"]]
            found.setdefault(attention, {})[role] = _table(tensors, quantizer, role, source, names, one_table, steps)
        except _LeftOut as reason:
            left_out[quantizer] = str(reason)
        except DqError as error:
            left_out[quantizer] = f"its numbers are no quantizer: {error}"
    return {name: tables for name, tables in found.items() if tables}, left_out


def _attention(path: str, architecture: Architecture) -> str:
    for end in _QUERIES:
        targets = architecture.targets.get(f"{path}.{end}")
        if targets is not None:
            return targets[0].name.removesuffix(".to_q")
    raise _LeftOut("the network has no attention of this name")


def _table(
    tensors: Tensors,
    quantizer: str,
    role: str,
    source: Source,
    names: Names,
    one_table: Callable[[Array, str], Array],
    steps: int,
) -> CodeTable:
    if role == "p" and source.settings.softmax_bits is None:
        raise _LeftOut("the settings do not give softmax_bits")
    bits = source.settings.softmax_bits if role == "p" else source.settings.activation_bits
    assert bits is not None
    values = []
    for name in (names.scale, names.zero_point):
        key = f"{quantizer}.{name}"
        if key not in tensors:
            raise _LeftOut(f"the file has no {name} for it")
        value = tensors.take(key)
        rows = value.reshape(len(value) if value.ndim else 1, -1)
        if value.size == 0 or (value.ndim > 1 and (rows != rows[:, :1]).any()):
            raise _LeftOut("its scales differ along what its product sums over")
        values.append(one_table(value, f"{tensors.source}: {key}"))
    scale: F32 = positive(values[0], f"{quantizer}.{names.scale}")
    zero: I32 = whole(values[1], f"{quantizer}.{names.zero_point}")
    if len(scale) != len(zero) or len(scale) not in (1, steps):
        raise _LeftOut(f"it has {len(scale)} scales and {len(zero)} zero points, the layers have {steps} steps")
    signed = names.signed and source.settings.symmetric_activations and role != "p"
    if signed and zero.any():
        raise _LeftOut("its zero points are not 0, though the settings say symmetric_activations")
    q_min = -(2 ** (bits - 1)) if signed else 0
    return CodeTable(bits=bits, q_min=q_min, q_max=q_min + 2**bits - 1, scale=scale, zero_point=zero)


def by_time(tables: Mapping[str, Mapping[str, CodeTable]], order: Array | None) -> dict[str, AttentionQuantizers]:
    """The quantizers with their tables in the order of rising timesteps.

    Args:
        tables: by attention and role.
        order: place of each rising timestep in the tables, or None where they lie so.
    """
    sorted_tables: dict[str, AttentionQuantizers] = {}
    for name, own in tables.items():
        turned = {}
        for role, table in own.items():
            rows = slice(None) if order is None or len(table.scale) == 1 else order
            turned[role] = CodeTable(
                bits=table.bits,
                q_min=table.q_min,
                q_max=table.q_max,
                scale=np.ascontiguousarray(table.scale[rows]),
                zero_point=np.ascontiguousarray(table.zero_point[rows]),
            )
        sorted_tables[name] = AttentionQuantizers(name=name, tables=turned)
    return sorted_tables
