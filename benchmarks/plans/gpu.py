"""How fast plans run on this machine's GPU, beside a float16 plan and beside torch.compile in float16.

    python -m benchmarks.plans.gpu --build-only --work gpu-work     # needs no GPU: quantizes, exports, builds
    python -m benchmarks.plans.gpu --work gpu-work                  # on the machine with the GPU

The CIFAR-10 UNet and Stable Diffusion 1.5 shapes with random weights: time does not depend on their values. Plans that
lie in the work folder are not built again, so that a machine without a network gets them from another. A plan is built
for this machine's GPU; where there is none it is for compute capability 8.0. Where the builder has no such capability
(TensorRT-RTX 1.7 refuses 9.0), a plan for 8.0 is tried in its place, and what comes of it is written down either way.
Convolutions have two forms for TensorRT-RTX, products over patches and the library's own: both are measured. `--static`
takes one quantizer for all steps, whose scale is in the weights: nothing is multiplied behind a convolution then.
Rows are appended to benchmarks/results/gpu_plans.jsonl. Never run so far: the project has had no GPU with TensorRT.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine.commit import commit
from benchmarks.unets.denoisers import denoiser_of
from benchmarks.unets.gpu import step_ms
from dq_deploy.errors import BuildError, DqError, OptionError

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("cifar", "sd15")
RUNTIMES = ("tensorrt-rtx", "tensorrt")
FORMS = ("gemm", "native")
"""Of a convolution for TensorRT-RTX: a product over patches, or the library's own."""
PLAIN_CAPABILITY = "8.0"
"""What a plan is built for where no GPU is at hand."""


def plan_name(model: str, arguments: argparse.Namespace) -> str:
    """A plan's file without its ending: what it was made for."""
    form = "" if arguments.conv == FORMS[0] else f"-{arguments.conv}"
    return f"{record_name(model, arguments)}-{arguments.runtime}-{arguments.compute_capability}{form}"


def record_name(model: str, arguments: argparse.Namespace) -> str:
    """A record's file without its ending: static scales are symmetric too, so that nothing is padded or looked up."""
    return f"{model}-w{arguments.weights}a8{'-static' if arguments.static else ''}"


def plan_of(model: str, arguments: argparse.Namespace) -> Path:
    """The plan of a model in the work folder; quantized, exported and built where it is not there."""
    import dq_deploy
    from dq_deploy.calibration import CalibrationSource
    from dq_deploy.engines.tensorrt.build.builder import BuildOptions, build_plan
    from dq_deploy.manifest.plan import write_plan_manifest

    name = plan_name(model, arguments)
    plan = arguments.work / f"{name}.plan"
    if plan.is_file():
        return plan
    ckpt, onnx = arguments.work / f"{record_name(model, arguments)}.pt", arguments.work / f"{name}.onnx"
    if not ckpt.is_file():
        more = {} if model == "cifar" else {"calibration": CalibrationSource(kind="random"), "memory_gib": 4.0}
        record = dq_deploy.quantize(
            denoiser_of(model),
            method="minmax",
            weight_bits=arguments.weights,
            activation_bits=8,
            steps=4,
            samples=1,
            static=arguments.static,
            symmetric_activations=arguments.static,
            **more,
        )
        dq_deploy.save_record(record, ckpt)
        del record
    form = {"conv": arguments.conv} if arguments.runtime == "tensorrt-rtx" else {}
    dq_deploy.export(dq_deploy.load_record(ckpt), onnx, target=arguments.runtime, **form)
    capabilities = (arguments.compute_capability,) if arguments.runtime == "tensorrt-rtx" else ()
    options = BuildOptions(runtime=arguments.runtime, compute_capabilities=capabilities)
    write_plan_manifest(plan, build_plan(onnx, plan, options))
    return plan


def torch_step(model: str, batch: int) -> Callable[[], Any]:
    """One step of the float model in torch: float16, channels last, torch.compile max-autotune, in a CUDA graph."""
    import torch

    from benchmarks.unets.gpu import in_graph
    from dq_deploy.models import call_denoiser, example_inputs

    denoiser = denoiser_of(model)
    module = denoiser.module.half().to("cuda", memory_format=torch.channels_last)
    inputs = {}
    for name, value in example_inputs(denoiser.call, batch, 0).items():
        tensor = torch.from_numpy(np.ascontiguousarray(value)).cuda()
        inputs[name] = tensor.half() if tensor.is_floating_point() and name != "timestep" else tensor
    compiled = torch.compile(module, mode="max-autotune-no-cudagraphs")

    def step() -> Any:
        with torch.inference_mode():
            return call_denoiser(compiled, inputs)

    return in_graph(step)


def torch_row(model: str, batch: int, rounds: int) -> dict[str, Any]:
    """Latency of torch."""
    import torch

    if not torch.cuda.is_available():
        return {"kind": "torch", "error": f"torch {torch.__version__} sees no GPU"}
    torch.cuda.reset_peak_memory_stats()
    step = torch_step(model, batch)
    latency = [step_ms(step, 20) for _ in range(rounds)]
    p50, p90, p99 = (float(value) for value in np.percentile(latency, [50, 90, 99]))
    return {
        "kind": "torch",
        "float_type": "float16",
        "cuda_graph": True,
        "compile": "max-autotune-no-cudagraphs",
        "batch": batch,
        "latency_ms": {"p50": p50, "p90": p90, "p99": p99},
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20,
        "torch": torch.__version__,
    }


def plan_row(plan: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Latency of the plan against its float16 plan, as dq-bench gives it; or why there is none."""
    from dq_deploy.bench import BenchOptions, benchmark

    options = BenchOptions(batches=tuple(arguments.batch), rounds=arguments.rounds)
    try:
        row = benchmark(plan, baseline=arguments.rounds >= 7, options=options).to_json()
    except DqError as error:
        return {"kind": "plan", "plan": plan.name, "error": str(error)}
    row.pop("engine_path")
    return {"kind": "plan", "plan": plan.name, **row}


def try_plan(plan: Path) -> dict[str, Any]:
    """Load a plan on this GPU whatever it was built for, and run it once on ones; what came of it."""
    from dq_deploy.bench.clocks import feeds_for
    from dq_deploy.engines.tensorrt.runner import TensorRtRunner
    from dq_deploy.manifest.plan import read_plan_manifest

    manifest = read_plan_manifest(plan)
    stage = "load"
    try:
        with TensorRtRunner(plan, manifest, any_gpu=True) as runner:
            stage = "run"
            results = runner.run(feeds_for(runner.inputs, 1, manifest))
        return {"outcome": "ran", "finite": all(bool(np.isfinite(value).all()) for value in results.values())}
    except DqError as error:
        return {"outcome": f"failed to {stage}", "error": str(error)}


def portability_row(plan: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """`try_plan` in a process of its own, which may die of it."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.plans.gpu", "--try-plan", str(plan)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    try:
        outcome = json.loads(last)
    except ValueError:
        outcome = {"outcome": f"the process ended with code {done.returncode}", "error": done.stderr.strip()[-500:]}
    return {
        "kind": "portability",
        "plan": plan.name,
        "gpu_compute_capability": facts["compute_capability"],
        "seconds": time.perf_counter() - started,
        **outcome,
    }


def measure(arguments: argparse.Namespace, facts: dict[str, Any]) -> None:
    """All rows of all models, each written as soon as it is there."""
    from dq_deploy.bench.environment import describe_environment

    environment = {**describe_environment(threads=None), "gpu": facts}

    def write(model: str, row: dict[str, Any]) -> None:
        print(json.dumps({"model": model, **row}))
        with arguments.results.open("a", encoding="utf-8") as stream:
            line = {"model": model, "commit": commit(), "environment": environment, **row}
            stream.write(json.dumps(line, sort_keys=True) + "\n")

    for model in arguments.model or MODELS:
        for form in FORMS if arguments.runtime == "tensorrt-rtx" else FORMS[:1]:
            arguments.conv = form
            try:
                plan = plan_of(model, arguments)
            except BuildError as error:
                write(model, {"kind": "build", "plan": plan_name(model, arguments), "error": str(error)})
                plain = argparse.Namespace(**{**vars(arguments), "compute_capability": PLAIN_CAPABILITY})
                plan = plan_of(model, plain)
            if arguments.runtime == "tensorrt-rtx":
                write(model, portability_row(plan, facts))
            write(model, plan_row(plan, arguments))
        for batch in arguments.batch:
            write(model, torch_row(model, batch, arguments.rounds))


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """The options, checked.

    Raises:
        OptionError: a number out of range, or a folder that is not there.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", choices=MODELS, help="repeatable; both by default")
    parser.add_argument("--runtime", choices=RUNTIMES, default=RUNTIMES[0])
    parser.add_argument("--compute-capability", help="of TensorRT-RTX plans that are built; this GPU's by default")
    parser.add_argument("--conv", choices=FORMS, default=FORMS[0], help="form of convolutions, with --build-only")
    parser.add_argument("--static", action="store_true", help="one symmetric activation quantizer for all steps")
    parser.add_argument("--weights", type=int, choices=(4, 8), default=8, help="bits of a weight")
    parser.add_argument("--batch", type=int, action="append", help="repeatable; 1 and 8 by default")
    parser.add_argument("--rounds", type=int, default=9, help="fewer than 7 leave out the float16 plan")
    parser.add_argument("--work", type=Path, default=Path("gpu-work"), help="folder of records and plans")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "gpu_plans.jsonl")
    parser.add_argument("--build-only", action="store_true", help="build what is missing in --work; needs no GPU")
    parser.add_argument("--try-plan", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    arguments.batch = arguments.batch or [1, 8]
    if min(arguments.batch) < 1 or arguments.rounds < 1:
        raise OptionError(f"got batches {arguments.batch} and {arguments.rounds} rounds, expected at least 1")
    if not arguments.results.parent.is_dir():
        raise OptionError(f"the folder of --results {arguments.results} does not exist; create it")
    return arguments


def main(words: list[str] | None = None) -> int:
    """Measure what the options ask for; the exit code."""
    try:
        arguments = parsed(words)
        if arguments.try_plan is not None:
            print(json.dumps(try_plan(arguments.try_plan)))
            return 0
        if arguments.build_only:
            arguments.compute_capability = arguments.compute_capability or PLAIN_CAPABILITY
            arguments.work.mkdir(parents=True, exist_ok=True)
            for model in arguments.model or MODELS:
                print(plan_of(model, arguments))
            return 0
        from dq_deploy.engines.cuda.backends import open_cuda

        facts = asdict(open_cuda().facts())  # before anything is built
        arguments.compute_capability = arguments.compute_capability or facts["compute_capability"]
        arguments.work.mkdir(parents=True, exist_ok=True)
        measure(arguments, facts)
    except DqError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
