"""The kernels compiled with the sanitizers of g++: no access outside an array, nothing undefined, no race."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dq_kernels import CPU_OPS, OPS
from dq_kernels.cpu import build
from dq_kernels.cpu.library import known_isas
from dq_kernels.cpu.structs import EMULATED

from dq_deploy.native.file.content import write_program_file
from tests.kernels.run_cases import ops_of

FLAGS = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def runtime(name: str) -> str:
    """Path of a sanitizer's library; skips where the compiler has none."""
    compiler = build.compiler()
    done = subprocess.run([*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    if not Path(done.stdout.strip()).is_absolute() or "clang" in compiler[0]:
        pytest.skip(f"{compiler[0]} has no {name}")
    return done.stdout.strip()


def run_sanitized(arguments, library: Path) -> subprocess.CompletedProcess[str]:
    """Python with a library compiled with `FLAGS`; its own leaks are not of interest."""
    environment = os.environ | {
        build.LIBRARY_VARIABLE: str(library),
        "LD_PRELOAD": runtime("libasan.so"),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def sanitized(made_once) -> Path:
    runtime("libasan.so")
    return made_once("sanitized.so", lambda path: build.build(path, flags=FLAGS))


def test_no_case_of_any_op_leaves_its_arrays_or_does_something_undefined(sanitized):
    done = run_sanitized(["-m", "tests.kernels.run_cases"], sanitized)
    assert done.returncode == 0, done.stderr[:4000]
    ran = {tuple(line.split()[:3]) for line in done.stdout.splitlines()}
    assert ran == {(isa, threads, op) for isa in (*known_isas(), EMULATED) for threads in "12" for op in ops_of(isa)}
    assert {op for isa, _, op in ran if isa == "portable"} == {*OPS, *CPU_OPS}


def test_no_mutated_program_file_that_is_let_in_leaves_its_buffers(sanitized, tiny_record, tmp_path):
    write_program_file(tiny_record, tmp_path / "model.dqn", isa="portable")
    done = run_sanitized(["-m", "tests.native.file.mutations", str(tmp_path / "model.dqn"), "60"], sanitized)
    assert done.returncode == 0, done.stderr[:4000]
    refused, ran = map(int, done.stdout.split())
    assert refused + ran == 60
    assert ran > 0


@pytest.mark.parametrize(
    ("expression", "report"),
    [("x[n]", "heap-buffer-overflow"), ("(int)x[0] + 2147483647 + n", "signed integer overflow"), ("x[n - 1]", "")],
)
def test_a_fault_of_a_kernel_would_be_caught(tmp_path, expression, report):
    """The same flags, the same way to load: an access outside, an overflow, and neither."""
    runtime("libasan.so")
    source = tmp_path / "fault.cpp"
    source.write_text(
        'extern "C" __attribute__((visibility("default")))\n'
        f"float read(const float* x, int n) {{ return {expression}; }}\n"
    )
    library = build.build(tmp_path / "fault.so", flags=FLAGS, files=[source])
    code = (
        "import ctypes, os, numpy as np\n"
        f"read = ctypes.CDLL(os.environ['{build.LIBRARY_VARIABLE}']).read\n"
        "read.argtypes, read.restype = [ctypes.c_void_p, ctypes.c_int], ctypes.c_float\n"
        "x = np.ones(1000, np.float32)\n"
        "read(x.ctypes.data, 1000)"
    )
    done = run_sanitized(["-c", code], library)
    assert (done.returncode != 0) == bool(report), done.stderr[:2000]
    assert report in done.stderr


RACES = """
#include <cstdio>
#include <vector>

#include "context.h"

namespace dq {
void quantize(Pool&, const dq_quantize_args&) {}
void group_norm_silu_quantize(Pool&, const dq_group_norm_silu_quantize_args&) {}
void layer_norm_quantize(Pool&, const dq_layer_norm_quantize_args&) {}
void geglu_quantize(Pool&, const dq_geglu_quantize_args&) {}
void int_linear(Pool&, const dq_int_linear_args&) {}
void int_conv2d(Pool&, const dq_int_conv2d_args&) {}
void attention(Pool&, const dq_attention_args&) {}
void float_linear(Pool&, const dq_float_linear_args&) {}
void float_conv2d(Pool&, const dq_float_conv2d_args&) {}
void int_linear_codes(Pool&, const dq_int_linear_codes_args&) {}
void elementwise(Pool& pool, const dq_elementwise_args& args) {
    pool.each(args.size[0], [&](int64_t i, int32_t thread) {
        static_cast<int*>(pool.scratch(thread))[0]++;
        // another thread takes the next task, however busy the cores are
        if (i == 0 && args.size[0] == 8) std::this_thread::sleep_for(std::chrono::microseconds(20));
        args.y[i + RACE] += args.scalar;
    });
}
}  // namespace dq

void use(dq_context* context) {
    std::vector<float> y(9);
    dq_elementwise_args args{};
    args.y = y.data();
    args.scalar = 1;
    const dq_call call{DQ_ELEMENTWISE, 0, &args};
    for (int round = 0; round < 3000; round++) {
        args.size[0] = round % 8 + 1;
        if (round % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        dq_run(context, &call, 1);
    }
    printf("%g\\n", y[0]);
}

int main() {
    dq_context* first = dq_open(4, DQ_PORTABLE);
    dq_context* second = dq_open(2, DQ_PORTABLE);
    std::thread other(use, second), same(use, first);
    use(first);
    other.join();
    same.join();
    dq_close(first);
    dq_close(second);
}
"""


@pytest.mark.parametrize(("place", "fails"), [("0", False), ("-i", True)], ids=["own-places", "one-place"])
def test_the_pool_has_no_race(tmp_path, place, fails):
    """Jobs from three threads over two contexts; the control lets all tasks of a job write to one place."""
    runtime("libtsan.so")
    source = tmp_path / "races.cpp"
    source.write_text(RACES.replace("RACE", place))
    files = [build.PACKAGE / "cpu" / "context.cpp", build.PACKAGE / "cpu" / "isas.cpp", source]
    program = build.build(tmp_path / "races", flags=["-O1", "-g1", "-fsanitize=thread", "-no-shared"], files=files)
    fixed = [shutil.which("setarch") or pytest.skip("no setarch: the sanitizer needs fixed addresses"), "-R"]
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1 exitcode=66"}
    done = subprocess.run([*fixed, program], env=environment, capture_output=True, text=True, check=False, timeout=120)
    if "unexpected memory mapping" in done.stderr or "setarch: failed" in done.stderr:
        pytest.skip("this kernel's memory layout is not one the thread sanitizer knows")
    assert done.returncode == (66 if fails else 0), done.stderr[:3000]
    assert ("data race" in done.stderr) == fails
    assert fails or done.stdout.split() == ["3000"] * 3
