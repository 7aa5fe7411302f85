"""The largest |output| of every module of the float model: what decides whether a narrower float type holds it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from dq_deploy.errors import NonFiniteError


@contextmanager
def watch_outputs(module: torch.nn.Module) -> Iterator[dict[str, float]]:
    """Inside, every pass through the module raises the entry of each submodule to its largest |output| so far.

    Leaf modules (norms, activations, embeddings, quantized layers) count as well as those around them (residual
    blocks, attention, whole stages). What a module hands to its children counts for it too: a residual sum between
    two children is nobody's output.

    Yields:
        Largest magnitude by module path, for submodules that gave float tensors, alone or in a tuple, list or
        mapping. Filled when the block is left.

    Raises:
        NonFiniteError: on leaving, where a value was NaN or infinite; names the first such module.
    """
    watch = _Watch()
    ranges: dict[str, float] = {}
    with ExitStack() as stack:
        for name, child in module.named_modules():
            if name:
                hook = watch.hook(name, _caller_of(module, name))
                stack.callback(child.register_forward_hook(hook).remove)
        yield ranges
    for name, value in watch.largest.items():
        ranges[name] = float(value)
        if not bool(torch.isfinite(value)):
            raise NonFiniteError(f"layer {name} gives NaN or infinity in the float model, expected finite values")


class _Watch:
    """Largest magnitude by module path, as scalar tensors."""

    def __init__(self) -> None:
        self.largest: dict[str, torch.Tensor] = {}
        # outputs of the pass in flight, so that the next module's input is not read again
        self._seen: Any = WeakIdKeyDictionary()

    def hook(self, name: str, parent: str) -> Any:
        """Forward hook of the module at `name`, which `parent` calls; "" is the whole model, which has no entry."""

        def note(_module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
            for tensor in _float_tensors(args) if parent else ():
                value = self._seen.get(tensor)
                self._raise(parent, _magnitude(tensor) if value is None else value)
            for tensor in _float_tensors(output):
                self._seen[tensor] = _magnitude(tensor)
                self._raise(name, self._seen[tensor])

        return note

    def _raise(self, name: str, value: torch.Tensor) -> None:
        before = self.largest.get(name)
        self.largest[name] = value if before is None else torch.maximum(before, value)


def _caller_of(module: torch.nn.Module, name: str) -> str:
    """Path of the nearest module around `name` that runs; a list of modules does not."""
    while name:
        name = name.rpartition(".")[0]
        if not isinstance(module.get_submodule(name), (torch.nn.ModuleList, torch.nn.ModuleDict)):
            return name
    return name


def _magnitude(tensor: torch.Tensor) -> torch.Tensor:
    """Largest |value|, in one pass; NaN where there is one."""
    return torch.stack(torch.aminmax(tensor.detach())).abs().amax().float()


def _float_tensors(output: Any) -> Iterable[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return (output,) if output.is_floating_point() and output.numel() else ()
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        return tuple(tensor for item in output for tensor in _float_tensors(item))
    return ()
