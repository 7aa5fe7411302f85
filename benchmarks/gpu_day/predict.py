"""Times of a UNet's step expected on GPUs that were never used, from counts alone: to be held against the first ones.

    python -m benchmarks.gpu_day.predict

For each call the larger of its operations over a share of the datasheet's rate and its bytes over a share of the
bandwidth, and a gap between two kernels of a graph. The shares are assumptions, named below; nothing was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from dq_kernels.gpu.ahead_of_time.shapes import float_calls_of

from benchmarks.kernels.shapes import OPS, PRODUCTS, Shape, all_shapes


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Datasheet rates (dense) and assumed shares of them.

    Attributes:
        architecture: as of the kernels' tables.
        int8_tops: products of int8.
        half_tops: products of float16 that are added in float32.
        gb_s: memory.
        int8_share: of the rate that our Triton products reach.
        half_share: that the libraries reach in float16.
        gb_share: of the bandwidth.
        gap_us: between two kernels of a CUDA graph.
    """

    name: str
    architecture: int
    int8_tops: float
    half_tops: float
    gb_s: float
    int8_share: float
    half_share: float
    gb_share: float = 0.8
    gap_us: float = 1.5


GPUS = (
    # the wait in each step of Triton's products on 9.0 is assumed to leave a third of the rate
    Gpu(name="H200", architecture=90, int8_tops=1979, half_tops=989, gb_s=4800, int8_share=0.33, half_share=0.6),
    Gpu(name="A100 80 GB", architecture=80, int8_tops=624, half_tops=312, gb_s=2039, int8_share=0.5, half_share=0.65),
    Gpu(name="RTX 4090", architecture=89, int8_tops=661, half_tops=165, gb_s=1008, int8_share=0.55, half_share=0.8),
)
ATTENTION_SHARE = {"cifar": 0.04, "sd15": 0.157, "sdxl": 0.08}
"""Of all products, those of attention, in float16: docs/measured.md for SD 1.5, the others estimated."""
ATTENTION_RATE = 0.5
"""Of the float16 rate, by the fused kernel."""


def output_values(shape: Shape) -> int:
    """Values a product writes."""
    case = shape.case
    if shape.op == "int_linear":
        return int(case.batch * case.rows * case.out_channels)
    return int(case.batch * case.out_size[0] * case.out_size[1] * case.out_channels)


def native_us(shape: Shape, gpu: Gpu) -> float:
    """Microseconds of one call of ours, images in float16."""
    case, bandwidth = shape.case, gpu.gb_s * gpu.gb_share * 1e3
    if shape.op in PRODUCTS:
        read = shape.with_bits(8).nbytes - 4 * output_values(shape)
        nbytes = read + 2 * output_values(shape)
        return max(shape.operations / (gpu.int8_tops * gpu.int8_share * 1e6), nbytes / bandwidth) + gpu.gap_us
    values = case.batch * case.rows * case.channels
    nbytes = values * (4 if shape.op == "geglu_quantize" else 2) + values * shape.outputs
    launches, passes = 1, 1.0
    if shape.op == "group_norm_silu_quantize":
        calls = float_calls_of(shape.op, case, gpu.architecture, "float16")
        launches = len(calls)
        passes = 1.0 if calls[-1].constants["RESIDENT"] else 2.0  # further reads come from L2, at about twice the rate
    return passes * nbytes / bandwidth + launches * gpu.gap_us


def half_us(shape: Shape, gpu: Gpu) -> float:
    """Microseconds of the same by torch.compile in float16; a quantize of ours has no counterpart."""
    case, bandwidth = shape.case, gpu.gb_s * gpu.gb_share * 1e3
    if shape.op == "quantize":
        return 0.0
    if shape.op in PRODUCTS:
        nbytes = 2 * (shape.with_bits(8).nbytes - 4 * output_values(shape)) + 2 * output_values(shape)
        return max(shape.operations / (gpu.half_tops * gpu.half_share * 1e6), nbytes / bandwidth) + gpu.gap_us
    values = case.batch * case.rows * case.channels
    nbytes = values * (6 if shape.op == "geglu_quantize" else 4)
    return nbytes / bandwidth + (2 if shape.op == "group_norm_silu_quantize" else 1) * gpu.gap_us


def predicted(model: str, gpu: Gpu) -> tuple[float, float]:
    """Milliseconds of a step: ours, and torch.compile's in float16."""
    shapes = all_shapes((model,), OPS, quick=False)
    products = sum(shape.operations * shape.count for shape in shapes)
    share = ATTENTION_SHARE[model]
    attention = products * share / (1 - share) / (gpu.half_tops * ATTENTION_RATE * 1e6)
    own = sum(native_us(shape, gpu) * shape.count for shape in shapes)
    other = sum(half_us(shape, gpu) * shape.count for shape in shapes)
    return (own + attention) / 1e3, (other + attention) / 1e3


def table() -> str:
    """The table as Markdown."""
    lines = ["| model, batch | GPU | native W8A8, ms | torch.compile float16, ms | ratio |", "|---|---|---|---|---|"]
    for model, batch in (("cifar", 1), ("sd15", 2), ("sdxl", 2)):
        for gpu in GPUS:
            own, other = predicted(model, gpu)
            lines.append(f"| {model}, {batch} | {gpu.name} | {own:.2f} | {other:.2f} | {other / own:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
