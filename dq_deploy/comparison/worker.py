"""A method in a process of its own: its memory peak is its own, and its crash is one row, not the end.

The process is given a `TrainingRequest` as its one argument and writes JSON lines on stdout: progress reports, then
`{"done": {...}}` or `{"error": "...", "exit_code": 2}`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from dq_deploy.errors import DqError, explained
from dq_deploy.methods import Progress
from dq_deploy.processes import peak_mib

COMMAND = (sys.executable, "-m", "dq_deploy.comparison.worker")
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
        calibration: `kind`, `conditions` and `latents` of `dq_deploy.calibration.read_source`.
        state: folder where finished blocks are kept, or None.
    """

    model: str
    options: dict[str, Any]
    out: str
    variant: str | None = None
    calibration: dict[str, str | None] = field(default_factory=dict)
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
    # a file, not a pipe: nobody reads it while the process runs
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*COMMAND, json.dumps(asdict(request))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdout is not None
        try:
            last = _followed(process.stdout, on_progress)
            code = process.wait()
        finally:
            _end(process)
            process.stdout.close()
        if "done" in last:
            return Trained(**last["done"])
        if "error" in last:
            raise TrainingError(str(last["error"]), int(last["exit_code"]))
        log.seek(0)
        raise TrainingError(_ending(code, log.read()), 1)


def _followed(lines: IO[str], on_progress: Callable[[Progress], None]) -> Mapping[str, Any]:
    """The last line that is no progress report."""
    last: Mapping[str, Any] = {}
    for line in lines:
        message = json.loads(line)
        if "progress" in message:
            on_progress(Progress(**message["progress"]))
        else:
            last = message
    return last


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ending(code: int, log: str) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; is there enough memory?" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    lines = log.strip().splitlines()
    return f"its process ended with code {code}" + (f": {lines[-1]}" if lines else "")


def perform(request: TrainingRequest, tell: Callable[[dict[str, Any]], None]) -> Trained:
    """Quantize and save in this process; `tell` gets the progress reports as JSON values."""
    from dq_deploy.calibration import read_source
    from dq_deploy.methods import options_for, quantize
    from dq_deploy.methods.training.resume import Spent, discard_state
    from dq_deploy.models import input_specs, load_model
    from dq_deploy.record import save_record

    options = options_for(**request.options)
    denoiser = load_model(request.model, variant=request.variant)
    files = {name: None if value is None else Path(value) for name, value in request.calibration.items()}
    kind = request.calibration.get("kind")
    source = read_source(
        input_specs(denoiser.config), kind=kind, conditions=files.get("conditions"), latents=files.get("latents")
    )
    state = None if request.state is None else Path(request.state)
    loaded = peak_mib() or 0.0
    spent = Spent(state)

    def report(progress: Progress) -> None:
        tell({"progress": asdict(progress)})
        spent.note(peak_mib() or 0.0)

    try:
        record = quantize(denoiser, options, calibration=source, progress=report, resume_dir=state)
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


def main() -> None:
    """Entry of the process."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def tell(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        tell({"done": asdict(perform(TrainingRequest(**json.loads(sys.argv[1])), tell))})
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(141) from None
    except DqError as error:
        tell({"error": str(error), "exit_code": error.exit_code})
    except Exception as error:
        with contextlib.suppress(BrokenPipeError):
            message, code = explained(error)
            tell({"error": message, "exit_code": code})
        raise


if __name__ == "__main__":
    main()
