"""The loader of the CPU library: what it checks before the first call, and what it says when it cannot load."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dq_kernels.cpu import build, library, structs
from dq_kernels.cpu.library import Context, KernelInputError, KernelsMissingError, aligned_empty, call_list


@pytest.fixture
def fresh_loader():
    """The loader forgets what it loaded, before and after."""
    library.library.cache_clear()
    yield
    library.library.cache_clear()


def test_the_structs_of_both_languages_are_of_one_size():
    loaded = library.library()
    for number, (name, struct) in enumerate(structs.OPS.items()):
        assert loaded.dq_struct_bytes(number) == ctypes.sizeof(struct), name
    assert loaded.dq_struct_bytes(len(structs.OPS)) == -1


def test_the_fields_of_the_structs_are_those_of_the_header():
    """Same sizes could hide two fields in another order."""
    header = (Path(build.PACKAGE) / "cpu" / "dq_kernels.h").read_text()
    for name, struct in structs.OPS.items():
        body = header.split(f"typedef struct dq_{name}_args {{")[1].split("}")[0]
        lines = [line.split("//")[0].strip() for line in body.splitlines()]
        named = [line.rstrip(";").split()[-1].split("[")[0].lstrip("*") for line in lines if line.endswith(";")]
        assert named == [field[0] for field in struct._fields_], name


def test_importing_the_package_loads_no_library_no_torch_and_no_triton():
    code = (
        "import sys, dq_kernels, dq_kernels.elementwise, dq_kernels.attention\n"
        "print(*{'torch', 'triton', 'dq_kernels.cpu.library'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_missing_library_is_one_line_that_says_what_to_do(monkeypatch, tmp_path, fresh_loader):
    monkeypatch.setenv(build.LIBRARY_VARIABLE, str(tmp_path / "_cpu.so"))
    with pytest.raises(KernelsMissingError, match=r"the CPU kernels are not built: _cpu\.so is not in") as caught:
        Context(1)
    assert "\n" not in str(caught.value)
    assert "install a C++17 compiler" in str(caught.value)


def test_a_file_that_is_no_library_is_refused(monkeypatch, tmp_path, fresh_loader):
    (tmp_path / "_cpu.so").write_text("not a library")
    monkeypatch.setenv(build.LIBRARY_VARIABLE, str(tmp_path / "_cpu.so"))
    with pytest.raises(KernelsMissingError, match="the CPU kernels are not built"):
        library.library()


def test_a_library_of_another_version_is_refused(monkeypatch, tmp_path, fresh_loader):
    source = tmp_path / "other.cpp"
    source.write_text('extern "C" __attribute__((visibility("default"))) int dq_known_isas() { return 1; }')
    monkeypatch.setenv(build.LIBRARY_VARIABLE, str(build.build(tmp_path / "_cpu.so", files=[source])))
    with pytest.raises(KernelsMissingError, match=r"_cpu\.so is of another version"):
        library.library()


def test_a_struct_of_another_size_is_refused(monkeypatch, fresh_loader):
    longer = type("longer", (ctypes.Structure,), {"_fields_": [*structs.AttentionArgs._fields_, ("x", ctypes.c_int64)]})
    monkeypatch.setitem(structs.OPS, "attention", longer)
    with pytest.raises(KernelsMissingError, match=r"another version \(attention differs\)"):
        library.library()


def test_every_cpu_runs_the_portable_kernels():
    known = library.known_isas()
    assert known[0] == "portable"
    assert set(known) <= set(structs.ISAS)
    with Context(1) as context:
        assert context.isa == known[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, None), "threads is 0, expected 1 to 256"), ((1000, None), "threads is 1000"), ((1, "neon"), "'neon'")],
)
def test_a_context_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(KernelInputError, match=message):
        Context(*arguments)


def test_a_call_that_names_no_op_is_refused(best_context):
    calls = call_list([("elementwise", structs.ElementwiseArgs())] * 2)
    calls[1].op = 99
    for run in (best_context.run, best_context.run_timed):
        with pytest.raises(KernelInputError, match="call 1 names op 99, expected 0 to 10"):
            run(calls)


def test_each_call_is_timed(best_context):
    calls = call_list([("elementwise", structs.ElementwiseArgs())] * 5)
    spent = best_context.run_timed(calls)
    assert spent.shape == (5,)
    assert (spent >= 0).all()
    assert spent.max() < 1e9


@pytest.mark.parametrize("alignment", [64, 4096])
def test_aligned_memory_is_aligned(alignment):
    for shape in ((1,), (3, 5), (1000,)):
        array = aligned_empty(shape, np.float32, alignment)
        assert array.ctypes.data % alignment == 0
        assert array.shape == shape
        assert array.dtype == np.float32
