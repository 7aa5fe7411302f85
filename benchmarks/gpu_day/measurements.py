"""What the parts about numbers measure: peaks, kernels, UNets, memory, profiles."""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu_day.book import Book, Day
from benchmarks.gpu_day.small import small_record, small_shapes

PEAK_SIZE = 8192
COPY_BYTES = 1 << 30
BATCHES = {"cifar": (1, 8), "sd15": (1, 2, 8)}


def host_clock(work: Callable[[], Any]) -> float:
    """Milliseconds by the host's clock: what a rehearsal has."""
    work()
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def clock_of(day: Day, *, cold: bool) -> Callable[[Callable[[], Any]], float]:
    """Milliseconds of one run."""
    if day.rehearse:
        return host_clock
    import torch
    from dq_kernels.gpu.tune.clock import torch_clock

    return torch_clock(torch.device("cuda"), cold=cold)


def device_facts(day: Day) -> dict[str, Any]:
    """What the GPU and the libraries say of themselves."""
    import torch

    facts: dict[str, Any] = {"torch": torch.__version__, "torch_cuda": torch.version.cuda}
    for name in ("triton", "cuda.core", "tensorrt_rtx", "diffusers"):
        try:
            facts[name] = getattr(__import__(name, fromlist=["__version__"]), "__version__", "unknown")
        except ImportError as error:
            facts[name] = f"missing: {error}"
    if day.rehearse:
        return facts
    from dq_deploy.engines.cuda.backends import open_cuda

    properties = torch.cuda.get_device_properties(0)
    words = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem,power.limit", "--format=csv"]
    facts |= {
        "driver": asdict(open_cuda().facts()),
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "shared_bytes": getattr(properties, "shared_memory_per_block_optin", None),
        "nvidia_smi": subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip(),
    }
    return facts


def facts(day: Day, book: Book) -> None:
    """Facts, then peaks on random values: products of int8, float16 and FP8, and a copy."""
    import torch

    from benchmarks.kernels.gpu import peak_product

    book.row("device", lambda: device_facts(day))
    size, nbytes = (64, 1 << 16) if day.rehearse else (PEAK_SIZE, COPY_BYTES)
    clock, device = clock_of(day, cold=False), torch.device(day.device)
    for kind in ("int8", "float16", "fp8"):
        book.row(
            f"peak {kind}, TOP/s",
            lambda kind=kind: 2 * size**3 / (clock(peak_product(kind, size, device)) / 1e3) / 1e12,
        )
    a, b = (torch.empty(nbytes, dtype=torch.int8, device=device).random_() for _ in range(2))
    book.row("peak copy, GB/s read and written", lambda: 2 * nbytes / (clock(lambda: b.copy_(a)) / 1e3) / 1e9)


def shapes_of(day: Day) -> list[Any]:
    """Shapes that matter most of each op and model; in a rehearsal one small one an op."""
    if day.rehearse:
        return small_shapes()
    from benchmarks.kernels.rows import variants

    options = argparse.Namespace(model=("sd15", "cifar"), op=_ops(), quick=True, shape=None, weights=(8, 4))
    return list(variants(options))


def _ops() -> tuple[str, ...]:
    from benchmarks.kernels.shapes import OPS

    return OPS


def name_of(shape: Any) -> str:
    """A shape as a row's key."""
    bits = f" W{shape.case.weight_bits}" if shape.op.startswith("int_") else ""
    return f"{shape.op} {shape.model} {shape.name}{bits}"


def kernels_exact(day: Day, book: Book) -> None:
    """Every kernel at its shapes, in float32 and float16, bit for bit against its reference."""
    import torch

    from benchmarks.kernels import gate
    from benchmarks.kernels.gpu import gate as gpu_gate
    from benchmarks.kernels.gpu import half_inputs

    def wrong(shape: Any) -> str:
        inputs = half_inputs(shape.inputs())
        red = gpu_gate(shape, inputs, gate.expected_results(shape, inputs), torch.device(day.device))
        if red:
            raise AssertionError(red)
        return "equal"

    for shape in shapes_of(day):
        book.row(name_of(shape), lambda shape=shape: wrong(shape))


def kernels_fast(day: Day, book: Book) -> None:
    """Every kernel beside the libraries in float16, torch._int_mm and FP8; a wrong one gets no speed."""
    from benchmarks.kernels.gpu import FLOAT16, gpu_baselines, half_inputs, measure_shape

    def rehearsed(shape: Any) -> dict[str, Any]:
        import torch

        run = gpu_baselines(shape, half_inputs(shape.inputs()), torch.device("cpu"))
        name = FLOAT16 if FLOAT16 in run else next(iter(run))
        return {"baselines": sorted(run), "ran": name, "us": {"host": host_clock(run[name]) * 1e3}}

    for shape in shapes_of(day):
        book.row(name_of(shape), lambda shape=shape: rehearsed(shape) if day.rehearse else measure_shape(shape, 3))


def record_of(day: Day, model: str, bits: int) -> Path:
    """A record of a model's shape with random weights and quantizers; neither changes a time or a proof."""
    path = day.folder / f"{model}-w{bits}a8.pt"
    if not path.is_file():
        import dq_deploy

        dq_deploy.save_record(small_record(model, bits), path)
    return path


def models_of(day: Day) -> tuple[tuple[str, int], ...]:
    """Models and bits of their weights."""
    return (("tiny", 4),) if day.rehearse else (("cifar", 8), ("sd15", 8), ("cifar", 4), ("sd15", 4))


def unets_exact(day: Day, book: Book) -> None:
    """Codes, accumulators and outputs of all integer layers of whole UNets against the numerics."""
    from benchmarks.unets.gpu import alone, parsed, wrong_values

    def rehearsed(path: Path) -> int:
        from dq_deploy import load_record
        from dq_deploy.models import call_of_record, example_inputs
        from dq_deploy.native.cuda.runner import NativeCudaRunner

        record = load_record(path)
        feeds = example_inputs(call_of_record(record), 2, 0)
        with NativeCudaRunner(record, dtype="float32", torch_device="cpu") as runner:
            return wrong_values(record, runner, feeds)

    def wrong(path: Path) -> int:
        if day.rehearse:
            return rehearsed(path)
        answer = alone(parsed(["--ckpt", str(path), "--batch", "2"]), ["--gate"])
        if "wrong" not in answer:
            raise RuntimeError(answer["error"])
        return int(answer["wrong"])

    for model, bits in models_of(day):
        book.row(f"record {model} w{bits}", lambda model=model, bits=bits: record_of(day, model, bits).name)
        if book.value(f"record {model} w{bits}"):
            book.row(f"wrong values {model} w{bits}", lambda model=model, bits=bits: wrong(record_of(day, model, bits)))


def unets_fast(day: Day, book: Book) -> None:
    """A step of whole UNets beside torch.compile float16 with CUDA graphs and FP8, with memory: a process each."""
    from benchmarks.unets.gpu import CONTESTANTS, alone, float_step, parsed

    def rehearsed(path: Path, name: str) -> dict[str, Any]:
        from dq_deploy import load_record
        from dq_deploy.models import call_of_record, example_inputs

        record = load_record(path)
        feeds = example_inputs(call_of_record(record), 2, 0)
        return {"contestant": name, "ms": [host_clock(float_step(record, feeds, "eager", "", device="cpu"))]}

    gpu = "" if day.rehearse else _bus()
    for model, bits in models_of(day):
        path = record_of(day, model, bits)
        for batch in BATCHES.get(model, (2,)):
            for name in CONTESTANTS if not day.rehearse else ("eager",):
                words = ["--ckpt", str(path), "--batch", str(batch), "--gpu", gpu]
                key = f"{model} w{bits} batch {batch} {name}"

                def one(words: list[str] = words, name: str = name, path: Path = path) -> dict[str, Any]:
                    if day.rehearse:
                        return rehearsed(path, name)
                    answer = alone(parsed(words), ["--contestant", name, "--in-process"])
                    if "ms" not in answer:
                        raise RuntimeError(answer["error"])
                    return answer

                book.row(key, one)


def _bus() -> str:
    from dq_deploy.engines.cuda.backends import open_cuda

    return open_cuda().facts().pci_bus_id


def profiles(day: Day, book: Book) -> None:
    """Where the time of a step goes, kernel by kernel, by torch's profiler."""
    import torch

    def profiled(model: str, bits: int) -> list[dict[str, Any]]:
        from dq_deploy import load_record
        from dq_deploy.models import call_of_record, example_inputs

        record = load_record(record_of(day, model, bits))
        feeds = example_inputs(call_of_record(record), 2, 0)
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if day.rehearse:
            from benchmarks.unets.gpu import float_step

            step = float_step(record, feeds, "eager", "", device="cpu")
        else:
            from dq_deploy.native.cuda.runner import NativeCudaRunner

            kinds = [torch.profiler.ProfilerActivity.CUDA]
            runner = NativeCudaRunner(record, dtype="float16")
            runner.run(feeds)
            step = runner.executor.prepared_of(feeds).play
        step()
        with torch.profiler.profile(activities=kinds) as seen:
            for _ in range(1 if day.rehearse else 5):
                step()
            if not day.rehearse:
                torch.cuda.synchronize()
        times = "self_cpu_time_total" if day.rehearse else "self_device_time_total"
        events = sorted(seen.key_averages(), key=lambda event: -getattr(event, times))[:40]
        return [{"name": event.key, "calls": event.count, "us": float(getattr(event, times))} for event in events]

    for model, bits in models_of(day)[:2]:
        book.row(f"{model} w{bits} batch 2", lambda model=model, bits=bits: profiled(model, bits))
