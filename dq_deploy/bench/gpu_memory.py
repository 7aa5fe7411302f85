"""Peak of GPU memory of this process, from NVML, in a run that is not timed."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Any, Self

POLL_S = 0.005
PROCESS, DEVICE, SHARED = "process", "device", "device, which other processes use too"


class GpuPeak:
    """Polls NVML from a thread, as it keeps no peak itself; a context manager, entered before CUDA is started.

    NVML counts by process where it sees this one. From inside a container with its own process numbers it does not, or
    lists it with 0 bytes; there the growth of all memory used on the GPU is taken. Both hold the CUDA context too, as
    nothing of it is there yet when the block is entered. The growth is this process's where no other one starts
    meanwhile: engines are watched one after another, and never while they are timed, as each look takes the driver's
    lock.

    Attributes:
        source: `PROCESS`, `DEVICE`, `SHARED`, or why there is no number.
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
        self._others: frozenset[int] = frozenset()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.source = "not started"

    @property
    def peak_mib(self) -> float | None:
        """The highest so far, or None where `source` says why."""
        if self.source == PROCESS:
            return self._own / 2**20
        return (self._all - self._before) / 2**20 if self.source in (DEVICE, SHARED) else None

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
            self._others = frozenset(self._processes())
        except pynvml.NVMLError as error:
            self.source = f"NVML: {error}"
            return self
        self.source = SHARED if self._others else DEVICE
        self.poll()
        self._thread = threading.Thread(target=self._run, name="gpu-peak", daemon=True)
        self._thread.start()
        return self

    def _processes(self) -> dict[int, int]:
        """Bytes of each process that NVML lists; 0 where it does not say."""
        found = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        return {int(process.pid): int(process.usedGpuMemory or 0) for process in found}

    def poll(self) -> None:
        """Look once."""
        if self._nvml is None:
            return
        self._all = max(self._all, int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used))
        processes = self._processes()
        # a number that was there before is another process's, whose number of the host is ours in this container
        own = 0 if os.getpid() in self._others else processes.get(os.getpid(), 0)
        if own:
            self.source = PROCESS
            self._own = max(self._own, own)
        elif self.source == DEVICE and len(processes) > 1:
            self.source = SHARED

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
