"""Learned equivalent scaling (DMQ, ICCV 2025): one factor per input channel, from what quantization does to the output.

Per layer, from inputs of the float model, with g starting at one::

    minimise  sum over samples of  weight[t] * || X W - Q(X / g) Q(g W) ||^2

Quantizer ranges follow g while it is learned: an activation's is the lowest and highest value of x / g at the group of
steps, a weight's that of g w in its output channel. What is learned is the logarithm of g, so that g stays positive.
A layer is learned from some rows only: tokens of a linear layer, patches of a convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from dq_deploy.errors import NonFiniteError
from dq_deploy.methods.options import DmqOptions, SharedOptions
from dq_deploy.methods.prepare.preparation import Prepared, PreparedLayer
from dq_deploy.methods.progress import Progress, ProgressCallback
from dq_deploy.methods.ranges.scales import code_range, weight_range
from dq_deploy.methods.ranges.step_ranges import batches, first_of_every_step, model_inputs
from dq_deploy.methods.scaling.timestep_weighting import TimestepWeighting
from dq_deploy.models import call_denoiser
from dq_deploy.numerics.arrays import F64, I64, Array
from dq_deploy.record.checks import SCALE_MAX, SCALE_MIN

GIB = 1 << 30
SAMPLES = 256
"""Calibration inputs a layer is learned from, steps in equal shares."""
ROWS = 8
"""Tokens or patches of each of them."""
TINY = 1e-12


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerRows:
    """What one layer receives from the float model.

    Attributes:
        rows: [S, R, C_in, kernel positions] float32, `R` rows of each of `S` inputs.
        step: [S] int64, step bucket of each input.
        group: [S] int64, group of steps.
        low: [G, C_in] lowest value of each channel in each group, over whole inputs.
        high: [G, C_in] highest value.
    """

    rows: torch.Tensor
    step: torch.Tensor
    group: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def on(self, device: str) -> LayerRows:
        """The same with all but `step` on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("rows", "group", "low", "high")}
        return replace(self, **moved)


@dataclass(frozen=True, kw_only=True, eq=False)
class LearnedScales:
    """Factors [C_in] float64 by layer name, and by layer its relative output error before and after (JSON values)."""

    factors: dict[str, F64]
    history: dict[str, Any]


def learn_equivalent_scales(
    prepared: Prepared,
    inputs: Mapping[str, Array],
    options: DmqOptions,
    *,
    steps: int,
    batch: int,
    progress: ProgressCallback,
    known: LearnedScales | None = None,
    keep: Callable[[LearnedScales], None] = lambda learned: None,
) -> LearnedScales:
    """Learn every integer layer's factors; a layer that gains nothing keeps ones.

    Args:
        prepared: the float model, `pre` one everywhere.
        inputs: calibration inputs by name, with `step`.
        options: bits, groups of steps, `scaling_iterations`, `batch`, `lr_equivalent`, memory.
        steps: number of step buckets.
        batch: inputs at a time in a float pass.
        progress: called after each layer.
        known: what an earlier run ended with; its layers are not learned again.
        keep: called after each layer with all that is learned.

    Raises:
        NonFiniteError: a loss or a factor is not finite; names the layer.
    """
    chosen = first_of_every_step(inputs["step"], steps, SAMPLES)
    # the only channel of a layer has nothing to share a range with
    names = [name for name, layer in prepared.layers.items() if layer.site.in_channels > 1]
    factors: dict[str, F64] = {} if known is None else dict(known.factors)
    errors: dict[str, Any] = {} if known is None else dict(known.history["relative_error"])
    note = {
        "stage": "learned-scaling",
        "inputs": len(chosen),
        "learning_rate": options.lr_equivalent,
        "relative_error": errors,
    }
    learned = LearnedScales(factors=factors, history=note)
    missing = [name for name in names if name not in factors]
    for some in within_memory(prepared, missing, len(chosen), options):
        seeds = {name: options.seed + names.index(name) for name in some}
        collected = collect_rows(prepared, seeds, inputs, chosen, options, steps=steps, batch=batch)
        for name in some:
            layer, data = prepared.layers[name], collected.pop(name)
            seed = options.seed * 100_003 + names.index(name)
            factor, before, after = learn_layer(layer, data, options, steps=steps, seed=seed)
            factors[name] = factor
            errors[name] = {"before": before, "after": after, "span": [float(factor.min()), float(factor.max())]}
            keep(learned)
            progress(Progress(stage="scales", done=len(factors), total=len(names), block=name, loss=after))
    return learned


def _bytes_of(layer: PreparedLayer, inputs: int) -> int:
    site = layer.site
    positions = math.prod(site.output_shape[1:]) // site.out_channels
    return 4 * inputs * min(ROWS, positions) * site.in_channels * math.prod(site.kernel)


def within_memory(prepared: Prepared, names: Sequence[str], inputs: int, options: SharedOptions) -> Iterator[list[str]]:
    """Layers whose rows fit into half of `memory_gib` together; at least one at a time."""
    limit = options.memory_gib * GIB / 2
    some: list[str] = []
    size = 0
    for name in names:
        more = _bytes_of(prepared.layers[name], inputs)
        if some and size + more > limit:
            yield some
            some, size = [], 0
        some.append(name)
        size += more
    if some:
        yield some


def collect_rows(
    prepared: Prepared,
    seeds: Mapping[str, int],
    inputs: Mapping[str, Array],
    chosen: I64,
    options: SharedOptions,
    *,
    steps: int,
    batch: int,
) -> dict[str, LayerRows]:
    """Run the float model over the chosen inputs and keep random rows of what some layers receive, by their seeds."""
    groups = options.groups_of_steps(steps)
    taken = {name: value[chosen] for name, value in inputs.items()}
    hooks = {
        name: _RowHook(
            prepared.layers[name],
            int(groups.max()) + 1,
            _rows_that_fit(prepared.layers[name], options, len(chosen)),
            seed,
        )
        for name, seed in seeds.items()
    }
    with ExitStack() as stack, torch.inference_mode():
        for name, hook in hooks.items():
            stack.callback(prepared.module.get_submodule(name).register_forward_hook(hook).remove)
        for piece in batches(len(chosen), batch):
            for hook in hooks.values():
                hook.group = torch.from_numpy(groups[taken["step"][piece]])
            call_denoiser(prepared.module, model_inputs(taken, piece, prepared.call))
    step = torch.from_numpy(taken["step"])
    group = torch.from_numpy(groups[taken["step"]])
    return {name: hooks.pop(name).result(step, group) for name in seeds}  # a hook's pieces go with it


def _rows_that_fit(layer: PreparedLayer, options: SharedOptions, inputs: int) -> int:
    size = _bytes_of(layer, inputs)
    return max(1, min(ROWS, int(ROWS * options.memory_gib * GIB / 2 / max(1, size))))


class _RowHook:
    """Forward hook that keeps rows of a layer's input and the range of each channel."""

    def __init__(self, layer: PreparedLayer, groups: int, rows: int, seed: int) -> None:
        self.layer = layer
        self.rows = rows
        self.generator = torch.Generator().manual_seed(seed)
        channels = layer.site.in_channels
        self.low = torch.full((groups, channels), math.inf)
        self.high = torch.full((groups, channels), -math.inf)
        self.kept: list[torch.Tensor] = []
        self.group = torch.zeros(0, dtype=torch.int64)

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        x = args[0].cpu()
        channels = x.flatten(2) if self.layer.site.kind == "conv2d" else x.reshape(len(x), -1, x.shape[-1]).mT
        index = self.group[:, None].expand(-1, channels.shape[1])
        self.low.scatter_reduce_(0, index, channels.amin(2), "amin")
        self.high.scatter_reduce_(0, index, channels.amax(2), "amax")
        self.kept.append(self._patches(x, output) if self.layer.site.kind == "conv2d" else self._tokens(channels))

    def _draw(self, positions: int) -> torch.Tensor:
        return torch.randperm(positions, generator=self.generator)[: self.rows]

    def _tokens(self, channels: torch.Tensor) -> torch.Tensor:
        return channels[:, :, self._draw(channels.shape[2])].mT.unsqueeze(3).clone()

    def _patches(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """[B, R, C_in, kh kw]: what the kernel sees at some output positions."""
        site = self.layer.site
        top, left, bottom, right = site.padding
        padded = torch.nn.functional.pad(x, (left, right, top, bottom))
        drawn = self._draw(output.shape[2] * output.shape[3])
        starts = (drawn // output.shape[3] * site.stride[0], drawn % output.shape[3] * site.stride[1])
        down, across = (
            start[:, None] + torch.arange(size) * gap
            for start, size, gap in zip(starts, site.kernel, site.dilation, strict=True)
        )
        return padded[:, :, down[:, :, None], across[:, None, :]].flatten(3).transpose(1, 2).contiguous()

    def result(self, step: torch.Tensor, group: torch.Tensor) -> LayerRows:
        """What was kept; groups of steps without an input have the range of all."""
        low = torch.where(torch.isinf(self.low), self.low.amin(0), self.low)
        high = torch.where(torch.isinf(self.high), self.high.amax(0), self.high)
        return LayerRows(rows=torch.cat(self.kept), step=step, group=group, low=low, high=high)


class _Codes(torch.autograd.Function):
    """clamp(rne(x * m), low, high), [B, R, C, k]; gradients pass to m alone.

    The range holds all of x, so that a code is clamped by less than one where the zero point was rounded: no mask.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, m: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return (x * m).round_().clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return None, (grad * x).sum((1, 3), keepdim=True), None, None


class _RoundedWeights(torch.autograd.Function):
    """s clamp(rne(w / s), low, high), with one s an output channel; gradients pass through the rounding to w and s."""

    @staticmethod
    def forward(ctx: Any, w: torch.Tensor, s: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        ratio = w / s
        codes = ratio.round().clamp_(low, high)
        ctx.save_for_backward(codes - ratio)
        return codes.mul_(s)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (moved,) = ctx.saved_tensors
        return grad, (grad * moved).sum((2, 3), keepdim=True), None, None


class ScaledLayer:
    """One layer's output under both quantizers as a function of its factors."""

    def __init__(self, layer: PreparedLayer, data: LayerRows, options: SharedOptions) -> None:
        self.layer = layer
        self.data = data.on(options.device)
        self.symmetric = options.symmetric_activations
        self.asymmetric_weights = bool(options.asymmetric_weights) and layer.weight_bits < 8
        site = layer.site
        self.weight = (
            torch.from_numpy(layer.weight)
            .to(options.device)
            .reshape(site.groups, site.out_channels // site.groups, site.in_channels // site.groups, -1)
        )
        with torch.no_grad():
            self.target = self._product(data.rows, self.weight)
        self.norm = float(self.target.square().mean()) or 1.0

    def losses(self, g: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Squared output error of some inputs, [B], relative to the layer's mean square output."""
        output: torch.Tensor | None = None
        rows, group = self.data.rows[index], self.data.group[index]
        start = 0
        for width in self.layer.widths:
            part = slice(start, start + width)
            start += width
            scale, low, high = self._activation(g[part], part)
            m = (1.0 / (g[part] * scale[:, None]))[group][:, None, :, None]
            ends = (end[group].reshape(-1, 1, 1, 1) for end in (low, high))
            codes = _Codes.apply(rows[:, :, part], m, *ends)
            term = self._product(codes, self._weight(g[part], part)) * scale[group][:, None, None]
            output = term if output is None else output + term
        assert output is not None
        return (output - self.target[index]).square().mean((1, 2)) / self.norm

    def _product(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """[B, R, C_out] for rows [B, R, C, k] and a weight [groups, C_out / groups, C / groups, k]."""
        flat = rows.reshape(rows.shape[0] * rows.shape[1], len(weight), -1)
        if len(weight) == 1:
            return torch.nn.functional.linear(flat[:, 0], weight[0].flatten(1)).reshape(*rows.shape[:2], -1)
        product = flat.transpose(0, 1) @ weight.flatten(2).mT
        return product.transpose(0, 1).reshape(*rows.shape[:2], -1)

    def _activation(self, g: torch.Tensor, part: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scale and ends of the centred codes, each [G], for the range of x / g."""
        q_min, q_max = code_range(self.layer.activation_bits, symmetric=self.symmetric)
        low = (self.data.low[:, part] / g).amin(1).clamp(max=0)
        high = (self.data.high[:, part] / g).amax(1).clamp(min=0)
        if self.symmetric:
            scale = torch.maximum(high / q_max, low / q_min).clamp(min=TINY)
            return scale, torch.full_like(scale, q_min), torch.full_like(scale, q_max)
        scale = ((high - low) / (q_max - q_min)).clamp(min=TINY)
        zero = (q_min - low / scale).detach().round().clamp(q_min, q_max)
        return scale, q_min - zero, q_max - zero

    def _weight(self, g: torch.Tensor, part: slice) -> torch.Tensor:
        """The weight times g, quantized within its own range in each output channel."""
        q_low, q_high = weight_range(self.layer.weight_bits)
        piece = self.weight if len(self.layer.widths) == 1 else self.weight[:, :, part]
        scaled = piece * g.reshape(len(piece), 1, -1, 1)
        low, high = scaled.amin((2, 3), keepdim=True), scaled.amax((2, 3), keepdim=True)
        if self.asymmetric_weights:
            low, high = low.clamp(max=0), high.clamp(min=0)
            scale = ((high - low) / (q_high - q_low)).clamp(min=TINY)
            zero = (q_low - low / scale).detach().round().clamp(q_low, q_high)
        else:
            scale = torch.maximum(high / q_high, low / q_low).clamp(min=TINY)
            zero = torch.zeros_like(scale)
        rounded: torch.Tensor = _RoundedWeights.apply(scaled, scale, q_low - zero, q_high - zero)
        return rounded


def learn_layer(
    layer: PreparedLayer, data: LayerRows, options: DmqOptions, *, steps: int, seed: int
) -> tuple[F64, float, float]:
    """Factors of one layer, [C_in], and its weighted relative output error with ones and with them.

    Raises:
        NonFiniteError: the loss or a factor is not finite.
    """
    scaled = ScaledLayer(layer, data, options)
    exponent = options.timestep_exponent if options.uses("timestep-weighting") else 0.0
    weighting = TimestepWeighting(steps, exponent)
    logarithm = torch.zeros(layer.site.in_channels, requires_grad=True, device=options.device)
    optimizer = torch.optim.Adam([logarithm], lr=options.lr_equivalent, eps=TINY)
    generator = torch.Generator().manual_seed(seed)
    for i in range(options.scaling_iterations):
        fade = 0.5 * (1 + math.cos(math.pi * i / options.scaling_iterations))
        optimizer.param_groups[0]["lr"] = options.lr_equivalent * fade
        index = torch.randint(0, len(data.step), (options.batch,), generator=generator)
        losses = scaled.losses(logarithm.exp(), index)
        step = data.step[index]
        weighting.note(step, losses.detach().cpu())
        loss = (losses * weighting.weights(step).to(losses.device)).mean()
        if not math.isfinite(loss.item()):
            raise NonFiniteError(
                f"layer {layer.site.name}: the loss of its equivalent scale is {loss.item()} at iteration {i + 1}, "
                "expected a finite number; lower lr_equivalent in a preset"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    factor = checked_scale(layer.site.name, logarithm.detach().double().exp().cpu().numpy())
    ones = np.ones_like(factor)
    before, after = (_error(scaled, g, weighting) for g in (ones, factor))
    return (factor, before, after) if after < before else (ones, before, before)


@torch.no_grad()
def _error(scaled: ScaledLayer, factor: F64, weighting: TimestepWeighting) -> float:
    """Weighted mean loss over all inputs kept."""
    g = torch.from_numpy(factor.astype(np.float32)).to(scaled.weight.device)
    count = len(scaled.data.step)
    losses = torch.cat([scaled.losses(g, torch.arange(count)[piece]) for piece in batches(count, 64)]).cpu()
    weights = weighting.weights(scaled.data.step)
    return float((losses * weights).sum() / weights.sum().clamp(min=TINY))


def checked_scale(name: str, factor: F64) -> F64:
    """The factors of a layer, if every one is positive, finite and within what a record holds.

    Raises:
        NonFiniteError: names the layer, the channel and its factor.
    """
    good = np.isfinite(factor) & (factor > SCALE_MIN) & (factor < SCALE_MAX)
    if not good.all():
        channel = int(np.flatnonzero(~good)[0])
        raise NonFiniteError(
            f"layer {name}: the learned scale of input channel {channel} is {factor[channel]:g}, expected a positive "
            "number in [2^-60, 2^60]; lower lr_equivalent in a preset"
        )
    return factor
