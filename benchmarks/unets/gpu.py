"""Whole UNets on a GPU: the native engine's step beside float peers, each in a process of its own.

    python -m benchmarks.unets.gpu --ckpt model.pt --batch 2
    python -m benchmarks.unets.gpu --ckpt model.pt --contestant native --contestant compiled

Contestants: `native` is the record on our kernels, in a CUDA graph; `compiled` the record's own denoiser with its
weights dequantized, float16, channels last, torch.compile with `--compile` (which captures graphs itself); `eager` the
same without the compiler, in a CUDA graph; `fp8` is `compiled` with every linear layer's product in FP8 by
`torch._scaled_mm`, scaled by row. The gate goes first: codes, accumulators and outputs of all integer layers against
the numerics; a red engine prints RED and no speed, and the exit code is 3. A time is that of a step in a series that
follows each other without a gap, inputs on the device; memory the growth of all that the device uses, from before CUDA
is started. Processes follow one another; as a drift would not hit both, each goes `--turns` times, in changing order.
Rows are appended to benchmarks/results/gpu_unets.jsonl.

Never run on a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine.commit import commit
from dq_deploy.errors import DqError
from dq_deploy.models import call_of_record, example_inputs
from dq_deploy.native.devices import chosen_device
from dq_deploy.numerics import integer_layer, step_bucket
from dq_deploy.record import Record, load_record

ROOT = Path(__file__).resolve().parents[1]
RED = 3
MODES = ("max-autotune", "reduce-overhead")
CONTESTANTS = ("native", "compiled", "eager", "fp8")
FP8_ROW = 16
"""What `torch._scaled_mm` wants sizes to be multiples of."""
FP8_MAX = 448.0
"""Largest float8_e4m3fn."""

Step = Callable[[], Any]


def wrong_values(record: Record, runner: Any, feeds: dict[str, np.ndarray]) -> int:
    """Codes, accumulators and layer outputs that are not the numerics', over all layers; -1 for a missing layer."""
    _, layers = runner.observe(feeds)
    step = step_bucket(feeds["timestep"], record.step_edges)
    if set(layers) != set(record.layers):
        return -1
    wrong = 0
    for name, seen in layers.items():
        layer = record.layers[name]
        x = np.concatenate(seen.inputs, axis=1 if layer.kind == "conv2d" else -1)
        want = integer_layer(layer, x, step)
        pairs = [*zip(want.codes, seen.codes, strict=True), *zip(want.accumulators, seen.accumulators, strict=True)]
        wrong += sum(int((a != b).sum()) for a, b in (*pairs, (want.output, seen.output)))
    return wrong


def float_step(record: Record, feeds: dict[str, np.ndarray], kind: str, mode: str, device: str = "cuda") -> Step:
    """A float peer's step on inputs that lie on the device."""
    import torch

    from dq_deploy.models import call_denoiser, denoiser_from_record

    half = torch.float16 if device == "cuda" else torch.float32  # a CPU has few operations in float16
    module = denoiser_from_record(record).to(device, half).to(memory_format=torch.channels_last)
    if kind == "fp8":
        replace_linears(module)
    inputs = {name: torch.from_numpy(value).to(device) for name, value in feeds.items()}
    inputs = {name: value.to(half) if value.is_floating_point() else value for name, value in inputs.items()}
    inputs["sample"] = inputs["sample"].contiguous(memory_format=torch.channels_last)
    run = module if kind == "eager" else torch.compile(module, mode=mode)

    def step() -> Any:
        with torch.inference_mode():
            return call_denoiser(run, inputs)

    return in_graph(step) if kind == "eager" and device == "cuda" else step


def in_graph(step: Step) -> Step:
    """The step in a CUDA graph."""
    import torch

    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):  # kernels are chosen before the capture
            step()
        side.synchronize()
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            step()
    return graph.replay


def replace_linears(module: Any) -> int:
    """Let every linear layer whose sizes FP8 takes multiply in FP8, input and weight scaled by row; how many."""
    import torch

    class Fp8Linear(torch.nn.Module):
        def __init__(self, linear: Any) -> None:
            super().__init__()
            scale = linear.weight.abs().amax(1, keepdim=True).float().clamp_min(1e-12) / FP8_MAX
            weight = (linear.weight.float() / scale).to(torch.float8_e4m3fn)
            self.register_buffer("weight", weight)
            self.register_buffer("scale", scale.t().contiguous())
            self.bias = linear.bias

        def forward(self, x: Any) -> Any:
            rows = x.reshape(-1, x.shape[-1])
            scale = rows.abs().amax(1, keepdim=True).float().clamp_min(1e-12) / FP8_MAX
            codes = (rows.float() / scale).to(torch.float8_e4m3fn)
            y = torch._scaled_mm(
                codes, self.weight.t(), scale_a=scale, scale_b=self.scale, out_dtype=torch.bfloat16, use_fast_accum=True
            )
            y = y.to(x.dtype) if self.bias is None else y.to(x.dtype) + self.bias
            return y.reshape(*x.shape[:-1], y.shape[-1])

    replaced = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            fits = isinstance(child, torch.nn.Linear) and not (
                child.in_features % FP8_ROW or child.out_features % FP8_ROW
            )
            if fits:
                setattr(parent, name, Fp8Linear(child))
                replaced += 1
    return replaced


def step_ms(step: Step, runs: int) -> float:
    """Milliseconds of one step by CUDA events, the mean over `runs` behind one that keeps the GPU busy."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    step()
    start.record()
    for _ in range(runs):
        step()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / runs


def contest(arguments: argparse.Namespace) -> dict[str, Any]:
    """One contestant in this process: memory from before CUDA is started, then times."""
    from dq_deploy.bench.gpu_memory import GpuPeak

    record = load_record(arguments.ckpt)
    feeds = example_inputs(call_of_record(record), arguments.batch, 0)
    (kind,) = arguments.contestant
    began = time.perf_counter()
    with GpuPeak(arguments.gpu) as peak:
        if kind == "native":
            from dq_deploy.native.cuda.runner import NativeCudaRunner

            runner = NativeCudaRunner(record, dtype="float16")
            runner.run(feeds)
            step: Step = runner.executor.prepared_of(feeds).play
        else:
            step = float_step(record, feeds, kind, arguments.compile)
        for _ in range(5):
            step()
        import torch

        torch.cuda.synchronize()
        peak.poll()
    # the thread that polls has ended: nothing takes the driver's lock while steps are timed
    times = [step_ms(step, arguments.runs) for _ in range(arguments.rounds)]
    return {
        "contestant": kind,
        "ready_s": time.perf_counter() - began,
        "ms": times,
        "peak_mib": peak.peak_mib,
        "peak_source": peak.source,
    }


def gate(arguments: argparse.Namespace) -> int:
    """Wrong values of the native engine, in this process."""
    from dq_deploy.native.cuda.runner import NativeCudaRunner

    record = load_record(arguments.ckpt)
    feeds = example_inputs(call_of_record(record), arguments.batch, 0)
    with NativeCudaRunner(record, dtype="float16") as runner:
        return wrong_values(record, runner, feeds)


def alone(arguments: argparse.Namespace, words: list[str], limit_s: float = 500.0) -> dict[str, Any]:
    """The answer of a process of its own; what it did not manage stands in `error`."""
    command = [sys.executable, "-m", "benchmarks.unets.gpu", "--ckpt", str(arguments.ckpt), "--gpu", arguments.gpu]
    command += ["--batch", str(arguments.batch), "--compile", arguments.compile, "--rounds", str(arguments.rounds)]
    command += ["--runs", str(arguments.runs), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"error": f"it was not done after {limit_s:.0f} s"}
    try:
        answer: dict[str, Any] = json.loads((done.stdout.strip().splitlines() or [""])[-1])
    except ValueError:
        return {"error": (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1][:300]}
    return answer


def compare(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """The row of one record, or None where a layer is wrong."""
    wrong = alone(arguments, ["--gate"])
    if wrong.get("wrong", -1) != 0:
        print(f"RED: {wrong.get('error') or wrong['wrong']}; no speed is given")
        return None
    found: dict[str, dict[str, Any]] = {name: {"ms": []} for name in arguments.contestant}
    for turn in range(arguments.turns):
        names = arguments.contestant if turn % 2 == 0 else arguments.contestant[::-1]
        for name in names:
            answer = alone(arguments, ["--contestant", name, "--in-process"])
            found[name] = {**found[name], **answer, "ms": found[name]["ms"] + answer.get("ms", [])}
    medians = {name: statistics.median(one["ms"]) for name, one in found.items() if one["ms"]}
    own = medians.get("native")
    return {
        "batch": arguments.batch,
        "compile": arguments.compile,
        "contestants": found,
        "ms": medians,
        "speedup": {} if own is None else {name: ms / own for name, ms in medians.items() if name != "native"},
    }


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", type=Path, required=True, help="record to run")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--contestant", action="append", choices=CONTESTANTS, help="repeatable; all by default")
    parser.add_argument("--compile", choices=MODES, default=MODES[0])
    parser.add_argument("--turns", type=int, default=2, help="processes of each contestant")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--runs", type=int, default=20, help="steps of one time")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "gpu_unets.jsonl")
    parser.add_argument("--gpu", default="", help=argparse.SUPPRESS)
    parser.add_argument("--gate", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    arguments.contestant = arguments.contestant or list(CONTESTANTS)
    return arguments


def main(words: list[str] | None = None) -> int:
    """Compare what the options ask for and append a row."""
    arguments = parsed(words)
    try:
        if arguments.gate:
            print(json.dumps({"wrong": gate(arguments)}))
            return 0
        if arguments.in_process:
            print(json.dumps(contest(arguments)))
            return 0
        chosen_device("cuda")
        from dq_deploy.engines.cuda.backends import open_cuda

        facts = open_cuda().facts()
        arguments.gpu = facts.pci_bus_id
        row = compare(arguments)
    except DqError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if row is None:
        return RED
    row |= {"record": arguments.ckpt.name, "machine": facts.name, "commit": commit()}
    print("; ".join(f"{name} {ms:.2f} ms" for name, ms in row["ms"].items()))
    with arguments.results.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
