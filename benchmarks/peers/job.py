"""What every peer does around its own quantizer; runs in the peers' environments, with numpy alone.

DDIM with eta 0 (Song et al., arXiv 2010.02502, equation 12), from the noise and the schedule it is given.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 50
CALIBRATION_BATCH = 32
WARM_UP, TURNS, RUNS = 5, 7, 8

OWN = ("step", "trajectory")
"""What calibration inputs hold besides the model's."""

Inputs = dict[str, Any]
Denoise = Callable[[Inputs], Any]


class Job:
    """The files of one job and the clock of its calibration."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        self.work = Path(self.settings["work"])
        self.threads = int(self.settings["threads"])
        self.started = time.perf_counter()
        self.calibration_s, self.peak_mib = 0.0, 0.0

    def __getitem__(self, name: str) -> str:
        return str(self.settings[name])

    def calibration(self) -> Iterator[Inputs]:
        """Calibration inputs, a batch at a time."""
        arrays = dict(np.load(self["calibration"]))
        count = len(arrays["sample"])
        for start in range(0, count, CALIBRATION_BATCH):
            yield {name: value[start : start + CALIBRATION_BATCH] for name, value in arrays.items() if name not in OWN}

    @property
    def float_nodes(self) -> list[str]:
        """Products of `float_onnx` that stay float, as in our records: time embedding, attention."""
        return list(self.settings["float_nodes"])

    def begin(self) -> None:
        """Start the clock of calibration anew, once the float model is loaded."""
        self.started = time.perf_counter()

    def calibrated(self) -> None:
        """Stop the clock of calibration and read the memory."""
        self.calibration_s, self.peak_mib = time.perf_counter() - self.started, peak_mib()

    def finish(
        self,
        denoise: Denoise,
        *,
        timed: tuple[Denoise, Denoise] | None,
        layers: int,
        packages: tuple[str, ...],
        size_bytes: int,
        note: str,
    ) -> None:
        """Time the model beside its float one, draw the images, write both.

        Args:
            denoise: draws the images.
            timed: the float model and the quantized one on the same engine, or None where that is not to be had.
            layers: convolutions and linear layers that are quantized.
            packages: whose versions are told.
            size_bytes: of what would be shipped.
            note: how it was made.
        """
        times = (None, None) if timed is None else latencies_ms(timed, self.example())
        given = dict(np.load(self["noise"]))
        schedule = json.loads(Path(self["schedule"]).read_text(encoding="utf-8"))
        np.savez(self.work / "images.npz", images=images_of(denoise, given["noise"], given.get("labels"), schedule))
        result = {
            "calibration_s": self.calibration_s,
            "peak_mib": self.peak_mib,
            "size_mib": size_bytes / 2**20,
            "float_latency_ms": times[0],
            "latency_ms": times[1],
            "layers": layers,
            "versions": {name: version(name) for name in packages},
            "note": note,
        }
        (self.work / "result.json").write_text(json.dumps(result), encoding="utf-8")

    def example(self) -> Inputs:
        """One input of batch 1."""
        first = next(self.calibration())
        return {name: value[:1] for name, value in first.items()}


def peak_mib() -> float:
    """Highest resident memory of this program; `ru_maxrss` would be that of the one which started it, too."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status names no VmHWM, expected Linux")


def latencies_ms(models: tuple[Denoise, ...], example: Inputs) -> tuple[float, ...]:
    """Median milliseconds of a call of each, the models taking turns."""
    times: list[list[float]] = [[] for _ in models]
    for turn in range(TURNS):
        for index in range(len(models)) if turn % 2 == 0 else reversed(range(len(models))):
            for run in range(RUNS + (WARM_UP if turn == 0 else 1)):
                start = time.perf_counter()
                models[index](example)
                if run >= (WARM_UP if turn == 0 else 1):
                    times[index].append(time.perf_counter() - start)
    return tuple(float(np.median(series)) * 1000 for series in times)


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


def outputs_of(run: Denoise, folder: Path, batch: int) -> Any:
    """What is compared with the float model, in calls of one size.

    Args:
        run: the denoiser.
        folder: with `check.npz`; where `schedule.json` is beside it, pictures are drawn by it from the noise in it,
            else it holds the inputs of one step.
        batch: samples of a call; divides the number of samples.

    Returns:
        Float32 array [N, ...].
    """
    arrays, pieces = dict(np.load(folder / "check.npz")), []
    schedule = folder / "schedule.json"
    steps = json.loads(schedule.read_text(encoding="utf-8")) if schedule.is_file() else None
    for start in range(0, len(arrays["sample" if "sample" in arrays else next(iter(arrays))]), batch):
        part = {name: value[start : start + batch] for name, value in arrays.items()}
        if steps is None:
            pieces.append(np.array(run(part), np.float32))
        else:
            pieces.append(images_of(run, part["noise"], part.get("labels"), steps))
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
