"""A sampling run that stops at the first value that is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dq_deploy.calibration.non_finite import first_non_finite
from dq_deploy.calibration.recording.calls import TIMESTEP, SeenCall
from dq_deploy.errors import NonFiniteError
from dq_deploy.models import call_arguments, named_outputs

if TYPE_CHECKING:
    import torch


class FiniteWatch:
    """Stops a run at the first value that is not finite, and says where it came from."""

    def __init__(self, module: torch.nn.Module, constants: Mapping[str, Any], steps: int) -> None:
        self.module, self.constants, self.steps = module, constants, steps
        self.done, self.searching = 0, False
        self.last: SeenCall | None = None

    def enter(self, call: SeenCall) -> None:
        """Before a call is computed."""
        if self.searching:
            return
        before, self.last = self.last, call
        for name, value in call.tensors.items():
            if not value.is_floating_point() or _is_finite(value):
                continue
            if name == call.sample and before is not None:
                raise NonFiniteError(
                    f"the sample is NaN or infinity behind {self._place(before)}: every layer's output is finite, so "
                    "the scheduler's step made it; check the scheduler's configuration"
                )
            raise NonFiniteError(f"the denoiser's input {name} is not finite at {self._place(call, 1)}; check it")
        self.done += 1

    def leave(self, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        """Behind a call."""
        if self.searching or self.last is None or all(map(_is_finite, named_outputs(output).values())):
            return
        call, place, self.searching = self.last, self._place(self.last), True
        arguments = call_arguments(call.tensors, self.constants)
        layer = first_non_finite(self.module, lambda: self.module(**arguments, return_dict=False))
        raise NonFiniteError(
            f"the float model gives NaN or infinity at {place}: the first layer whose output is not "
            f"finite is {layer}; check the model's weights there"
        )

    def _place(self, call: SeenCall, ahead: int = 0) -> str:
        step = f"step {self.done + ahead}{f' of {self.steps}' if self.steps else ''}"
        return f"timestep {float(call.tensors[TIMESTEP][0]):g}, {step}"


def _is_finite(value: torch.Tensor) -> bool:
    import torch

    return bool(torch.isfinite(value).all())
