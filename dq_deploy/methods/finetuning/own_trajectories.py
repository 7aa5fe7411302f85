"""Trajectories of a quantized model: the pipeline runs as for the float model, and the record answers in its place.

What a model meets when it draws is what its own former steps made. A float trajectory never shows it that: errors of
different steps add up in one direction, away from what was trained on (the exposure bias of arXiv 2301.11706).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from dq_deploy.calibration import CalibrationInputs, CalibrationSource
from dq_deploy.calibration.recording.calls import TIMESTEP, SeenCall, seen_call
from dq_deploy.errors import OptionError
from dq_deploy.methods.options import SharedOptions
from dq_deploy.methods.prepare.calibration_inputs import collect_inputs
from dq_deploy.methods.run import Run
from dq_deploy.record import Record
from dq_deploy.simulation.fake_quant import Simulation, simulate


def check_own_trajectories(source: CalibrationSource, *, option: str = "own_trajectories") -> None:
    """Refuse inputs that come from no run of a sampler.

    Args:
        source: of the inputs.
        option: that needs one.

    Raises:
        OptionError: says what they come from.
    """
    if source.kind == "trajectory":
        return
    came = "recorded latents" if source.kind == "latents" else "noise"
    raise OptionError(
        f"{option} was given with {came} as calibration inputs, expected a sampling run; leave it out, or calibrate by "
        "the model's scheduler or a pipeline"
    )


def own_inputs(run: Run, options: SharedOptions, record: Record) -> CalibrationInputs:
    """The calibration inputs that the options ask for, each step behind the record's own former steps.

    Noise, classes and steps are those of the float model's trajectories, so that the first step's inputs are the same.

    Args:
        run: the float model and where its inputs come from.
        options: of the method.
        record: whose outputs the sampler is given.

    Raises:
        OptionError: the inputs come from no run of a sampler, or do not fit.
        NonFiniteError: the record's outputs lead to NaN or infinity.
    """
    check_own_trajectories(run.source)
    simulation = simulate(record).to(options.device)
    with answered_by(run.denoiser.module, partial(answer_of_record, simulation)):
        return collect_inputs(run.denoiser, options, run.source, run.progress)


def answer_of_record(simulation: Simulation, call: SeenCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a record gives for a call of its float model, in the form that the float model would give.

    Args:
        simulation: of the record.
        call: the call.
        args: as the pipeline gave them.
        kwargs: likewise.
    """
    simulation.context.step = simulation.bucket(call.tensors[TIMESTEP])
    return simulation.denoiser(*args, **kwargs)


@contextmanager
def answered_by(
    module: torch.nn.Module,
    answer: Callable[[SeenCall, tuple[Any, ...], Mapping[str, Any]], Any],
    *,
    gradients: bool = False,
) -> Iterator[None]:
    """Inside, `answer` gives the output of each call of the module, which stays where it is.

    Args:
        module: the float denoiser.
        answer: is given the call, and its arguments as they were given.
        gradients: whether they pass `answer`.
    """
    signature = inspect.signature(type(module).forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(gradients):
            return answer(seen_call(signature.bind(module, *args, **kwargs), signature), args, kwargs)

    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
