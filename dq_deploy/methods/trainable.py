"""The integer layer in training form: straight-through estimators, all steps in parallel.

The forward pass computes what `numerics` computes, to float32 rounding. Everything trained is relative to
where it starts, so that one learning rate suits every layer:

    w[n, k]  = s0[n] * v[n, k]            v in weight codes; w_q = clamp(rne(w / s_w))
    s_w[n]   = s0[n] * exp(a[n])
    s[t]     = s_start[t] * exp(g[t])
    z[t]     = clamp(rne(z_start[t] + (q_max - q_min) * h[t]), q_min, q_max)
    b[n]     = b_start[n] + spread * e[n]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dq_deploy.methods.assembly import build_layer
from dq_deploy.methods.fake_quant import StepContext, along, per_sample
from dq_deploy.methods.options import QuantizeOptions
from dq_deploy.methods.preparation import PreparedLayer
from dq_deploy.methods.scales import weight_range
from dq_deploy.numerics import F32, I32, channel_axis_of
from dq_deploy.record import Layer
from dq_deploy.record.checks import SCALE_MAX, SCALE_MIN


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

    A clamped code moves with its bound, against z.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, x: torch.Tensor, m: torch.Tensor, z: torch.Tensor, q_min: int, q_max: int
    ) -> torch.Tensor:
        rounded = (x * m).round_()
        codes = torch.minimum(torch.maximum(rounded, q_min - z), q_max - z)
        ctx.save_for_backward(x, m, rounded == codes)
        return codes

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: D102
        x, m, inside = ctx.saved_tensors
        kept = grad * inside
        rest = tuple(range(1, grad.ndim))
        channels = tuple(i for i in rest if m.shape[i] == 1)
        grad_x = kept * m if ctx.needs_input_grad[0] else None
        grad_m = kept * x
        if channels:
            grad_m = grad_m.sum(channels, keepdim=True)
        grad_z = (kept.sum(rest) - grad.sum(rest)).reshape((-1,) + (1,) * (grad.ndim - 1))
        return grad_x, grad_m, grad_z, None, None


class TrainablePart(torch.nn.Module):
    """What is trained of one part; see the module's equations."""

    def __init__(
        self, weight: F32, start: torch.Tensor, pre: F32, table: tuple[F32, I32], codes: tuple[int, int]
    ) -> None:
        super().__init__()
        tail = (1,) * (weight.ndim - 1)
        self.q_min, self.q_max = codes
        self.weight_start = start
        self.pre = torch.from_numpy(pre.copy())
        self.scale_start = torch.from_numpy(table[0].copy())
        self.zero_start = torch.from_numpy(table[1].astype(np.float32))
        self.v = torch.nn.Parameter(torch.from_numpy(weight) / start.reshape(-1, *tail))
        self.a = torch.nn.Parameter(torch.zeros_like(start))
        self.g = torch.nn.Parameter(torch.zeros_like(self.scale_start))
        self.h = torch.nn.Parameter(torch.zeros_like(self.scale_start))

    def weight_scale(self) -> torch.Tensor:
        """s_w [C_out]."""
        return (self.weight_start * self.a.exp()).clamp(SCALE_MIN * 2, SCALE_MAX / 2)

    def q_weight(self, bits: int) -> torch.Tensor:
        """Whole-numbered weight codes that pass gradients to v and a."""
        tail = (1,) * (self.v.ndim - 1)
        ratio = self.v * (-self.a).exp().reshape(-1, *tail)
        return RoundThrough.apply(ratio.clamp(*weight_range(bits)))  # type: ignore[no-untyped-call, no-any-return]

    def scale(self) -> torch.Tensor:
        """Activation scales s [T]."""
        return (self.scale_start * self.g.exp()).clamp(SCALE_MIN * 2, SCALE_MAX / 2)

    def zero_point(self) -> torch.Tensor:
        """Zero points z [T]: whole numbers within the code range."""
        if self.q_min < 0:
            return self.zero_start
        z = self.zero_start + (self.q_max - self.q_min) * self.h
        return RoundThrough.apply(z.clamp(self.q_min, self.q_max))  # type: ignore[no-untyped-call, no-any-return]


class TrainableLayer(torch.nn.Module):
    """One layer while its block is trained."""

    def __init__(self, prepared: PreparedLayer, start: Layer, spread: float, context: StepContext) -> None:
        super().__init__()
        self.prepared = prepared
        self.context = context
        self.codes = (start.q_min, start.q_max)
        self.spread = spread
        self.parts = torch.nn.ModuleList(
            TrainablePart(
                weight,
                torch.from_numpy(part.weight_scale[0].copy()),
                part.pre,
                (part.scale, part.zero_point),
                self.codes,
            )
            for weight, part in zip(prepared.weight_parts(), start.parts, strict=True)
        )
        bias = None if prepared.bias is None else torch.from_numpy(prepared.bias.copy())
        self.bias_start = bias
        self.e = None if bias is None else torch.nn.Parameter(torch.zeros_like(bias))

    def bias(self) -> torch.Tensor | None:
        """Bias [C_out] or None."""
        return None if self.e is None else self.bias_start + self.spread * self.e

    def parameter_groups(self, options: QuantizeOptions) -> list[dict[str, Any]]:
        """Adam's groups with their learning rates."""
        groups = []
        for part in self.parts:
            rates = {
                "v": options.lr_weight,
                "a": options.lr_weight_scale,
                "g": options.lr_scale,
                "h": options.lr_zero_point,
            }
            groups += [{"params": [getattr(part, name)], "lr": rate} for name, rate in rates.items()]
        if self.e is not None:
            groups.append({"params": [self.e], "lr": options.lr_bias})
        return groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float32 output for a float32 input at the context's steps."""
        site = self.prepared.site
        axis = channel_axis_of(site.kind, x.ndim)
        q_min, q_max = self.codes
        y: torch.Tensor | None = None
        pieces = torch.split(x, self.prepared.widths, dim=axis)
        for part, piece in zip(self.parts, pieces, strict=True):
            assert isinstance(part, TrainablePart)
            scale = part.scale()
            inverse = self.context.rows(1.0 / scale, len(x))
            m = along(inverse[:, None] * part.pre[None, :], x.ndim, axis)
            z = per_sample(self.context.rows(part.zero_point(), len(x)), x.ndim)
            codes = CentredCodes.apply(piece, m, z, q_min, q_max)  # type: ignore[no-untyped-call]
            product = self._product(codes, part.q_weight(self.prepared.weight_bits))
            factor = self.context.rows(scale, len(x))[:, None] * part.weight_scale()
            term = product * along(factor, product.ndim, channel_axis_of(site.kind, product.ndim))
            y = term if y is None else y + term
        assert y is not None
        bias = self.bias()
        return y if bias is None else y + along(bias, y.ndim, channel_axis_of(site.kind, y.ndim))

    def _product(self, codes: torch.Tensor, q_weight: torch.Tensor) -> torch.Tensor:
        from dq_deploy.methods.exact_arithmetic import convolve

        site = self.prepared.site
        if site.kind == "linear":
            return torch.nn.functional.linear(codes, q_weight)
        return convolve(
            codes,
            q_weight,
            stride=site.stride,
            padding=site.padding,
            dilation=site.dilation,
            groups=site.groups,
        )

    @torch.no_grad()
    def harvest(self) -> Layer:
        """The integer layer that was trained, without output tables."""
        tables, weights = [], []
        for part in self.parts:
            assert isinstance(part, TrainablePart)
            tables.append((part.scale().numpy().copy(), part.zero_point().numpy().astype(np.int32)))
            code = part.q_weight(self.prepared.weight_bits).numpy().astype(np.int8)
            weights.append((code, part.weight_scale().numpy().copy(), None))
        bias = self.bias()
        return build_layer(
            self.prepared,
            tables=tables,
            weights=weights,
            bias=None if bias is None else bias.numpy().copy(),
            output=None,
            symmetric=self.codes[0] < 0,
        )
