"""Compiling the kernels: the compiler is found or missed, errors are one line, the library is replaced whole."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
from dq_kernels.cpu import build
from dq_kernels.cpu.build import BuildError


@pytest.fixture
def tiny_source(tmp_path):
    source = tmp_path / "tiny.cpp"
    source.write_text('extern "C" __attribute__((visibility("default"))) float twice(float x) { return 2 * x; }')
    return source


def test_every_source_of_the_folder_is_compiled():
    found = {path.relative_to(build.PACKAGE).as_posix() for path in build.sources()}
    assert {"cpu/context.cpp", "attention/cpu.cpp", "int_linear/cpu.cpp"} <= found
    assert not [path for path in build.PACKAGE.rglob("*.cpp") if path not in build.sources()]


def test_a_compiled_function_is_called(tiny_source, tmp_path):
    target = tmp_path / "new" / "tiny.so"
    assert build.build(target, files=[tiny_source]) == target
    function = ctypes.CDLL(str(target)).twice
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float]
    assert function(1.5) == 3.0
    assert [p.name for p in target.parent.iterdir()] == ["tiny.so"]


def test_flags_of_the_environment_come_behind_its_own(tiny_source, tmp_path, monkeypatch):
    tiny_source.write_text(f"{tiny_source.read_text()}\n#ifdef __OPTIMIZE__\n#error optimized\n#endif\n")
    with pytest.raises(BuildError, match="optimized"):
        build.build(tmp_path / "tiny.so", files=[tiny_source])
    monkeypatch.setenv("CXXFLAGS", "-O0 -DNOTHING")
    assert build.build(tmp_path / "tiny.so", files=[tiny_source]).exists()


def test_products_and_sums_are_rounded_one_by_one(tmp_path):
    """A fused multiply-add of these gives 2^-46 where two roundings give 0."""
    source = tmp_path / "fused.cpp"
    source.write_text(
        '#pragma GCC target("fma")\n'
        'extern "C" __attribute__((visibility("default")))\n'
        "float residue(float a, float b, float c) { return a * b + c; }\n"
    )
    function = ctypes.CDLL(str(build.build(tmp_path / "fused.so", files=[source]))).residue
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    a = 1 + 2**-23
    assert function(a, a, -(1 + 2**-22)) == 0.0


def test_a_source_that_does_not_compile_is_one_line_and_leaves_the_old_library(tiny_source, tmp_path):
    target = build.build(tmp_path / "tiny.so", files=[tiny_source])
    before = target.read_bytes()
    tiny_source.write_text("int f() { return nothing; }")
    with pytest.raises(BuildError, match=r"ended with code 1: .*nothing") as caught:
        build.build(target, files=[tiny_source])
    assert "\n" not in str(caught.value)
    assert target.read_bytes() == before


def test_a_compiler_that_is_not_there_is_named(monkeypatch, tiny_source, tmp_path):
    monkeypatch.setenv("CXX", "/nonexistent")
    with pytest.raises(BuildError, match="C\\+\\+ compiler /nonexistent cannot be started: No such file or directory"):
        build.build(tmp_path / "tiny.so", files=[tiny_source])


def test_no_compiler_at_all_is_said(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="no C\\+\\+ compiler found"):
        build.compiler()


def test_the_command_ends_with_2_and_one_line():
    command = [sys.executable, "-m", "dq_kernels.cpu.build"]
    environment = os.environ | {"CXX": "/nonexistent"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: C++ compiler /nonexistent")
    assert done.stderr.count("\n") == 1
