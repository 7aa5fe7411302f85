"""Whether TensorRT is there is said in one line, for each way it can be there by half."""

from __future__ import annotations

import sys

import pytest

from dq_deploy.engines.tensorrt.library import rtx_library, tensorrt_library
from dq_deploy.errors import MissingDependencyError, OptionError

NO_LIBRARY = "raise ImportError('libnvinfer.so.11: cannot open shared object file: No such file or directory')\n"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Function that puts packages with this source in front of the path."""

    def install(**sources: str) -> None:
        for name, source in sources.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text(source)
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    for name in ("tensorrt", "tensorrt_bindings"):
        sys.modules.pop(name, None)


def test_tensorrt_rtx_is_found():
    pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt-rtx")
    assert rtx_library().__version__.startswith("1.")
    assert tensorrt_library("tensorrt-rtx") is rtx_library()


def test_an_unknown_runtime_is_refused():
    with pytest.raises(OptionError, match="expected one of tensorrt, tensorrt-rtx"):
        tensorrt_library("tensorrt-lite")


def test_bindings_without_their_libraries_are_told_apart_from_nothing(installed):
    installed(tensorrt="from tensorrt_bindings import *\n", tensorrt_bindings=NO_LIBRARY)
    with pytest.raises(MissingDependencyError) as caught:
        tensorrt_library("tensorrt")
    message = str(caught.value)
    assert "bindings of TensorRT are installed, its libraries cannot be loaded (libnvinfer.so.11: cannot" in message
    assert "the vendor's own package index" in message
    assert "LD_LIBRARY_PATH" in message


def test_a_module_of_that_name_that_is_something_else_is_refused(installed):
    installed(tensorrt="")
    with pytest.raises(MissingDependencyError, match="the module tensorrt that Python finds is not TensorRT"):
        tensorrt_library("tensorrt")
