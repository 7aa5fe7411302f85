"""Where the native engine runs, and what is said where a GPU cannot."""

from __future__ import annotations

import pytest

from dq_deploy.errors import MissingDependencyError, OptionError
from dq_deploy.native import devices


def test_without_a_driver_auto_is_the_cpu_and_cuda_is_refused(monkeypatch):
    monkeypatch.setattr(devices, "gpu_problem", lambda: "there is no NVIDIA driver")
    assert devices.chosen_device("auto") == "cpu"
    with pytest.raises(MissingDependencyError, match='but there is no NVIDIA driver; use `device="cpu"`'):
        devices.chosen_device("cuda")


def test_a_gpu_is_taken_unless_the_cpu_is_asked_for(monkeypatch):
    monkeypatch.setattr(devices, "gpu_problem", lambda: "")
    assert (devices.chosen_device("auto"), devices.chosen_device("cpu")) == ("cuda", "cpu")


def test_a_library_that_is_not_there_is_no_driver():
    assert devices.gpu_problem("libcuda-that-is-not-there.so.1") == "there is no NVIDIA driver"


def test_an_unknown_device_is_refused():
    with pytest.raises(OptionError, match="device is 'tpu', expected one of auto, cpu, cuda"):
        devices.chosen_device("tpu")
