"""Asks a builder process for a plan: its progress, its time limit, its memory, and one line for each bad end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from dq_deploy.engines.tensorrt.build.failures import Build, failure_error, refusal_error, time_limit_error, unfinished_error
from dq_deploy.engines.tensorrt.build.messages import BuildAnswer, BuildProgress, BuildRequest, Built, Phase
from dq_deploy.manifest.values import EngineManifest
from dq_deploy.processes import WorkerEndedError, WorkerError, WorkerProcess, WorkerTimeoutError, command_of

COMMAND = command_of("dq_deploy.engines.tensorrt.build.worker")


def build_in_a_process(
    request: BuildRequest,
    manifest: EngineManifest,
    *,
    time_limit_s: float | None,
    log: Path | None,
    progress: Callable[[BuildProgress], None] | None,
) -> Built:
    """Run a builder process to its end.

    Args:
        request: what it builds.
        manifest: of the ONNX file, for messages.
        time_limit_s: None is no limit.
        log: file that gets all the library says, or None.
        progress: called with each phase.

    Raises:
        DqError: it failed, crashed or reached the limit.
        OSError: the plan could not be written.
    """
    started, phase = time.monotonic(), "starting"
    with _log_stream(log) as stream, WorkerProcess(COMMAND, log=stream, watch_memory=True) as process:

        def note(event: Phase) -> None:
            nonlocal phase
            phase = event.phase
            if progress is not None:
                seconds = time.monotonic() - started
                progress(
                    BuildProgress(
                        phase=phase, done=event.done, total=event.total, seconds=seconds, peak_mib=process.peak_mib
                    )
                )

        def build() -> Build:
            return Build(
                onnx=Path(request.onnx),
                manifest=manifest,
                runtime=request.runtime,
                phase=phase,
                seconds=time.monotonic() - started,
                peak_mib=process.peak_mib,
            )

        try:
            answer = process.ask(request, BuildAnswer, event=Phase, on_event=note, time_limit_s=time_limit_s)
        except WorkerTimeoutError as error:
            raise time_limit_error(build(), error.limit_s) from error
        except WorkerEndedError as error:
            raise unfinished_error(build(), error.ending) from error
        except WorkerError as error:
            raise failure_error(build(), error.failure) from error
        if answer.refusal is not None:
            raise refusal_error(build(), answer.refusal)
        assert answer.built is not None
        return answer.built


def _log_stream(path: Path | None) -> contextlib.AbstractContextManager[IO[str] | None]:
    return contextlib.nullcontext() if path is None else path.open("w", encoding="utf-8")
