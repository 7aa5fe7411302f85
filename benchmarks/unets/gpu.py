"""Whole UNets on a GPU: the native engine's step beside torch.compile in float16, the two taking turns.

    python -m benchmarks.unets.gpu --ckpt model.pt --batch 2 --compile max-autotune

The record's own denoiser, with its weights dequantized, is the float16 baseline: channels last, torch.compile with
`max-autotune` (or `reduce-overhead` where that does not finish in time: named in the row), both in a CUDA graph. Times
are CUDA events around whole steps, inputs on the device. The gate first: codes, accumulators and outputs of all integer
layers against the numerics; a red engine prints RED and no speed, and the exit code is 3. A row is appended to
benchmarks/results/gpu_unets.jsonl. Memory is the highest that torch's allocator held for each of the two.

Never run on a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
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


def compiled_step(record: Record, feeds: dict[str, np.ndarray], mode: str) -> Callable[[], Any]:
    """The float16 denoiser under torch.compile, on inputs that lie on the device."""
    import torch

    from dq_deploy.models import call_denoiser, denoiser_from_record

    module = denoiser_from_record(record).half().cuda().to(memory_format=torch.channels_last)
    inputs = {name: torch.from_numpy(value).cuda() for name, value in feeds.items()}
    inputs = {name: value.half() if value.is_floating_point() else value for name, value in inputs.items()}
    inputs["sample"] = inputs["sample"].contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(module, mode=mode)

    def step() -> Any:
        with torch.inference_mode():
            return call_denoiser(compiled, inputs)

    return step


def step_ms(step: Callable[[], Any], runs: int) -> float:
    """Milliseconds of one step by CUDA events, the mean over `runs` back to back."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(runs):
        step()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / runs


def measured(make: Callable[[], Callable[[], Any]]) -> tuple[Callable[[], Any], float]:
    """A step after it was warmed up, and the most memory in MiB it took to make and run it."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step = make()
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    return step, (torch.cuda.max_memory_allocated() - before) / 2**20


def compare(record: Record, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """The row of one record, or None where a layer is wrong."""
    from dq_deploy.native.cuda.runner import NativeCudaRunner

    feeds = example_inputs(call_of_record(record), arguments.batch, 0)
    with NativeCudaRunner(record, dtype="float16") as runner:
        if wrong := wrong_values(record, runner, feeds):
            print(f"RED: {wrong} values are not the numerics'; no speed is given")
            return None

        def native() -> Callable[[], Any]:
            runner.run(feeds)
            return runner.executor.prepared(arguments.batch).play

        own, own_mib = measured(native)
        other, other_mib = measured(lambda: compiled_step(record, feeds, arguments.compile))
        pairs = [(step_ms(own, arguments.runs), step_ms(other, arguments.runs)) for _ in range(arguments.rounds)]
    ratios = [b / a for a, b in pairs]
    return {
        "batch": arguments.batch,
        "native_ms": statistics.median(a for a, _ in pairs),
        "baseline": f"torch.compile {arguments.compile}, float16, channels last",
        "baseline_ms": statistics.median(b for _, b in pairs),
        "speedup": statistics.median(ratios),
        "rounds": ratios,
        "native_peak_mib": own_mib,
        "baseline_peak_mib": other_mib,
    }


def main() -> int:
    """Compare what the options ask for and append a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", type=Path, required=True, help="record to run")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--compile", choices=MODES, default=MODES[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--runs", type=int, default=20, help="steps of one turn")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "gpu_unets.jsonl")
    arguments = parser.parse_args()
    try:
        chosen_device("cuda")
        record = load_record(arguments.ckpt)
        row = compare(record, arguments)
    except DqError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if row is None:
        return RED
    import torch

    row |= {"record": arguments.ckpt.name, "machine": torch.cuda.get_device_name(), "commit": commit()}
    print(
        f"native {row['native_ms']:.2f} ms, {row['baseline']} {row['baseline_ms']:.2f} ms: {row['speedup']:.2f}x; "
        f"memory {row['native_peak_mib']:.0f} against {row['baseline_peak_mib']:.0f} MiB"
    )
    with arguments.results.open("a") as stream:
        stream.write(json.dumps(row, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
