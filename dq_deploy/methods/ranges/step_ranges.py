"""Ranges of each layer's input and output at each step, from one pass over the calibration inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dq_deploy.calibration.sharding import Share
from dq_deploy.errors import NonFiniteError
from dq_deploy.methods.prepare.preparation import Prepared, PreparedLayer
from dq_deploy.methods.ranges.scales import activation_table, search_activation_table
from dq_deploy.models import call_denoiser, engine_name
from dq_deploy.numerics import channel_axis_of
from dq_deploy.numerics.arrays import F32, I32, I64, Array
from dq_deploy.record import BATCH, Call
from dq_deploy.simulation.fake_quant import StepContext

SEEDS_OF_A_SHARD = 1_000_003
"""Between the seeds of the draws of two shards."""

SEARCHED_BITS = 7
"""Bits up to which a range is shrunk; with more, the whole range is the better one. See docs/decisions/0043."""
VALUES = 1 << 17
VALUES_A_STEP = 2048
"""Input values kept per layer and part for the range search: about so many of all steps, and at least so many a step.

Where few steps share a table, rare large values are not among fewer, and the search takes them for noise to be cut.
"""


@dataclass(kw_only=True, eq=False)
class StepRange:
    """Lowest and highest value of a tensor at each step, and a random draw of its values.

    With a momentum, an end is an exponential mean of each batch's end instead: ``low = m low + (1 - m) new``, from the
    first batch that holds the step.

    Attributes:
        low: [T] float32.
        high: [T] float32.
        draws: per step, 1-D float32 arrays of values.
        momentum: 0 to 1, or None for the lowest and highest value of all.
    """

    low: F32
    high: F32
    draws: list[list[F32]]
    momentum: float | None = None

    @staticmethod
    def empty(steps: int, momentum: float | None = None) -> StepRange:
        """A range that holds nothing yet."""
        return StepRange(
            low=np.full(steps, np.inf, np.float32),
            high=np.full(steps, -np.inf, np.float32),
            draws=[[] for _ in range(steps)],
            momentum=momentum,
        )

    def add(
        self,
        rows: torch.Tensor,
        step: I64,
        positions: torch.Tensor | None,
        counts: I64 | None = None,
    ) -> None:
        """Take in [B, V] values, sample i at step[i]; keep those at the first counts[step[i]] of `positions`."""
        low, high = (end.cpu().numpy() for end in torch.aminmax(rows, dim=1))
        if self.momentum is None:
            np.minimum.at(self.low, step, low)
            np.maximum.at(self.high, step, high)
        else:
            self._follow(low, high, step, self.momentum)
        if positions is not None:
            drawn = rows[:, positions].cpu().numpy()
            for i, t in enumerate(step):
                self.draws[t].append(drawn[i, : None if counts is None else int(counts[t])].copy())

    def _follow(self, low: F32, high: F32, step: I64, momentum: float) -> None:
        for t in np.unique(step):
            mine = step == t
            for end, empty, new in ((self.low, np.inf, low[mine].min()), (self.high, -np.inf, high[mine].max())):
                end[t] = new if end[t] == empty else momentum * end[t] + (1 - momentum) * new

    @staticmethod
    def merged(found: Sequence[StepRange]) -> StepRange:
        """Ranges of several shares of the inputs, none of them a mean, as one."""
        if len(found) == 1:
            return found[0]
        return StepRange(
            low=np.minimum.reduce([one.low for one in found]),
            high=np.maximum.reduce([one.high for one in found]),
            draws=[[piece for one in found for piece in one.draws[t]] for t in range(len(found[0].low))],
        )

    def ends(self, groups: I64) -> tuple[F32, F32]:
        """(low, high) of each group of steps, each [G].

        Args:
            groups: [T] group of each step, 0..G-1.
        """
        count = int(groups.max()) + 1
        low, high = np.full(count, np.inf, np.float32), np.full(count, -np.inf, np.float32)
        np.minimum.at(low, groups, self.low)
        np.maximum.at(high, groups, self.high)
        return low, high

    def values(self, groups: I64) -> F32:
        """[G, V] drawn values of each group of steps; a group of more steps gives fewer values of each."""
        per_group = [
            np.concatenate([piece for t in np.flatnonzero(groups == g) for piece in self.draws[t]])
            for g in range(int(groups.max()) + 1)
        ]
        width = min(len(values) for values in per_group)
        spread = [np.arange(width) * len(values) // width for values in per_group]
        return np.stack([values[index] for values, index in zip(per_group, spread, strict=True)])


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerRanges:
    """Ranges of one layer: its input's parts (after `pre`) and its output."""

    parts: tuple[StepRange, ...]
    output: StepRange

    def input_tables(
        self, layer: PreparedLayer, *, groups: I64, symmetric: bool, search: bool
    ) -> list[tuple[F32, I32]]:
        """Activation scale and zero point of each part, [T], or [1] where all steps are one group.

        Args:
            layer: whose input it is.
            groups: [T] group of each step.
            symmetric: zero points 0 and signed codes.
            search: shrink ranges of `SEARCHED_BITS` and fewer by L2.4 search.
        """
        tables = []
        for part in self.parts:
            low, high = part.ends(groups)
            if search and layer.activation_bits <= SEARCHED_BITS:
                values = part.values(groups)
                table = search_activation_table(low, high, values, bits=layer.activation_bits, symmetric=symmetric)
            else:
                table = activation_table(low, high, bits=layer.activation_bits, symmetric=symmetric)
            tables.append(of_steps(table, groups))
        return tables

    @property
    def largest_output(self) -> float:
        """Largest |output| of all steps."""
        return float(max(np.abs(self.output.low).max(), np.abs(self.output.high).max()))

    def output_table(self, groups: I64) -> tuple[F32, I32]:
        """8-bit scale and zero point of the output, [T], or [1] where all steps are one group."""
        low, high = self.output.ends(groups)
        return of_steps(activation_table(low, high, bits=8), groups)


def merged_ranges(found: Sequence[LayerRanges]) -> LayerRanges:
    """One layer's ranges over several shares of the inputs as one."""
    parts = zip(*(one.parts for one in found), strict=True)
    return LayerRanges(
        parts=tuple(StepRange.merged(part) for part in parts), output=StepRange.merged([one.output for one in found])
    )


def of_steps(table: tuple[F32, I32], groups: I64) -> tuple[F32, I32]:
    """A table of groups [G] as one of steps [T]; one group stays [1]."""
    if len(table[0]) == 1:
        return table
    return table[0][groups], table[1][groups]


def steps_of(ranges: Mapping[str, LayerRanges]) -> int:
    """Number of step buckets that ranges were collected for; 1 where there are none."""
    return max((len(found.output.low) for found in ranges.values()), default=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """How many values an input of each step gives.

    Attributes:
        least: [T] at least.
        most: [T] where the input has as many.
    """

    least: I64
    most: I64

    @staticmethod
    def of_steps(inputs_of_step: I64) -> Draws:
        """A step with fewer inputs gives more values of each."""
        inputs = np.maximum(inputs_of_step, 1)
        return Draws(least=-(-VALUES_A_STEP // inputs), most=-(-VALUES // len(inputs) // inputs))

    def of_inputs(self, values: int) -> I64:
        """[T] for inputs of so many values."""
        return np.maximum(self.least, np.minimum(self.most, values))


class _Collector:
    """Forward hook of one layer."""

    def __init__(
        self, layer: PreparedLayer, steps: int, draws: Draws | None, seed: int, momentum: float | None
    ) -> None:
        self.layer = layer
        self.draws = draws
        self.generator = torch.Generator().manual_seed(seed)
        self.pre = None if (layer.pre == 1).all() else torch.from_numpy(layer.pre)
        self.result = LayerRanges(
            parts=tuple(StepRange.empty(steps, momentum) for _ in layer.widths), output=StepRange.empty(steps)
        )
        self.step: I64 = np.zeros(0, np.int64)

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        x = args[0]
        axis = channel_axis_of(self.layer.site.kind, x.ndim)
        if self.pre is not None:
            shape = [1] * x.ndim
            shape[axis] = -1
            x = x * self.pre.to(x.device).reshape(shape)
        pieces = torch.split(x, self.layer.widths, dim=axis)
        for piece, into in zip(pieces, self.result.parts, strict=True):
            rows = rows_of_samples(piece, len(self.step))
            positions = counts = None
            if self.draws is not None:
                counts = self.draws.of_inputs(rows.shape[1])
                positions = torch.randint(0, rows.shape[1], (int(counts.max()),), generator=self.generator)
            into.add(rows, self.step, positions, counts)
        self.result.output.add(rows_of_samples(output, len(self.step)), self.step, None)


def rows_of_samples(values: torch.Tensor, samples: int) -> torch.Tensor:
    """[samples, V] values of each sample; a leading axis that holds no samples is all of theirs, see `row_steps`."""
    if values.shape[0] % samples:
        return values.reshape(1, -1).expand(samples, -1)
    return values.reshape(samples, -1)


def first_of_every_step(step: I64, steps: int, most: int) -> I64:
    """Indices of about `most` inputs, the first of every step in equal shares and at least one, in the order they have.

    Args:
        step: [M] step bucket of each input.
        steps: number of step buckets.
        most: inputs, or as many as there are steps.
    """
    share = max(1, most // steps)
    return np.sort(np.concatenate([np.flatnonzero(step == t)[:share] for t in range(steps)]))


def compared_inputs(share: Share, steps: int, most: int) -> dict[int, torch.Tensor]:
    """For each shard of this process about its part of `most` inputs: their places in the process's arrays."""
    found = {}
    for shard in share.workers.mine:
        chosen = first_of_every_step(share.step[share.everyones(shard)], steps, most // share.workers.shards)
        found[shard] = torch.from_numpy(chosen + share.own(shard).start)
    return found


def output_table(seen: StepRange, groups: I64) -> tuple[F32, I32]:
    """8-bit scale and zero point of an output, [T] or [1]; a step that was not seen has the widest range of all.

    Args:
        seen: range at each step; infinite where there was no input.
        groups: [T] group of each step.
    """
    known = np.isfinite(seen.low) & np.isfinite(seen.high)
    low = np.where(known, seen.low, seen.low[known].min()).astype(np.float32)
    high = np.where(known, seen.high, seen.high[known].max()).astype(np.float32)
    ends = StepRange(low=low, high=high, draws=[]).ends(groups)
    return of_steps(activation_table(*ends, bits=8), groups)


@contextmanager
def watch_steps(
    module: torch.nn.Module, names: Iterable[str], context: StepContext, steps: int
) -> Iterator[dict[str, StepRange]]:
    """Inside, every pass through the module notes what these layers give at the steps of the context.

    Yields:
        The range of each layer's output, by name.
    """
    seen = {name: StepRange.empty(steps) for name in names}

    def hook(into: StepRange) -> Callable[..., None]:
        def note(_module: torch.nn.Module, _args: object, output: torch.Tensor) -> None:
            step = context.step.cpu().numpy()
            into.add(rows_of_samples(output, len(step)), step, None)

        return note

    with ExitStack() as stack:
        for name, into in seen.items():
            stack.callback(module.get_submodule(name).register_forward_hook(hook(into)).remove)
        yield seen


def batches(count: int, batch: int) -> list[slice]:
    """Slices of `batch` over `count`."""
    return [slice(start, min(start + batch, count)) for start in range(0, count, batch)]


NOT_GIVEN = ("step", "trajectory")
"""What stands beside the denoiser's inputs in calibration inputs: where each came from."""


def model_inputs(inputs: Mapping[str, Array], chosen: slice, call: Call) -> dict[str, Any]:
    """What the denoiser is called with for some of the calibration inputs, by name: tensors, and the constants.

    Args:
        inputs: [M, ...] by name; those that samples share are M times the same.
        chosen: which of them.
        call: of the denoiser.
    """
    shared = {engine_name(item.name) for item in call.inputs if not item.shape or item.shape[0] != BATCH}
    given = {name: value for name, value in inputs.items() if name not in NOT_GIVEN}
    tensors = {
        name: torch.from_numpy(np.array(value[0]) if name in shared else value[chosen]) for name, value in given.items()
    }
    return {**tensors, **call.constants}


def collect_ranges(
    prepared: Prepared,
    inputs: Mapping[str, Array],
    *,
    steps: int,
    draw_values: bool = False,
    seed: int = 0,
    batch: int = 64,
    momentum: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    share: Share | None = None,
    shard: int = 0,
) -> dict[str, LayerRanges]:
    """Run the float model over the calibration inputs and note every layer's ranges.

    Args:
        prepared: the folded float model.
        inputs: by name, with `step`.
        steps: number of step buckets.
        draw_values: keep about `VALUES` values, `VALUES_A_STEP` a step at least, for the range search.
        seed: of that draw.
        batch: inputs at a time.
        momentum: of the inputs' ranges over batches; None takes the lowest and highest value of all.
        progress: called with (inputs done, inputs).
        share: which of all inputs they are, where they are not all.
        shard: of the share, whose inputs are run.

    Raises:
        NonFiniteError: a layer sees NaN or infinity; names it.
    """
    step = inputs["step"]
    share = share or Share(step=step)
    own = share.own(shard)
    draws = Draws.of_steps(np.bincount(share.step, minlength=steps)) if draw_values else None
    collectors = {
        name: _Collector(layer, steps, draws, seed + i + SEEDS_OF_A_SHARD * shard, momentum)
        for i, (name, layer) in enumerate(prepared.layers.items())
    }
    with ExitStack() as stack, torch.inference_mode():
        for name, collector in collectors.items():
            handle = prepared.module.get_submodule(name).register_forward_hook(collector)
            stack.callback(handle.remove)
        for chosen in share.chunks_of(shard, batch):
            for collector in collectors.values():
                collector.step = step[chosen]
            call_denoiser(prepared.module, model_inputs(inputs, chosen, prepared.call))
            if progress is not None:
                progress(chosen.stop - own.start, own.stop - own.start)
    found = {name: collector.result for name, collector in collectors.items()}
    check_finite(found, partly=share.workers.shards > 1)
    return found


def check_finite(ranges: Mapping[str, LayerRanges], *, partly: bool = False) -> None:
    """Refuse ranges of NaN or infinity.

    Args:
        ranges: by layer.
        partly: steps may have had no inputs, whose range is still that of `StepRange.empty`.

    Raises:
        NonFiniteError: names the layer.
    """
    for name, found in ranges.items():
        for seen in (*found.parts, found.output):
            good = np.isfinite(seen.low) & np.isfinite(seen.high)
            if partly:
                good |= (seen.low == np.inf) & (seen.high == -np.inf)
            if not good.all():
                raise NonFiniteError(f"layer {name} sees NaN or infinity in the float model, expected finite values")
