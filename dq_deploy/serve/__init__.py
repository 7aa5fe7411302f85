"""The image server: requests at different denoising steps share the calls of one engine.

What is served, and within which limits, is said here, without loading anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dq_deploy.errors import OptionError
from dq_deploy.processes.threads import check_threads

MOST_STEPS = 1000
"""Denoising steps of one picture."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the server holds at once.

    Attributes:
        max_batch: samples of one call of the engine.
        queue: pictures that may wait.
        instances: engines of the same file, side by side.
        places: pictures drawn at once; for each engine twice `max_batch`, so that one call's pictures step while the
            next call runs.
        most: pictures drawn at once, with those of clients that need not wait for a place.
        time_limit_s: seconds a request may take.
    """

    max_batch: int = 8
    instances: int = 1
    queue: int = 256
    time_limit_s: float = 300.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            OptionError: one is out of range.
        """
        for name in ("max_batch", "queue", "instances"):
            if getattr(self, name) < 1:
                raise OptionError(f"`{name}` is {getattr(self, name)}, expected at least 1")
        if not 0 < self.time_limit_s < float("inf"):
            raise OptionError(f"`time_limit` is {self.time_limit_s}, expected seconds above 0")

    @property
    def places(self) -> int:
        """See above."""
        return 2 * self.max_batch * self.instances

    @property
    def most(self) -> int:
        """See above."""
        return self.places + 32


@dataclass(frozen=True, kw_only=True)
class Served:
    """What is to be served.

    Attributes:
        engine: path of a record, a program file, an exported ONNX file or a plan.
        model: folder of the pipeline that draws; None where the denoiser alone does.
        ckpt: record of the engine, where that is known: then it is held against the engine.
        name: of the model in requests; None is the folder's or the engine's name.
        component: the denoiser, where the pipeline has several.
        scheduler: a class of diffusers or a short name; None is the one that was calibrated with.
        steps: denoising steps where a request says none; None is as many as were calibrated.
        threads: of the engine; None lets it decide.
        isa: instruction set of the native engine; None takes the best there is.
        device: of the native engine.
        attention: likewise.
        pipeline_threads: of torch, for text encoder, scheduler and VAE.
        proof: report of dq-verify on the engine.
        hash_check: refuse a file whose content is not what was written.
        limits: what is held at once.
    """

    engine: Path
    model: Path | None = None
    ckpt: Path | None = None
    name: str | None = None
    component: str | None = None
    scheduler: str | None = None
    steps: int | None = None
    threads: int | None = None
    isa: str | None = None
    device: str | None = None
    attention: str | None = None
    pipeline_threads: int = 1
    proof: Path | None = None
    hash_check: bool = True
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            OptionError: one is out of range.
        """
        check_threads(self.threads, "`threads`")
        check_threads(self.pipeline_threads, "`pipeline_threads`")
        if self.steps is not None and not 1 <= self.steps <= MOST_STEPS:
            raise OptionError(f"`steps` is {self.steps}, expected 1 to {MOST_STEPS}")
        if self.name is not None and (not self.name.strip() or "/" in self.name or not self.name.isprintable()):
            raise OptionError(f"`name` is {self.name!r}, expected printable characters without a slash")
