"""Runs a program on the CPU kernels: one block of memory, one list of calls, no torch."""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

import numpy as np
from dq_kernels import int_linear_codes
from dq_kernels.attention import codes_fit
from dq_kernels.cpu.library import Context, aligned_empty, call_list
from numpy.typing import NDArray

from dq_deploy.engines.base import reason_of
from dq_deploy.engines.turns import Turns
from dq_deploy.errors import DqError, InputError, ModelError, NonFiniteError
from dq_deploy.native.cpu import host_ops, reference_product
from dq_deploy.native.cpu.arguments import Bound, product_codes_struct, single_rows, struct_of
from dq_deploy.native.observe.layer_values import PRODUCTS, readers_of
from dq_deploy.native.program.arena import Arena, plan_arena
from dq_deploy.native.program.attention_tables import attention_tables
from dq_deploy.native.program.by_sizes import ProgramsBySize, Sizes, Varying
from dq_deploy.native.program.entries import entry_counts
from dq_deploy.native.program.joins import without_join_copies
from dq_deploy.native.program.layer_constants import FloatConstants, LayerConstants, padded_parts, refusal
from dq_deploy.native.program.product_codes import ProductCodes, product_codes
from dq_deploy.native.program.program import Op, Program, View, at_batch, check_bounds, from_json
from dq_deploy.numerics import step_bucket
from dq_deploy.record import Record

KEPT_PLANS = 4
"""Batch sizes whose memory and calls are kept, whatever they take."""

MOST_PLANS = 16
"""As many are kept where all together take little."""

LITTLE_BYTES = 2**28
"""That is little."""

TIMESTEP = "timestep"

LARGEST_SUM = 2**31 - 1
"""That an accumulator holds."""


class ArenaMemory:
    """The memory of one batch size: buffers in one block, parameters where they lie."""

    def __init__(self, program: Program, arena: Arena, constants: FloatConstants) -> None:
        self.program, self.arena, self.constants = program, arena, constants
        self.block: NDArray[np.uint8] = aligned_empty((max(arena.nbytes, 1),), np.uint8)

    def base(self, view: View) -> NDArray[Any]:
        """The flat array a view looks into."""
        if isinstance(view.buffer, str):
            return self.constants.base(view)
        buffer = self.program.buffers[view.buffer]
        start = self.arena.offsets[view.buffer]
        return self.block[start : start + buffer.elements * buffer.itemsize].view(buffer.dtype)

    def address(self, view: View) -> int:
        """Address of a view's first element."""
        base = self.base(view)
        return int(base.ctypes.data + view.offset * base.itemsize)

    def array(self, view: View) -> NDArray[Any]:
        """A view as a numpy array over the same bytes."""
        base = self.base(view)[view.offset :]
        strides = tuple(s * base.itemsize for s in view.strides)
        return np.lib.stride_tricks.as_strided(base, view.sizes, strides, writeable=not isinstance(view.buffer, str))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A program for one batch size, ready to run.

    Attributes:
        program: with sizes filled in.
        memory: of its buffers.
        bound: what its structs refer to.
        structs: by op index; ops of the host have none.
        at_once: by the index of a linear layer, the call that stands for it and for the ops behind it that make codes
            of its result; they have structs of their own too, for a look at what lies between.
        pieces: what runs in order: lists of calls, and functions.
        nbytes: of its memory.
    """

    program: Program
    memory: ArenaMemory
    bound: Bound
    structs: Mapping[int, c.Structure]
    at_once: Mapping[int, tuple[ProductCodes, c.Structure]]
    pieces: tuple[c.Array[Any] | Callable[[], None], ...]
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a file brings beside a record.

    Attributes:
        packed: weights packed for the context's instruction set, by layer and part; others are packed here.
        check: refuses a program of a batch, as it will run, that leaves its memory; None where it was traced here.
    """

    packed: Mapping[tuple[str, int], NDArray[np.uint8]] = field(default_factory=dict)
    check: Callable[[Program, int], None] | None = None


class CpuExecutor:
    """A record's program on this CPU.

    Attributes:
        context: threads and instruction set.
        record: the quantized denoiser.
        constants: packed weights and tables of each layer part.
        joined: the program for every batch size.
        edges: between step buckets.
        programs: the programs at other sizes.
        given: what a file brought.
        attention: what attention's products are computed in.
        tables: quantizers of attentions.
        floats: float parameters and folded values.
        lock: held by whoever runs, because the memory of a batch size is one for all threads.
    """

    def __init__(
        self,
        joined: Mapping[str, Any],
        record: Record,
        context: Context,
        varying: Varying | None = None,
        given: Given | None = None,
        *,
        attention: str = "float32",
    ) -> None:
        """Pack the weights, or take those that are packed.

        Args:
            joined: the program for every batch size, at the first sizes.
            record: its layers and parameters.
            context: threads; closed by `close`.
            varying: sizes of that program, and how others are made.
            given: what a file brought beside the record.
            attention: what attention's products are computed in.
        """
        self.attention = attention
        self.given = given or Given()
        self.context, self.record, self.joined = context, record, joined
        self.edges = np.asarray(record.step_edges, np.float32)
        self.programs = ProgramsBySize(joined, record, varying)
        self.floats = self.programs.floats
        self.constants: dict[tuple[str, int], LayerConstants] = {}
        for (name, part), padded in padded_parts(from_json(at_batch(joined, 1)), record.layers).items():
            packed = self.given.packed.get((name, part))
            self.constants[name, part] = LayerConstants(
                record.layers[name], part, context, padded=padded, packed=packed
            )
        self.tables = attention_tables(record)
        self._check_some_in_codes()
        self._plans: dict[tuple[int, Sizes], Plan] = {}
        self.lock = Turns("native")

    def plan_of(self, feeds: Mapping[str, NDArray[Any]]) -> Plan:
        """Memory and calls for the sizes that inputs have; see `plan`."""
        return self.plan(len(feeds[TIMESTEP]), self.programs.sizes_of(feeds))

    def plan(self, batch: int, sizes: Sizes | None = None) -> Plan:
        """Memory and calls of one batch size; made once, those used last are kept.

        Args:
            batch: samples.
            sizes: that vary besides it; None for those the engine was opened with.

        Raises:
            InputError: the executor is closed, or there is no memory for such a batch.
            ModelError: the denoiser cannot be traced at these sizes.
        """
        key = (batch, self.programs.first if sizes is None else sizes)
        with self.lock:
            plan = self._plans.pop(key, None)
            while plan is None and len(self._plans) >= self._kept():
                self._plans.pop(next(iter(self._plans)))
            self._plans[key] = plan or self._planned(*key)
            return self._plans[key]

    def _kept(self) -> int:
        """How many plans are kept now."""
        return MOST_PLANS if sum(plan.nbytes for plan in self._plans.values()) < LITTLE_BYTES else KEPT_PLANS

    def kept_plans(self) -> Mapping[tuple[int, Sizes], Plan]:
        """The plans that were made, by samples and the sizes that vary besides."""
        return dict(self._plans)

    def layer_order(self, feeds: Mapping[str, NDArray[Any]]) -> list[str]:
        """Module paths of the integer layers, in the order in which a step runs them."""
        products = [op for op in self.plan_of(feeds).program.ops if op.kind in PRODUCTS]
        return list(dict.fromkeys(str(op.attributes["layer"]) for op in products))

    def _planned(self, batch: int, sizes: Sizes) -> Plan:
        joined, floats = self.programs.of(sizes)
        program = without_join_copies(from_json(at_batch(joined, batch)))
        of_one = program if batch == 1 else without_join_copies(from_json(at_batch(joined, 1)))
        self._check_parts(program)
        named = {v for op in program.ops for v in op.views() if isinstance(v.buffer, str)}
        check_bounds(program, batch, {str(v.buffer): floats.base(v).size for v in named})
        if self.given.check is not None and sizes == self.programs.first:
            self.given.check(program, batch)
        self._check_attention(program)
        joined_codes = self._product_codes(program)
        arena = plan_arena(program, [(found.first, found.last) for found in joined_codes])
        try:
            memory = ArenaMemory(program, arena, floats)
        except MemoryError as error:
            needed = f"{arena.nbytes / 2**30:.1f} GiB"
            raise InputError(f"a batch of {batch} takes {needed}, expected less; run it in parts") from error
        bound = Bound(
            memory=memory,
            constants=self.constants,
            steps={rows: np.zeros(rows, np.int32) for rows in entry_counts(program, self.record, batch)},
            nan_seen=np.zeros(max(len(program.ops), 1), np.int32),
            single_rows=single_rows(program, of_one),
            attention=self.attention,
            tables=self.tables if self.attention == "int8" else {},
        )
        hosts = {index: self._host_function(op, memory, bound) for index, op in enumerate(program.ops)}
        structs = {i: struct_of(bound, op, i) for i, op in enumerate(program.ops) if hosts[i] is None}
        at_once = {found.first: (found, product_codes_struct(bound, program, found)) for found in joined_codes}
        return Plan(
            program=program,
            memory=memory,
            bound=bound,
            structs=structs,
            at_once=at_once,
            pieces=tuple(_pieces(program, structs, at_once, hosts)),
            nbytes=arena.nbytes,
        )

    def _product_codes(self, program: Program) -> tuple[ProductCodes, ...]:
        """Layers whose codes are made at once; not of layers that numpy does, nor where tiles multiply."""
        if int_linear_codes.supports(self.context.isa):
            return ()

        def by_kernel(found: ProductCodes) -> bool:
            given = program.ops[found.first].attributes
            return not self.constants[given["layer"], given["part"]].reason

        return tuple(found for found in product_codes(program) if by_kernel(found))

    def _check_parts(self, program: Program) -> None:
        """A program at other sizes calls the layers that were packed, and pads none that cannot be padded."""
        for (name, part), padded in padded_parts(program, self.record.layers).items():
            own = self.constants.get((name, part))
            reason = "it is not called at the first sizes" if own is None else ""
            if own is not None and padded and not own.reason:
                reason = refusal(self.record.layers[name], part, padded=True)
            if reason:
                raise ModelError(f"layer {name} cannot run at these sizes: {reason}; open the record at these sizes")

    def _check_attention(self, program: Program) -> None:
        """Keys and values of every attention in codes fit a thread's scratch, and their sums an int32."""
        for op in program.ops if self.attention == "int8" else ():
            name = op.attributes.get("name", "")
            if name not in self.tables:
                continue
            keys, features = op.reads["k"].sizes[2:]
            why = "" if codes_fit(keys, features) else "which do not fit as codes"
            if not why and self.tables[name].largest_sum(keys, features) > LARGEST_SUM:
                why = "whose sums of codes an int32 does not hold"
            if why:
                raise InputError(
                    f"attention {name} has {keys} keys of {features} features, {why}; take `attention` bf16 or float32"
                )

    def _check_some_in_codes(self) -> None:
        """Where codes are asked for, at least one attention runs in them."""
        if self.attention != "int8":
            return
        ops = from_json(at_batch(self.joined, 1)).ops
        if not any(op.kind == "attention" and op.attributes.get("name") in [*self.tables] for op in ops):
            raise InputError(
                "attention is int8, but no attention that has quantizers can run on codes: "
                f"{next(iter(self.tables))} has a mask, or fewer heads of keys than of queries; take bf16 or float32"
            )

    def _host_function(self, op: Op, memory: ArenaMemory, bound: Bound) -> Callable[[], None] | None:
        if op.kind == "host":
            reads = {role: memory.array(view) for role, view in op.reads.items()}
            writes = {role: memory.array(view) for role, view in op.writes.items()}
            given = op.attributes

            def small() -> None:
                try:
                    host_ops.call(given, reads, writes)
                except (ArithmeticError, LookupError, TypeError, ValueError) as error:
                    raise InputError(
                        f"native failed in the operation {given['function']}: {reason_of(error)}; check the inputs' "
                        "values"
                    ) from error

            return small
        if op.kind in PRODUCTS:
            own = self.constants[op.attributes["layer"], op.attributes["part"]]
            if own.reason:
                reads = {role: memory.array(view) for role, view in op.reads.items()}
                y = memory.array(op.writes["y"])

                def product() -> None:
                    try:
                        y[...] = reference_product.output(own, op, reads, bound.step_of(op.reads["codes"]))
                    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
                        raise DqError(
                            f"native failed in layer {own.layer.name}: {reason_of(error)}; verify it with dq-verify"
                        ) from error

                return product
        return None

    def fill(self, plan: Plan, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Write the inputs and the step buckets."""
        for name, view in plan.program.inputs.items():
            plan.memory.array(view)[...] = feeds[name]
        plan.bound.fill(step_bucket(feeds[TIMESTEP], self.edges))
        plan.bound.nan_seen[...] = 0

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one step.

        Args:
            feeds: inputs by name.

        Returns:
            Outputs by name, contiguous.

        Raises:
            NonFiniteError: a NaN reached a quantizer; the message names the layer.
        """
        with self.lock:
            plan = self.plan_of(feeds)
            self.fill(plan, feeds)
            for piece in plan.pieces:
                if callable(piece):
                    piece()
                else:
                    self.context.run(piece)
            self.check_nan(plan)
            return outputs_of(plan)

    def call_at_once(self, plan: Plan, last: int) -> None:
        """Behind an op run by itself: the call that stands for it in a run, if it is the last of one's.

        Who looks at every op does so: the codes are then those of the call that runs, their values the single ops'.
        """
        for found, args in plan.at_once.values():
            if found.last == last:
                self.context.call("int_linear_codes", args)

    def check_nan(self, plan: Plan) -> None:
        """Name the first layer whose input held a NaN."""
        if plan.bound.nan_seen.any():
            index = int(np.flatnonzero(plan.bound.nan_seen)[0])
            op = plan.program.ops[index]
            names = readers_of(op)
            raise NonFiniteError(
                f"a NaN reached the input of {names}, from finite inputs; look at the layers before it with dq-verify"
            )

    def timed(self, feeds: Mapping[str, NDArray[Any]]) -> Iterator[tuple[Op, float]]:
        """Run one step op by op; each op with its microseconds, those that numpy does among them.

        Ops that are done in one have their time at the first.
        """
        found: list[tuple[Op, float]] = []
        with self.lock:
            plan = self.plan_of(feeds)
            self.fill(plan, feeds)
            behind = {i for found, _ in plan.at_once.values() for i in range(found.first + 1, found.last + 1)}
            kernels = iter(i for i in range(len(plan.program.ops)) if i in plan.structs and i not in behind)
            hosts = iter(op for index, op in enumerate(plan.program.ops) if index not in plan.structs)
            for piece in plan.pieces:
                if callable(piece):
                    begin = perf_counter_ns()
                    piece()
                    found.append((next(hosts), (perf_counter_ns() - begin) / 1e3))
                    continue
                for spent in self.context.run_timed(piece):
                    first = next(kernels)
                    last = plan.at_once[first][0].last if first in plan.at_once else first
                    times = [float(spent) / 1e3] + [0.0] * (last - first)
                    found += zip(plan.program.ops[first : last + 1], times, strict=True)
        yield from found

    def close(self) -> None:
        """End the threads and free the memory."""
        if self.lock.close():
            self._plans.clear()
            self.programs.clear()
            self.context.close()


def _pieces(
    program: Program,
    structs: Mapping[int, c.Structure],
    at_once: Mapping[int, tuple[ProductCodes, c.Structure]],
    hosts: Mapping[int, Callable[[], None] | None],
) -> Iterator[c.Array[Any] | Callable[[], None]]:
    """What runs in order: a list of calls as long as no function of the host stands between them."""
    calls: list[tuple[str, c.Structure]] = []
    done = -1
    for index, op in enumerate(program.ops):
        function = hosts[index]
        if function is not None:
            if calls:
                yield call_list(calls)
            calls = []
            yield function
        elif index in at_once:
            found, args = at_once[index]
            calls.append(("int_linear_codes", args))
            done = found.last
        elif index > done:
            calls.append((op.kind, structs[index]))
    if calls:
        yield call_list(calls)


def outputs_of(plan: Plan) -> dict[str, NDArray[Any]]:
    """Copies of a plan's outputs by name, contiguous."""
    return {name: np.array(plan.memory.array(view), order="C") for name, view in plan.program.outputs.items()}
