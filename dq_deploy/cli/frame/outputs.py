"""Outputs of a command: refused before any work, and held against another run until the command ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path

from dq_deploy.artifacts import check_writable, hold_folder, hold_output, place_of_output
from dq_deploy.cli.frame.torchrun import is_first
from dq_deploy.errors import OptionError

_held: ContextVar[contextlib.ExitStack | None] = ContextVar("held outputs", default=None)

_MODEL_FILES = ("diffusion_pytorch_model*", "config.json", "scheduler_config.json", "model_index.json")
_BESIDE = (".json", ".data", ".layers.json")


@contextlib.contextmanager
def held_outputs() -> Iterator[None]:
    """Inside, what `check_outputs` takes stays held."""
    with contextlib.ExitStack() as stack:
        token = _held.set(stack)
        try:
            yield
        finally:
            _held.reset(token)


def check_outputs(*paths: Path | None, inputs: Sequence[Path | None] = (), folder: Path | None = None) -> None:
    """Refuse before any work outputs that could not be written, that share one name, or that would replace an input.

    Inside a command they are held until it ends, so that no other run writes them. Of several processes of one command
    only the first one writes.

    Args:
        paths: files to write.
        inputs: files that are read: a record, an engine with what lies beside it, or the folder of a float model.
        folder: where all or some of them lie, held as a whole in their place.

    Raises:
        FileProblemError: a folder is missing or not writable, or another run holds an output.
        OptionError: two outputs have the same path, or an output has an input's.
    """
    if not is_first():
        return
    given = [path for path in paths if path is not None]
    for path in given:
        check_writable(path)
    taken = {name: entry for entry in inputs if entry is not None for name in _identities(entry)}
    seen: set[object] = set()
    for path in given:
        place = place_of_output(path)
        if place.streams:
            continue
        own = _identity(place.path)
        if own & seen:
            raise OptionError(f"two outputs are named {path}, expected different names; rename one")
        if any(name in taken for name in own):
            raise OptionError(f"output {path} would replace a file that is read; give it another name")
        seen |= own
    stack = _held.get()
    if stack is None:
        return
    if folder is not None:
        stack.enter_context(hold_folder(folder))
    for path in given:
        if folder is None or path.parent.resolve() != folder.resolve():
            stack.enter_context(hold_output(path))


def _identity(path: Path) -> set[object]:
    """A file's real name, and its number where it exists: a second name of it (a hard link) has the same."""
    found: set[object] = {os.path.realpath(path)}
    with contextlib.suppress(OSError):
        status = os.stat(path)
        found.add((status.st_dev, status.st_ino))
    return found


def _identities(path: Path) -> set[object]:
    return {name for file in _read_with(path) for name in _identity(file)}


def _read_with(path: Path) -> list[Path]:
    """A file and what belongs to it; of a model folder the files that a model consists of."""
    if path.is_dir():
        beside = [path.parent / "scheduler", path.resolve().parent / "scheduler"]
        files = [file for name in _MODEL_FILES for file in (*path.glob(name), *path.glob(f"*/{name}"))]
        return [*files, *(folder / "scheduler_config.json" for folder in beside)]
    from dq_deploy.open_engine import NATIVE_SUFFIXES

    if path.suffix in NATIVE_SUFFIXES:
        return [path]
    return [path, *(path.with_name(path.name + end) for end in _BESIDE)]
