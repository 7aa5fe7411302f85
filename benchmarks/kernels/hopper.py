"""What Triton makes of an int8 product on 9.0 with tensor descriptors, warp specialisation and large tiles: no GPU.

    python -m benchmarks.kernels.hopper

A bare product, not one of the engine's kernels: it says what the installed compiler can do, so that they follow when it
can do more. Nothing here is a statement about speed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import triton
import triton.language as tl

ARCHITECTURE = 90


@triton.jit
def product_kernel(
    codes, weights, y, rows, columns, pitch,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DESCRIPTORS: tl.constexpr,
    SPECIALISED: tl.constexpr, HALVES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Y [rows, columns] = codes . weights^T in float16; tiles divide all sizes."""
    first_m, first_n = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    m, n, k = first_m + tl.arange(0, BLOCK_M), first_n + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    if DESCRIPTORS:
        a_tiles = tl.make_tensor_descriptor(codes, [rows, pitch], [pitch, 1], [BLOCK_M, BLOCK_K])
        w_tiles = tl.make_tensor_descriptor(weights, [columns, pitch], [pitch, 1], [BLOCK_N, BLOCK_K])
        for i in tl.range(0, pitch, BLOCK_K, warp_specialize=SPECIALISED, num_stages=STAGES):
            sums = tl.dot(a_tiles.load([first_m, i]), w_tiles.load([first_n, i]).T, sums, out_dtype=tl.int32)
    else:
        for i in tl.range(0, pitch, BLOCK_K, warp_specialize=SPECIALISED, num_stages=STAGES):
            a = tl.load(codes + m[:, None] * pitch + (i + k)[None, :])
            w = tl.load(weights + n[:, None] * pitch + (i + k)[None, :])
            sums = tl.dot(a, w.T, sums, out_dtype=tl.int32)
    if HALVES:
        left, right = tl.split(tl.permute(tl.reshape(sums, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))
        half = first_n + tl.arange(0, BLOCK_N // 2)
        tl.store(y + m[:, None] * columns + half[None, :], left.to(tl.float32).to(tl.float16))
        tl.store(y + m[:, None] * columns + (half + BLOCK_N // 2)[None, :], right.to(tl.float32).to(tl.float16))
    else:
        tl.store(y + m[:, None] * columns + n[None, :], sums.to(tl.float32).to(tl.float16))


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way to write the product.

    Attributes:
        block_m: rows of a tile.
        block_n: columns of a tile.
        warps: asked for; a specialised kernel gets more.
        descriptors: operands are loaded by tensor descriptors.
        specialised: the loop is asked to be split over warps that load and warps that multiply.
    """

    block_m: int
    block_n: int
    warps: int
    descriptors: bool
    specialised: bool = False


FORMS = (
    Form(block_m=128, block_n=128, warps=8, descriptors=False),
    Form(block_m=128, block_n=128, warps=8, descriptors=True),
    Form(block_m=128, block_n=128, warps=8, descriptors=True, specialised=True),
    Form(block_m=128, block_n=128, warps=4, descriptors=True, specialised=True),
    Form(block_m=256, block_n=128, warps=8, descriptors=False),
    Form(block_m=256, block_n=128, warps=8, descriptors=True),
    Form(block_m=256, block_n=128, warps=4, descriptors=True, specialised=True),
)


def compiled(form: Form) -> dict[str, Any]:
    """What the machine code of a form is made of."""
    from dq_kernels.gpu.ahead_of_time.machine_code import disassemble, resources
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {
        **{"BLOCK_M": form.block_m, "BLOCK_N": form.block_n, "BLOCK_K": 128, "DESCRIPTORS": form.descriptors},
        **{"SPECIALISED": form.specialised, "HALVES": form.block_m > 128, "STAGES": 3},
    }
    types = {"codes": "*i8", "weights": "*i8", "y": "*fp16", "rows": "i32", "columns": "i32", "pitch": "i32"}
    attributes = {(place,): [["tt.divisibility", 16]] for place in range(len(types))}
    source = ASTSource(product_kernel, {**types, **dict.fromkeys(constants, "constexpr")}, constants, attributes)
    options = {"num_warps": form.warps, "num_stages": 3, "enable_fp_fusion": False}
    built = triton.compile(source, target=GPUTarget("cuda", ARCHITECTURE, 32), options=options)
    code = disassemble(built.asm["cubin"])
    return {
        "registers": resources(built.asm["cubin"])["registers"],
        "spills": code.spills,
        "shared_bytes": built.metadata.shared,
        "scratch_bytes": built.metadata.global_scratch_size,
        "tensor_loads": code.counts["UTMALDG"],
        "register_moves_between_warps": code.counts["USETMAXREG"],
        "products": sum(code.products.values()),
        "waits_for_all": code.idle_waits,
    }


def main() -> None:
    """Print the table as Markdown."""
    names = [field.name for field in fields(Form)]
    rows = [(form, compiled(form)) for form in FORMS]
    head = [*names, *rows[0][1]]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for form, found in rows:
        print(f"| {' | '.join(str(value) for value in (*(getattr(form, name) for name in names), *found.values()))} |")


if __name__ == "__main__":
    main()
