"""The GPU's side of run.py: the Triton kernels beside cuBLAS, cuDNN and torch.compile in float16.

    python -m benchmarks.kernels.run --device cuda

Float32 results and codes are held against the reference bit for bit first; then kernel and baselines are captured into
CUDA graphs with float16 results and take turns. Peaks are those of torch._int_mm at 8192^3 and of a copy of 1 GiB.
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


def code_call(shape: Shape, inputs: dict[str, Any], device: Any) -> tuple[Callable[[], None], list[Any]]:
    """Function that writes the codes once, and where they go, int8."""
    import torch
    from dq_kernels.gpu.launch import launching as launch
    from dq_kernels.gpu.launch.float_calls import CodeOutput

    quantizers = inputs.get("outputs") or [inputs.get("quantizer") or inputs.get("output")]
    x, step = (torch.from_numpy(inputs[name]).to(device) for name in ("x", "step"))
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
    """What differs from the reference, in words; empty where nothing does."""
    import torch

    if shape.op in PRODUCTS:
        run, epilogue = product_call(shape, inputs, device, torch.float32)
        run()
        found = {"y": epilogue.y, "accumulators": epilogue.accumulators}
        return kernel_gate.difference(
            {name: value.cpu().numpy().reshape(wanted[name].shape) for name, value in found.items()}, wanted
        )
    run, outputs = code_call(shape, inputs, device)
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
    return found


def captured(run: Callable[[], Any], repeats: int = 20) -> Callable[[], float]:
    """Function that replays a CUDA graph of `repeats` runs and gives microseconds of one, by events."""
    import torch

    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.inference_mode(), torch.cuda.stream(side):
        for _ in range(3):
            run()
        side.synchronize()
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            for _ in range(repeats):
                run()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def replay() -> float:
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e3 / repeats

    return replay


@functools.cache
def gpu_peak(kind: str) -> float:
    """GOP a second of torch._int_mm at 8192^3 ("GOP/s"), or GB a second of a copy of 1 GiB ("GB/s"); the best of 10."""
    import torch

    if kind == "GOP/s":
        size = 8192
        a, b = (torch.ones((size, size), dtype=torch.int8, device="cuda") for _ in range(2))
        replay, work = captured(lambda: torch._int_mm(a, b.t()), repeats=3), 2 * size**3
    else:
        a, b = (torch.empty(1 << 30, dtype=torch.int8, device="cuda") for _ in range(2))
        replay, work = captured(lambda: b.copy_(a), repeats=3), 2 << 30
    return work / min(replay() for _ in range(10)) / 1e3


def measure_shape(shape: Shape, rounds: int) -> dict[str, Any]:
    """One row, as `run.measure` gives it."""
    import torch

    device = torch.device("cuda")
    inputs = shape.inputs()
    red = gate(shape, inputs, kernel_gate.expected_results(shape, inputs), device)
    if red:
        return {"red": red}
    product = shape.op in PRODUCTS
    run = product_call(shape, inputs, device, torch.float16)[0] if product else code_call(shape, inputs, device)[0]
    runs, missing = {"kernel": captured(run)}, {}
    for name, baseline in gpu_baselines(shape, inputs, device).items():
        try:
            runs[name] = captured(baseline)
        except Exception as error:  # torch.compile has many kinds; a baseline that fails is named, never fatal
            missing[name] = {"missing": str(error).strip().splitlines()[0][:200]}
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, replay in runs.items():
            spent[name] += [replay() for _ in range(5)]
    us = {name: {"min": min(values), "median": float(np.median(values))} for name, values in spent.items()}
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
