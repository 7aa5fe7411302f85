"""A denoiser in torch, eager and in float32, in a process of its own that answers as `dq_deploy.bench.worker` does."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dq_deploy.bench.worker import Loaded, Timed, TimeRequest
from dq_deploy.processes import Handler, Tell, WorkerProcess, command_of, own_peak_mib, serve

if TYPE_CHECKING:
    from dq_deploy.models import Denoiser


@dataclass(frozen=True, kw_only=True)
class TorchSettings:
    """What the process builds: a name of `benchmarks.unets.denoisers`, and how many threads it has."""

    model: str
    threads: int


class _Timer:
    """The work of the process: a denoiser that stands between turns."""

    def __init__(self) -> None:
        self._denoiser: Denoiser | None = None

    def build(self, settings: TorchSettings, _tell: Tell) -> Loaded:
        """Build the denoiser."""
        import torch

        from benchmarks.unets.denoisers import denoiser_of

        start = time.perf_counter()
        torch.set_num_threads(settings.threads)
        self._denoiser = denoiser_of(settings.model)
        self._denoiser.module.to(memory_format=torch.channels_last)
        return Loaded(engine="torch", load_ms=(time.perf_counter() - start) * 1e3)

    def time(self, request: TimeRequest, _tell: Tell) -> Timed:
        """One turn."""
        import torch

        from dq_deploy.bench.clocks import latencies_ms
        from dq_deploy.models import call_denoiser, example_inputs

        denoiser = self._denoiser
        assert denoiser is not None
        arrays = example_inputs(denoiser.call, request.batch, 0)
        inputs = {name: torch.from_numpy(value) for name, value in arrays.items()}

        def run() -> float:
            begun = time.perf_counter()
            with torch.inference_mode():
                call_denoiser(denoiser.module, inputs)
            return (time.perf_counter() - begun) * 1e3

        found = latencies_ms(run, warmup=request.warmup, runs=request.runs, seconds=request.seconds)
        return Timed(latency_ms=tuple(found), peak_mib=own_peak_mib(), finite_check_ms=0.0)


class TorchWorker(WorkerProcess):
    """The asking side; a context manager.

    Attributes:
        load_ms: what building the denoiser took.
    """

    def __init__(self, model: str, threads: int) -> None:
        """Start the process and wait until the denoiser stands.

        Raises:
            DqError: it ended instead.
        """
        super().__init__(command_of(__name__), environment={"OMP_NUM_THREADS": str(threads)})
        try:
            self.load_ms = self.ask(TorchSettings(model=model, threads=threads), Loaded).load_ms
        except BaseException:
            self.close()
            raise

    def time(self, **request: Any) -> Timed:
        """One turn; arguments as of `dq_deploy.bench.worker.Worker.time`."""
        return self.ask(TimeRequest(**request), Timed)


if __name__ == "__main__":
    timer = _Timer()
    serve(Handler(TorchSettings, timer.build), Handler(TimeRequest, timer.time))
