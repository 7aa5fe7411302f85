"""With a folder of compiled kernels nothing is compiled: calls go to its store, on torch's stream."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch
from dq_kernels.gpu.ahead_of_time.cubins import argument_values
from dq_kernels.gpu.launch import launching
from dq_kernels.gpu.launch.calls import KernelCall

CALL = KernelCall(kernel="clear_kernel", grid=(1, 1, 1), arguments={"words": 5}, constants={}, warps=4, stages=1)


class Store:
    def __init__(self):
        self.launched = []

    def launch(self, call, stream):
        self.launched.append((call.kernel, stream))


@pytest.fixture
def store(monkeypatch):
    """A store in the place of the folder's, and torch's calls that need a GPU."""
    made = Store()
    monkeypatch.setattr(launching, "cubins_of", lambda folder, device: made)
    monkeypatch.setattr(launching, "kernel_of", lambda name: pytest.fail("triton is asked"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))
    return made


def test_calls_go_to_the_folder_that_the_variable_names(store, monkeypatch):
    monkeypatch.setenv(launching.CUBINS_VARIABLE, "anywhere")
    launching.start([CALL, CALL], torch.device("cuda"))
    assert store.launched == [("clear_kernel", 77)] * 2


def test_what_is_collected_is_not_launched(store, monkeypatch):
    monkeypatch.setenv(launching.CUBINS_VARIABLE, "anywhere")
    with launching.collecting(90) as calls:
        launching.start([CALL], torch.device("cuda"))
        assert launching.architecture_for(torch.zeros(1)) == 90
    assert (calls, store.launched) == ([CALL], [])


def test_tensors_of_torch_are_arguments_by_their_address():
    tensor = torch.zeros(64, dtype=torch.int64)
    call = KernelCall(
        kernel="clear_kernel", grid=(1, 1, 1), arguments={"workspace": tensor}, constants={}, warps=4, stages=1
    )
    values = argument_values([("workspace", "*i64")], call)
    assert values[0].value == tensor.data_ptr()
