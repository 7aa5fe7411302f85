"""The integer layer in training form: straight-through estimators, all steps in parallel.

The forward pass computes what `numerics` computes, to float32 rounding. Everything trained is relative to
where it starts, so that one learning rate suits every layer:

    w_q[n, k] = clamp(rne(v[n, k] / exp(a[n])) + kept[n, k], ...)     straight-through: v in weight codes
              = clamp(floor(w / s0) + h(rounding[n, k]), ...)         adaround: see `weight_rounding`
              = as it starts                                          fixed
    s_w[n]    = s0[n] * exp(a[n])
    s[g]      = s_start[g] * exp(g[g])
    z[g]      = clamp(rne(z_start[g] + (q_max - q_min) * h[g]), q_min, q_max)
    b[n]      = b_start[n] + spread * e[n]

`kept` is where the start's codes differ from the nearest ones, so that a start that was rounded otherwise stays
what it is until v moves. A group g of steps shares one trained entry; weight zero points stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dq_deploy.errors import OptionError
from dq_deploy.methods.prepare.assembly import build_layer
from dq_deploy.methods.prepare.preparation import PreparedLayer
from dq_deploy.methods.ranges.scales import weight_range
from dq_deploy.methods.training.random_mask import random_mask
from dq_deploy.methods.training.weight_rounding import rounding_of_rest, soft_rounding
from dq_deploy.numerics import channel_axis_of
from dq_deploy.numerics.arrays import F32, I32, I64
from dq_deploy.record import Layer, Part
from dq_deploy.record.checks import SCALE_MAX, SCALE_MIN
from dq_deploy.simulation.fake_quant import StepContext, along, per_sample

WEIGHTS = ("straight-through", "adaround", "fixed")
"""What becomes of the weights: they move, each is rounded down or up, or they stay."""

KINDS = {"weight": "v", "rounding": "rounding", "weight_scale": "a", "scale": "g", "zero_point": "h", "bias": "e"}
"""Kinds of trained values and the parameter that holds them."""


class RoundThrough(torch.autograd.Function):
    """Round half to even forwards, identity backwards."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return grad


class CentredCodes(torch.autograd.Function):
    """clamp(rne(x * m), q_min - z, q_max - z); gradients pass where the code was not clamped.

    A clamped code moves with its bound, against z. Values where `is_float` pass as x * m.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        x: torch.Tensor,
        m: torch.Tensor,
        z: torch.Tensor,
        q_min: int,
        q_max: int,
        is_float: torch.Tensor | None = None,
    ) -> torch.Tensor:
        scaled = x * m
        rounded = scaled.round_() if is_float is None else scaled.round()
        codes = torch.minimum(torch.maximum(rounded, q_min - z), q_max - z)
        inside = rounded == codes
        if is_float is not None:
            inside |= is_float
            codes = torch.where(is_float, scaled, codes)
        ctx.save_for_backward(x, m, inside)
        return codes

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: D102
        x, m, inside = ctx.saved_tensors
        kept = grad * inside
        rest = tuple(range(1, grad.ndim))
        channels = tuple(i for i in rest if m.shape[i] == 1)
        grad_x = kept * m if ctx.needs_input_grad[0] else None
        grad_m = grad_z = None
        if ctx.needs_input_grad[1]:
            grad_m = kept * x
            if channels:
                grad_m = grad_m.sum(channels, keepdim=True)
        if ctx.needs_input_grad[2]:
            grad_z = (kept.sum(rest) - grad.sum(rest)).reshape((-1,) + (1,) * (grad.ndim - 1))
        return grad_x, grad_m, grad_z, None, None, None


class TrainablePart(torch.nn.Module):
    """What is trained of one part; see the module's equations."""

    def __init__(
        self,
        weight: F32,
        start: Part,
        *,
        bits: int,
        codes: tuple[int, int],
        weights: str,
        groups: I64 | None,
    ) -> None:
        super().__init__()
        self.q_min, self.q_max = codes
        self._hold("pre", torch.from_numpy(start.pre.copy()))
        self.w_zero_point = start.w_zero_point[0]
        self._start_weights(weight, start, bits, weights)
        self._start_tables(start, groups)

    def _start_weights(self, weight: F32, start: Part, bits: int, weights: str) -> None:
        self._hold("weight_start", torch.from_numpy(start.weight_scale[0].copy()))
        self.a = torch.nn.Parameter(torch.zeros_like(self.weight_start))
        self.tail = (1,) * (weight.ndim - 1)
        low, high = self._bounds(bits)
        ratio = torch.from_numpy(weight) / self.weight_start.reshape(-1, *self.tail)
        q_start = torch.from_numpy(start.q_weight(0).astype(np.float32))
        if weights == "straight-through":
            self.v = torch.nn.Parameter(ratio)
            kept = q_start - ratio.clamp(low, high).round()
            self._hold("kept", kept if bool((kept != 0).any()) else None)
            if self.kept is not None:
                low, high = low - kept, high - kept
        elif weights == "adaround":
            self._hold("whole", ratio.floor())
            self.rounding = torch.nn.Parameter(rounding_of_rest(ratio - self.whole))
        else:
            # a quarter of a float's memory, where a code fits in it
            fits = bool((q_start == q_start.clamp(-128, 127)).all())
            self._hold("q_fixed", q_start.to(torch.int8) if fits else q_start)
        self._hold("low", torch.as_tensor(low, dtype=torch.float32))
        self._hold("high", torch.as_tensor(high, dtype=torch.float32))

    def _hold(self, name: str, value: torch.Tensor | None) -> None:
        """A tensor that goes where the part goes."""
        self.register_buffer(name, value, persistent=False)

    def _bounds(self, bits: int) -> tuple[Any, Any]:
        """Least and greatest w_q: of a code range less the zero point, within int8."""
        low, high = weight_range(bits)
        if not self.w_zero_point.any():
            return low, high
        zero = torch.from_numpy(self.w_zero_point.astype(np.float32)).reshape(-1, *self.tail)
        return (low - zero).clamp(-128, 127), (high - zero).clamp(-128, 127)

    def _start_tables(self, start: Part, groups: I64 | None) -> None:
        self._hold("groups", None)
        first: Any = slice(None)
        if groups is not None and len(start.scale) > 1 and int(groups.max()) + 1 < len(groups):
            self._hold("groups", torch.from_numpy(groups))
            first = np.unique(groups, return_index=True)[1]
        self._hold("scale_start", torch.from_numpy(start.scale[first].copy()))
        self._hold("zero_start", torch.from_numpy(start.zero_point[first].astype(np.float32)))
        self.g = torch.nn.Parameter(torch.zeros_like(self.scale_start))
        self.h = torch.nn.Parameter(torch.zeros_like(self.scale_start))

    def weight_scale(self) -> torch.Tensor:
        """s_w [C_out]."""
        return (self.weight_start * self.a.exp()).clamp(SCALE_MIN * 2, SCALE_MAX / 2)

    def q_weight(self, *, hard: bool = False) -> torch.Tensor:
        """w_q that passes gradients to what is trained of it.

        Args:
            hard: every weight rounded down or up, as AdaRound ends; without it they lie between.
        """
        if hasattr(self, "q_fixed"):
            return self.q_fixed.float()
        if hasattr(self, "whole"):
            up = (self.rounding >= 0).float() if hard else soft_rounding(self.rounding)
            return (self.whole + up).clamp(self.low, self.high)
        ratio = self.v * (-self.a).exp().reshape(-1, *self.tail)
        q: torch.Tensor = RoundThrough.apply(ratio.clamp(self.low, self.high))
        return q if self.kept is None else q + self.kept

    def scale(self) -> torch.Tensor:
        """Activation scales s, [T] or [1]."""
        return self._of_steps((self.scale_start * self.g.exp()).clamp(SCALE_MIN * 2, SCALE_MAX / 2))

    def zero_point(self) -> torch.Tensor:
        """Zero points z, [T] or [1]: whole numbers within the code range."""
        if self.q_min < 0:
            return self._of_steps(self.zero_start)
        z = self.zero_start + (self.q_max - self.q_min) * self.h
        return self._of_steps(RoundThrough.apply(z.clamp(self.q_min, self.q_max)))

    def _of_steps(self, table: torch.Tensor) -> torch.Tensor:
        return table if self.groups is None else table[self.groups]

    def harvest(self) -> tuple[tuple[F32, I32], tuple[NDArray[np.int8], F32, I32]]:
        """(scale, zero point) of the steps and (codes, scale, zero point) of the weights."""
        q = self.q_weight(hard=True).cpu().numpy()
        code = (q + self.w_zero_point.reshape(-1, *self.tail)).astype(np.int8)
        table = (self.scale().cpu().numpy().copy(), self.zero_point().cpu().numpy().astype(np.int32))
        return table, (code, self.weight_scale().cpu().numpy().copy(), self.w_zero_point)


@contextmanager
def _drawing_from(generator: torch.Generator, state: torch.Tensor) -> Iterator[None]:
    """Inside, the generator draws what it drew from this state on."""
    now = generator.get_state()
    generator.set_state(state)
    try:
        yield
    finally:
        generator.set_state(now)


class TrainableLayer(torch.nn.Module):
    """One layer while its block is trained; it begins as `start`, but that AdaRound begins at the float weights.

    Args:
        prepared: geometry, bits and float weights.
        start: integer layer with one weight set a part.
        spread: about the standard deviation of the layer's output, the unit of its bias.
        context: step of each sample in flight.
        weights: one of `WEIGHTS`.
        groups: [T] group of each step; the start's tables are equal within one. None: each step is its own.
        drop: share of activation values that pass unquantized (QDrop, arXiv 2203.05740).
        generator: which values those are.

    Attributes:
        again: values inside are computed again on the way back, where autograd would keep them.

    Raises:
        OptionError: the start holds several weight sets.
    """

    def __init__(
        self,
        prepared: PreparedLayer,
        start: Layer,
        spread: float,
        context: StepContext,
        *,
        weights: str = "straight-through",
        groups: I64 | None = None,
        drop: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sets = max(len(part.w_code) for part in start.parts)
        if sets > 1:
            raise OptionError(f"layer {start.name} holds {sets} weight sets, expected one: it cannot be trained")
        self.prepared = prepared
        self.context = context
        self.again = False
        self.codes = (start.q_min, start.q_max)
        self.spread = spread
        self.drop, self.generator = drop, generator
        self.parts = torch.nn.ModuleList(
            TrainablePart(weight, part, bits=prepared.weight_bits, codes=self.codes, weights=weights, groups=groups)
            for weight, part in zip(prepared.weight_parts(), start.parts, strict=True)
        )
        bias = None if start.bias is None else torch.from_numpy(start.bias.copy())
        self.register_buffer("bias_start", bias, persistent=False)
        self.e = None if bias is None else torch.nn.Parameter(torch.zeros(bias.shape[-1]))

    def bias(self) -> torch.Tensor | None:
        """Bias [C_out], or [T, C_out] where the start's differs by step: all rows move alike; or None."""
        return None if self.e is None else self.bias_start + self.spread * self.e

    def parameter_groups(self, rates: Mapping[str, float]) -> list[dict[str, Any]]:
        """Adam's groups with their learning rates; every value without a rate is frozen.

        Args:
            rates: by kind, see `KINDS`; those the layer does not have are passed over.
        """
        groups = []
        for kind, name in KINDS.items():
            for owner in (*self.parts, self):
                parameter = getattr(owner, name, None)
                if isinstance(parameter, torch.nn.Parameter):
                    parameter.requires_grad_(rates.get(kind, 0) > 0)
                    if parameter.requires_grad:
                        groups.append({"params": [parameter], "lr": rates[kind]})
        return groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float32 output for a float32 input at the context's steps."""
        if not self.again or not torch.is_grad_enabled():
            return self._computed(x)
        from torch.utils.checkpoint import checkpoint

        y: torch.Tensor = checkpoint(
            self._computed, x, use_reentrant=False, preserve_rng_state=False, context_fn=self._same_draws
        )
        return y

    def _same_draws(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts of a pass and of its repetition, which drops the same values."""
        if self.generator is None:
            return nullcontext(), nullcontext()
        return nullcontext(), _drawing_from(self.generator, self.generator.get_state())

    def _computed(self, x: torch.Tensor) -> torch.Tensor:
        site = self.prepared.site
        axis = channel_axis_of(site.kind, x.ndim)
        y: torch.Tensor | None = None
        pieces = torch.split(x, self.prepared.widths, dim=axis)
        for part, piece in zip(self.parts, pieces, strict=True):
            assert isinstance(part, TrainablePart)
            scale = part.scale()
            inverse = self.context.rows(1.0 / scale, len(x))
            m = along(inverse[:, None] * part.pre[None, :], x.ndim, axis)
            z = per_sample(self.context.rows(part.zero_point(), len(x)), x.ndim)
            product = self._product(self._codes(piece, m, z), part.q_weight())
            factor = self.context.rows(scale, len(x))[:, None] * part.weight_scale()
            term = product * along(factor, product.ndim, channel_axis_of(site.kind, product.ndim))
            y = term if y is None else y + term
        assert y is not None
        bias = self.bias()
        if bias is None:
            return y
        if bias.ndim == 2:
            bias = self.context.rows(bias, len(y))
        return y + along(bias, y.ndim, channel_axis_of(site.kind, y.ndim))

    def _codes(self, x: torch.Tensor, m: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        is_float = random_mask(tuple(x.shape), self.drop, self.generator).to(x.device) if self.drop else None
        codes: torch.Tensor = CentredCodes.apply(x, m, z, *self.codes, is_float)
        return codes

    def _product(self, codes: torch.Tensor, q_weight: torch.Tensor) -> torch.Tensor:
        from dq_deploy.simulation.exact_arithmetic import convolve

        site = self.prepared.site
        if site.kind == "linear":
            return torch.nn.functional.linear(codes, q_weight)
        return convolve(codes, q_weight, site.window, groups=site.groups)

    @torch.no_grad()
    def harvest(self) -> Layer:
        """The integer layer that was trained, without output tables."""
        harvested = [part.harvest() for part in self.parts]
        bias = self.bias()
        return build_layer(
            self.prepared,
            tables=[table for table, _ in harvested],
            weights=[weights for _, weights in harvested],
            bias=None if bias is None else bias.cpu().numpy().copy(),
            output=None,
            symmetric=self.codes[0] < 0,
        )
