"""A float denoiser on the meta device that answers for an engine: it can be looked at, and nothing in it be changed."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from dq_deploy.errors import OptionError

_HOOKS = (
    "register_forward_pre_hook",
    "register_forward_hook",
    "register_full_backward_pre_hook",
    "register_full_backward_hook",
    "forward",
)


def only_to_look_at(module: torch.nn.Module) -> torch.nn.Module:
    """The module, whose parts from now on refuse to be changed, watched or run: an engine would know nothing of it.

    Args:
        module: a denoiser on the device `meta`; it keeps its own class.

    Returns:
        The same module. Its parts have classes of the same names under those they had.
    """
    made: dict[type, type] = {}
    for name, part in module.named_modules():
        if part is not module:
            kind = type(part)
            part.__dict__["_dq_name"] = name
            part.__class__ = made[kind] = made.get(kind) or _unchangeable(kind)
    return module


def _unchangeable(kind: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """A class under another, by the same name, whose instances refuse."""

    def refused(part: torch.nn.Module, what: str) -> NoReturn:
        raise OptionError(
            f"got {what} of {part.__dict__['_dq_name']} in an integer denoiser, which cannot do that: what it computes "
            "is fixed in the record"
        )

    def set_value(part: torch.nn.Module, name: str, value: Any) -> None:
        refused(part, f"a new {name}")

    def hook(what: str) -> Any:
        return lambda part, *args, **kwargs: refused(part, what)

    members = {"__setattr__": set_value, "__module__": kind.__module__, **{name: hook(name) for name in _HOOKS}}
    return type(kind.__name__, (kind,), members)
