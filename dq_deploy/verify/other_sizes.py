"""Sizes besides those of calibration at which an engine is proven too: smaller ones, so that the proof stays cheap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dq_deploy.errors import first_line
from dq_deploy.models import quantizable_layers
from dq_deploy.models.sizes import BATCH, HEIGHT, WIDTH
from dq_deploy.record import Call
from dq_deploy.verify.report.words import size_text

if TYPE_CHECKING:
    import torch

    from dq_deploy.engines.base import Runner


@dataclass(frozen=True, kw_only=True)
class OtherSizes:
    """What an engine is proven at besides the sizes of its call.

    Attributes:
        sizes: each a value for every size of the call, by name.
        note: why there is none, in words; empty where there is one, or where no size varies.
    """

    sizes: tuple[Mapping[str, int], ...]
    note: str = ""


def multiples_of(runner: Runner) -> Mapping[str, int]:
    """What a size has to be a multiple of, by name; 1 where it is not named."""
    return {} if runner.manifest is None else runner.manifest.multiples or {}


def other_sizes(call: Call, runner: Runner, module: torch.nn.Module) -> OtherSizes:
    """Sizes that calibration did not see: about half as high, three quarters as wide, a third of the text.

    Args:
        call: of the denoiser.
        runner: the engine, which says what varies.
        module: the denoiser, of which shapes are asked; the device `meta` is enough.
    """
    free = [size for size in runner.sizes if size != BATCH and size in call.sizes]
    if not free:
        return OtherSizes(sizes=())
    why = "none is smaller"
    for sizes in _proposals(call, free, multiples_of(runner)):
        try:
            quantizable_layers(module, replace(call, sizes=sizes))
        except Exception as error:  # a model raises what it likes for sizes it cannot take
            why = f"the model refuses {size_text(sizes)}: {first_line(error)}"
            continue
        return OtherSizes(sizes=(sizes,))
    return OtherSizes(sizes=(), note=f"no second size was proven: {why}")


def _proposals(call: Call, free: list[str], multiples: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Smaller sizes, the most different first; each differs from the call's."""
    high = [name for name in free if name.startswith(HEIGHT)]
    wide = [name for name in free if name.startswith(WIDTH)]
    others = [name for name in free if name not in high and name not in wide]
    short = {name: _fraction(call.sizes[name], 1, 3, multiples.get(name, 1)) for name in others}

    def scaled(names: list[str], above: int, below: int) -> dict[str, int]:
        """All of them by one factor, for pictures of several sizes go together; as they are where it does not fit."""
        exact = all(
            call.sizes[name] * above % (below * multiples.get(name, 1)) == 0 and call.sizes[name] * above >= below
            for name in names
        )
        return {name: call.sizes[name] * above // below if exact else call.sizes[name] for name in names}

    for height, width in (((1, 2), (3, 4)), ((1, 2), (1, 2)), ((1, 2), (1, 1)), ((1, 1), (1, 1))):
        for lengths in (short, {}):
            sizes = {**call.sizes, **scaled(high, *height), **scaled(wide, *width), **lengths}
            if sizes != call.sizes:
                yield sizes


def _fraction(size: int, above: int, below: int, step: int) -> int:
    """About a fraction of a size, in steps."""
    return max(1, size * above // below // step) * step
