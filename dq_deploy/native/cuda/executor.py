"""Runs a program on an NVIDIA GPU: our Triton kernels and torch, the whole step in one CUDA graph.

The step bucket is found on the device from the timestep, so one graph serves every step. Images lie in float16,
channels last; the kernels read and write them, add in float32 and round once. Float products that no kernel of ours
does (attention, layers that are not quantized) are torch's.

Never run on a GPU. Under Triton's interpreter the same code runs on the CPU, without the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from dq_kernels.gpu.launch import launching as launch
from dq_kernels.gpu.launch.float_calls import CodeOutput
from dq_kernels.gpu.launch.product_calls import Epilogue, Window
from dq_kernels.gpu.launch.weights import make_quantizer, make_weights
from numpy.typing import NDArray

from dq_deploy.errors import InputError, NonFiniteError
from dq_deploy.native.cuda import torch_ops
from dq_deploy.native.cuda.dtypes import with_float_type
from dq_deploy.native.cuda.float32 import without_tf32
from dq_deploy.native.observe.layer_values import PRODUCTS, out_rows, readers_of
from dq_deploy.native.program.arena import Arena, plan_arena
from dq_deploy.native.program.by_sizes import ProgramsBySize, Sizes, Varying
from dq_deploy.native.program.entries import entry_counts
from dq_deploy.native.program.joined_products import columns_of, with_joined_products
from dq_deploy.native.program.joins import without_join_copies
from dq_deploy.native.program.layer_constants import FloatConstants, padded_parts, product_tables, refusal
from dq_deploy.native.program.program import Op, Program, View, at_batch, from_json
from dq_deploy.native.program.views import rows_view
from dq_deploy.numerics import reciprocal
from dq_deploy.record import Layer, Record

TIMESTEP = "timestep"
WARM_RUNS = 2
"""Runs before a graph is captured: the first compiles the kernels."""
KEPT_GRAPHS = 4
"""Batch sizes and sizes besides whose memory and graphs are kept."""
FLAG_PITCH = 4
"""int32 values from one flag to the next: 16 bytes."""
SLACK_BYTES = 1 << 16
"""Behind the block: a pitched window that begins inside a row may name bytes past its end, which nobody reads."""


def handed_on(program: Program) -> dict[int | str, Op]:
    """Buffers of what attention makes that only quantizers read, with the last of these.

    Torch's own memory is read in place of such a buffer. A reader's rows have to be without a pitch, as they are where
    they fill the buffer.
    """
    kept = {op.writes["y"].buffer for op in program.ops if op.kind == "attention"}
    kept -= {view.buffer for view in (*program.inputs.values(), *program.outputs.values())}
    for op in program.ops:
        whole = op.kind == "quantize" and op.reads["x"].strides[1] == op.reads["x"].sizes[2]
        kept -= {view.buffer for view in op.reads.values() if not whole}
        kept -= {view.buffer for view in op.writes.values() if op.kind != "attention"}
    return {op.reads["x"].buffer: op for op in program.ops if op.kind == "quantize" and op.reads["x"].buffer in kept}


Steps = Mapping[int, torch.Tensor]
"""Step bucket of each entry of a leading axis, by the length of that axis."""


class CudaMemory:
    """The memory of one batch size on a device."""

    def __init__(self, program: Program, arena: Arena, constants: FloatConstants, device: torch.device) -> None:
        self.program, self.arena, self._constants, self._device = program, arena, constants, device
        self.block = torch.zeros(arena.nbytes + SLACK_BYTES, dtype=torch.uint8, device=device)
        self._parameters: dict[str, torch.Tensor] = {}
        self.handed_on = handed_on(program)
        self._results: dict[int | str, torch.Tensor] = {}

    def hand_on(self, view: View, result: torch.Tensor) -> None:
        """Keep what torch made in place of a buffer that is `handed_on`; copied only where it lies otherwise."""
        kind = getattr(torch, self.program.buffers[int(view.buffer)].dtype)
        if result.stride() != view.strides or result.dtype != kind:
            result = torch.empty_strided(view.sizes, view.strides, dtype=kind, device=result.device).copy_(result)
        self._results[view.buffer] = result

    def let_go(self, buffer: int | str) -> None:
        """Nobody reads what was handed on any more: its memory is torch's again."""
        self._results.pop(buffer, None)

    def value(self, view: View) -> torch.Tensor:
        """As `tensor`, of what was handed on where something was."""
        kept = self._results.get(view.buffer)
        return self.tensor(view) if kept is None else torch.as_strided(kept, view.sizes, view.strides, view.offset)

    def tensor(self, view: View) -> torch.Tensor:
        """A view as a strided tensor over the block, or over a parameter in float32."""
        if isinstance(view.buffer, str):
            return torch.as_strided(self._parameter(view), view.sizes, view.strides, view.offset)
        buffer = self.program.buffers[view.buffer]
        kind = getattr(torch, buffer.dtype)
        typed = self.block[: self.block.numel() // 8 * 8].view(kind)
        first = self.arena.offsets[view.buffer] // kind.itemsize
        return torch.as_strided(typed, view.sizes, view.strides, first + view.offset)

    def rows(self, view: View) -> torch.Tensor:
        """[B, rows, pitch] from a view [B, rows, C]: what the kernels take; they read the channels alone."""
        pitch = view.strides[1]
        wide = View(
            buffer=view.buffer,
            offset=view.offset,
            sizes=(view.sizes[0], view.sizes[1], pitch),
            strides=(view.sizes[1] * pitch, pitch, 1),
        )
        return self.tensor(wide)

    def _parameter(self, view: View) -> torch.Tensor:
        name = str(view.buffer)
        if name not in self._parameters:
            self._parameters[name] = torch.from_numpy(self._constants.base(view).copy()).to(self._device)
        return self._parameters[name]


class Prepared:
    """What one batch size runs: functions in order, or a captured graph of them."""

    def __init__(self, memory: CudaMemory, functions: list[Callable[[], None]], steps: Any, nan_seen: Any) -> None:
        self.memory, self.functions, self.steps, self.nan_seen = memory, functions, steps, nan_seen
        self.graph: Any = None

    def flag_of(self, op: Op) -> torch.Tensor:
        """Where an op says that it met a NaN."""
        index = next(i for i, other in enumerate(self.memory.program.ops) if other is op)
        flag: torch.Tensor = self.nan_seen[index, :1]
        return flag

    def play(self) -> None:
        """Run once."""
        if self.graph is not None:
            self.graph.replay()
            return
        with without_tf32():
            for function in self.functions:
                function()


class CudaExecutor:
    """A record's program on one GPU.

    Attributes:
        device: where.
        dtype: float type of images.
        record: the quantized denoiser.
    """

    def __init__(
        self,
        joined: Mapping[str, Any],
        record: Record,
        *,
        device: str = "cuda",
        dtype: str = "float16",
        use_graph: bool = True,
        varying: Varying | None = None,
    ) -> None:
        """Move weights and tables to the device.

        Args:
            joined: the program for every batch size.
            record: its layers and parameters.
            device: a torch device; the CPU only under Triton's interpreter.
            dtype: `float16`, `bfloat16` or `float32`.
            use_graph: capture a CUDA graph; without one every kernel is launched from Python.
            varying: sizes of that program, and how others are made.

        Raises:
            InputError: a layer that no GPU kernel takes, with its reason.
        """
        self.device, self.dtype, self.joined = torch.device(device), dtype, joined
        self.record = record
        self._use_graph = use_graph and self.device.type == "cuda"
        self.programs = ProgramsBySize(joined, record, varying)
        self.floats = self.programs.floats
        self.edges = torch.from_numpy(np.array(record.step_edges, np.float32)).to(self.device)
        self._weights: dict[tuple[str, int], Any] = {}
        self._quantizers: dict[tuple[Any, ...], Any] = {}
        self._scales: dict[tuple[Any, ...], Any] = {}
        self._layers: dict[str, Layer] = dict(record.layers)
        self._columns: dict[str, str] = {}
        first = self._for_gpu(joined, 1)
        for (name, part), padded in padded_parts(first, self._layers).items():
            self._load(name, part, padded=padded)
        self._prepared: dict[tuple[int, Sizes], Prepared] = {}

    def _load(self, name: str, part: int, *, padded: bool) -> None:
        layer = self._layers[name]
        reason = refusal(layer, part, padded=padded)
        if reason:
            raise InputError(f"layer {name}: {reason}; the GPU has no other way, export the record instead")
        own = layer.parts[part]
        if not own.fits_int8:
            low, high = own.q_weight_span
            raise InputError(
                f"layer {name}: weights less their zero point span [{low}, {high}], GPU kernels take int8; "
                "run it on the CPU or export the record"
            )
        q = own.q_weight(0).astype(np.int8)
        q = q.transpose(0, 2, 3, 1) if q.ndim == 4 else q
        bits = 4 if own.q_weight_span[0] >= -8 and own.q_weight_span[1] <= 7 else 8
        weights = make_weights(np.ascontiguousarray(q), np.ascontiguousarray(own.weight_scale[0]), bits=bits)
        self._weights[name, part] = launch.to_device(weights, self.device)

    def _for_gpu(self, joined: Mapping[str, Any], batch: int) -> Program:
        """The program of a batch size with its concatenations and its products of the same codes joined."""
        made = with_joined_products(without_join_copies(from_json(at_batch(joined, batch))), self.record.layers)
        self._layers |= made.layers
        for op in made.program.ops:
            if op.kind in PRODUCTS:
                self._columns |= {name: str(op.attributes["layer"]) for name, _ in columns_of(op)}
        return with_float_type(made.program, self.dtype)

    def parts(self) -> list[tuple[str, int]]:
        """Layer and part of each product of the program."""
        held = set(self._weights)
        return sorted((name, part) for name, own in self._columns.items() for other, part in held if other == own)

    def weight_bits(self, name: str, part: int) -> int:
        """How a part's weights are kept: 4 or 8 bits."""
        return int(self._weights[self._columns[name], part].bits)

    def _coder(self, out: Mapping[str, Any]) -> Any:
        """Quantizer of an op that writes codes."""
        key = (out["layer"], out["part"], out["first"])
        if key not in self._quantizers:
            layer = self.record.layers[out["layer"]]
            own = layer.parts[out["part"]]
            made = make_quantizer(
                pre=np.ascontiguousarray(own.pre),
                inverse_scale=reciprocal(own.scale),
                zero_point=np.ascontiguousarray(own.zero_point),
                q_min=layer.q_min,
                q_max=layer.q_max,
                first=out["first"],
            )
            self._quantizers[key] = launch.to_device(made, self.device)
        return self._quantizers[key]

    def _scaler(self, layer: Layer, part: int, pitch: int) -> Any:
        """Quantizer of a product."""
        key = (layer.name, part, pitch)
        if key not in self._scales:
            scale, zero_point = product_tables(layer, part)
            made = make_quantizer(
                scale=scale,
                zero_point=zero_point,
                q_min=layer.q_min,
                q_max=layer.q_max,
                pads_pitch=pitch if layer.kernel else 0,
            )
            self._scales[key] = launch.to_device(made, self.device)
        return self._scales[key]

    # one batch size

    def prepared_of(self, feeds: Mapping[str, NDArray[Any]]) -> Prepared:
        """What runs for the sizes that inputs have; those used last are kept."""
        key = (len(feeds[TIMESTEP]), self.programs.sizes_of(feeds))
        made = self._prepared.pop(key, None)
        while made is None and len(self._prepared) >= KEPT_GRAPHS:
            self._prepared.pop(next(iter(self._prepared)))
        self._prepared[key] = made or self.prepared_at(*key)
        return self._prepared[key]

    def prepared_at(self, batch: int, sizes: Sizes) -> Prepared:
        """Memory, functions and graph of one batch size."""
        joined, floats = self.programs.of(sizes)
        program = self._for_gpu(joined, batch)
        missing = [name for name, part in padded_parts(program, self._layers) if (name, part) not in self._weights]
        if missing:
            raise InputError(f"layer {missing[0]} is not called at the first sizes; open the record at these sizes")
        memory = CudaMemory(program, plan_arena(program), floats, self.device)
        lengths = entry_counts(program, self.record, batch, self._layers)
        steps = {rows: torch.zeros(rows, dtype=torch.int32, device=self.device) for rows in lengths}
        # one flag an op, each where 16 divides its address: kernels are compiled for aligned arrays
        nan_seen = torch.zeros((len(program.ops), FLAG_PITCH), dtype=torch.int32, device=self.device)
        time = memory.tensor(program.inputs[TIMESTEP])

        def bucket() -> None:
            nan_seen.zero_()
            step = (self.edges[None, :] <= time[:, None]).sum(1)
            for rows, values in steps.items():
                if rows % batch == 0:  # else only layers without step tables read it
                    values.copy_(step.repeat_interleave(rows // batch))

        functions = [bucket]
        for index, op in enumerate(program.ops):
            functions.append(self._function(op, memory, steps, nan_seen[index, :1]))
        made = Prepared(memory, functions, steps, nan_seen)
        if self._use_graph:
            self._capture(made)
        return made

    def _capture(self, made: Prepared) -> None:
        """Record the functions as one graph, after runs that compile everything on a stream of their own."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_RUNS):
                made.play()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # torch's default mode is broken by what another thread allocates meanwhile, a server's other engines say
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            made.play()
        made.graph = graph

    def _function(self, op: Op, memory: CudaMemory, steps: Steps, nan_seen: torch.Tensor) -> Callable[[], None]:
        if op.kind in ("int_linear", "int_conv2d"):
            return self.product(op, memory, steps, self.epilogue(op, self._layers[op.attributes["layer"]], memory))
        if op.attributes.get("outs") is not None:
            return self.coded(op, memory, steps, nan_seen)
        if op.kind == "attention" and op.writes["y"].buffer in memory.handed_on:
            return lambda: memory.hand_on(op.writes["y"], torch_ops.attention(op, memory.tensor))
        return torch_ops.function(op, memory.tensor)

    def observed_product(self, op: Op, made: Prepared) -> tuple[Callable[[], None], torch.Tensor, torch.Tensor]:
        """What runs a product for its accumulators and bare float32 output, and both."""
        layer, codes = self._layers[op.attributes["layer"]], op.reads["codes"]
        shape = (codes.sizes[0], out_rows(op), layer.out_channels)
        y = torch.empty(shape, dtype=torch.float32, device=self.device)
        total = torch.empty(shape, dtype=torch.int32, device=self.device)
        full = self.epilogue(op, layer, made.memory)
        bare = replace(full, y=y, accumulators=total, previous=None, residual=None, row=None)
        return self.product(op, made.memory, made.steps, bare), total, y

    def observed_codes(self, op: Op, made: Prepared) -> tuple[Callable[[], None], torch.Tensor]:
        """What runs an op that writes codes for its float32 value too, and that."""
        batch, rows, channels = op.reads["x"].sizes
        width = channels // 2 if op.kind == "geglu_quantize" else channels
        y = torch.zeros((batch, rows, width), dtype=torch.float32, device=self.device)
        return self.coded(op, made.memory, made.steps, made.flag_of(op), y=y), y

    def coded(
        self, op: Op, memory: CudaMemory, steps: Steps, nan_seen: torch.Tensor, y: torch.Tensor | None = None
    ) -> Callable[[], None]:
        """What runs an op that writes codes; `y` takes its float value where the program keeps none."""
        x, step = memory.rows(op.reads["x"]), steps[op.reads["x"].sizes[0]]
        if y is None and "y" in op.writes:
            y = memory.rows(op.writes["y"])
        outs = [
            CodeOutput(quantizer=self._coder(out), codes=memory.rows(op.writes[f"codes{i}"]))
            for i, out in enumerate(op.attributes["outs"])
        ]
        if op.kind == "quantize":
            return self._quantized(op, memory, outs[0], x, step, nan_seen)
        channels = op.reads["x"].sizes[2]
        if op.kind == "geglu_quantize":
            out, half = (outs[0] if outs else None), channels // 2
            return lambda: launch.geglu_quantize(x, step, out, channels=half, y=y, nan_seen=nan_seen)
        ones, zeros = torch.ones(channels, device=self.device), torch.zeros(channels, device=self.device)
        gamma = memory.tensor(op.reads["gamma"]) if "gamma" in op.reads else ones
        beta = memory.tensor(op.reads["beta"]) if "beta" in op.reads else zeros
        shared = {"gamma": gamma, "beta": beta, "eps": op.attributes["eps"], "y": y, "nan_seen": nan_seen}
        if op.kind == "layer_norm_quantize":
            return lambda: launch.layer_norm_quantize(x, step, outs, **shared)
        groups, silu = op.attributes["groups"], op.attributes["silu"]
        return lambda: launch.group_norm_silu_quantize(x, step, outs, groups=groups, silu=silu, **shared)

    def _quantized(
        self, op: Op, memory: CudaMemory, out: CodeOutput, x: torch.Tensor, step: torch.Tensor, nan_seen: torch.Tensor
    ) -> Callable[[], None]:
        """What runs a quantize, of `x` or of what is handed on in its place when that is there."""
        at = op.reads["x"]
        last = memory.handed_on.get(at.buffer)

        def run() -> None:
            read = x if last is None else memory.value(at)
            launch.quantize(read, step, out.quantizer, codes=out.codes, nan_seen=nan_seen)
            if last is op:
                memory.let_go(at.buffer)

        return run

    def product(self, op: Op, memory: CudaMemory, steps: Steps, epilogue: Epilogue) -> Callable[[], None]:
        """What runs an integer product."""
        name, part = op.attributes["layer"], op.attributes["part"]
        layer, weights = self._layers[name], self._weights[name, part]
        codes, step = memory.rows(op.reads["codes"]), steps[op.reads["codes"].sizes[0]]
        quantizer = self._scaler(layer, part, codes.shape[2])
        if op.kind == "int_linear":
            return lambda: launch.int_linear(codes, weights, quantizer, step, epilogue)
        moves = layer.window.padded_by(op.padded)
        window = Window(
            size=tuple(op.attributes["in_size"]),
            out_size=tuple(op.attributes["out_size"]),
            stride=moves.stride,
            padding=moves.padding[:2],
            dilation=moves.dilation,
        )
        return lambda: launch.int_conv2d(codes, weights, quantizer, step, epilogue, window)

    def epilogue(self, op: Op, layer: Layer, memory: CudaMemory) -> Epilogue:
        """What a product of the program does behind its sum."""
        axis = 1 if op.kind == "int_conv2d" else -1
        rows = {
            role: memory.rows(rows_view(view, axis))
            for role, view in (*op.reads.items(), *op.writes.items())
            if role in ("previous", "residual", "y")
        }
        row = op.reads.get("row")
        bias = None
        if op.attributes["final"] and layer.bias is not None:
            bias = torch.from_numpy(np.array(layer.bias, np.float32)).to(self.device)
        return Epilogue(
            y=rows["y"],
            previous=rows.get("previous"),
            residual=rows.get("residual"),
            bias=bias,
            row=None if row is None else memory.tensor(_whole_rows(row)),
        )

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one step; inputs and outputs are numpy arrays on the host.

        Raises:
            NonFiniteError: a NaN reached a quantizer.
        """
        made = self.prepared_of(feeds)
        self.fill(made, feeds)
        made.play()
        found = self.outputs(made)
        self.check_nan(made)
        return found

    def fill(self, made: Prepared, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Copy the inputs to the device."""
        for name, view in made.memory.program.inputs.items():
            made.memory.tensor(view).copy_(torch.from_numpy(np.ascontiguousarray(feeds[name])))

    def outputs(self, made: Prepared) -> dict[str, NDArray[Any]]:
        """Copy the outputs to the host."""
        values = {name: made.memory.tensor(view) for name, view in made.memory.program.outputs.items()}
        return {name: value.float().contiguous().cpu().numpy().copy() for name, value in values.items()}

    def check_nan(self, made: Prepared) -> None:
        """Name the first layer whose input held a NaN."""
        if bool(made.nan_seen.any()):
            op = made.memory.program.ops[int(made.nan_seen.nonzero()[0, 0])]
            names = readers_of(op)
            raise NonFiniteError(
                f"a NaN reached the input of {names}, from finite inputs; its values may have left the range of "
                f"{self.dtype}: run it in bfloat16 or float32"
            )

    def close(self) -> None:
        """Free the device's memory."""
        self._prepared.clear()
        self.programs.clear()
        for kept in (self._weights, self._quantizers, self._scales):
            kept.clear()


def _whole_rows(row: View) -> View:
    """[B, pitch] from a view [B, N]."""
    pitch = max(row.strides[0], row.sizes[1])
    return View(buffer=row.buffer, offset=row.offset, sizes=(row.sizes[0], pitch), strides=(pitch, 1))
