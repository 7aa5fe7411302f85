"""Peak of GPU memory while a block runs, from NVML."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Any, Self

POLL_S = 0.005


class GpuPeak:
    """Polls NVML from a thread, as it keeps no peak itself; a context manager.

    NVML counts by process where it sees this one, which it does not from inside a container with its own process
    numbers; there the growth of all memory used on the GPU is taken, which is this process's where no other starts.

    Attributes:
        source: `process`, `device`, or why there is no number.
    """

    def __init__(self, pci_bus_id: str) -> None:
        """Nothing is asked yet.

        Args:
            pci_bus_id: of the GPU, as `DeviceFacts.pci_bus_id`.
        """
        self._bus = pci_bus_id
        self._nvml: Any = None
        self._handle: Any = None
        self._own = self._all = 0
        self._before = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.source = "not started"

    @property
    def peak_mib(self) -> float | None:
        """The highest so far, or None where `source` says why."""
        if self.source == "process":
            return self._own / 2**20
        return (self._all - self._before) / 2**20 if self.source == "device" else None

    def __enter__(self) -> Self:
        """Start to poll."""
        try:
            import pynvml
        except ImportError:
            self.source = "nvidia-ml-py is not installed: pip install 'dq-deploy[cuda]'"
            return self
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByPciBusId(self._bus)
            self._nvml = pynvml
            self._before = int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).used)
        except pynvml.NVMLError as error:
            self.source = f"NVML: {error}"
            return self
        self.source = "device"
        self.poll()
        self._thread = threading.Thread(target=self._run, name="gpu-peak", daemon=True)
        self._thread.start()
        return self

    def poll(self) -> None:
        """Look once."""
        if self._nvml is None:
            return
        self._all = max(self._all, int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used))
        for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle):
            if process.pid == os.getpid() and process.usedGpuMemory is not None:
                self.source = "process"
                self._own = max(self._own, int(process.usedGpuMemory))

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            try:
                self.poll()
            except self._nvml.NVMLError as error:
                self.source = f"NVML: {error}"
                return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._nvml.nvmlShutdown()
