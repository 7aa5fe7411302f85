"""Run a denoiser on shapes alone and write down every operation; layers, norms and attentions are one each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from dq_deploy.models.capture.graph import ATTENTION, INPUT, LAYER, NORM, STATE, WRITE, Graph, Value
from dq_deploy.models.layers import is_quantizable

NORMS = (torch.nn.GroupNorm, torch.nn.LayerNorm)
"""Norms with a factor and an offset of their own for each channel."""

_SAME_NORMS = ("FP32LayerNorm",)
"""Subclasses with another forward that computes the same."""

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}


def record_graph(
    module: torch.nn.Module,
    step: Callable[[torch.nn.Module, Mapping[str, torch.Tensor]], object],
    inputs: Mapping[str, tuple[tuple[int, ...], str]],
) -> Graph:
    """The graph of one call.

    Args:
        module: the denoiser; its values are not read and it is not changed.
        step: called with a copy of the module without values and the inputs by name; every tensor of what it returns
            is an output.
        inputs: shape and dtype of each.

    Raises:
        Exception: whatever torch or diffusers raises where it cannot run.
    """
    with torch.no_grad(), torch.device("meta"):
        recorder = _Recorder()
        shapes = _shapes_of(module, recorder)
        tensors = {name: torch.empty(shape, dtype=_DTYPES[dtype]) for name, (shape, dtype) in inputs.items()}
        for name, tensor in tensors.items():
            recorder.add(tensor, INPUT, path=name)
        with recorder, _AttentionWhole(recorder):
            output = step(shapes, tensors)
        outputs = [recorder.value_of(leaf) for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    return Graph(values=tuple(recorder.values), outputs=tuple(outputs), runs=recorder.runs)


class _Recorder(TorchDispatchMode):
    """Every operation of torch that makes a tensor becomes a value."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Value] = []
        self.runs: dict[str, int] = {}
        self.state: dict[int, str] = {}  # path of each parameter and buffer by the tensor's identity
        self._known: dict[int, Value] = {}
        self._alive: list[torch.Tensor] = []  # an identity is only one while its tensor lives
        self._of_storage: dict[int, dict[int, torch.Tensor]] = {}
        self._silent = False

    def add(self, tensor: torch.Tensor, kind: str, **more: Any) -> Value:
        """A tensor that is a value from now on."""
        value = Value(number=len(self.values), kind=kind, shape=tuple(tensor.shape), **more)
        self.values.append(value)
        if id(tensor) not in self._known:
            self._alive.append(tensor)
            self._of_storage.setdefault(tensor.untyped_storage()._cdata, {})[id(tensor)] = tensor
        self._known[id(tensor)] = value
        return value

    def value_of(self, tensor: torch.Tensor) -> Value:
        """The value that a tensor is; a parameter or buffer becomes one when it is read first."""
        known = self._known.get(id(tensor))
        return self.add(tensor, STATE, path=self.state.get(id(tensor), "")) if known is None else known

    def _values(self, given: Any) -> Any:
        return tree_map(lambda one: self.value_of(one) if isinstance(one, torch.Tensor) else one, given)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._silent or not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(result)):
            return result
        name, _, _ = str(func).rpartition(".")
        more = {"call": func, "args": tuple(self._values(args)), "kwargs": self._values(kwargs)}
        if isinstance(result, torch.Tensor):
            self._add_result(result, name, more, args)
        else:
            for part, one in enumerate(result):
                if isinstance(one, torch.Tensor):
                    self._add_result(one, name, {**more, "part": part}, args)
        return result

    def _add_result(self, result: torch.Tensor, name: str, more: dict[str, Any], args: tuple[Any, ...]) -> None:
        written = any(result is one for one in args)
        value = self.add(result, name, **more)
        if not written:
            return
        for other in list(self._of_storage[result.untyped_storage()._cdata].values()):
            if other is not result:
                self.add(other, WRITE, args=(self._known[id(other)], value))

    def whole(self, module: torch.nn.Module, path: str, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """What a layer or norm returned for its input."""
        source = self.value_of(x)
        self.add(out, NORM if isinstance(module, NORMS) else LAYER, path=path, args=(source,))
        return out

    def attention(self, out: torch.Tensor, *tensors: torch.Tensor | None) -> torch.Tensor:
        """What attention returned for queries, keys, values and a mask."""
        self.add(out, ATTENTION, args=tuple(self._values(list(tensors))))
        return out

    def silently(self, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Run something without writing it down."""
        self._silent = True
        try:
            return run()
        finally:
            self._silent = False


class _AttentionWhole(TorchFunctionMode):
    """Attention is one value, whatever kernel torch would take for it."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        out = self._recorder.silently(lambda: func(*args, **kwargs))
        named = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
        return self._recorder.attention(out, *(named.get(name) for name in ("query", "key", "value", "attn_mask")))


def _as_one_value(
    recorder: _Recorder, path: str, module: torch.nn.Module, x: torch.Tensor, *args: Any, **kwargs: Any
) -> Any:
    """A layer's forward as one value, unless the input is not what a layer of ours takes."""
    own = partial(type(module).forward, module)
    if args or kwargs or not _is_ours(module, x):
        return own(x, *args, **kwargs)
    return recorder.whole(module, path, x, recorder.silently(lambda: own(x)))


def _is_ours(module: torch.nn.Module, x: object) -> bool:
    """Whether an input has the type of the weights, and the axes of a layer: [B, ..., C] or [B, C, H, W]."""
    if not isinstance(x, torch.Tensor):
        return False
    weight = getattr(module, "weight", None)
    if isinstance(weight, torch.Tensor) and weight.dtype != x.dtype:
        return False
    axes: int = x.ndim
    return axes == 4 if isinstance(module, torch.nn.Conv2d) else axes >= 2


def _shapes_of(module: torch.nn.Module, recorder: _Recorder) -> torch.nn.Module:
    """A copy without values whose layers and norms are one value each; called where new tensors have no values."""
    state = (*module.named_parameters(), *module.named_buffers())
    memo: dict[int, Any] = {}
    for name, value in state:
        empty = torch.empty(value.shape, dtype=value.dtype)
        is_parameter = isinstance(value, torch.nn.Parameter)
        memo[id(value)] = torch.nn.Parameter(empty, requires_grad=False) if is_parameter else empty
        recorder.state[id(memo[id(value)])] = name
    shapes = copy.deepcopy(module, memo).eval()
    for name, child in shapes.named_modules():
        if name:
            child.register_forward_pre_hook(_count(name, recorder.runs))
        if is_quantizable(child) or _is_norm(child):
            child.__dict__["forward"] = partial(_as_one_value, recorder, name, child)
    return shapes


def _is_norm(module: torch.nn.Module) -> bool:
    """Whether a module is a norm as torch computes it."""
    kind = next((kind for kind in NORMS if isinstance(module, kind)), None)
    return kind is not None and (type(module).forward is kind.forward or type(module).__name__ in _SAME_NORMS)


def _count(name: str, runs: dict[str, int]) -> Callable[..., None]:
    def hook(_: torch.nn.Module, __: object) -> None:
        runs[name] = runs.get(name, 0) + 1

    return hook
