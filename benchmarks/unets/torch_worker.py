"""A denoiser in torch, eager and in float32, in a process of its own that speaks as `dq_deploy.bench.worker` does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from types import TracebackType
from typing import Any, Self


def serve(model: str, threads: int, requests: Any, answers: Any) -> None:
    """Build the denoiser and answer requests until the input ends."""
    import torch

    from benchmarks.unets.denoisers import denoiser_of
    from dq_deploy.bench.clocks import latencies_ms
    from dq_deploy.bench.worker import peak_mib
    from dq_deploy.models import call_denoiser, example_inputs

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    start = time.perf_counter()
    torch.set_num_threads(threads)
    denoiser = denoiser_of(model)
    module = denoiser.module.to(memory_format=torch.channels_last)
    answer({"engine": "torch", "load_ms": (time.perf_counter() - start) * 1e3})
    for line in requests:
        request = json.loads(line)
        inputs = {
            name: torch.from_numpy(value)
            for name, value in example_inputs(denoiser.config, request["batch"], 0).items()
        }

        def run(inputs: dict[str, Any] = inputs) -> float:
            begun = time.perf_counter()
            with torch.inference_mode():
                call_denoiser(module, inputs)
            return (time.perf_counter() - begun) * 1e3

        counts = {key: request[key] for key in ("warmup", "runs", "seconds")}
        answer({"latency_ms": latencies_ms(run, **counts), "peak_mib": peak_mib()})


class TorchWorker:
    """The asking side; a context manager."""

    def __init__(self, model: str, threads: int) -> None:
        """Start the process and wait until the denoiser stands.

        Raises:
            RuntimeError: it ended instead.
        """
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-m", "benchmarks.unets.torch_worker", model, str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.load_ms = float(self._answer()["load_ms"])

    def time(self, **request: Any) -> dict[str, Any]:
        """Latencies in ms and the memory peak so far in MiB; arguments as of `dq_deploy.bench.worker.Worker`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the torch process ended with code {self._process.wait()}; see its message above")
        return dict(json.loads(line))

    def __enter__(self) -> Self:
        """The worker itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.stdin, sys.stdout)
