"""What the parts about libraries do: marked tests, both GPU libraries, plans, tuning, training."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu_day.book import Book, Day
from benchmarks.gpu_day.measurements import host_clock

ROOT = Path(__file__).resolve().parents[2]
GPU_TESTS = (
    "tests/engines/cuda/test_gpu.py",
    "tests/kernels/gpu/test_on_gpu.py",
    "tests/kernels/gpu/device/test_on_gpu.py",
    "tests/native/cuda/test_executor.py",
    "tests/engines/tensorrt/test_runner_gpu.py",
    "tests/cli/test_bench.py",
    "tests/cli/test_tune.py",
)
"""Files with tests that are marked `gpu`."""
SCENES = ("all_is_given_back", "threads_use_and_end", "capture_bears_other_threads", "workspace_orders_runs")
BACKENDS = ("cuda-core", "pycuda")
TRAINING = {
    "digits-dit": ("train_digits_dit.py", ()),
    "emoji-text": ("train_emoji_text.py", ("{emojis}",)),
}
"""Script and what it is given besides of each model that was trained for too short."""
EMOJIS = "fluentui-emoji"
"""Folder in the day's one with the emojis that the text-to-image model learns, as its script names their package."""
TRAIN_MINUTES = 8.0
NO_PLANS = (
    "none lie in the folder; benchmarks.plans.gpu --build-only --work FOLDER builds them, the other form with "
    "--conv native and static scales with --static"
)


def marked_tests(day: Day, book: Book) -> None:
    """The tests that are marked `gpu`, file by file; a rehearsal collects them."""
    words = ["--collect-only"] if day.rehearse else []
    for path in GPU_TESTS:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *words, path]

        def counted(command: list[str] = command) -> dict[str, Any]:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=480)
            counts = {kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
            collected = re.search(r"(\d+)(?:/\d+)? tests? collected", done.stdout)
            if done.returncode not in (0, 5) or counts.get("failed") or counts.get("error"):
                raise AssertionError(f"{counts}: {done.stdout[-1500:]}{done.stderr[-300:]}")
            return {**counts, "collected": int(collected[1]) if collected else None}

        book.row(path, counted)


def backends(day: Day, book: Book) -> None:
    """Copies, launches of a graph, memory of cuda-core and pycuda; a rehearsal plays scenes on the stand-in."""
    for name in BACKENDS:
        if day.rehearse:
            for scene in SCENES:
                book.row(f"{name} {scene}", lambda name=name, scene=scene: _played(name, scene))
            continue
        book.row(name, lambda name=name: _alone("benchmarks.gpu_day.backend", name))


def _played(name: str, scene: str) -> str:
    from tests.engines.cuda.standin.driver import has, play

    if not has(name):
        return f"{name} is not installed here"
    done = play(scene, name)
    if done.returncode:
        raise AssertionError(done.stderr[-1500:])
    return "played on the stand-in for libcuda"


def _alone(module: str, *words: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", module, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-1500:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def plans(day: Day, book: Book) -> None:
    """Plans of TensorRT-RTX in both forms: loaded, run once, timed beside their float16 plan where they run."""
    from benchmarks.plans.gpu import parsed, plan_row, portability_row

    if day.rehearse:

        def built() -> str:
            from tests.engines.tensorrt.plans import build_linear

            return str(build_linear(day.folder).name)

        book.row("a small plan is built", built)
    found, capability = sorted(day.folder.glob("*.plan")), {"compute_capability": day.compute_capability}
    if not found:
        book.row("plans", lambda: NO_PLANS)
    for plan in found:
        outcome = book.row(f"{plan.name} loads", lambda plan=plan: portability_row(plan, capability))
        if outcome and outcome.get("outcome") == "ran":
            book.row(f"{plan.name} is timed", lambda plan=plan: plan_row(plan, parsed(["--batch", "2"])))


def tune(day: Day, book: Book) -> None:
    """dq-tune for Stable Diffusion 1.5, op by op, with its table in the folder; a rehearsal tries one small product."""
    if day.rehearse:
        book.row("int_linear", _tuned_small)
        return
    from dq_kernels import OPS

    from dq_deploy.bench.kernel_tuning import tune_kernels

    for op in OPS:
        out = day.folder / f"tune-{op}.json"
        book.row(op, lambda op=op, out=out: tune_kernels("sd15", out, op=op))


def _tuned_small() -> Any:
    import torch
    from dq_kernels.gpu.tune.configurations import ProductConfiguration
    from dq_kernels.gpu.tune.tuning import fastest, problem_of

    from benchmarks.gpu_day.small import small_shapes

    shape = next(shape for shape in small_shapes() if shape.op == "int_linear")
    problem = problem_of("int_linear", shape.case, 4, torch.float32, torch.device("cpu"))
    tried = [ProductConfiguration(block_m=16, block_n=16, block_k=32, warps=4, stages=2)]
    return fastest(problem, 80, host_clock, tried)  # type: ignore[arg-type]


def train(day: Day, book: Book) -> None:
    """Models that were trained for an hour of a CPU, each for some minutes of the GPU; a later call goes on."""
    for name, (script, more) in TRAINING.items():
        out = day.folder / f"train-{name}"
        given = [word.format(emojis=day.folder / EMOJIS) for word in more]
        limits = ["--iterations", "2", "--batch", "2"] if day.rehearse else ["--minutes", str(TRAIN_MINUTES)]
        device = ["--device", "cpu" if day.rehearse else "cuda"]
        words = (*given, "--out", str(out), *limits, *device)
        book.row(name, lambda script=script, words=words: _trained(script, words))


def _trained(script: str, words: tuple[str, ...]) -> str:
    missing = [word for word in words[:1] if not word.startswith("--") and not Path(word).exists()]
    if missing:
        return f"left out: {missing[0]} is not there; `npm pack` writes it where there is a network"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    command = [sys.executable, str(ROOT / "examples" / script), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=530)
    if done.returncode:
        raise RuntimeError(done.stderr[-1500:])
    return done.stdout.strip().splitlines()[-1]
