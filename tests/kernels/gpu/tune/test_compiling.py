"""Candidates are compiled before they are measured, each kernel once, in processes; what cannot run is left out."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install triton==3.7.1")

from dq_kernels.cpu.library import KernelInputError
from dq_kernels.gpu.ahead_of_time.cubins import INDEX
from dq_kernels.gpu.launch.launching import CUBINS_VARIABLE
from dq_kernels.gpu.tune import compiling
from dq_kernels.gpu.tune.compiling import Compiler
from dq_kernels.gpu.tune.configurations import BlockConfiguration, ProductConfiguration
from dq_kernels.gpu.tune.tuning import fastest, problem_of
from dq_kernels.int_linear.cases import TEST_CASES as LINEARS
from dq_kernels.quantize.cases import TEST_CASES as QUANTIZES

CPU = torch.device("cpu")
LARGE = ProductConfiguration(block_m=256, block_n=128, block_k=128, warps=8, stages=6)
SMALL = ProductConfiguration(block_m=16, block_n=64, block_k=64, warps=4, stages=3)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))


def test_each_kernel_is_compiled_once_and_launches_are_told_its_folder(tmp_path):
    problem = problem_of("quantize", QUANTIZES[3], 0, torch.float16, CPU)
    blocks = [BlockConfiguration(elements=1024, warps=warps) for warps in (2, 4)]
    with Compiler(90, tmp_path / "kernels", jobs=2) as compiler:
        assert compiler.reasons(problem.run, blocks) == dict.fromkeys(blocks, "")
        compiler._pool.shutdown()
        assert compiler.reasons(problem.run, blocks) == dict.fromkeys(blocks, "")  # nothing new to compile
        with compiler.kernels(problem.run, blocks[:1]):
            folder = os.environ[CUBINS_VARIABLE]
            assert len(list((tmp_path / "kernels").rglob("*.cubin"))) == 1
            assert (tmp_path / "kernels" / "0" / INDEX).is_file()
        assert CUBINS_VARIABLE not in os.environ
        with compiler.kernels(problem.run, blocks):
            assert os.environ[CUBINS_VARIABLE] != folder  # a folder is read once a process


def test_what_needs_too_much_shared_memory_or_spills_is_not_measured(tmp_path, monkeypatch):
    problem = problem_of("int_linear", LINEARS[3], 8, torch.float16, CPU)
    with Compiler(86, tmp_path, jobs=1) as compiler:
        found = compiler.reasons(problem.run, [LARGE, SMALL])
        assert "bytes of shared memory, at most 101376" in found[LARGE]
        assert found[SMALL] == ""
        real = compiling.compile_call

        def spilling(call, architecture):
            one = real(call, architecture)
            one.entry["spills"] = 2
            return one

        monkeypatch.setattr(compiling, "compile_call", spilling)
        again = compiler.reasons(problem.check, [SMALL])
        assert again[SMALL] == "spills registers (2 reads and writes)"
        with pytest.raises(KernelInputError, match="does not compile: spills registers"):
            fastest(problem_of("quantize", QUANTIZES[3], 0, torch.float16, CPU), 86, lambda work: 1.0, [], compiler)


class CountingCompiler:
    """Says which launches it was asked for, and refuses one configuration."""

    def __init__(self, refused):
        self.refused, self.asked = refused, []

    def reasons(self, launch, configurations):
        self.asked.append(list(configurations))
        return {one: "no" if one == self.refused else "" for one in configurations}

    def kernels(self, launch, configurations):
        import contextlib

        return contextlib.nullcontext()


def test_only_the_default_and_the_fastest_are_compared_with_the_reference():
    from dataclasses import replace

    problem = problem_of("quantize", QUANTIZES[3], 0, torch.float16, CPU)
    blocks = [BlockConfiguration(elements=elements, warps=4) for elements in (512, 1024, 2048)]
    times = {512: 3.0, 1024: 1.0, 2048: 2.0, 4096: 9.0}
    checked = []
    run = replace(problem, run=lambda one: None, check=checked.append, right=lambda: checked[-1].elements != 1024)

    def clock(work):
        return times[work.args[0].elements]

    compiler = CountingCompiler(refused=blocks[0])
    rule = fastest(run, 90, clock, blocks, compiler)
    assert [one.elements for one in checked] == [4096, 1024, 2048]
    assert (rule["use"]["elements"], rule["wrong"], rule["failed"], rule["tried"]) == (2048, 1, 1, 3)
