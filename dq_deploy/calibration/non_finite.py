"""Which layer of a denoiser leaves the finite numbers first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import DqError

if TYPE_CHECKING:
    import torch


def first_non_finite(module: torch.nn.Module, call: Callable[[], object]) -> str | None:
    """Path of the first submodule without children, in execution order, whose output is not finite; or None.

    Args:
        module: the denoiser, or a record's simulation.
        call: runs it once.
    """
    import torch

    found: list[str] = []

    def watch(name: str) -> Callable[[Any, Any, Any], None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            is_bad = isinstance(output, torch.Tensor) and not bool(torch.isfinite(output).all())
            if is_bad and not found:
                found.append(name.removeprefix("denoiser."))  # a simulation wraps its denoiser

        return hook

    handles = [
        child.register_forward_hook(watch(name))
        for name, child in module.named_modules()
        if name and not any(True for _ in child.children())
    ]
    try:
        call()
    except DqError:  # a layer behind the bad one refuses NaN; the bad one is known by then
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
