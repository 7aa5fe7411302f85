"""What the group norms of a UNet read, by who wrote it, and how many launches each takes on a GPU.

    python -m benchmarks.kernels.norm_producers

Counted from the models' configurations, without weights: batch 2, images in float16. Decision 37 rests on it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from dq_kernels.gpu.launch.float_calls import with_form
from dq_kernels.gpu.tune.configurations import BlockConfiguration
from torch.overrides import TorchFunctionMode

from benchmarks.unets.denoisers import SD15, SDXL

BATCH = 2
LAUNCHES = {"resident": 1, "whole": 1, "split": 5}
MODELS = {"Stable Diffusion 1.5": (SD15, 64, 768), "SDXL": (SDXL, 128, 2048)}
"""Configuration, size of the latents, width of the text."""

WRITERS = {"cat": "concatenation", "div": "residual sum", "add": "convolution + time", "conv2d": "convolution"}
"""Function of torch whose result a norm reads -> in words; diffusers divides each residual sum by 1."""


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A group norm as it is called.

    Attributes:
        size: pixels on a side.
        channels: of the image.
        width: channels of a group.
        form: of the kernel's.
        writer: of `WRITERS`.
        halves: channels of each part of a concatenation.
    """

    size: int
    channels: int
    width: int
    form: str
    writer: str
    halves: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Of a read."""
        return 2 * BATCH * self.size**2 * self.channels

    @property
    def straddles(self) -> bool:
        """Whether a group holds channels of two parts."""
        return bool(self.halves) and self.halves[0] % self.width != 0


class _Noting(TorchFunctionMode):
    """Each result knows what made it."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            name = getattr(function, "__name__", "")
            found.made_by = name, tuple(one.shape[1] for one in args[0]) if name == "cat" else ()  # type: ignore[attr-defined]
        return found


def norms_of(config: dict[str, Any], size: int, text: int) -> list[Norm]:
    """Every group norm of a call, in order."""
    import diffusers

    found: list[Norm] = []

    def note(module: torch.nn.GroupNorm, given: tuple[Any, ...]) -> None:
        (x,) = given
        batch, channels, height, _ = x.shape
        width, asked = channels // module.num_groups, BlockConfiguration(elements=1024, warps=4, form="resident")
        form = with_form(asked, batch * module.num_groups, height**2, width, narrow=True).form
        name, halves = x.made_by
        writer = WRITERS[name]
        found.append(Norm(size=height, channels=channels, width=width, form=form, writer=writer, halves=halves))

    with torch.device("meta"), _Noting():
        unet = diffusers.UNet2DConditionModel.from_config(config)
        for module in unet.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.register_forward_pre_hook(note)
        added = {"text_embeds": torch.empty(BATCH, 1280), "time_ids": torch.empty(BATCH, 6)}
        sample, states = torch.empty(BATCH, 4, size, size), torch.empty(BATCH, 77, text)
        unet(sample, torch.empty(BATCH), states, added_cond_kwargs=added)
    return found


def main() -> None:
    """Print a table."""
    print("| model | launches of a norm | written by | norms | with a group across two parts | MB a read, together |")
    print("|---|---|---|---|---|---|")
    for name, given in MODELS.items():
        norms = norms_of(*given)
        for (form, writer), number in sorted(Counter((one.form, one.writer) for one in norms).items()):
            these = [one for one in norms if (one.form, one.writer) == (form, writer)]
            across, megabytes = sum(one.straddles for one in these), sum(one.nbytes for one in these) / 1e6
            print(f"| {name} | {LAUNCHES[form]} | {writer} | {number} | {across} | {megabytes:.0f} |")


if __name__ == "__main__":
    main()
