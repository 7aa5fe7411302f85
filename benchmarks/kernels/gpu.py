"""The GPU's side of run.py: the Triton kernels beside cuBLAS, cuDNN and torch.compile in float16.

    python -m benchmarks.kernels.run --device cuda

Results and codes in float32 and float16 are held against the reference bit for bit first; then kernel and baselines are
captured into CUDA graphs with float16 results, each run behind a flush of the L2 cache (dq_kernels.gpu.tune.clock).
Peaks are those of torch._int_mm at 8192^3 on random codes and of a copy of 1 GiB. Linear layers stand beside FP8 too.
Never run on a GPU: the calls and the gate were tried in Triton's interpreter and the baselines' eager forms on a CPU;
graph captures, events and torch.compile not at all.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.kernels import gate as kernel_gate
from benchmarks.kernels.rows import RED, compared, figures, key_of, line_of, variants
from benchmarks.kernels.shapes import PRODUCTS, Shape
from benchmarks.machine.commit import commit

FLOAT16, COMPILED, INT_MM = "cuBLAS/cuDNN float16", "torch.compile max-autotune float16", "torch._int_mm"
FP8 = "torch._scaled_mm fp8"
"""A tensor's scale and no codes made: the product alone, as _int_mm's."""


def gpu_quantizer(quantizer: Any, device: Any, **more: Any) -> Any:
    """A reference quantizer, or a product's tables, on the device."""
    from dq_kernels.gpu.launch.launching import to_device
    from dq_kernels.gpu.launch.weights import make_quantizer

    names = ("zero_point", "q_min", "q_max", *(() if more else ("pre", "inverse_scale", "first")))
    values = {name: quantizer[name] if isinstance(quantizer, Mapping) else getattr(quantizer, name) for name in names}
    return to_device(make_quantizer(**values, **more), device)


def product_call(shape: Shape, inputs: dict[str, Any], device: Any, dtype: Any) -> tuple[Callable[[], None], Any]:
    """Function that runs the product once, and its `Epilogue`; float32 has the accumulators too."""
    import torch
    from dq_kernels.gpu.launch import launching as launch
    from dq_kernels.gpu.launch.product_calls import Epilogue, Window
    from dq_kernels.gpu.launch.weights import make_weights

    case, channels = shape.case, inputs["weights"].shape[-1]
    pitch = -(-channels // 16) * 16
    stored = (inputs["codes"] ^ np.uint8(0x80)).view(np.int8).reshape(case.batch, -1, channels)
    codes = torch.from_numpy(np.pad(stored, [(0, 0), (0, 0), (0, pitch - channels)])).to(device)
    weights = launch.to_device(make_weights(inputs["weights"], inputs["weight_scale"], bits=case.weight_bits), device)
    conv = shape.op == "int_conv2d"
    quantizer = gpu_quantizer(inputs, device, scale=inputs["scale"], pads_pitch=pitch if conv else 0)
    step, bias = (torch.from_numpy(inputs[name]).to(device) for name in ("step", "bias"))
    size = (case.batch, case.out_size[0] * case.out_size[1] if conv else case.rows, case.out_channels)
    sums = torch.empty(size, dtype=torch.int32, device=device) if dtype == torch.float32 else None
    epilogue = Epilogue(y=torch.empty(size, dtype=dtype, device=device), accumulators=sums, bias=bias)
    if not conv:
        return lambda: launch.int_linear(codes, weights, quantizer, step, epilogue), epilogue
    window = Window(
        size=(case.height, case.width),
        out_size=case.out_size,
        stride=case.stride,
        padding=case.padding[:2],
        dilation=case.dilation,
    )
    return lambda: launch.int_conv2d(codes, weights, quantizer, step, epilogue, window), epilogue


def code_call(shape: Shape, inputs: dict[str, Any], device: Any, dtype: Any) -> tuple[Callable[[], None], list[Any]]:
    """Function that writes the codes once, and where they go, int8."""
    import torch
    from dq_kernels.gpu.launch import launching as launch
    from dq_kernels.gpu.launch.float_calls import CodeOutput

    quantizers = inputs.get("outputs") or [inputs.get("quantizer") or inputs.get("output")]
    x, step = (torch.from_numpy(inputs[name]).to(device) for name in ("x", "step"))
    x = x.to(dtype)
    outputs = []
    for quantizer in quantizers:
        codes = torch.empty((*x.shape[:2], quantizer.channels), dtype=torch.int8, device=device)
        outputs.append(CodeOutput(quantizer=gpu_quantizer(quantizer, device), codes=codes))
    found = [output.codes for output in outputs]
    if shape.op == "quantize":
        return lambda: launch.quantize(x, step, outputs[0].quantizer, codes=outputs[0].codes), found
    if shape.op == "geglu_quantize":
        return lambda: launch.geglu_quantize(x, step, outputs[0], channels=x.shape[2] // 2), found
    affine = {name: torch.from_numpy(inputs[name]).to(device) for name in ("gamma", "beta")}
    if shape.op == "layer_norm_quantize":
        return lambda: launch.layer_norm_quantize(x, step, outputs, **affine, eps=inputs["eps"]), found
    form = {name: inputs[name] for name in ("groups", "eps", "silu")}
    return lambda: launch.group_norm_silu_quantize(x, step, outputs, **affine, **form), found


def gate(shape: Shape, inputs: dict[str, Any], wanted: dict[str, Any], device: Any) -> str:
    """What differs from the reference in float32, then in float16, which is timed; empty where nothing does."""
    import torch

    for dtype in (torch.float32, torch.float16):
        red = gate_of_type(shape, inputs, wanted, device, dtype)
        if red:
            return f"{red}, in {str(dtype).removeprefix('torch.')}"
    return ""


def gate_of_type(shape: Shape, inputs: dict[str, Any], wanted: dict[str, Any], device: Any, dtype: Any) -> str:
    """What differs with images of one float type: an epilogue adds in float32 and rounds once."""
    if shape.op in PRODUCTS:
        run, epilogue = product_call(shape, inputs, device, dtype)
        epilogue.y.fill_(float("nan"))  # what is not written is seen
        run()
        found = {"y": epilogue.y, "accumulators": epilogue.accumulators}
        got = {name: value.cpu().numpy() for name, value in found.items() if value is not None}
        rounded = {name: wanted[name].astype(value.dtype) for name, value in got.items()}
        return kernel_gate.difference(
            {name: value.reshape(rounded[name].shape) for name, value in got.items()}, rounded
        )
    run, outputs = code_call(shape, inputs, device, dtype)
    for output in outputs:
        output.fill_(0x55)
    run()
    stored = {f"codes {i}": value.cpu().numpy().view(np.uint8) ^ np.uint8(0x80) for i, value in enumerate(outputs)}
    return kernel_gate.difference(stored, {name: value for name, value in wanted.items() if name != "y"})


def gpu_baselines(shape: Shape, inputs: dict[str, Any], device: Any) -> dict[str, Callable[[], Any]]:
    """The same work in float16 by the libraries, and torch's integer product of linear layers."""
    import torch
    from torch.nn import functional as F

    from benchmarks.kernels.baselines import float_values, torch_codes

    if shape.op not in PRODUCTS:
        call = torch_codes(shape.op, inputs, device=device, dtype=torch.float16)
        return {"torch float16": call, COMPILED: torch.compile(call, mode="max-autotune-no-cudagraphs")}
    x, weights = (torch.from_numpy(value).to(device, torch.float16) for value in float_values(inputs))
    bias = torch.from_numpy(inputs["bias"]).to(device, torch.float16)
    if shape.op == "int_conv2d":
        window = {"stride": inputs["stride"], "padding": inputs["padding"], "dilation": inputs["dilation"]}
        image, kernel = x.permute(0, 3, 1, 2), weights.permute(0, 3, 1, 2)  # channels last, as they lie in memory

        def product() -> Any:
            return F.conv2d(image, kernel, bias, **window)

        return {FLOAT16: product, COMPILED: torch.compile(product, mode="max-autotune-no-cudagraphs")}

    def linear() -> Any:
        return F.linear(x, weights, bias)

    found: dict[str, Callable[[], Any]] = {FLOAT16: linear}
    found[COMPILED] = torch.compile(linear, mode="max-autotune-no-cudagraphs")
    codes = torch.from_numpy(inputs["codes"].view(np.int8).reshape(-1, inputs["codes"].shape[-1])).to(device)
    integers = torch.from_numpy(inputs["weights"]).to(device).t()
    if len(codes) > 16 and codes.shape[1] % 8 == 0 and integers.shape[1] % 8 == 0:  # what torch takes
        found[INT_MM] = lambda: torch._int_mm(codes, integers)
    takes_fp8 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
    if takes_fp8 and not x.shape[-1] % 16 and not weights.shape[0] % 16:
        one = torch.ones((), device=device)
        rows = x.reshape(-1, x.shape[-1]).clamp(-448, 448).to(torch.float8_e4m3fn)
        columns = weights.clamp(-448, 448).to(torch.float8_e4m3fn).t()
        found[FP8] = lambda: torch._scaled_mm(rows, columns, scale_a=one, scale_b=one, out_dtype=torch.float16)
    return found


def peak_product(kind: str, size: int, device: Any) -> Callable[[], Any]:
    """A product of random square matrices by the library: `int8`, `float16` or `fp8`."""
    import torch

    if kind == "int8":
        a, b = (torch.randint(-128, 128, (size, size), dtype=torch.int8, device=device) for _ in range(2))
        return lambda: torch._int_mm(a, b.t())
    a, b = (torch.randn((size, size), device=device).to(torch.float16) for _ in range(2))
    if kind == "float16":
        return lambda: a @ b.t()
    one = torch.ones((), device=device)
    x, w = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
    return lambda: torch._scaled_mm(x, w.t(), scale_a=one, scale_b=one, out_dtype=torch.float16)


@functools.cache
def gpu_peak(kind: str) -> float:
    """GOP a second of torch._int_mm at 8192^3 on random codes, or GB a second of a copy of 1 GiB ("GB/s")."""
    import torch
    from dq_kernels.gpu.tune.clock import torch_clock

    device = torch.device("cuda")
    clock = torch_clock(device, cold=False, repeats=3)
    if kind == "GOP/s":
        size = 8192
        return 2 * size**3 / (clock(peak_product("int8", size, device)) * 1e3) / 1e3
    a, b = (torch.empty(1 << 30, dtype=torch.int8, device=device).random_() for _ in range(2))
    return (2 << 30) / (clock(lambda: b.copy_(a)) * 1e3) / 1e3


def half_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs whose float tensor is float16's, so that every float type of the kernels reads the same values."""
    if "x" not in inputs:
        return inputs
    return {**inputs, "x": inputs["x"].astype(np.float16).astype(np.float32)}


def measure_shape(shape: Shape, rounds: int) -> dict[str, Any]:
    """One row, as `run.measure` gives it: times with the L2 cache flushed before each run, `warm` without."""
    import torch
    from dq_kernels.gpu.tune.clock import torch_clock

    device = torch.device("cuda")
    inputs = half_inputs(shape.inputs())
    red = gate(shape, inputs, kernel_gate.expected_results(shape, inputs), device)
    if red:
        return {"red": red}
    product = shape.op in PRODUCTS
    call = product_call if product else code_call
    runs, missing = {"kernel": call(shape, inputs, device, torch.float16)[0]}, {}
    runs |= gpu_baselines(shape, inputs, device)
    cold, warm = torch_clock(device), torch_clock(device, cold=False)
    us: dict[str, dict[str, float]] = {}
    for name, run in runs.items():
        try:
            spent = [cold(run) * 1e3 for _ in range(max(1, rounds))]
            us[name] = {"min": min(spent), "median": float(np.median(spent)), "warm": warm(run) * 1e3}
        except Exception as error:  # torch.compile has many kinds; a baseline that fails is named, never fatal
            if name == "kernel":
                raise
            missing[name] = {"missing": str(error).strip().splitlines()[0][:200]}
    peak = gpu_peak("GOP/s" if product else "GB/s")
    others = {name: compared(us, name, None) for name in us if name != "kernel"}
    return {"us": us["kernel"], **figures(shape, us["kernel"], peak), "form": "", "baselines": others | missing}


def measure_gpu(arguments: argparse.Namespace) -> int:
    """All rows on the first GPU; the exit code."""
    import sys

    import torch

    from dq_deploy.bench.environment import describe_environment

    if not torch.cuda.is_available():
        print(f"error: torch {torch.__version__} sees no GPU; run this where nvidia-smi lists one", file=sys.stderr)
        return 2
    code, place = 0, f"sm_{''.join(map(str, torch.cuda.get_device_capability()))}"
    torch.backends.cudnn.benchmark = True
    environment = {**describe_environment(threads=None), "gpu": torch.cuda.get_device_name()}
    for shape in variants(arguments):
        key, row = key_of(shape, place, 0), measure_shape(shape, arguments.rounds)
        code = RED if "red" in row else code
        print(line_of(key, row), flush=True)
        with arguments.results.open("a", encoding="utf-8") as stream:
            line = {"key": key, "count": shape.count, **row, "commit": commit(), "environment": environment}
            stream.write(json.dumps(line, sort_keys=True) + "\n")
    return code
