"""A patched library sees a CPU without AVX-512 and VNNI, the original still sees all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from dq_kernels.cpu.build import build
from dq_kernels.cpu.library import known_isas

from benchmarks.machine import avx2 as avx2_machine

SOURCE = """
#include <cpuid.h>
extern "C" __attribute__((visibility("default"))) unsigned bits(unsigned part, int which) {
    unsigned r[4];
    __cpuid_count(7, part, r[0], r[1], r[2], r[3]);
    return r[which];
}
"""
ASK = "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).bits; f.restype = ctypes.c_uint32; print(f(0, 1), f(1, 0))"


@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")
@pytest.mark.skipif("avx2" not in known_isas(), reason="the machine is for a CPU with AVX2")
def test_patched_code_sees_no_avx512(tmp_path):
    (tmp_path / "ask.cpp").write_text(SOURCE)
    original, copy, handler = (tmp_path / name for name in ("original.so", "copy.so", "handler.so"))
    build(original, files=[tmp_path / "ask.cpp"])
    build(handler, files=[avx2_machine.ROOT / "avx2.cpp"])
    shutil.copy2(original, copy)

    assert avx2_machine.patch(copy) == 1

    def seen(library, **more):
        environment = {**os.environ, "LD_PRELOAD": str(handler), **more}
        done = subprocess.run(
            [sys.executable, "-c", ASK, str(library)], env=environment, capture_output=True, text=True, check=True
        )
        return [int(word) for word in done.stdout.split()]

    before, after = seen(original), seen(copy)
    assert after[0] == before[0] & ~avx2_bits(16, 17, 21, 26, 27, 28, 30, 31)
    assert after[0] >> 5 & 1  # AVX2 stays
    assert not after[1] >> 4 & 1
    assert seen(copy, DQ_KEEP_AVX_VNNI="1")[1] >> 4 & 1 == before[1] >> 4 & 1
    wide = seen(copy, DQ_KEEP_AVX512_VNNI="1")
    assert wide == [before[0], before[1] & ~avx2_bits(4, 5, 21, 23)]  # AVX-512 stays, bfloat16 does not


def avx2_bits(*numbers):
    return sum(1 << number for number in numbers)


def test_a_wrong_address_is_refused(tmp_path):
    with pytest.raises(avx2_machine.MachineError, match="no loaded segment"):
        avx2_machine.file_offset(bytes(64), 4096)
