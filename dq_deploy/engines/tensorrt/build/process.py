"""Runs a builder process: its progress, its time limit, its memory, and its end whatever happens to this process."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from dq_deploy.engines.tensorrt.build.failures import Ending, error_of, time_limit_error
from dq_deploy.engines.tensorrt.build.worker import BuildRequest
from dq_deploy.manifest.values import EngineManifest
from dq_deploy.processes import peak_mib

_LOOK_EVERY_S = 0.2
_LOG_LINES = 400


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildProgress:
    """What a builder is doing.

    Attributes:
        phase: in the library's words.
        done: steps of this phase.
        total: of so many; 0 where it has none.
        seconds: since the start.
        peak_mib: memory so far.
    """

    phase: str
    done: int
    total: int
    seconds: float
    peak_mib: float | None


class _Lines:
    """Whole lines from the pieces a pipe gives."""

    def __init__(self) -> None:
        self._rest = b""

    def of(self, data: bytes) -> list[str]:
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in whole]


class BuildProcess:
    """One builder process, ended when the context is left.

    Args:
        request: what it builds.
        manifest: of the ONNX file, for messages.
        time_limit_s: None is no limit.
        log: file that gets all the library says, or None.
        progress: called with each phase.
    """

    def __init__(
        self,
        request: BuildRequest,
        manifest: EngineManifest,
        *,
        time_limit_s: float | None,
        log: Path | None,
        progress: Callable[[BuildProgress], None] | None,
    ) -> None:
        self._request = request
        self._manifest = manifest
        self._time_limit_s = time_limit_s
        self._log_path = log
        self._progress = progress
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._last: dict[str, Any] | None = None
        self._phase = "starting"
        self._peak: float | None = None

    def run(self) -> dict[str, Any]:
        """Run it to its end.

        Returns:
            The values of its last event.

        Raises:
            DqError: it failed, crashed or reached the limit.
            OSError: the plan could not be written.
        """
        self._started = time.monotonic()
        # a session of its own: Ctrl-C reaches this process alone, which then ends the other
        process = subprocess.Popen(
            [sys.executable, "-m", "dq_deploy.engines.tensorrt.build.worker", json.dumps(dataclasses.asdict(self._request))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            with process.stdout, process.stderr, self._log_stream() as log:
                in_time = self._follow(process, log)
            if not in_time:
                self._end(process)
            code = process.wait()
        finally:
            self._end(process)
        if in_time and code == 0 and self._last is not None and self._last.get("event") == "done":
            return self._last
        ending = Ending(
            onnx=Path(self._request.onnx),
            manifest=self._manifest,
            runtime=self._request.runtime,
            code=code,
            event=self._last,
            log=[line for line in self._log if line.strip()],
            phase=self._phase,
            seconds=self._seconds(),
            peak_mib=self._peak,
        )
        if not in_time:
            assert self._time_limit_s is not None
            raise time_limit_error(ending, self._time_limit_s)
        raise error_of(ending)

    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _log_stream(self) -> contextlib.AbstractContextManager[IO[str] | None]:
        if self._log_path is None:
            return contextlib.nullcontext()
        return self._log_path.open("w", encoding="utf-8")

    def _follow(self, process: subprocess.Popen[bytes], log: IO[str] | None) -> bool:
        """Read until both pipes are closed; False where the time limit came first."""
        assert process.stdout is not None
        assert process.stderr is not None
        events, said = _Lines(), _Lines()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            selector.register(process.stderr, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select(timeout=_LOOK_EVERY_S):
                    data = os.read(key.fd, 1 << 16)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is process.stdout:
                        for line in events.of(data):
                            self._take(json.loads(line))
                    else:
                        lines = said.of(data)
                        self._log.extend(lines)
                        if log is not None:
                            log.writelines(line + "\n" for line in lines)
                seen = peak_mib(process.pid)
                if seen is not None:  # a process that has ended has none any more
                    self._peak = max(seen, self._peak or 0.0)
                if self._time_limit_s is not None and self._seconds() > self._time_limit_s:
                    return False
        return True

    def _take(self, event: dict[str, Any]) -> None:
        if event["event"] != "phase":
            self._last = event
            if event.get("peak_mib") is not None:
                self._peak = event["peak_mib"]
            return
        self._phase = event["phase"]
        if self._progress is not None:
            self._progress(
                BuildProgress(
                    phase=event["phase"],
                    done=event["done"],
                    total=event["total"],
                    seconds=self._seconds(),
                    peak_mib=self._peak,
                )
            )

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
