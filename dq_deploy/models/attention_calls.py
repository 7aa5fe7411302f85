"""Calls of torch's attention inside a module, each by the path of the module that makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

Instead = Callable[["AttentionCall"], torch.Tensor | None]


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """One call of `scaled_dot_product_attention`.

    Attributes:
        name: path of the innermost module whose forward makes it.
        q: [batch, heads, rows, head_dim].
        k: [batch, heads of keys, kv_rows, head_dim].
        v: as `k`.
        scale: of the scores.
        plain: whether it has no mask, is not causal, drops nothing out, and has a key head for each query head.
    """

    name: str
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    scale: float
    plain: bool


@contextmanager
def attention_calls(module: torch.nn.Module, instead: Instead) -> Iterator[None]:
    """Inside, each call goes to `instead` first: what that returns is its result; None leaves it to torch.

    Args:
        module: whose submodules name the calls.
        instead: called with every call in order.
    """
    running: list[str] = []
    with ExitStack() as stack:
        for name, child in module.named_modules():
            if name:
                enter = child.register_forward_pre_hook(_enter(running, name))
                leave = child.register_forward_hook(_leave(running), always_call=True)
                stack.callback(enter.remove)
                stack.callback(leave.remove)
        stack.enter_context(_Calls(running, instead))
        yield


def _enter(running: list[str], name: str) -> Callable[..., None]:
    def hook(*_: object) -> None:
        running.append(name)

    return hook


def _leave(running: list[str]) -> Callable[..., None]:
    def hook(*_: object) -> None:
        running.pop()

    return hook


class _Calls(TorchFunctionMode):
    def __init__(self, running: list[str], instead: Instead) -> None:
        super().__init__()
        self._running, self._instead = running, instead

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention or not self._running:
            return func(*args, **kwargs)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
        given = dict(zip(names, args, strict=False)) | kwargs
        q, k, v, scale = given["query"], given["key"], given["value"], given.get("scale")
        masked = given.get("attn_mask") is not None or given.get("is_causal") or given.get("dropout_p")
        call = AttentionCall(
            name=self._running[-1],
            q=q,
            k=k,
            v=v,
            scale=float(q.shape[-1] ** -0.5 if scale is None else scale),
            plain=not masked and q.ndim == 4 and q.shape[:2] == k.shape[:2] and k.shape == v.shape,
        )
        result = self._instead(call)
        return func(*args, **kwargs) if result is None else result
