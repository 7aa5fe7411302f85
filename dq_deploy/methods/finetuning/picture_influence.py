"""How far an error in the output of one step moves the picture, measured: the sampler runs on by the float model.

For a step t, with the quantized output in this step and the float model's in all others, x(t) the picture that comes of
it, x that of the float model alone, and e_t the difference of the two outputs,

    w[t] = mean |x(t) - x|^2  /  mean |e_t|^2

The sample that the last step is given stands for the picture, so w[0] is the square of how far the last step's error
moves its own result. Errors of different steps also add up, mostly in one direction; that is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from dq_deploy.calibration.recording.calls import TIMESTEP, SeenCall
from dq_deploy.errors import OptionError
from dq_deploy.methods.finetuning.own_trajectories import answer_of_record, answered_by
from dq_deploy.methods.options import SharedOptions
from dq_deploy.methods.prepare.calibration_inputs import sampling_run, step_influence
from dq_deploy.methods.run import Run
from dq_deploy.numerics.arrays import F64
from dq_deploy.record import Record
from dq_deploy.simulation.fake_quant import Simulation, simulate

PICTURES = 4
"""Pictures drawn for each step; half of `PICTURES` * T^2 evaluations of the float model."""

SEED = 1_000_003
"""Added to the seed: these pictures are of other noise than the calibration's."""


def picture_influence(run: Run, options: SharedOptions, record: Record) -> F64:
    """W [T], index 0 the least noisy step.

    Args:
        run: the float model and its sampler.
        options: steps, seed, classes.
        record: whose errors are the disturbance.

    Raises:
        OptionError: the sampler's steps cannot be probed, or are others than the record's.
    """
    last = step_influence(run.denoiser, options, run.source)
    if last is None or len(last) != record.steps:
        raise OptionError(
            "picture_weights was given, expected a sampling run by a scheduler whose steps can be probed; leave it out"
        )
    few = replace(options, seed=(options.seed + SEED) % 2**31, calibration_choice="uniform")
    sampling = sampling_run(run.denoiser, few, run.source, samples=PICTURES)
    module, simulation = run.denoiser.module, simulate(record).to(options.device)

    def drawn(one: _Pass) -> _Pass:
        with answered_by(module, one.answer):
            sampling.watched(PICTURES, lambda _call: None)
        return one

    alone = drawn(_Pass(module, simulation))
    found = np.full(record.steps, float(last[0]) ** 2)
    for step in range(1, record.steps):
        found[step] = drawn(_Pass(module, simulation, step=step, known=alone.calls)).moved(alone)
        run.tell("influence", step, record.steps - 1)
    return found


@dataclass(kw_only=True)
class _Seen:
    """A call's sample and what it was answered."""

    sample: torch.Tensor
    output: Any


@dataclass
class _Pass:
    """Pictures with the record's output in one step, or in none, and the float model's in all others.

    What the float model answers is taken from the pass without a quantized step, as long as the sample is the same.
    """

    module: torch.nn.Module
    simulation: Simulation
    step: int | None = None
    known: Sequence[_Seen] = ()
    calls: list[_Seen] = field(default_factory=list)
    ends: list[torch.Tensor] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def answer(self, call: SeenCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The output of a call."""
        sample, bucket = call.tensors[call.sample].clone(), int(self.simulation.bucket(call.tensors[TIMESTEP])[0])
        before = self.known[len(self.calls)] if self.known else None
        if before is not None and torch.equal(before.sample, sample):
            output = before.output
        else:
            output = type(self.module).forward(self.module, *args, **kwargs)
        if bucket == self.step:
            wanted = output[0]
            output = answer_of_record(self.simulation, call, args, kwargs)
            self.errors.append(float((output[0] - wanted).double().square().mean()))
        self.calls.append(_Seen(sample=sample, output=output))
        if bucket == 0:
            self.ends.append(sample)
        return output

    def moved(self, alone: _Pass) -> float:
        """W of the step of this pass; 0 for a step without an error."""
        far = [float((a - b).double().square().mean()) for a, b in zip(self.ends, alone.ends, strict=True)]
        error = float(np.mean(self.errors))
        return float(np.mean(far)) / error if error > 0 else 0.0
