"""Where the buffers of a program lie in one block of memory: two share bytes only if they never live at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dq_deploy.native.program.program import Program

ALIGNMENT = 64


@dataclass(frozen=True, kw_only=True)
class Arena:
    """Byte offset of each buffer, and the size of the whole."""

    offsets: tuple[int, ...]
    nbytes: int


def lifetimes(program: Program, together: Sequence[tuple[int, int]] = ()) -> list[tuple[int, int]]:
    """First and last op that touches each buffer; inputs live from the start, outputs to the end.

    Args:
        program: of one batch size.
        together: first and last of ops that are done in one, and read while they write.
    """
    end = len(program.ops)
    spread = {index: span for span in together for index in range(span[0], span[1] + 1)}
    spans: list[tuple[int, int]] = [(end, -1) for _ in program.buffers]
    for index, op in enumerate(program.ops):
        for view in op.views():
            if isinstance(view.buffer, int):
                first, last = spans[view.buffer]
                begin, until = spread.get(index, (index, index))
                spans[view.buffer] = (min(first, begin), max(last, until))
    for view in program.inputs.values():
        if isinstance(view.buffer, int):
            spans[view.buffer] = (-1, max(spans[view.buffer][1], 0))
    for view in program.outputs.values():
        if isinstance(view.buffer, int):
            spans[view.buffer] = (spans[view.buffer][0], end)
    return spans


def plan_arena(program: Program, together: Sequence[tuple[int, int]] = ()) -> Arena:
    """Place the buffers, the largest first, each at the lowest offset where it meets no other that lives with it.

    Args:
        program: of one batch size.
        together: as of `lifetimes`.
    """
    spans = lifetimes(program, together)
    sizes = [-(-b.elements * b.itemsize // ALIGNMENT) * ALIGNMENT for b in program.buffers]
    offsets = [0] * len(sizes)
    placed: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], spans[i][0])):
        first, last = spans[index]
        others = sorted(
            (offsets[o], offsets[o] + sizes[o]) for o in placed if spans[o][0] <= last and first <= spans[o][1]
        )
        at = 0
        for low, high in others:
            if at + sizes[index] <= low:
                break
            at = max(at, high)
        offsets[index] = at
        placed.append(index)
    nbytes = max((o + s for o, s in zip(offsets, sizes, strict=True)), default=0)
    return Arena(offsets=tuple(offsets), nbytes=nbytes)
