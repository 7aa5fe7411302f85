"""Blocks one after another, each kept as soon as it is finished: a stopped run goes on behind the last of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dq_deploy.errors import NonFiniteError, library_errors
from dq_deploy.methods.blocks.nested_values import Gathered
from dq_deploy.methods.blocks.walk import BlockWalk, Reached
from dq_deploy.methods.training.resume import ResumeFolder
from dq_deploy.processes.memory import give_back_freed
from dq_deploy.record import Layer

_ADVICE = "check the model's configuration and the options"


class DivergedError(Exception):
    """A block gave NaN or infinity; the message says where."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FinishedBlock:
    """A block whose integer layers are in place: they, its output for all inputs, and its note (JSON values)."""

    layers: dict[str, Layer]
    output: Gathered
    note: dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstructed:
    """Layers of all blocks and what happened, block by block (JSON values)."""

    layers: dict[str, Layer]
    history: list[dict[str, Any]]


def blocks_in_turn(
    walk: BlockWalk,
    treat: Callable[[Reached], FinishedBlock],
    state: ResumeFolder | None,
    *,
    doing: str,
    passed: Callable[[Reached], None],
    advice: str,
) -> Reconstructed:
    """Treat every block that has quantized layers, or take it from the state of an earlier run.

    Args:
        walk: of the model.
        treat: finishes a block that is reached.
        state: where finished blocks are kept, or None.
        doing: what is done to a block, as `training`.
        passed: called with each block that was taken from the state.
        advice: what to do where a block diverges.

    Raises:
        NonFiniteError: a block diverges; names it, the last good one, and what is kept.
    """
    layers: dict[str, Layer] = {}
    history: list[dict[str, Any]] = []
    for index, block in enumerate(walk.blocks):
        with library_errors(f"block {block.name}", _ADVICE):
            reached = walk.reach(index)
        finished = _loaded(walk, reached, state, passed)
        if finished is None:
            try:
                with library_errors(f"{doing} block {block.name}", _ADVICE):
                    finished = treat(reached) if reached.layers else _as_it_is(walk, reached)
            except DivergedError as error:
                if state is not None:
                    state.note_divergence(block.name)
                raise NonFiniteError(_stopped(block.name, str(error), history, state, advice)) from error
            if state is not None and reached.layers:
                state.save_block(index, block.name, finished.layers, finished.note)
        walk.finish(reached, finished.output)
        layers.update(finished.layers)
        if reached.layers:
            history.append(finished.note)
        give_back_freed()
    return Reconstructed(layers=layers, history=history)


def _loaded(
    walk: BlockWalk, reached: Reached, state: ResumeFolder | None, passed: Callable[[Reached], None]
) -> FinishedBlock | None:
    """The block as an earlier run finished it, or None."""
    name = reached.block.name
    loaded = state.load_block(reached.index, name, walk.prepared.layers) if state and reached.layers else None
    if loaded is None:
        return None
    layers, note = loaded
    passed(reached)
    if walk.behind is None:
        return FinishedBlock(layers=layers, output=reached.target, note=note)
    block = walk.quantized_block(reached.block)
    block.place(layers, walk.context)
    return FinishedBlock(layers=layers, output=walk.output(block.module, name, reached.given), note=note)


def _as_it_is(walk: BlockWalk, reached: Reached) -> FinishedBlock:
    """A block that stays float."""
    if walk.behind is None:
        return FinishedBlock(layers={}, output=reached.target, note={})
    module = walk.prepared.module.get_submodule(reached.block.name)
    return FinishedBlock(layers={}, output=walk.output(module, reached.block.name, reached.given), note={})


def _stopped(block: str, reason: str, history: list[dict[str, Any]], state: ResumeFolder | None, advice: str) -> str:
    last = f"the last good block is {history[-1]['block']}" if history else "no block before it was finished"
    kept = f", kept in {state.folder} with those before it" if history and state else ""
    return f"block {block}: {reason}, expected finite numbers; {last}{kept}; {advice}"
