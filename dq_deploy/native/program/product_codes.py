"""Linear layers whose result only a quantizer reads: a CPU makes their codes at once and writes the result nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dq_kernels.cpu.structs import GATED_CHANNELS
from dq_kernels.int_linear_codes import ACTIVATIONS

from dq_deploy.native.program.program import Op, Program, View
from dq_deploy.native.program.views import has_even_rows, rows_view


@dataclass(frozen=True, kw_only=True)
class ProductCodes:
    """Ops that follow each other and can be done in one.

    Attributes:
        first: the layer's, by its place in the program.
        last: that which writes the codes.
        activation: what stands between them, of `ACTIVATIONS`.
        gated: GEGLU in its place.
    """

    first: int
    last: int
    activation: str = "copy"
    gated: bool = False


def product_codes(program: Program) -> tuple[ProductCodes, ...]:
    """Every linear layer with codes of its result right behind it, in order."""
    touched: dict[int | str, set[int]] = {}
    for index, op in enumerate(program.ops):
        for view in op.views():
            touched.setdefault(view.buffer, set()).add(index)
    seen = {view.buffer for view in (*program.inputs.values(), *program.outputs.values())}
    return tuple(_found(program.ops, touched, seen))


def _found(ops: tuple[Op, ...], touched: dict[int | str, set[int]], seen: set[int | str]) -> Iterator[ProductCodes]:
    def passes(view: View, index: int) -> bool:
        """Whether a value goes from an op to the next one and nowhere else."""
        return view.buffer not in seen and touched[view.buffer] == {index, index + 1}

    for index, op in enumerate(ops[:-1]):
        if op.kind != "int_linear" or not op.attributes["final"] or {"previous", "residual"} & set(op.reads):
            continue
        rows = made = _rows(op.writes["y"])
        if rows is None or rows.sizes[:2] != op.reads["codes"].sizes[:2] or not passes(rows, index):
            continue
        found, behind = ProductCodes(first=index, last=index + 1), ops[index + 1]
        if behind.kind == "elementwise" and behind.attributes["function"] in ACTIVATIONS and index + 2 < len(ops):
            rows = _rows(behind.writes["y"])
            if _rows(behind.reads["a"]) != made or rows is None or not passes(rows, index + 1):
                continue
            found = ProductCodes(first=index, last=index + 2, activation=str(behind.attributes["function"]))
            behind = ops[index + 2]
        elif behind.kind == "geglu_quantize" and rows.sizes[2] % (2 * GATED_CHANNELS) == 0:
            found = ProductCodes(first=index, last=index + 1, gated=True)
        one = behind.kind == ("geglu_quantize" if found.gated else "quantize") and set(behind.writes) == {"codes0"}
        if one and behind.reads["x"] == rows and behind.writes["codes0"].buffer != op.reads["codes"].buffer:
            yield found


def _rows(view: View) -> View | None:
    return rows_view(view, -1) if has_even_rows(view, -1) else None
