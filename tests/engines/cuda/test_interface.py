"""Both implementations offer the one interface, and name only what their libraries really have."""

from __future__ import annotations

import ast
import ctypes
import importlib.resources
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

from dq_deploy.engines.cuda import cuda_core as cuda_core_backend
from dq_deploy.engines.cuda import interface as cuda_memory
from dq_deploy.engines.cuda import pycuda as pycuda_backend
from dq_deploy.engines.cuda.arrays import dtype_of
from dq_deploy.engines.cuda.backends import open_cuda
from dq_deploy.engines.cuda.driver_calls import CALLS, DriverCalls
from dq_deploy.engines.cuda.interface import (
    DeviceBuffer,
    PinnedBuffer,
    check_driver_version,
    version_text,
)
from dq_deploy.errors import DqError, MissingDependencyError, OptionError
from tests.engines.cuda.gpu import without_driver

PAIRS = [
    (base, getattr(module, f"{prefix}{base.removeprefix('Cuda')}"))
    for module, prefix in ((cuda_core_backend, "CudaCore"), (pycuda_backend, "Pycuda"))
    for base in ("CudaBackend", "CudaStream", "CudaEvent", "CudaGraph")
]


@pytest.mark.parametrize(("base", "implementation"), PAIRS, ids=lambda value: getattr(value, "__name__", value))
def test_an_implementation_has_every_method_with_the_same_parameters(base, implementation):
    interface = getattr(cuda_memory, base)
    assert issubclass(implementation, interface)
    assert not inspect.isabstract(implementation)
    for name in interface.__abstractmethods__:
        wanted, found = (inspect.signature(getattr(owner, name)) for owner in (interface, implementation))
        assert list(wanted.parameters) == list(found.parameters), name
        assert str(wanted.return_annotation) == str(found.return_annotation), name


def test_the_calls_of_the_driver_are_declared_as_its_header_declares_them():
    """cuda-bindings ships the driver's declarations; counts and kinds of the arguments are compared."""
    text = (importlib.resources.files("cuda.bindings") / "cydriver.pxd").read_text()
    pointer_sized = {"CUstream", "CUevent", "CUgraph", "CUgraphExec", "CUcontext"}
    for name, (symbol, arguments) in CALLS.items():
        declared = re.search(rf"cdef CUresult {name}\((.*)\) except", text)
        assert declared is not None, name
        assert symbol.startswith(name.replace("cuGraphInstantiate", "cuGraphInstantiateWithFlags"))
        kinds = [re.sub(r" ?\w+$", "", entry.strip()) for entry in declared.group(1).split(",") if entry.strip()]
        assert len(kinds) == len(arguments), name
        for kind, argument in zip(kinds, arguments, strict=True):
            is_address = kind.endswith("*") or kind in pointer_sized or kind == "CUdeviceptr"
            wanted = (
                ctypes.sizeof(ctypes.c_void_p) if is_address else {"size_t": 8, "unsigned long long": 8}.get(kind, 4)
            )
            assert ctypes.sizeof(argument) == wanted, (name, kind)


def attributes_used(module, variables: set[str]) -> set[tuple[str, str]]:
    """(variable, attribute) pairs in a module's code, of these names or of `self._name`."""
    found = set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.Attribute):
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
            if name in variables:
                found.add((name, node.attr))
    return found


def test_cuda_core_has_what_its_backend_calls():
    core, driver = pytest.importorskip("cuda.core"), pytest.importorskip("cuda.bindings.driver")
    owners = {"_core": core, "_driver": driver, "driver": driver, "_device": core.Device, "stream": core.Stream}
    used = attributes_used(cuda_core_backend, set(owners))
    assert {("_driver", "cuMemAlloc"), ("_driver", "cuMemcpyHtoDAsync"), ("stream", "create_graph_builder")} <= used
    missing = {
        f"{owner}.{name}"
        for owner, name in used - {("stream", "handle"), ("stream", "stream")}
        if not hasattr(owners[owner], name)
    }
    assert not missing
    from cuda.core import graph

    assert {"begin_building", "end_building", "complete", "close"} <= set(dir(graph.GraphBuilder))
    assert {"launch", "close"} <= set(dir(graph.Graph))
    assert {"sync", "__sub__"} <= set(dir(core.Event))


@without_driver
def test_without_a_driver_cuda_core_gives_one_clear_line():
    pytest.importorskip("cuda.core")
    with pytest.raises(MissingDependencyError, match="no NVIDIA driver") as caught:
        open_cuda()
    assert "nvidia-smi" in str(caught.value)
    assert "\n" not in str(caught.value)


@without_driver
def test_without_a_driver_the_calls_of_the_driver_give_the_same_line():
    with pytest.raises(MissingDependencyError, match=r"no NVIDIA driver.*libcuda\.so\.1"):
        DriverCalls()


def test_a_library_that_lacks_the_calls_is_no_driver():
    with pytest.raises(MissingDependencyError, match="no NVIDIA driver"):
        DriverCalls("libc.so.6")


def test_without_pycuda_the_line_names_its_extra():
    if importlib.util.find_spec("pycuda") is not None:
        pytest.skip("pycuda is installed")
    with pytest.raises(MissingDependencyError, match=r"pip install 'dq-deploy\[pycuda\]'"):
        open_cuda("pycuda")


def test_without_cuda_core_the_line_names_its_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'dq-deploy\[cuda\]'"):
        open_cuda()


def test_an_unknown_backend_or_device_is_refused():
    with pytest.raises(OptionError, match="cuda-core, pycuda"):
        open_cuda("cupy")
    with pytest.raises(OptionError, match="device is -1"):
        open_cuda(device=-1)


def test_a_driver_that_is_too_old_is_told_what_it_lacks():
    check_driver_version(13050, 13000, needed_by="cuda-bindings 13.5.0")
    with pytest.raises(MissingDependencyError, match=r"supports CUDA 12\.4, expected 13\.0 or newer for cuda-bindings"):
        check_driver_version(12040, 13000, needed_by="cuda-bindings 13.5.0")
    assert version_text(12080) == "12.8"


def test_a_buffer_is_freed_once_and_gives_no_array_after():
    freed = []
    buffer = DeviceBuffer(4096, 24, lambda: freed.append(1))
    assert buffer.array((2, 3), dtype_of("float32")).nbytes == 24
    with pytest.raises(DqError, match="28 bytes is asked of a buffer, it has 24"):
        buffer.array((7,), dtype_of("float32"))
    buffer.free()
    buffer.free()
    assert freed == [1]
    with pytest.raises(DqError, match="freed"):
        buffer.array((1,), dtype_of("float32"))


def test_a_pinned_buffer_is_seen_as_an_array_of_any_dtype_that_fits():
    freed = []
    buffer = PinnedBuffer(np.arange(16, dtype=np.uint8), lambda: freed.append(1))
    view = buffer.array((2, 3), dtype_of("bfloat16"))
    view[...] = 1.5
    assert buffer.array((6,), dtype_of("bfloat16"))[5] == 1.5
    with pytest.raises(DqError, match="20 bytes is asked of a pinned buffer, it has 16"):
        buffer.array((5,), dtype_of("float32"))
    buffer.free()
    buffer.free()
    assert freed == [1]
