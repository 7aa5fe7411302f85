"""Views: which strides rows of pixels with adjacent channels have, and what may be read through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dq_deploy.native.program.program import View


def has_even_rows(at: View, axis: int) -> bool:
    """Whether channels, on `axis`, are adjacent and the pixels of all samples evenly spaced."""
    if isinstance(at.buffer, str):
        return False
    axes = _row_axes(at, axis)
    expected = None
    for size, stride in reversed(axes[:-1]):
        if size == 1:
            continue
        if stride != expected if expected is not None else stride < at.sizes[axis]:
            return False
        expected = stride * size
    size, stride = axes[-1]
    return stride == 1 or size == 1


def _row_axes(at: View, axis: int) -> list[tuple[int, int]]:
    axes = list(zip(at.sizes, at.strides, strict=True))
    channels = axes.pop(axis)
    return [*axes, channels]


def rows_view(at: View, axis: int) -> View:
    """[B, rows, C] of a value with even rows and its channels on `axis`."""
    axes = _row_axes(at, axis)
    batch, middle, (channels, _) = axes[0], axes[1:-1], axes[-1]
    rows = 1
    for size, _ in middle:
        rows *= size
    spaced = [stride for size, stride in middle if size > 1]
    pitch = spaced[-1] if spaced else (batch[1] if batch[0] > 1 else channels)
    return View(
        buffer=at.buffer,
        offset=at.offset,
        sizes=(batch[0], rows, channels),
        strides=(rows * pitch, pitch, 1),
    )


def restrided(at: View, told: Sequence[int], laid: Sequence[int], sizes: Sequence[int]) -> View | None:
    """A view of a value that torch laid out by the strides `told` and the program by `laid`.

    None where an axis of the view cannot be found again: it splits an axis, or joins some that lie apart here.
    """
    real = {t: (m, size) for t, m, size in zip(told, laid, sizes, strict=True) if size > 1}
    strides = []
    for count, step in zip(at.sizes, at.strides, strict=True):
        if count == 1 or step == 0:
            strides.append(0)
            continue
        if step not in real:
            return None
        first, covered = real[step]
        while covered < count:  # neighbours that torch joined to one axis
            outer = real.get(step * covered)
            if outer is None or outer[0] != first * covered:
                return None
            covered *= outer[1]
        strides.append(first)
    return None if at.offset else View(buffer=at.buffer, offset=0, sizes=at.sizes, strides=tuple(strides))


def channels_last_strides(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    """Strides of a dense value with adjacent channels, which are on `axis`."""
    order = list(range(len(shape)))
    if order:
        order.append(order.pop(axis))
    strides, step = [0] * len(shape), 1
    for entry in reversed(order):
        strides[entry] = step
        step *= shape[entry]
    return tuple(strides)


def is_dense(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements lie side by side in some order of the axes, none of them twice."""
    expected = 1
    for stride, size in sorted((t, n) for n, t in zip(sizes, strides, strict=True) if n > 1):
        if stride != expected:
            return False
        expected = stride * size
    return True


def dense_in_order_of(at: View) -> tuple[int, ...] | None:
    """Strides of a dense value whose axes lie in the order of a view's; None where the view repeats elements."""
    wide = [axis for axis, size in enumerate(at.sizes) if size > 1]
    if any(at.strides[axis] == 0 for axis in wide):
        return None
    strides, step = [0] * len(at.sizes), 1
    for axis in sorted(range(len(at.sizes)), key=lambda a: (at.sizes[a] > 1, at.strides[a], -a)):
        strides[axis] = step
        step *= at.sizes[axis]
    return tuple(strides)


def stored_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """How parameters and folded values lie in memory: images and kernels channels last, everything else as it is."""
    return channels_last_strides(shape, 1 if len(shape) == 4 else -1)


def lie_alike(a: Sequence[int], b: Sequence[int], sizes: Sequence[int]) -> bool:
    """Same strides wherever there is more than one element."""
    return all(s == t or size == 1 for s, t, size in zip(a, b, sizes, strict=True))


def row_view(at: View) -> View:
    """[B, N] of a value [B, N, 1, 1]."""
    return View(buffer=at.buffer, offset=at.offset, sizes=at.sizes[:2], strides=at.strides[:2])


def same_memory(out: View, residual: View) -> View:
    """The residual's memory in the axes of the product's output."""
    return View(buffer=residual.buffer, offset=residual.offset, sizes=out.sizes, strides=out.strides)


def broadcast(at: View, shape: tuple[int, ...]) -> View:
    """A view repeated along axes of one, as torch broadcasts."""
    missing = len(shape) - len(at.sizes)
    sizes, strides = (1,) * missing + at.sizes, (0,) * missing + at.strides
    spread = tuple(0 if have == 1 and want != 1 else s for have, want, s in zip(sizes, shape, strides, strict=True))
    return View(buffer=at.buffer, offset=at.offset, sizes=shape, strides=spread)


def joined_halves(value: View, gate: View) -> View | None:
    """The view over both halves, or None where they are not the halves of evenly spaced rows."""
    apart = gate.offset - value.offset != value.sizes[-1] or gate.buffer != value.buffer
    if apart or gate.sizes != value.sizes or gate.strides != value.strides:
        return None
    both = View(
        buffer=value.buffer,
        offset=value.offset,
        sizes=(*value.sizes[:-1], 2 * value.sizes[-1]),
        strides=value.strides,
    )
    return both if has_even_rows(both, -1) else None


def widened(at: View, *, channels: int, pitch: int, first: int, buffer: int) -> View | None:
    """A view of rows of `channels` moved to channels `first` onwards of rows of `pitch`; None if it cannot be."""
    inside = sum((n - 1) * s for n, s in zip(at.sizes, at.strides, strict=True) if n > 1 and s < channels)
    if at.offset % channels + inside >= channels:
        return None
    if any(n > 1 and s >= channels and s % channels for n, s in zip(at.sizes, at.strides, strict=True)):
        return None
    strides = tuple(s if s < channels else s // channels * pitch for s in at.strides)
    offset = at.offset // channels * pitch + at.offset % channels + first
    return replace(at, buffer=buffer, offset=offset, strides=strides)
