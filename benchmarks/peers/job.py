"""What every peer does around its own quantizer; runs in the peers' environments, with numpy alone.

DDIM with eta 0 (Song et al., arXiv 2010.02502, equation 12), from the noise and the schedule it is given.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 50
CALIBRATION_BATCH = 32
WARM_UP, TIMED = 5, 40

Inputs = dict[str, Any]
Denoise = Callable[[Inputs], Any]


class Job:
    """The files of one job and the clock of its calibration."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        self.work = Path(self.settings["work"])
        self.threads = int(self.settings["threads"])
        self.started = time.perf_counter()
        self.calibration_s = 0.0

    def __getitem__(self, name: str) -> str:
        return str(self.settings[name])

    def calibration(self) -> Iterator[Inputs]:
        """Calibration inputs, a batch at a time."""
        arrays = dict(np.load(self["calibration"]))
        count = len(arrays["sample"])
        for start in range(0, count, CALIBRATION_BATCH):
            yield {name: value[start : start + CALIBRATION_BATCH] for name, value in arrays.items() if name != "step"}

    def calibrated(self) -> None:
        """Stop the clock of calibration."""
        self.calibration_s = time.perf_counter() - self.started

    def finish(self, denoise: Denoise, *, packages: tuple[str, ...], size_bytes: int, note: str, **more: Any) -> None:
        """Time the model, draw the images, write both."""
        latency = latency_ms(denoise, self.example()) if more.get("latency_ms") is None else more.pop("latency_ms")
        given = dict(np.load(self["noise"]))
        schedule = json.loads(Path(self["schedule"]).read_text(encoding="utf-8"))
        np.savez(self.work / "images.npz", images=images_of(denoise, given["noise"], given.get("labels"), schedule))
        result = {
            "calibration_s": self.calibration_s,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "size_mib": size_bytes / 2**20,
            "latency_ms": latency,
            "versions": {name: version(name) for name in packages},
            "note": note,
            **more,
        }
        (self.work / "result.json").write_text(json.dumps(result), encoding="utf-8")

    def example(self) -> Inputs:
        """One input of batch 1."""
        first = next(self.calibration())
        return {name: value[:1] for name, value in first.items()}


def latency_ms(denoise: Denoise, example: Inputs) -> float:
    """Median milliseconds of a call."""
    times = []
    for i in range(WARM_UP + TIMED):
        start = time.perf_counter()
        denoise(example)
        if i >= WARM_UP:
            times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1000


def images_of(denoise: Denoise, noise: Any, labels: Any, schedule: Mapping[str, Any]) -> Any:
    """Images [N, C, H, W] in [-1, 1]."""
    pieces = []
    for start in range(0, len(noise), BATCH):
        x = noise[start : start + BATCH].astype(np.float32)
        more = {} if labels is None else {"class_labels": labels[start : start + BATCH].astype(np.int64)}
        for t, now, before in schedule["steps"]:
            output = denoise({"sample": x, "timestep": np.full(len(x), t, np.float32), **more})
            x = ddim_step(x, output, now, before, schedule)
        pieces.append(np.clip(x, -1, 1))
    return np.concatenate(pieces)


def ddim_step(x: Any, output: Any, now: float, before: float, schedule: Mapping[str, Any]) -> Any:
    """The next latent; `now` and `before` are the cumulative alphas of this step and of the one it goes to."""
    signal, spread = np.float32(now**0.5), np.float32((1 - now) ** 0.5)
    if schedule["prediction_type"] == "epsilon":
        clean, noise = (x - spread * output) / signal, output
    elif schedule["prediction_type"] == "v_prediction":
        clean, noise = signal * x - spread * output, signal * output + spread * x
    else:
        clean, noise = output, (x - signal * output) / spread
    if schedule["clip"] is not None:
        clean = np.clip(clean, -schedule["clip"], schedule["clip"])
    return np.float32(before**0.5) * clean + np.float32((1 - before) ** 0.5) * noise
