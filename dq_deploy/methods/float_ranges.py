"""The largest |output| of every module of the float model: what decides whether a narrower float type holds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def watch_outputs(module: torch.nn.Module) -> Iterator[dict[str, float]]:
    """Inside, every pass through the module raises the entry of each submodule to its largest |output| so far.

    Yields:
        Largest magnitude by module path, for submodules that gave a float tensor (or a tuple that begins with one).
    """
    largest: dict[str, float] = {}

    def hook(name: str) -> Any:
        def note(_module: torch.nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) and output else output
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.numel():
                low, high = torch.aminmax(tensor.detach())
                largest[name] = max(largest.get(name, 0.0), abs(float(low)), abs(float(high)))

        return note

    with ExitStack() as stack:
        for name, child in module.named_modules():
            if name:
                stack.callback(child.register_forward_hook(hook(name)).remove)
        yield largest
