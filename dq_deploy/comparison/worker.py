"""A method in a process of its own: its memory peak is its own, and its crash is one row, not the end."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dq_deploy.calibration.request import CalibrationRequest
from dq_deploy.errors import DqError
from dq_deploy.methods import Progress
from dq_deploy.processes import Handler, WorkerEndedError, WorkerError, WorkerProcess, command_of, peak_mib, serve

COMMAND = command_of("dq_deploy.comparison.worker")
GRACE_S = 5.0
"""How long a stopped process may take to end by itself."""


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """What the process does.

    Attributes:
        model: folder of the float model.
        options: of the method, JSON values by name.
        out: record to write.
        variant: file variant of the model, or None.
        component: the denoiser's name in a pipeline, or None.
        config: folder that describes a single file of weights, or None.
        calibration: what calibrates the model.
        state: folder where finished blocks are kept, or None.
    """

    model: str
    options: dict[str, Any]
    out: str
    variant: str | None = None
    component: str | None = None
    config: str | None = None
    calibration: CalibrationRequest = field(default_factory=CalibrationRequest)
    state: str | None = None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What quantizing took.

    Attributes:
        seconds: of `dq_deploy.quantize`, imports and loading the model not counted.
        peak_mib: highest resident memory of the process.
        loaded_mib: the same before the method began: interpreter, libraries, the float model.
        continued: whether a stopped run was continued; the numbers are then of all its parts.
    """

    seconds: float
    peak_mib: float
    loaded_mib: float
    continued: bool = False


class TrainingError(DqError):
    """A method failed in its process; `exit_code` is what it would have ended a command with."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def train(request: TrainingRequest, on_progress: Callable[[Progress], None]) -> Trained:
    """Quantize in a process of its own.

    An exception that arrives meanwhile, an interrupt included, ends the process; its finished blocks stay.

    Raises:
        TrainingError: the method's own message, or how the process ended.
    """
    with WorkerProcess(COMMAND, grace_s=GRACE_S) as process:
        try:
            return process.ask(request, Trained, event=Progress, on_event=on_progress)
        except WorkerError as error:
            raise TrainingError(str(error), error.failure.exit_code) from error
        except WorkerEndedError as error:
            raise TrainingError(f"its process {error.ending.words}", 1) from error


def perform(request: TrainingRequest, tell: Callable[[Progress], None]) -> Trained:
    """Quantize and save in this process; `tell` gets the progress reports."""
    from dq_deploy.calibration import prepare_calibration
    from dq_deploy.methods import options_for, quantize
    from dq_deploy.methods.training.resume import Spent, discard_state
    from dq_deploy.models import load_model
    from dq_deploy.models.load.pipeline_folder import sizes_of_picture
    from dq_deploy.record import save_record

    options = options_for(**request.options)
    asked = request.calibration
    denoiser = load_model(
        request.model,
        variant=request.variant,
        component=request.component,
        config=request.config,
        sizes=sizes_of_picture(Path(request.config or request.model), asked.height, asked.width),
    )
    prepared = prepare_calibration(denoiser, Path(request.model), asked, variant=request.variant)
    state = None if request.state is None else Path(request.state)
    loaded = peak_mib() or 0.0
    spent = Spent(state)

    def report(progress: Progress) -> None:
        tell(progress)
        spent.note(peak_mib() or 0.0)

    try:
        record = quantize(prepared.denoiser, options, calibration=prepared.source, progress=report, resume_dir=state)
    except BaseException:
        spent.note(peak_mib() or 0.0, last=True)
        raise
    found = Trained(
        seconds=spent.seconds,
        peak_mib=max(peak_mib() or 0.0, spent.before_mib),
        loaded_mib=loaded,
        continued=spent.before_s > 0,
    )
    save_record(record, request.out)
    if state is not None and state.exists():
        discard_state(state)
    return found


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    serve(Handler(TrainingRequest, perform))
