"""What float rounding can explain: a bound of the error carried with every tensor of a torch module that runs.

The module runs in float64. Beside each tensor v stands a bound e: an engine that computes the same operations in
float32, in any order it likes, gives a value within e of v. Each operation adds its own error, from its own analysis,
and passes on that of its inputs (N. Higham, Accuracy and Stability of Numerical Algorithms, 2002, chapters 3 and 4).
Sums of K terms count sqrt(K) roundings, not K: those of one sum are not all of one sign (N. Higham and T. Mary, A new
approach to probabilistic rounding error analysis, 2019). See docs/decisions/0015.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from dq_deploy.verify.output import rounding_rules
from dq_deploy.verify.output.rounding_rules import Bound, Rule

UNITS = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Unit roundoff of the types an engine's float operations may have."""

_WIDE = {torch.float32: torch.float64, torch.float16: torch.float64, torch.bfloat16: torch.float64}
_MOVES = 4
_MOVE_FACTOR = 4.0


class ErrorBounds(TorchDispatchMode):
    """While it is entered, tensors carry a bound of the error that float rounding makes of them.

    Every float32 that the module asks for becomes float64. A tensor without a bound is exact: an input, a parameter,
    or what `given` was told of.

    Attributes:
        unit: unit roundoff of the engine's float type.
        attention_unit: of what attention's two products take, where that is rounded to another type; else 0.
        guessed: operations without a rule of their own, whose bound was measured by moving their inputs.
    """

    def __init__(self, unit: float = UNITS["float32"], attention_unit: float = 0.0) -> None:
        super().__init__()
        self.unit, self.attention_unit = unit, attention_unit
        self.guessed: set[str] = set()
        self._bounds: Any = WeakIdKeyDictionary()

    def bound_of(self, value: torch.Tensor) -> Bound:
        """The bound of a tensor, of its shape; None where it is exact."""
        bound: Bound = self._bounds.get(value)
        return bound

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation in float64 and bound its result."""
        named = {key: _wide(value) for key, value in (kwargs or {}).items()}
        args = tuple(_wide(value) for value in args)
        name = func.overloadpacket.__name__
        rule: Rule | None = rounding_rules.RULES.get(name.removesuffix("_") if name.endswith("_") else name)
        if rule is None and func._schema.name.startswith("aten::"):
            composed = func.decompose(*args, **named) if _is_composite(func) else NotImplemented
            if composed is not NotImplemented:
                return composed
        bounds = {id(v): self.bound_of(v) for v in _tensors((args, named)) if self.bound_of(v) is not None}
        before = args[0].clone() if name.endswith("_") and rule is not None and args else None
        result = func(*args, **named)
        if not any(v.is_floating_point() for v in _tensors(result)):
            return result
        given = (before, *args[1:]) if before is not None else args
        if before is not None and id(args[0]) in bounds:
            bounds[id(before)] = bounds[id(args[0])]
        self._keep(result, self._bounded(rule, func, given, named, bounds, result))
        return result

    def _bounded(
        self, rule: Rule | None, func: Any, args: tuple[Any, ...], named: Mapping[str, Any], bounds: dict[int, Any],
        result: Any,
    ) -> Any:  # fmt: skip
        if rule is not None:
            call = rounding_rules.Call(
                func=func,
                args=args,
                kwargs=dict(named),
                bounds=bounds,
                result=result,
                unit=self.unit,
                attention_unit=self.attention_unit,
            )
            return rule(call)
        if not bounds and func._schema.name in rounding_rules.EXACT_MAKERS:
            return None
        self.guessed.add(str(func))
        return _measured(func, args, named, bounds, result, self.unit)

    def _keep(self, result: Any, bound: Any) -> None:
        """Remember the bounds of one result or of several."""
        if isinstance(result, torch.Tensor):
            if bound is not None:
                self._bounds[result] = bound
            return
        for value, own in zip(result, bound if bound is not None else [None] * len(result), strict=False):
            if isinstance(value, torch.Tensor) and own is not None:
                self._bounds[value] = own


def _wide(value: Any) -> Any:
    """Float types and tensors of them as float64, lists included."""
    if isinstance(value, torch.dtype):
        return _WIDE.get(value, value)
    if isinstance(value, torch.Tensor):
        return value.double() if value.dtype in _WIDE else value
    if isinstance(value, (list, tuple)):
        return type(value)(_wide(entry) for entry in value)
    return value


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for entry in value.values() for t in _tensors(entry)]
    return [t for entry in value for t in _tensors(entry)] if isinstance(value, (list, tuple)) else []


def _is_composite(func: Any) -> bool:
    return bool(func._can_decompose()) if hasattr(func, "_can_decompose") else False


def _measured(
    func: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any], bounds: dict[int, Any], result: Any,
    unit: float,
) -> Any:  # fmt: skip
    """The bound of an operation without a rule: how far it moves when its inputs move within theirs, four times that.

    Rounding of its own counts as that of eight operations on its largest value.
    """
    generator = torch.Generator().manual_seed(0)
    outputs = [result] if isinstance(result, torch.Tensor) else list(result)
    found = [8 * unit * v.abs().amax().expand(v.shape) if _is_float(v) else None for v in outputs]

    def moved(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and id(value) in bounds:
            signs = torch.randint(0, 2, value.shape, generator=generator) * 2 - 1
            return value + signs * bounds[id(value)]
        if isinstance(value, (list, tuple)):
            return type(value)(moved(entry) for entry in value)
        return value

    for _ in range(_MOVES if bounds else 0):
        again = func(*moved(args), **{key: moved(value) for key, value in named.items()})
        for i, value in enumerate([again] if isinstance(again, torch.Tensor) else list(again)):
            if found[i] is not None:
                found[i] = torch.maximum(found[i], _MOVE_FACTOR * (value - outputs[i]).abs())
    return found[0] if isinstance(result, torch.Tensor) else found


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() > 0
