"""What machine code of kernels is made of; `python -m tests.kernels.gpu.ahead_of_time.golden` writes it again."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("machine_code.json")
KERNELS: dict[str, tuple[str, str, int, int, int]] = {
    "layer norm, sm_90": ("layer_norm_quantize", "sd15 64x64 320", 90, 0, 0),
    "geglu, sm_90": ("geglu_quantize", "sd15 64x64 1280", 90, 0, 0),
    "group norm resident, sm_90": ("group_norm_silu_quantize", "sd15 32x32 320", 90, 0, 0),
    "group norm resident, 40,960 values, sm_90": ("group_norm_silu_quantize", "sd15 64x64 320", 90, 0, 0),
    "group norm resident, 40,960 values, sm_80": ("group_norm_silu_quantize", "sd15 32x32 1280", 80, 0, 0),
    "group norm split, codes, sm_90": ("group_norm_silu_quantize", "sd15 64x64 640", 90, 0, 4),
    "group norm split, sums, sm_90": ("group_norm_silu_quantize", "sd15 64x64 640", 90, 0, 2),
    "linear W8, sm_90": ("int_linear", "sd15 4096x320->2560", 90, 8, 0),
    "linear W8, 256x128, sm_90": ("int_linear", "sd15 4096x320->2560", 90, 8, 0),
    "convolution W4, sm_90": ("int_conv2d", "sd15 64x64 3x3/1 320->320", 90, 4, 0),
    "convolution W8, sm_80": ("int_conv2d", "sd15 64x64 3x3/1 320->320", 80, 8, 0),
}
"""Op, shape, architecture, bits of weights, and which launch of several."""
LARGE = {"block_m": 256, "block_n": 128, "block_k": 128, "warps": 8, "stages": 3}
"""The largest tile; its epilogue goes over half of the columns at a time."""


def measured(name: str) -> dict[str, Any]:
    """Compile a kernel and read its machine code."""
    from dq_kernels.gpu.ahead_of_time.compile import compile_call
    from dq_kernels.gpu.ahead_of_time.machine_code import disassemble
    from dq_kernels.gpu.ahead_of_time.shapes import float_calls_of, product_calls_of

    op, shape, architecture, bits, place = KERNELS[name]
    cases = importlib.import_module(f"dq_kernels.{op}.cases").SHAPE_CASES
    case = next(case for case in cases if case.name == shape)
    if bits:
        table = [{"op": op, "use": LARGE}] if "256x128" in name else None
        calls = product_calls_of(op, case, architecture, "float16", bits, ("bias", "residual"), table)
    else:
        calls = float_calls_of(op, case, architecture, "float16")
    built = compile_call(calls[place], architecture)
    code, entry = disassemble(built.cubin), built.entry
    return {
        "registers": entry["registers"],
        "shared_bytes": entry["shared_bytes"],
        "instructions": entry["instructions"],
        "loop_instructions": entry["loop_instructions"],
        "products": entry["products"],
        "spills": entry["spills"],
        "local_bytes": entry["local_bytes"],
        "copies_ahead": code.counts["LDGSTS"],
        "wide_conversions": code.wide_conversions,
        "float64": code.float64,
        "float64_always": code.float64_always,
        "idle_waits": code.idle_waits,
    }


def main() -> None:
    """Write the file."""
    values = {name: measured(name) for name in KERNELS}
    FILE.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
