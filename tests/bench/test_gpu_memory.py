"""GPU memory is this process's, whatever NVML can see of it: on an NVML made of numbers."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from dq_deploy.bench import gpu_memory
from dq_deploy.bench.gpu_memory import DEVICE, PROCESS, SHARED, GpuPeak
from dq_deploy.bench.native_baseline import native_facts
from dq_deploy.errors import OptionError

MIB = 2**20
CONTEXT_MIB = 500


class Nvml(SimpleNamespace):
    """A GPU with processes, as NVML tells of it; `hidden` lists this one by the host's number, as from a container."""

    NVMLError = type("NVMLError", (Exception,), {})

    def __init__(self, *, hidden=False, silent=False, others=None):
        super().__init__(own=0, hidden=hidden, silent=silent, others=dict(others or {}))

    def nvmlInit(self):
        pass

    def nvmlShutdown(self):
        pass

    def nvmlDeviceGetHandleByPciBusId(self, bus):
        return bus

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=(self.own + sum(self.others.values())) * MIB)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        seen = dict(self.others)
        if self.own:
            seen[4_000_000 if self.hidden else os.getpid()] = 0 if self.silent else self.own
        return [SimpleNamespace(pid=pid, usedGpuMemory=None if mib is None else mib * MIB) for pid, mib in seen.items()]


def watched(monkeypatch, nvml, then=lambda: None):
    """Peak and source of a process that starts CUDA, takes 300 MiB, gives them back; `then` happens meanwhile."""
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(gpu_memory, "POLL_S", 1000.0)  # looks are made by hand
    with GpuPeak("0000:01:00.0") as peak:
        for own in (CONTEXT_MIB, CONTEXT_MIB + 300, CONTEXT_MIB):
            nvml.own = own
            if own > CONTEXT_MIB:
                then()
            peak.poll()
    return peak.peak_mib, peak.source


def test_the_process_counts_with_its_context(monkeypatch):
    assert watched(monkeypatch, Nvml()) == (CONTEXT_MIB + 300, PROCESS)


@pytest.mark.parametrize("nvml", [Nvml(hidden=True), Nvml(silent=True), Nvml(hidden=True, silent=True)])
def test_where_nvml_does_not_see_the_process_the_growth_is_the_same_number(monkeypatch, nvml):
    assert watched(monkeypatch, nvml) == (CONTEXT_MIB + 300, DEVICE)


def test_memory_of_others_from_before_does_not_count(monkeypatch):
    """Their numbers are the host's: one of them may be this process's own number in its container."""
    nvml = Nvml(hidden=True, others={os.getpid(): 9000, 77: 100})
    assert watched(monkeypatch, nvml) == (CONTEXT_MIB + 300, SHARED)


def test_a_process_that_starts_meanwhile_is_said(monkeypatch):
    nvml = Nvml(hidden=True)
    found, source = watched(monkeypatch, nvml, then=lambda: nvml.others.update({88: 50}))
    assert (found, source) == (CONTEXT_MIB + 350, SHARED)


def test_the_native_engine_on_a_gpu_is_not_timed_against_a_cpu():
    on_gpu = SimpleNamespace(layer_forms=dict, runs_on=SimpleNamespace(isa=None, device="cuda", float_type="float16"))
    with pytest.raises(OptionError, match=r"`baseline` .* would run on the CPU"):
        native_facts(on_gpu, baseline=True)
