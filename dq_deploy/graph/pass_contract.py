"""What a graph pass is: a named rewrite that says whether it changed anything and why it declined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir


@dataclass(frozen=True, kw_only=True)
class PassResult:
    """Outcome of one pass.

    Attributes:
        model: the model, edited in place.
        modified: whether anything changed.
        notes: one line a declined rewrite, with its reason.
    """

    model: ir.Model
    modified: bool
    notes: tuple[str, ...] = ()


class Pass(Protocol):
    """A rewrite of the graph; its class docstring lists the rewrites it does."""

    name: str

    def apply(self, model: ir.Model) -> PassResult:
        """Edit the model in place."""
        ...


def run_passes(model: ir.Model, passes: list[Pass]) -> PassResult:
    """Apply passes in order and join their notes."""
    notes: list[str] = []
    modified = False
    for item in passes:
        result = item.apply(model)
        model, modified = result.model, modified or result.modified
        notes += [f"{item.name}: {note}" for note in result.notes]
    return PassResult(model=model, modified=modified, notes=tuple(notes))
