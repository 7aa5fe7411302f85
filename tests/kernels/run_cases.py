"""Runs the test cases of every op on each instruction set, with one thread and with two; compares nothing.

A program of its own, for a library compiled with sanitizers: python -m tests.kernels.run_cases
"""

from __future__ import annotations

import importlib

import numpy as np
from dq_kernels import CPU_OPS, OPS, attention, int_linear_codes
from dq_kernels.cpu.library import Context, known_isas
from dq_kernels.cpu.structs import EMULATED

from tests.kernels.attention.tables import tables_for

PRODUCTS = ("int_linear", "int_conv2d", "attention")


def ops_of(isa: str) -> tuple[str, ...]:
    """What an instruction set brings kernels of its own for."""
    if isa == EMULATED:
        return PRODUCTS
    return tuple(op for op in (*OPS, *CPU_OPS) if op != "int_linear_codes" or not int_linear_codes.supports(isa))


def run_narrow_attention(context: Context, inputs: dict) -> None:
    """In bfloat16 and in codes."""
    attention.run(context, **inputs, precision="bf16")
    step = np.zeros(len(inputs["q"]), np.int32)
    attention.run_codes(context, **inputs, tables=tables_for(inputs), step=step, normed=False)


def main() -> None:
    for isa in (*known_isas(), EMULATED):
        for threads in (1, 2):
            with Context(threads, isa) as context:
                for op in ops_of(isa):
                    run = importlib.import_module(f"dq_kernels.{op}").run
                    module = importlib.import_module(f"dq_kernels.{op}.cases")
                    cases = (*module.TEST_CASES, *getattr(module, "ZERO_CASES", ()))
                    for case in cases:
                        run(context, **case.inputs())
                        if op == "attention":
                            run_narrow_attention(context, case.inputs())
                    print(f"{isa} {threads} {op} {len(cases)}", flush=True)


if __name__ == "__main__":
    main()
