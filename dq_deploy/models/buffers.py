"""Buffers that no weights file holds, as the places of tokens: what the class computes when it is built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def computed_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The buffers of a module that its state dict leaves out, by the name that they would have there."""
    held = set(module.state_dict())
    return {name: value for name, value in module.named_buffers() if name not in held}


def set_computed_buffer(module: torch.nn.Module, name: str, value: torch.Tensor) -> None:
    """Put a value in the place of such a buffer."""
    parent, _, last = name.rpartition(".")
    module.get_submodule(parent).register_buffer(last, value, persistent=False)


def plain_tensors(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Tensors that a module keeps as plain attributes, alone or in lists: neither parameters nor buffers."""
    for child in module.modules():
        for value in vars(child).values():
            for entry in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(entry, torch.Tensor):
                    yield entry


@contextmanager
def without_weights() -> Iterator[None]:
    """Where new memory has no values: layers and norms, which begin so, cost nothing; what is computed is computed."""
    with _EmptyOnMeta():
        yield


class _EmptyOnMeta(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)
