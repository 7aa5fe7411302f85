"""How many inputs autograd holds at once: what it keeps of one is measured, and computed again where it is too much.

A batch is trained in pieces whose gradients are summed, so that what is kept of one fits in a share of `memory_gib`.
What is kept is counted, not estimated: of a pass over one input and of one over two, whose difference is what one more
takes. Where not even one fits, values inside layers or blocks are computed again on the way back (gradient
checkpointing, arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from dq_deploy.errors import OptionError
from dq_deploy.methods.blocks.nested_values import tensors_in
from dq_deploy.methods.blocks.storage import GIB

BACKWARD = 1.25
"""Memory of a pass forth and back in relation to what autograd keeps of it."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Bytes that autograd keeps of a pass.

    Attributes:
        fixed: whatever the number of inputs.
        each: of every input.
    """

    fixed: int
    each: int

    def at_once(self, limit_bytes: float, most: int) -> int:
        """Inputs that fit, at most so many; 0 where not one does."""
        left = limit_bytes / BACKWARD - self.fixed
        return 0 if left < self.each else min(most, int(left // max(self.each, 1)))

    @property
    def of_one(self) -> int:
        """Bytes that a pass over one input takes."""
        return int(BACKWARD * (self.fixed + self.each))


def kept_by(run: Callable[[int], object], again: Iterable[torch.nn.Module] = ()) -> Kept:
    """What autograd keeps of a pass.

    Args:
        run: computes a pass over so many inputs, 1 or 2, and returns what the gradients are taken of.
        again: modules of which only the arguments are kept.
    """
    modules = list(again)
    one, two = _bytes_kept(run, 1, modules), _bytes_kept(run, 2, modules)
    each = max(two - one, 1)
    return Kept(fixed=max(one - each, 0), each=each)


def _bytes_kept(run: Callable[[int], object], count: int, again: Iterable[torch.nn.Module]) -> int:
    seen: dict[int, int] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return value.detach()  # the tensor itself, kept of the operation that made it, would never be freed

    def note(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in tensors_in((args, kwargs)):
            pack(value)

    with ExitStack() as stack:
        for module in again:
            stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value))
        result = run(count)
    del result  # what was seen was alive until here, so no two storages had one address
    return sum(seen.values())


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """How a batch is computed.

    Attributes:
        size: inputs at once.
        again: values inside are computed again on the way back.
    """

    size: int
    again: bool


def pieces_that_fit(
    measure: Callable[[bool], Kept], batch: int, limit_bytes: float, *, what: str, share: str, memory_gib: float
) -> Pieces:
    """The largest pieces that fit.

    Args:
        measure: what is kept, with values inside computed again or not.
        batch: inputs of an iteration.
        limit_bytes: that a pass may take.
        what: is trained, in words.
        share: of `memory_gib` that this is, in words.
        memory_gib: the option.

    Raises:
        OptionError: one input does not fit; says how much it needs.
    """
    for again in (False, True):
        kept = measure(again)
        size = kept.at_once(limit_bytes, batch)
        if size:
            return Pieces(size=size, again=again)
    needed = memory_gib * kept.of_one / limit_bytes
    raise OptionError(
        f"memory_gib is {memory_gib:g}, expected at least {needed:.3g}: training {what} keeps "
        f"{kept.of_one / GIB:.3g} GiB of one input, which may take {share} of it"
    )


@contextmanager
def computed_again(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Inside, what is in these modules is not kept but computed again on the way back."""
    patched: list[torch.nn.Module] = []
    try:
        for module in modules:
            module.forward = _again(module.forward)
            patched.append(module)
        yield
    finally:
        for module in patched:
            module.__dict__.pop("forward", None)


def _again(forward: Callable[..., Any]) -> Callable[..., Any]:
    from torch.utils.checkpoint import checkpoint

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
