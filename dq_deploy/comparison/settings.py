"""What all rows of a comparison share: how images are drawn and engines timed, and options on the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dq_deploy.errors import OptionError
from dq_deploy.methods import METHODS, SharedOptions, options_from_preset
from dq_deploy.processes.threads import check_threads

RUNNABLE = ("native", "onnxruntime", "openvino")
"""Engines that a comparison can run its records on: those that need no build and no GPU."""

SAME = ("steps", "seed", "labels", "memory_gib")
"""Options that decide, beside `samples`, what a method is calibrated with."""

LEAST_IMAGES = 2


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the images of a comparison are drawn, and how engines are timed.

    Attributes:
        images: N, images of the float model and of each record, from the same noise.
        steps: of the model's scheduler.
        seed: of the noise; calibration draws its own, which is never this.
        batch: images at a time; does not change them.
        engine: one of `RUNNABLE`.
        threads: of a run, or None for the engine's choice.
        rounds: turns of timing that record and float graph take; 0 leaves the latency out.
        runs: least number of timed runs a turn.
        seconds: a turn goes on for about as long.
    """

    images: int = 64
    steps: int = 20
    seed: int = 1234
    batch: int = 50
    engine: str = "native"
    threads: int | None = None
    rounds: int = 7
    runs: int = 5
    seconds: float = 0.1

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            OptionError: one is out of range.
        """
        if self.engine not in RUNNABLE:
            raise OptionError(
                f"engine is {self.engine!r}, expected one of {', '.join(RUNNABLE)}, which run a record as it is made"
            )
        for name, low in (("images", LEAST_IMAGES), ("steps", 1), ("batch", 1), ("seed", 0), ("rounds", 0)):
            if getattr(self, name) < low:
                raise OptionError(f"{name} of the comparison is {getattr(self, name)}, expected at least {low}")
        check_threads(self.threads)

    def of_images(self) -> dict[str, Any]:
        """What decides the images: JSON values."""
        return {name: asdict(self)[name] for name in ("images", "steps", "seed")}


def options_by_method(methods: Sequence[str], preset: str, **overrides: Any) -> tuple[tuple[SharedOptions, ...], str]:
    """The options of each method, all on the same calibration samples.

    Where a preset gives methods different numbers of samples, all get the largest.

    Args:
        methods: names, each once.
        preset: as of `dq_deploy.methods.options_from_preset`.
        **overrides: options of the methods; None replaces nothing.

    Returns:
        The options in the order of the methods, and a remark about changed samples, or "".

    Raises:
        OptionError: an unknown or doubled method, an option out of range, or presets that differ in more.
    """
    for index, name in enumerate(methods):
        if name not in METHODS:
            raise OptionError(f"method is {name!r}, expected one of {', '.join(METHODS)}")
        if name in methods[:index]:
            raise OptionError(f"method {name} is named twice, expected each once")
    if not methods:
        raise OptionError(f"no method is named, expected some of {', '.join(METHODS)}")
    every = [options_from_preset(preset, **{**overrides, "method": name}) for name in methods]
    for name in SAME:
        if len({getattr(options, name) for options in every}) > 1:
            found = ", ".join(f"{options.method} {getattr(options, name)}" for options in every)
            raise OptionError(
                f"preset {preset} gives {name} by method ({found}), expected one value: a comparison is made on the "
                f"same samples; set it on the command line"
            )
    counts = [options.samples for options in every]
    if len(set(counts)) == 1:
        return tuple(every), ""
    remark = f"all methods get {max(counts)} calibration samples; the preset gives {min(counts)} to {max(counts)}"
    return tuple(replace(options, samples=max(counts)) for options in every), remark
