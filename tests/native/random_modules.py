"""Random small modules out of the operations the native engine knows, views of every kind between them."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import prod

import torch
from torch import nn
from torch.nn import functional as f

from dq_deploy.record import Layer
from tests.native.programs import Case, Function, layer_of

Tensor = torch.Tensor
Step = tuple[Callable[..., Tensor], list[int]]
INPUTS = {"x": (("B", 6, 4, 4), "float32"), "t": (("B", 4, 6), "float32")}
ACTIVATIONS = (f.silu, f.gelu, torch.sigmoid, torch.tanh, f.relu)
LARGEST = 4000


class Writer:
    """Writes one module, a step at a time; each step reads values by index."""

    def __init__(self, seed: int) -> None:
        self.pick = random.Random(seed)
        torch.manual_seed(seed)
        self.values: list[Tensor] = [torch.randn(2, 6, 4, 4), torch.randn(2, 4, 6)]
        self.steps: list[Step] = []
        self.kids: dict[str, nn.Module] = {}
        self.layers: list[Layer] = []
        self._rules = [getattr(self, name) for name in dir(type(self)) if name.startswith("make_")]

    def case(self, steps: int = 12) -> Case:
        """The module with its inputs and integer layers; its output joins the last three values."""
        while len(self.steps) < steps:
            index = self.pick.randrange(max(0, len(self.values) - 5), len(self.values))
            step = self.pick.choice(self._rules)(index, self.values[index])
            if step is not None:
                self._append(step)

        def run(module: nn.Module, *inputs: Tensor) -> Tensor:
            values = list(inputs)
            for function, reads in self.steps:
                values.append(function(module, *(values[i] for i in reads)))
            return torch.cat([value.reshape(value.shape[0], -1) * 1.25 for value in values[-3:]], 1)

        return Case(Function(run, **self.kids), INPUTS, self.layers)

    def _append(self, step: Step) -> None:
        try:
            value = step[0](Function(lambda m: m, **self.kids), *(self.values[i] for i in step[1]))
        except (RuntimeError, IndexError):
            return
        if value.shape[0] == 2 and 2 <= value.ndim <= 5 and value.numel() <= LARGEST:
            self.steps.append(step)
            self.values.append(value.detach())

    def _kid(self, kid: nn.Module, post: Callable[[Tensor], Tensor] = lambda y: y) -> Callable[..., Tensor]:
        name = f"kid{len(self.kids)}"
        self.kids[name] = kid
        return lambda m, a: post(getattr(m, name)(a))

    def make_unary(self, i: int, _: Tensor) -> Step:
        act = self.pick.choice(ACTIVATIONS)
        return lambda m, a: act(a), [i]

    def make_sum(self, i: int, _: Tensor) -> Step:
        alpha, j = self.pick.choice([1, 1, 2]), self.pick.randrange(len(self.values))
        return lambda m, a, b: torch.sub(a, b, alpha=alpha), [i, j]

    def make_product(self, i: int, _: Tensor) -> Step:
        return lambda m, a, b: torch.tanh(a) * b, [i, self.pick.randrange(len(self.values))]

    def make_number(self, i: int, _: Tensor) -> Step:
        c = self.pick.choice([2.0, 1.0, -0.5, 3])
        return self.pick.choice([lambda m, a: a * c, lambda m, a: a + c, lambda m, a: a - c, lambda m, a: a / c]), [i]

    def make_residual(self, i: int, v: Tensor) -> Step:
        j = self.pick.choice([j for j, other in enumerate(self.values) if other.shape == v.shape])
        return lambda m, a, b: a + b, self.pick.sample([i, j], 2)

    def make_row(self, i: int, v: Tensor) -> Step | None:
        rows = [j for j, other in enumerate(self.values) if other.ndim == 3 and other.shape[-1] == v.shape[1]]
        return (lambda m, a, b: a + b[:, -1, :, None, None], [i, rows[-1]]) if rows else None

    def make_cat(self, i: int, _: Tensor) -> Step:
        axis, j = self.pick.choice([1, 1, 2, -1]), self.pick.randrange(len(self.values))
        return lambda m, *a: torch.cat(a, axis), [i, self.pick.choice([i, j])]

    def make_chunk(self, i: int, v: Tensor) -> Step:
        axis, count = self.pick.randrange(1, v.ndim), self.pick.choice([2, 3])
        which = self.pick.randrange(count)
        return lambda m, a: a.chunk(count, axis)[which], [i]

    def make_permuted(self, i: int, v: Tensor) -> Step:
        order = [0, *self.pick.sample(range(1, v.ndim), v.ndim - 1)]
        return lambda m, a: a.permute(order), [i]

    def make_reshaped(self, i: int, v: Tensor) -> Step:
        left, sizes = prod(v.shape[1:]), []
        for _ in range(self.pick.randint(0, 3)):
            sizes.append(self.pick.choice([d for d in range(1, 9) if left % d == 0]))
            left //= sizes[-1]
        sizes.insert(self.pick.randint(0, len(sizes)), left)
        return lambda m, a: a.reshape(a.shape[0], *sizes), [i]

    def make_tokens(self, i: int, v: Tensor) -> Step | None:
        return (lambda m, a: a.flatten(2).transpose(1, 2), [i]) if v.ndim == 4 else None

    def make_contiguous(self, i: int, _: Tensor) -> Step:
        return lambda m, a: a.contiguous(), [i]

    def make_slice(self, i: int, v: Tensor) -> Step:
        axis = self.pick.randrange(1, v.ndim)
        first = self.pick.randrange(v.shape[axis])
        cut = slice(first, self.pick.randint(first + 1, v.shape[axis]), self.pick.choice([1, 1, 2, 3]))
        return lambda m, a: a[(slice(None),) * axis + (cut,)], [i]

    def make_expanded(self, i: int, v: Tensor) -> Step:
        axis = self.pick.randrange(1, v.ndim)
        sizes = [3 if n == axis else -1 for n in range(v.ndim)]
        return lambda m, a: a.narrow(axis, 0, 1).expand(*sizes), [i]

    def make_upsampled(self, i: int, v: Tensor) -> Step | None:
        return (lambda m, a: f.interpolate(a, scale_factor=2.0), [i]) if v.ndim == 4 else None

    def make_padded(self, i: int, v: Tensor) -> Step:
        widths = [self.pick.randint(0, 2) for _ in range(2 * self.pick.randint(1, min(2, v.ndim - 1)))]
        value = self.pick.choice([0.0, 0.0, 1.5])
        return lambda m, a: f.pad(a, widths, value=value), [i]

    def make_group_norm(self, i: int, v: Tensor) -> Step | None:
        groups = self.pick.choice([g for g in (1, 2, 3) if v.shape[1] % g == 0])
        post = self.pick.choice([f.silu, lambda y: y])
        norm = nn.GroupNorm(groups, v.shape[1], affine=self.pick.random() < 0.7)
        return (self._kid(norm, post), [i]) if prod(v.shape[1:]) // groups >= 8 else None

    def make_layer_norm(self, i: int, v: Tensor) -> Step | None:
        return (self._kid(nn.LayerNorm(v.shape[-1])), [i]) if v.shape[-1] >= 4 else None

    def make_attention(self, i: int, v: Tensor) -> Step | None:
        heads = self.pick.choice([h for h in (1, 2, 3) if v.shape[-1] % h == 0])

        def attend(m: nn.Module, a: Tensor) -> Tensor:
            q = a.view(a.shape[0], -1, heads, a.shape[-1] // heads).transpose(1, 2)
            return f.scaled_dot_product_attention(q, q * 2, q).transpose(1, 2).reshape(a.shape)

        return (attend, [i]) if v.ndim == 3 else None

    def make_geglu(self, i: int, v: Tensor) -> Step | None:
        def geglu(m: nn.Module, a: Tensor) -> Tensor:
            value, gate = a.chunk(2, -1)
            return value * f.gelu(gate)

        return (geglu, [i]) if v.shape[-1] % 2 == 0 else None

    def make_linear(self, i: int, v: Tensor) -> Step | None:
        count, out = v.shape[-1], self.pick.choice([v.shape[-1], 6, 3, 8])
        if count > 40:
            return None
        if self.pick.random() < 0.7:
            self._quantized([out, count])
        return self._kid(nn.Linear(count, out)), [i]

    def make_conv(self, i: int, v: Tensor) -> Step | None:
        if v.ndim != 4:
            return None
        count, k, stride = v.shape[1], self.pick.choice([1, 3]), self.pick.choice([1, 1, 2])
        out, groups = self.pick.choice([count, 6, 4, 1]), self.pick.choice([1, 1, 2])
        groups = groups if count % groups == 0 and out % groups == 0 else 1
        if self.pick.random() < 0.7:
            sides = {"stride": (stride, stride), "padding": (k // 2,) * 4, "groups": groups}
            self._quantized([out, count // groups, k, k], **sides)
        return self._kid(nn.Conv2d(count, out, k, padding=k // 2, stride=stride, groups=groups)), [i]

    def _quantized(self, shape: list[int], **changes: object) -> None:
        """Make the next child an integer layer; many take their quantizers from one before."""
        width = shape[1] * int(changes.get("groups", 1))  # type: ignore[call-overload]
        alike = [layer for layer in self.layers if len(layer.parts) == 1 and layer.in_channels == width]
        like = self.pick.choice(alike) if alike and self.pick.random() < 0.7 else None
        whole = like is not None or changes.get("groups", 1) != 1 or width < 2
        split = 0 if whole or self.pick.random() < 0.7 else self.pick.randint(1, width - 1)
        layer = layer_of(f"kid{len(self.kids)}", shape, seed=len(self.layers), like=like, split=split, **changes)
        self.layers.append(layer)
