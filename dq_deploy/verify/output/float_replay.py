"""The float module in float64 around an engine's layers, with a bound of the rounding of every tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

from dq_deploy.models import call_of_record, denoiser_from_record, denoiser_outputs, output_specs
from dq_deploy.models.attention_calls import AttentionCall, attention_calls
from dq_deploy.numerics.arrays import Array
from dq_deploy.record import Record
from dq_deploy.verify.inputs import Batch, Finals
from dq_deploy.verify.output.float_path import OUTPUT, FloatPath, FloatTypes, Gap, gap_between
from dq_deploy.verify.output.kept_tensors import KeptTensors
from dq_deploy.verify.output.rounding import UNITS, ErrorBounds
from dq_deploy.verify.steps import LeftOut, Reason, Step

if TYPE_CHECKING:
    from dq_deploy.native.observe.attention import AttentionValues

AttentionsOf: TypeAlias = "Callable[[Batch], Mapping[str, Sequence[AttentionValues]]]"


@dataclass(kw_only=True)
class FloatPathCheck:
    """Runs a record's float module around an engine's layers.

    Attributes:
        record: gives the float module.
        types: of the engine's float operations.
        layers: of those whose values the engine shows; the others are computed by the float module.
        attentions: gives those of a batch that run in codes, by module path: no float operations, so their inputs are
            compared and their results taken as the engine gave them.
        gaps: the largest of each layer, in execution order.
    """

    record: Record
    layers: Sequence[str]
    types: FloatTypes = field(default_factory=FloatTypes)
    attentions: AttentionsOf | None = None
    gaps: dict[str, Gap] = field(default_factory=dict)
    _problem: str = ""
    _inputs: int = 0
    _guessed: set[str] = field(default_factory=set)
    _module: Any = None
    _values: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)
    _now: dict[str, Gap] = field(default_factory=dict)
    _beyond: dict[str, tuple[Array, Array, Array]] = field(default_factory=dict)
    _own: dict[str, float] | None = None
    _mode: Any = None
    _attentions: Mapping[str, Sequence[AttentionValues]] = field(default_factory=dict)
    _calls: Counter[str] = field(default_factory=Counter)

    def add(self, batch: Batch, values: Mapping[str, tuple[Array, Array]], finals: Finals) -> None:
        """Run one batch.

        Args:
            batch: what the engine was fed.
            values: input and float output of each layer in the engine.
            finals: the engine's outputs.
        """
        if self._module is None:
            self._module = self._around_layers()
        self._values, self._now, self._beyond = values, {}, {}
        self._attentions = {} if self.attentions is None else self.attentions(batch)
        self._calls.clear()
        self._mode = ErrorBounds(UNITS[self.types.operations], self._attention_unit)
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in batch.feeds.items()}
        wide = {name: value.double() if value.is_floating_point() else value for name, value in tensors.items()}
        with torch.no_grad(), self._mode, attention_calls(self._module, self._attention):
            results = denoiser_outputs(self._module, wide, call_of_record(self.record).constants)
            for name, final, result in zip(self._outputs, finals, results, strict=True):
                self._compare(name, final, result)
        if self._beyond and self.types.operations == "float32":
            self._believe_own_errors(tensors)
        self._inputs += len(batch.buckets)
        self._guessed |= self._mode.guessed
        for name, gap in self._now.items():
            if name not in self.gaps or gap.share > self.gaps[name].share:
                self.gaps[name] = gap
        bad = next((name for name, gap in self._now.items() if gap.share > 1), None)
        if bad is not None and not self._problem:
            is_layer = bad in self.record.layers
            what = f"the input of layer {bad}" if is_layer else bad
            self._problem = _words(what, self._now[bad], batch)

    def _believe_own_errors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Compare what was beyond its bound once more, knowing how far the module in float32 is off itself."""
        own = self._own = {}
        self._calls.clear()
        try:
            module = self._around_layers().float()
            with torch.no_grad(), attention_calls(module, self._attention):
                results = denoiser_outputs(module, dict(tensors), call_of_record(self.record).constants)
        finally:
            self._own = None
        own.update({name: self._distance(name, result) for name, result in zip(self._outputs, results, strict=True)})
        for name, (got, want, allowed) in self._beyond.items():
            self._now[name] = gap_between(
                got, want, allowed, floor=self.types.floor, own_error=own[name], loosest=self.types.loosest
            )

    def _distance(self, name: str, x: torch.Tensor) -> float:
        """How far a tensor of the float32 module is from its reference; 0 where that was within its bound."""
        if name not in self._beyond:
            return 0.0
        want = self._beyond[name][1]
        return float(np.abs(x.detach().double().numpy() - want).max(initial=0))

    @property
    def _attention_unit(self) -> float:
        """Of what attention's products take, where that is rounded besides."""
        return 0.0 if self.types.attention == self.types.operations else UNITS[self.types.attention]

    @property
    def _outputs(self) -> tuple[str, ...]:
        """The outputs in words."""
        names = [spec.name for spec in output_specs(call_of_record(self.record))]
        return (OUTPUT,) if len(names) == 1 else tuple(f"the output {name}" for name in names)

    def result(self) -> FloatPath:
        """What all batches showed."""
        return FloatPath(
            layers=len(set(self.gaps) & set(self.record.layers)),
            max_difference=max((gap.relative for gap in self.gaps.values()), default=0.0),
            max_share=max((gap.share for gap in self.gaps.values()), default=0.0),
            inputs=self._inputs,
            guessed=tuple(sorted(self._guessed)),
            problem=self._problem,
        )

    def _around_layers(self) -> torch.nn.Module:
        module = denoiser_from_record(self.record)
        for name in self.layers:
            parent, _, leaf = name.rpartition(".")
            owner: Any = module.get_submodule(parent)
            setattr(owner, leaf, _Replay(self, name, module.get_submodule(name)))
        return module.double().eval()

    def _replayed(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Compare a layer's input; what the engine's layer gave."""
        got, y = self._values[name]
        if self._own is None:
            self._compare(name, got, x)
        else:
            self._own[name] = self._distance(name, x)
        with _disable_current_modes():
            value = torch.from_numpy(np.array(y)).to(x.dtype)
            return value.reshape(*x.shape[:-1], -1) if self.record.layers[name].kind == "linear" else value

    def _attention(self, call: AttentionCall) -> torch.Tensor | None:
        """Compare what attention in codes reads; what the engine gave, or None for attention in float."""
        taken, given = self._calls[call.name], self._attentions.get(call.name, ())
        if taken >= len(given):
            return None
        values = given[taken]
        self._calls[call.name] += 1
        if np.float32(values.scale) != np.float32(call.scale) and not self._problem:
            scales = f"{values.scale:.9g}, the float module's is {call.scale:.9g}"
            self._problem = f"the scale of attention {call.name} is {scales}"
        which = f"{call.name}, call {taken + 1}," if taken else call.name
        for role, x in (("queries", call.q), ("keys", call.k), ("values", call.v)):
            got, name = getattr(values, role[0]), f"what attention {which} reads as {role}"
            if self._own is None:
                self._compare(name, got, x)
            else:
                self._own[name] = self._distance(name, x)
        with _disable_current_modes():
            return torch.from_numpy(np.array(values.y)).to(call.q.dtype)

    def _compare(self, name: str, got: Array, want: torch.Tensor) -> None:
        bound = self._mode.bound_of(want)
        with _disable_current_modes():
            reference = want.detach().numpy()
            allowed = np.zeros_like(reference) if bound is None else bound.detach().expand(want.shape).numpy()
            gap = self._now[name] = gap_between(
                got, reference, allowed, floor=self.types.floor, loosest=self.types.loosest
            )
            if gap.share > 1:
                self._beyond[name] = (got, reference, allowed)


class _Replay(torch.nn.Module):
    """Stands for one layer: checks its input and gives the engine's output."""

    def __init__(self, check: FloatPathCheck, name: str, original: torch.nn.Module) -> None:
        super().__init__()
        self.name = name
        self._check = check
        # diffusers reads dtypes and sizes off layers
        weight: Any = original.weight
        self.weight = torch.nn.Parameter(torch.empty(weight.shape, device="meta"), requires_grad=False)
        for key in ("in_features", "out_features", "in_channels", "out_channels"):
            if hasattr(original, key):
                setattr(self, key, getattr(original, key))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the engine's layer gave."""
        return self._check._replayed(self.name, x)


def _words(what: str, gap: Gap, batch: Batch) -> str:
    first, last = int(batch.buckets.min()), int(batch.buckets.max())
    steps = f"step {first}" if first == last else f"steps {first} to {last}"
    return (
        f"{steps}: {what} is off by {gap.relative:.2g} of its range; a float operation between them is wrong, for the "
        f"layers in front agree: {gap.text}"
    )


def compare_float_paths(
    record: Record,
    batches: Sequence[Batch],
    kept: KeptTensors,
    finals: Sequence[Finals],
    *,
    in_float: Collection[str] = (),
    types: FloatTypes | None = None,
    attentions: AttentionsOf | None = None,
) -> FloatPath | LeftOut:
    """Compare the float operations between the layers in every batch that was run.

    Args:
        record: gives the float module.
        batches: what the engine was fed.
        kept: its layers' inputs and outputs, by the number of the batch; each is dropped when it was looked at.
        finals: the engine's outputs.
        in_float: layers that are float operations in this engine, and so are computed by the float module.
        types: of the engine's float operations; None is float32.
        attentions: gives those of a batch that run in codes.

    Returns:
        What was found, or why it was left out: a layer shows no float output.
    """
    shown = [set(kept.of(index)) for index in range(len(batches))]
    layers = [name for name in record.layers if name not in in_float]
    lacking = [name for name in layers if not all(name in own for own in shown)]
    if lacking:
        return LeftOut(
            step=Step.FLOAT_OPERATIONS,
            reason=Reason.NOT_READABLE,
            text=f"float operations between the layers were not compared one by one: {len(lacking)} layers show no "
            f"float output, {lacking[0]} the first",
        )
    check = FloatPathCheck(record=record, layers=layers, types=types or FloatTypes(), attentions=attentions)
    for index, (batch, given) in enumerate(zip(batches, finals, strict=True)):
        check.add(batch, kept.of(index), given)
        kept.drop(index)
    return check.result()
