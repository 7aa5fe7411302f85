"""The native engine's program once more, with every integer layer replaced by the numerics.

All else is done by the same kernels on the same memory: norms, attention, additions. So this is the record simulated
inside the engine's own float operations. On the way each operation that writes codes or a product runs in the engine's
kernel too, from the same memory, and what it writes (bias, time row and residual included) is compared bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from dq_deploy.native.cpu.executor import CpuExecutor, Plan
from dq_deploy.native.program.program import Op
from dq_deploy.numerics import accumulate_conv2d, accumulate_linear, bias_of_samples, row_steps, table_at
from dq_deploy.numerics.arrays import Array
from dq_deploy.record import Layer, Record
from dq_deploy.verify.layers.outputs import different_bits
from dq_deploy.verify.layers.tally import Difference
from dq_deploy.verify.native.ops import codes_of, float_values

PRODUCTS = ("int_linear", "int_conv2d")


class Twin:
    """Runs a program with the numerics in the integer layers' place.

    Attributes:
        differences: by layer, the first value of the engine's that is not the numerics'; axes are the program's.
    """

    def __init__(self, executor: CpuExecutor, record: Record) -> None:
        """Take an opened engine.

        Args:
            executor: of the engine.
            record: whose numbers the numerics take; not asked of the engine.
        """
        self.executor, self.record = executor, record
        self.differences: dict[str, Difference] = {}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, those of the numerics inside the engine's float operations."""
        plan = self.executor.plan_of(feeds)
        self.executor.fill(plan, feeds)
        hosts = iter(piece for piece in plan.pieces if callable(piece))
        for index, op in enumerate(plan.program.ops):
            if op.kind in PRODUCTS:
                self._product(plan, index, op, hosts)
            elif index not in plan.structs:
                next(hosts)()
            elif op.attributes.get("outs"):
                self._codes(plan, index, op)
            else:
                self.executor.context.call(op.kind, plan.structs[index])
        return {n: np.ascontiguousarray(plan.memory.array(v)).copy() for n, v in plan.program.outputs.items()}

    def _codes(self, plan: Plan, index: int, op: Op) -> None:
        value = float_values(self.executor, plan, index, op)
        self.executor.call_at_once(plan, index)
        for place, out in enumerate(op.attributes["outs"]):
            layer = self.record.layers[out["layer"]]
            part = layer.parts[out["part"]]
            piece = np.ascontiguousarray(value[:, :, out["first"] : out["first"] + out["channels"]])
            written = plan.memory.array(op.writes[f"codes{place}"])
            want = codes_of(layer, part, piece, plan.bound.steps[len(piece)])
            self._told(layer, "code", written, want, plan)
            written[...] = want

    def _product(self, plan: Plan, index: int, op: Op, hosts: Iterator[Callable[[], None]]) -> None:
        layer = self.record.layers[op.attributes["layer"]]
        y = plan.memory.array(op.writes["y"])
        reads = {role: plan.memory.array(view).copy() for role, view in op.reads.items()}
        if index in plan.structs:
            self.executor.context.call(op.kind, plan.structs[index])
        else:
            next(hosts)()
        want = _stored(layer, op, reads, y.shape, plan.bound.step_of(op.reads["codes"]))
        self._told(layer, "sum with what is added to it", y, want, plan)
        y[...] = want

    def _told(self, layer: Layer, what: str, got: Array, want: Array, plan: Plan) -> None:
        """Note the first difference of a layer."""
        wrong = different_bits(got, want)
        if layer.name in self.differences or not wrong.any():
            return
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        bucket = int(plan.bound.steps[len(got)][at[0]])
        self.differences[layer.name] = Difference(
            layer=layer.name,
            part=0,
            tensor=what,
            bucket=bucket,
            timestep=float(self.record.timesteps[bucket]),
            coordinate=at[1:],
            got=float(got[at]),
            expected=float(want[at]),
        )


def _stored(layer: Layer, op: Op, reads: Mapping[str, Array], like: tuple[int, ...], step: Array) -> Array:
    """What a product must write, in the axes of its `y`: products and sums in the order the kernels promise."""
    part = layer.parts[op.attributes["part"]]
    z = (table_at(part.zero_point, step) - layer.q_min).reshape(-1, 1, 1)
    centred = reads["codes"].astype(np.int32) - z
    group = table_at(part.group_of_step, step)
    total = np.stack([_accumulated(layer, op, c, part.q_weight(int(g))) for c, g in zip(centred, group, strict=True)])
    factor = (table_at(part.scale, step)[:, None] * part.weight_scale[group]).astype(np.float32)
    image = layer.kind == "conv2d"
    y = total.astype(np.float32) * factor[(..., None, None) if image else (slice(None), None)]
    y = y.astype(np.float32).reshape(like)
    if "previous" in reads:
        y = (reads["previous"].astype(np.float32) + y).astype(np.float32)
    if op.attributes["final"] and layer.bias is not None:
        bias = bias_of_samples(layer.bias, y.ndim, 1 if image else y.ndim - 1, row_steps(step, len(y), static=True))
        y = (y + bias).astype(np.float32)
    if "row" in reads:
        y = (y + reads["row"][:, :, None, None]).astype(np.float32)
    if "residual" in reads:
        y = (reads["residual"] + y).astype(np.float32)
    stored: Array = y
    return stored


def _accumulated(layer: Layer, op: Op, centred: Array, q: Array) -> Array:
    """A of one sample: [C_out, H, W] or [rows, C_out]."""
    if layer.kind == "linear":
        return accumulate_linear(centred, q)
    image = centred.reshape(*op.attributes["in_size"], -1).transpose(2, 0, 1)[None]
    total: Array = accumulate_conv2d(image, q, layer.window.padded_by(op.padded), groups=layer.groups)[0]
    return total
