"""Where the channels of a tensor go in a denoiser's step.

Every element of a tensor carries the number of the source's channel that it holds. Along each axis that number grows
by a fixed step, so a tensor of numbers that takes a channel's worth of memory, with strides of zero along the other
axes, goes through views, permutations and slices by torch's own rules; where it cannot, the channels are mixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dq_deploy.models.capture.graph import ATTENTION, LAYER, NORM, Graph, Value

VIEWS = frozenset(
    f"aten.{name}"
    for name in (
        *("view", "_unsafe_view", "_reshape_alias", "transpose", "permute", "t", "unsqueeze", "squeeze", "expand"),
        *("slice", "select", "split", "split_with_sizes", "unbind", "narrow", "alias", "detach", "unfold"),
    )
)
"""Operations that move values, none of which is changed."""

COPIES = frozenset(("aten.clone", "aten._to_copy", "aten.contiguous"))
RESIZES = frozenset(
    f"aten.{name}"
    for name in (
        *("upsample_nearest2d", "upsample_nearest_exact2d", "upsample_bilinear2d", "upsample_bicubic2d"),
        *("avg_pool2d", "_adaptive_avg_pool2d", "constant_pad_nd"),
    )
)
"""Operations that change height and width alone, linear in each channel."""

ACTIVATIONS = {
    "aten.silu": "SiLU",
    "aten.gelu": "GELU",
    "aten.relu": "ReLU",
    "aten.mish": "Mish",
    "aten.tanh": "Tanh",
    "aten.sigmoid": "Sigmoid",
    "aten.softplus": "Softplus",
    "aten.leaky_relu": "LeakyReLU",
    "aten.hardswish": "Hardswish",
    "aten.elu": "ELU",
}
"""Operations on each value alone, with the names people know."""

_PRODUCTS = frozenset(("aten.mul", "aten.mul_"))
_QUOTIENTS = frozenset(("aten.div", "aten.div_"))
_SUMS = frozenset(("aten.add", "aten.add_", "aten.sub", "aten.sub_"))
_NORMS = frozenset(("aten.native_group_norm", "aten.native_layer_norm", NORM))


@dataclass(frozen=True, kw_only=True, eq=False)
class Reach:
    """Where a source's channels go.

    Attributes:
        layers: layers that read all channels in their order, and nothing else.
        stops: values where the way ends otherwise: the channels are summed with others, or pass what is not allowed.
    """

    layers: tuple[Value, ...]
    stops: tuple[Value, ...]


def channel_axis(value: Value, kind: type[torch.nn.Module]) -> int:
    """Axis of the channels in what a layer or norm of this kind receives and returns, from the front."""
    return 1 if issubclass(kind, (torch.nn.Conv2d, torch.nn.GroupNorm)) else len(value.shape) - 1


def follow(graph: Graph, source: Value, axis: int, kinds: Callable[[Value], type], *, linear: bool) -> Reach:
    """Follow a value's channels forward to the layers that read them.

    Args:
        graph: the step.
        source: the value.
        axis: of its channels, from the front.
        kinds: the module class of a layer's value.
        linear: pass only what is linear in the source for fixed other values; else also norms, activations and sums
            with what is broadcast: each channel stays apart from the others.
    """
    layers: dict[int, Value] = {}
    stops: dict[int, Value] = {}
    derived = {source.number}
    waiting: list[tuple[Value, torch.Tensor]] = [(source, _labels(source.shape, axis))]
    while waiting:
        value, labels = waiting.pop()
        if value in graph.outputs:
            stops[value.number] = value
        for user in graph.users[value.number]:
            if user.kind == LAYER:
                whole = _is_whole(labels, channel_axis(value, kinds(user)), source.shape[axis])
                (layers if whole else stops)[user.number] = user
                continue
            try:
                passed = _passed(user, value, labels, linear)
            except RuntimeError:  # torch cannot view the numbers so: channels are mixed
                passed = None
            twice = sum(one.number in derived for one in user.sources) > 1
            if passed is None or tuple(passed.shape) != user.shape or twice:
                stops[user.number] = user
            elif user.number not in derived:
                derived.add(user.number)
                waiting.append((user, passed))
    return Reach(layers=tuple(layers.values()), stops=tuple(stops.values()))


def _labels(shape: tuple[int, ...], axis: int) -> torch.Tensor:
    """Each element's channel."""
    numbers = torch.arange(shape[axis], dtype=torch.int32)
    return numbers.reshape([-1 if i == axis else 1 for i in range(len(shape))]).expand(shape)


def _is_whole(labels: torch.Tensor, axis: int, channels: int) -> bool:
    """Whether every channel stands in its place along an axis, the same along all others."""
    if labels.shape[axis] != channels or labels.storage_offset() != 0:
        return False
    steps = [(size, step) for size, step in zip(labels.shape, labels.stride(), strict=True)]
    own = steps.pop(axis)
    return (own[0] == 1 or own[1] == 1) and all(size == 1 or step == 0 for size, step in steps)


def _passed(user: Value, value: Value, labels: torch.Tensor, linear: bool) -> torch.Tensor | None:
    """The numbers behind an operation, None where the channels do not come through it."""
    kind, first = user.kind, bool(user.args) and user.args[0] is value
    if kind in VIEWS and first:
        assert user.call is not None
        result: Any = user.call(labels, *user.args[1:], **user.kwargs)
        return result if user.part is None else result[user.part]
    if kind in COPIES or (kind == "aten.neg" and first):
        return labels
    if kind in RESIZES and first and (kind != "aten.constant_pad_nd" or not any(user.args[2:])):
        return _constant(labels, (-1, -2), user.shape)
    if kind in _PRODUCTS or (kind in _QUOTIENTS and first):
        return labels.expand(user.shape)
    if kind == ATTENTION and _is_only_value(user, value):
        return _constant(labels, (-2,), user.shape)
    if kind == "aten.bmm" and user.args[1] is value and user.args[0] is not value:
        return _constant(labels, (-2,), user.shape)
    if linear:
        return None
    if kind in ACTIVATIONS or kind in _NORMS:
        return labels if not user.part else None
    if kind in _SUMS and all(one is value or math.prod(one.shape) < math.prod(value.shape) for one in user.sources):
        return labels.expand(user.shape)
    return None


def _is_only_value(attention: Value, value: Value) -> bool:
    queries, keys, values, *mask = attention.args
    return values is value and all(one is not value for one in (queries, keys, *mask))


def _constant(labels: torch.Tensor, axes: tuple[int, ...], shape: tuple[int, ...]) -> torch.Tensor | None:
    """The numbers with another size along axes that they do not depend on, else None."""
    for axis in axes:
        if labels.shape[axis] != 1 and labels.stride(axis) != 0:
            return None
        labels = labels.narrow(axis, 0, 1)
    return labels.expand(shape)
