"""What a user would pick instead: other people's INT8, through their own packages, each in an environment of its own.

`run` makes the environment (a virtual environment below the work folder, from `requirements`), hands the peer the
float model, the calibration inputs and the noise of the images, and reads back images, times and sizes. A peer sees
the same calibration inputs and starts from the same noise as the methods do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NAMES = ("onnxruntime-qdq", "modelopt-smoothquant", "torchao-dynamic", "openvino-nncf")
TIMEOUT_S = 1800


class PeerFailure(RuntimeError):
    """A peer could not be installed or did not end well; the message holds its last line."""


def requirements(name: str) -> list[str]:
    """Pinned packages of a peer's environment."""
    lines = (HERE / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def environment(name: str, folder: Path) -> Path:
    """Python of a peer's environment below `folder`, made where it is not there yet.

    Raises:
        PeerFailure: it could not be made.
    """
    home = folder / name
    ready, python = home / ".ready", home / "bin" / "python"
    wanted = "\n".join(requirements(name))
    if ready.is_file() and ready.read_text(encoding="utf-8") == wanted:
        return python
    call([sys.executable, "-m", "venv", str(home)], f"{name}: making the environment")
    install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements(name)]
    call(install, f"{name}: installing")
    ready.write_text(wanted, encoding="utf-8")
    return python


def call(command: Sequence[str], what: str, extra: Mapping[str, str] | None = None) -> None:
    """Run a command to its end.

    Args:
        command: words.
        what: it does, for the message.
        extra: variables it gets besides this process's.

    Raises:
        PeerFailure: it took longer than `TIMEOUT_S`, or failed.
    """
    given = {**os.environ, **(extra or {})}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=given)
    except subprocess.TimeoutExpired as error:
        raise PeerFailure(f"{what} took longer than {TIMEOUT_S} s") from error
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise PeerFailure(f"{what} ended with exit code {done.returncode}: {lines[-1][:300] if lines else 'no output'}")


def run(
    name: str,
    work_dir: Path,
    model_dir: Path,
    calibration_npz: Path,
    noise_npz: Path,
    *,
    steps: int = 20,
    threads: int = 2,
    environments: Path | None = None,
) -> dict[str, Any]:
    """Quantize with one peer, draw its images and time it.

    Args:
        name: one of `NAMES`.
        work_dir: where its files go.
        model_dir: diffusers folder with `unet` and `scheduler`.
        calibration_npz: float inputs by name, `sample` [M, C, H, W], `timestep` [M], with classes `class_labels` [M].
        noise_npz: `noise` [N, C, H, W] and, with classes, `labels` [N].
        steps: DDIM steps of the images, eta 0.
        threads: of the peer.
        environments: where the environments are kept; `work_dir/environments` by default.

    Returns:
        `images_npz` (path; array `images` in [-1, 1]), `calibration_s`, `peak_mib` (of quantizing), `size_mib`,
        `latency_ms` (batch 1, median) and `float_latency_ms` (the same engine's float model, taking turns) or None,
        `layers` (convolutions and linear layers quantized), `versions`, `note`.

    Raises:
        PeerFailure: the peer could not be installed or failed.
    """
    from benchmarks.peers.float_files import write_float_files

    work = work_dir / name
    work.mkdir(parents=True, exist_ok=True)
    float_nodes = write_float_files(model_dir, work, steps=steps)
    job = {
        "model_dir": str(model_dir.resolve()),
        "float_onnx": str(work / "float.onnx"),
        "schedule": str(work / "schedule.json"),
        "calibration": str(calibration_npz.resolve()),
        "noise": str(noise_npz.resolve()),
        "work": str(work),
        "threads": threads,
        "float_nodes": float_nodes,
    }
    (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
    python = environment(name, environments or work_dir / "environments")
    worker = HERE / f"{name.replace('-', '_')}.py"
    counted = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": ""}
    call([str(python), str(worker), str(work / "job.json")], name, counted)
    result: dict[str, Any] = json.loads((work / "result.json").read_text(encoding="utf-8"))
    return {**result, "images_npz": str(work / "images.npz")}
