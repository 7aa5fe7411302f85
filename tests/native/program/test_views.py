"""Views: where a view lies in another order or in a wider row, against numpy's own strides."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_deploy.native.program.program import View
from dq_deploy.native.program.views import (
    broadcast,
    channels_last_strides,
    has_even_rows,
    joined_halves,
    restrided,
    rows_view,
    widened,
)

SIZES = st.lists(st.integers(1, 4), min_size=2, max_size=4)


def read(flat: np.ndarray, at: View) -> np.ndarray:
    strides = tuple(s * flat.itemsize for s in at.strides)
    return np.lib.stride_tricks.as_strided(flat[at.offset :], at.sizes, strides)


def view_of(value: torch.Tensor) -> View:
    return View(buffer=0, offset=value.storage_offset(), sizes=tuple(value.shape), strides=tuple(value.stride()))


@st.composite
def views(draw: st.DrawFn, base: torch.Tensor) -> torch.Tensor:
    """A chain of views of a tensor."""
    value = base
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["permute", "slice", "expand", "flatten", "split", "drop"]))
        axis = draw(st.integers(0, value.ndim - 1))
        size = value.shape[axis]
        if kind == "permute":
            value = value.permute(draw(st.permutations(range(value.ndim))))
        elif kind == "slice":
            first = draw(st.integers(0, size - 1))
            step = draw(st.integers(1, 3))
            value = value[(slice(None),) * axis + (slice(first, draw(st.integers(first + 1, size)), step),)]
        elif kind == "expand":
            value = value.narrow(axis, 0, 1).expand(*(3 if i == axis else -1 for i in range(value.ndim)))
        elif kind == "flatten" and axis + 1 < value.ndim:
            try:
                value = value.view(*value.shape[:axis], size * value.shape[axis + 1], *value.shape[axis + 2 :])
            except RuntimeError:
                continue
        elif kind == "split" and size % 2 == 0 and value.ndim < 6:
            value = value.unflatten(axis, (2, size // 2))
        elif kind == "drop" and value.ndim > 2:
            value = value.select(axis, draw(st.integers(0, size - 1)))
    return value


def dense(sizes: list[int], order: list[int]) -> tuple[int, ...]:
    """Strides of a dense value whose axes lie in memory in an order."""
    strides, step = [0] * len(sizes), 1
    for axis in reversed(order):
        strides[axis] = step
        step *= sizes[axis]
    return tuple(strides)


@given(st.data(), SIZES)
@settings(max_examples=100, deadline=None)
def test_a_view_found_again_in_another_order_shows_the_same_values(data, sizes):
    axes = range(len(sizes))
    told, laid = (dense(sizes, data.draw(st.permutations(axes))) for _ in range(2))
    values = torch.arange(int(np.prod(sizes)))
    base = torch.as_strided(values, sizes, told)
    memory = np.empty(len(values), np.int64)
    read(memory, View(buffer=0, offset=0, sizes=tuple(sizes), strides=laid))[...] = base.numpy()
    view = data.draw(views(base))
    seen = restrided(view_of(view), told, laid, sizes)
    if seen is not None:
        np.testing.assert_array_equal(read(memory, seen), view.numpy())


def test_a_value_in_its_own_order_is_always_found_again():
    base = torch.arange(24).reshape(2, 3, 4)
    for view in (base, base.permute(2, 0, 1), base.flatten(1), base[:, :1].expand(-1, 5, -1)):
        assert restrided(view_of(view), base.stride(), base.stride(), base.shape) is not None


@given(st.data(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_a_view_moved_into_wider_rows_shows_the_same_values(data, batch, rows, channels, first, behind):
    values = torch.arange(batch * rows * channels)
    pitch = first + channels + behind
    wide = np.full(batch * rows * pitch, -1)
    wide.reshape(batch * rows, pitch)[:, first : first + channels] = values.numpy().reshape(-1, channels)
    view = data.draw(views(values.view(batch, rows, channels)))
    new = widened(view_of(view), channels=channels, pitch=pitch, first=first, buffer=1)
    if new is not None:
        np.testing.assert_array_equal(read(wide, new), view.numpy())


@given(st.data(), st.lists(st.integers(1, 3), min_size=2, max_size=4))
@settings(max_examples=100, deadline=None)
def test_even_rows_are_batch_rows_and_adjacent_channels(data, sizes):
    base = torch.arange(int(np.prod(sizes))).reshape(sizes)
    view = data.draw(views(base))
    axis = data.draw(st.sampled_from([1, -1]))
    at = view_of(view)
    if view.ndim < 2 or not has_even_rows(at, axis):
        return
    rows = rows_view(at, axis)
    want = view.movedim(axis, -1).reshape(view.shape[0], -1, view.shape[axis]).numpy()
    np.testing.assert_array_equal(read(base.reshape(-1).numpy(), rows), want)
    assert rows.strides[1] >= rows.sizes[2] or rows.sizes[0] * rows.sizes[1] == 1


def test_repeated_rows_are_not_even():
    assert not has_even_rows(View(buffer=0, offset=0, sizes=(2, 3, 4), strides=(0, 0, 1)), -1)
    assert not has_even_rows(View(buffer=0, offset=0, sizes=(2, 3, 4), strides=(6, 2, 1)), -1)
    assert not has_even_rows(View(buffer="weights", offset=0, sizes=(2, 3, 4), strides=(12, 4, 1)), -1)


def test_broadcasting_is_numpys():
    values = np.arange(6)
    at = broadcast(View(buffer=0, offset=0, sizes=(3, 1, 2), strides=(2, 2, 1)), (4, 3, 5, 2))
    np.testing.assert_array_equal(read(values, at), np.broadcast_to(values.reshape(3, 1, 2), (4, 3, 5, 2)))


def test_halves_join_only_where_rows_stay_even():
    value = View(buffer=0, offset=0, sizes=(2, 3, 4), strides=(24, 8, 1))
    gate = View(buffer=0, offset=4, sizes=(2, 3, 4), strides=(24, 8, 1))
    joined = joined_halves(value, gate)
    assert joined is not None
    assert joined.sizes == (2, 3, 8)
    assert joined_halves(gate, value) is None
    assert joined_halves(value, View(buffer=1, offset=4, sizes=gate.sizes, strides=gate.strides)) is None
    cut = {"sizes": (2, 2, 4), "strides": (24, 8, 1)}
    assert joined_halves(View(buffer=0, offset=0, **cut), View(buffer=0, offset=4, **cut)) is None


def test_channels_last_strides_are_torchs():
    value = torch.empty(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert channels_last_strides(value.shape, 1) == value.stride()
