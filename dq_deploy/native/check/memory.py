"""Where a program may read and write: its buffers and what it reads of the record, and views that stay inside."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NoReturn

from dq_deploy.errors import FileProblemError
from dq_deploy.native.check.lines import BatchNumber, is_size
from dq_deploy.native.program.program import Program, View
from dq_deploy.native.program.views import has_even_rows, rows_view
from dq_deploy.record import Layer

MOST = 1 << 40
"""Magnitude of every number of a program; products of two of them stay far from where memory ends."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An array that a program is given or names: elements, or a shape, and numpy's dtype name."""

    shape: tuple[BatchNumber, ...]
    dtype: str

    @property
    def elements(self) -> BatchNumber:
        """Of the whole."""
        count: BatchNumber = 1
        for size in self.shape:
            count = count * size
        return count


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a program is checked against.

    Attributes:
        layers: integer layers of the record.
        attentions: module paths of those that can run on codes.
        named: parameters and folded values that may be read, by name.
        inputs: as the denoiser is called, for one choice of sizes, the batch among them.
        outputs: likewise.
    """

    layers: Mapping[str, Layer]
    named: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    attentions: Collection[str] = ()


def demand(ok: bool, words: str) -> None:
    """Refuse the program unless `ok`.

    Raises:
        FileProblemError: with these words.
    """
    if not ok:
        raise FileProblemError(words)


class Place:
    """One op of a program, with checks that name it.

    Attributes:
        op: the op.
        around: what it is checked against.
    """

    def __init__(self, program: Program, index: int, around: Surroundings) -> None:
        """Take op `index` of a program."""
        self._program, self._index, self.op, self.around = program, index, program.ops[index], around

    def refuse(self, words: str) -> NoReturn:
        """Refuse the program, naming the op."""
        raise FileProblemError(f"op {self._index} ({self.op.kind}): {words}")

    def demand(self, ok: bool, words: str) -> None:
        """Refuse the program, naming the op, unless `ok`."""
        if not ok:
            self.refuse(words)

    def roles(self, reads: str, writes: str, *, may: str = "", may_write: str = "") -> None:
        """The op has these roles, and besides them none but those it may have."""
        for views, must, also in ((self.op.reads, reads, may), (self.op.writes, writes, may_write)):
            wanted, found = set(must.split()), views.keys()
            if not wanted <= found or not found <= wanted.union(also.split()):
                self.refuse(f"has {sorted(views)}, expected {must} and at most {also} besides")

    def attributes(self, *names: str, may: tuple[str, ...] = ()) -> None:
        """The op has these attributes and besides them none but those it may have."""
        found = self.op.attributes.keys()
        self.demand(
            set(names) <= found <= {*names, *may}, f"has the attributes {sorted(found)}, expected {sorted(names)}"
        )

    def whole(self, name: str, least: int = 0, most: int = MOST) -> int:
        """A whole number among the attributes, the same for every batch."""
        value = self.op.attributes[name]
        good = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        self.demand(good, f"{name} is {value!r}, expected a whole number from {least} to {most}")
        return int(value)

    def wholes(self, name: str, count: int, least: int = 0) -> tuple[int, ...]:
        """Several of them."""
        value = self.op.attributes[name]
        good = isinstance(value, list) and len(value) == count
        good = good and all(isinstance(v, int) and not isinstance(v, bool) and least <= v <= MOST for v in value)
        self.demand(good, f"{name} is {value!r}, expected {count} whole numbers from {least}")
        return tuple(value)

    def real(self, name: str) -> None:
        """A finite number among the attributes."""
        value = self.op.attributes[name]
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
        self.demand(good, f"{name} is {value!r}, expected a finite number")

    def flag(self, name: str) -> None:
        """True or false among the attributes."""
        value = self.op.attributes[name]
        self.demand(isinstance(value, bool), f"{name} is {value!r}, expected true or false")

    def tensor(self, view: View) -> Tensor:
        """What a view looks into."""
        if isinstance(view.buffer, str):
            if view.buffer not in self.around.named:
                self.refuse(f"reads {view.buffer}, which the record does not hold")
            return self.around.named[view.buffer]
        if not 0 <= view.buffer < len(self._program.buffers):
            self.refuse(f"names buffer {view.buffer}, which there is not")
        buffer = self._program.buffers[view.buffer]
        return Tensor(shape=(buffer.elements,), dtype=buffer.dtype)

    def inside(self, role: str, view: View, dtype: str | None = "float32", *, empty: bool = False) -> None:
        """A view of this dtype that ends inside what it looks into, for every batch."""
        into = self.tensor(view)
        if dtype is not None and into.dtype != dtype:
            self.refuse(f"{role} is {into.dtype}, expected {dtype}")
        if len(view.sizes) != len(view.strides):
            self.refuse(f"{role} has {len(view.sizes)} sizes and {len(view.strides)} strides")
        if empty and any(size == 0 for size in view.sizes):
            return
        last: BatchNumber = view.offset
        for size, stride in zip(view.sizes, view.strides, strict=True):
            if not is_size(size):
                self.refuse(f"{role} has an axis of {size}, expected one element or more, for every batch")
            if not stride >= 0:
                self.refuse(f"{role} has a stride of {stride}, expected none below 0")
            last = last + (size - 1) * stride
        if not view.offset >= 0:
            self.refuse(f"{role} begins at element {view.offset}, expected none below 0")
        if not last - into.elements <= -1:
            self.refuse(f"{role} ends at element {last} of {view.buffer}, which has {into.elements}")

    def view(self, role: str) -> View:
        """What is read or written in a role."""
        return self.op.writes[role] if role in self.op.writes else self.op.reads[role]

    def sized(self, role: str, sizes: tuple[BatchNumber, ...]) -> View:
        """A view among what is read or written that has these sizes."""
        view = self.view(role)
        if tuple(view.sizes) != sizes:
            self.refuse(f"{role} is {view.sizes}, expected {sizes}")
        return view

    def rows(self, role: str) -> tuple[BatchNumber, BatchNumber, int]:
        """Batch, rows and channels of a float view [batch, rows, channels] with one pitch for all of it."""
        view = self.view(role)
        if len(view.sizes) != 3:
            self.refuse(f"{role} has {len(view.sizes)} axes, expected 3")
        (batch, rows, channels), (outer, pitch, inner) = view.sizes, view.strides
        even = outer == rows * pitch and pitch >= channels and (inner == 1 or channels == 1)
        if not even or not isinstance(channels, int):
            self.refuse(f"{role} has the strides {view.strides}, expected rows of one pitch")
        return batch, rows, channels

    def even(self, role: str, axis: int) -> View:
        """A view whose channels, on `axis`, are adjacent and whose pixels are evenly spaced, as [batch, rows, C]."""
        view = self.view(role)
        if len(view.sizes) < 2:
            self.refuse(f"{role} has {len(view.sizes)} axes, expected 2 or more")
        if isinstance(view.buffer, str) or not has_even_rows(view, axis):
            self.refuse(f"{role} has the strides {view.strides}, expected adjacent channels and evenly spaced pixels")
        return rows_view(view, axis)

    def vector(self, role: str, count: BatchNumber) -> None:
        """A view of so many adjacent floats."""
        view = self.sized(role, (count,))
        self.demand(view.strides[0] == 1 or count == 1, f"{role} has the stride {view.strides[0]}, expected 1")
