"""What this machine's instructions and memory can do, measured: the limits that kernels are held against."""

from __future__ import annotations

import ctypes as c
import functools
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
LOOPS = (
    *("fma ymm", "fma zmm", "vpmaddubsw, 8 summed in int16", "vpmaddwd", "vpdpbusd ymm", "vpdpbusd zmm"),
    *("tdpbusd", "tdpbusd with its tile loads", "vdpbf16ps zmm", "tdpbf16ps with its tile loads"),
)
"""Instruction loops by number, as peaks.cpp has them."""
PRODUCTS = {
    ("avx2", 4): LOOPS[2],
    ("avx2", 8): LOOPS[3],
    ("avx_vnni", 4): LOOPS[4],
    ("avx_vnni", 8): LOOPS[4],
    ("avx512_vnni", 4): LOOPS[5],
    ("avx512_vnni", 8): LOOPS[5],
    ("amx", 4): LOOPS[7],
    ("amx", 8): LOOPS[7],
}
"""What bounds an exact integer product, by instruction set and weight bits; plain C++ has no bound of its own."""
FLOATS = {"avx2": LOOPS[0], "avx_vnni": LOOPS[0], "avx512_vnni": LOOPS[1], "amx": LOOPS[1]}

BFLOATS = {"avx512_vnni": LOOPS[8], "amx": LOOPS[9]}
"""What bounds attention in bfloat16, on a CPU that has the instruction; elsewhere it is two of `FLOATS`."""
CODES = {"avx2": LOOPS[3], "avx_vnni": LOOPS[3], "avx512_vnni": LOOPS[5], "amx": LOOPS[7]}
"""What bounds attention in codes."""


@functools.lru_cache(maxsize=1)
def _library() -> Any:
    from dq_kernels.cpu.build import build

    folder = tempfile.mkdtemp(prefix="dq-peaks-")
    loaded = c.CDLL(str(build(Path(folder) / "peaks.so", files=[ROOT / "peaks.cpp"])))
    for name, arguments in (
        ("peak_operations", [c.c_int, c.c_int, c.c_double]),
        ("peak_copy", [c.c_int64, c.c_int, c.c_double]),
    ):
        function = getattr(loaded, name)
        function.restype, function.argtypes = c.c_double, arguments
    return loaded


_best: dict[tuple[str, int, int], float] = {}


def _highest(kind: str, number: int, threads: int, seconds: float) -> float:
    """The best burst of this process so far; a few more at each call, since other work only ever slows one down."""
    key = (kind, number, threads)
    function = _library().peak_operations if kind == "operations" else _library().peak_copy
    bursts = [function(number, threads, seconds) for _ in range(4 if key in _best else 30)]
    _best[key] = max(_best.get(key, 0.0), *bursts)
    return _best[key] / 1e9


def operations(loop: str, threads: int) -> float:
    """Giga-operations a second of a loop; a product and a sum are two operations."""
    return _highest("operations", LOOPS.index(loop), threads, 0.005)


def copy(log2_bytes: int, threads: int) -> float:
    """GB a second read and written by a copy that touches 2^log2_bytes bytes in all."""
    return _highest("copy", 1 << log2_bytes, threads, 0.005)


def product_peak(isa: str, weight_bits: int, threads: int) -> float | None:
    """Giga-operations a second of exact integer products; None for an instruction set without a bound here."""
    loop = PRODUCTS.get((isa, weight_bits))
    return None if loop is None else operations(loop, threads)


def copy_peak(nbytes: int, threads: int) -> float:
    """GB a second of a copy that touches about as many bytes, so that the same cache holds them."""
    return copy(max(12, min(30, nbytes.bit_length() - 1)), threads)
