"""Attention in codes against the numerics: every accumulator, every code of the softmax, every output value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from dq_deploy.native.cpu.executor import TIMESTEP, CpuExecutor, Plan
from dq_deploy.native.observe.attention import HeadIntegers, in_codes, integers_of_head, run_looking
from dq_deploy.native.program.program import Op
from dq_deploy.numerics import row_steps, step_bucket
from dq_deploy.numerics.arrays import Array
from dq_deploy.numerics.attention import (
    OperandTable,
    accumulators,
    attention_output,
    score_factor,
    softmax_codes,
)
from dq_deploy.record import AttentionQuantizers, Record
from dq_deploy.verify.layers.outputs import different_bits

SCORES = 1 << 22
"""Of one attention, that are compared in one step; of larger ones some heads are, others in each step."""


@dataclass(kw_only=True)
class AttentionComparison:
    """Compares the attentions in codes of an engine, step by step.

    Attributes:
        executor: of the engine.
        record: whose tables the numerics take; not asked of the engine.
        heads: compared so far.
        codes: of the softmax, compared so far.
        accumulators: of both products, likewise.
        moved: codes that fell on the other side of a tie, as float rounding may make them.
        failures: the first difference of each attention, in words.
    """

    executor: CpuExecutor
    record: Record
    heads: int = 0
    codes: int = 0
    accumulators: int = 0
    moved: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    _turn: int = 0

    def add(self, feeds: Mapping[str, Array]) -> None:
        """Run one step and compare."""
        buckets = step_bucket(feeds[TIMESTEP], self.record.step_edges)  # not asked of the engine either

        def look(plan: Plan, index: int, op: Op) -> None:
            if in_codes(plan, index):
                self._compare(plan, index, op, buckets)

        run_looking(self.executor, feeds, look)
        self._turn += 1

    def _compare(self, plan: Plan, index: int, op: Op, buckets: Array) -> None:
        name = op.attributes["name"]
        q, k, v, y = (plan.memory.array(view) for view in (op.reads["q"], op.reads["k"], op.reads["v"], op.writes["y"]))
        entries, heads, rows, _ = q.shape
        steps = row_steps(buckets, entries, static=self.record.steps == 1)
        every = [(entry, head) for entry in range(entries) for head in range(heads)]
        count = min(len(every), max(1, SCORES // (rows * k.shape[2])))
        first = self._turn * count % len(every)
        for entry, head in (every + every)[first : first + count]:
            got = integers_of_head(self.executor, plan, index, entry, head)
            tables = _tables(self.record.attention[name], int(steps[entry]))
            values = tuple(np.ascontiguousarray(x[entry, head]) for x in (q, k, v, y))
            why = self._head(got, tables, values, float(op.attributes["scale"]), self.record.attention[name].normed)
            if why and name not in self.failures:
                t = float(self.record.timesteps[int(steps[entry])])
                self.failures[name] = f"attention {name}, timestep {t:g}, entry {entry}, head {head}: {why}"

    def _head(
        self, got: HeadIntegers, tables: Mapping[str, OperandTable], values: tuple[Array, ...], scale: float,
        normed: bool,
    ) -> str:  # fmt: skip
        """What differs first, in words, or an empty string."""
        q, k, v, y = values
        wanted = accumulators(tables["q"].codes(q), tables["k"].codes(k).T)
        self.heads += 1
        self.accumulators += got.scores.size + got.sums.size
        self.codes += got.codes.size
        if why := _first("accumulator of q and k", got.scores, wanted):
            return why
        softmax = softmax_codes(wanted, score_factor(tables["q"], tables["k"], scale), tables["softmax"], normed=normed)
        wrong = softmax.wrong(got.codes)
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            return f"code of the softmax at {at} is {got.codes[at]}, expected {softmax.position[at]:.6g} rounded"
        self.moved += int((np.rint(softmax.position) != got.codes).sum())
        cv = tables["v"].codes(v)
        if why := _first("accumulator of the softmax and v", got.sums, accumulators(got.codes.astype(np.int64), cv)):
            return why
        want = attention_output(got.sums, got.codes, tables["v"], tables["softmax"], normed=normed)
        return _first("output", got.y, want) or _first("output of the whole step", y, want)


def _first(what: str, got: Array, want: Array) -> str:
    wrong = different_bits(got, want)  # of integers in int64: one that ran over is wrong, though its low bits are right
    if not wrong.any():
        return ""
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    digits = ".9g" if got.dtype.kind == "f" else "d"
    return f"{what} at {at} is {got[at]:{digits}}, expected {want[at]:{digits}}"


def _tables(own: AttentionQuantizers, step: int) -> dict[str, OperandTable]:
    found = {}
    for role, table in own.tables.items():
        row = step if len(table.scale) > 1 else 0
        found["softmax" if role in ("p", "e") else role] = OperandTable(
            q_min=table.q_min,
            q_max=table.q_max,
            scale=np.float32(table.scale[row]),
            zero_point=int(table.zero_point[row]),
        )
    return found
