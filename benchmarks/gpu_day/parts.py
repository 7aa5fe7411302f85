"""The parts of the day in their order: what each does, needs, and adds to what is known without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.gpu_day import engines, measurements
from benchmarks.gpu_day.book import Book, Day

LIMIT_S = 540
"""Seconds of one part; what is not done then is done when the part is called again."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part.

    Attributes:
        name: of the part and of its results file.
        run: does it.
        adds: what a GPU shows that the rehearsal cannot.
        status: rows of docs/status.md that a part without errors may move from "never run".
        interpreted: whether its rehearsal runs kernels in Triton's interpreter.
    """

    name: str
    run: Callable[[Day, Book], None]
    adds: str
    status: tuple[str, ...] = ()
    interpreted: bool = False


NATIVE = "native engine on an NVIDIA GPU"
PLANS = "TensorRT-RTX: a plan that runs"

PARTS = (
    Part(name="facts", run=measurements.facts, adds="the device's own numbers, and its peaks"),
    Part(
        name="tests",
        run=engines.marked_tests,
        adds="whether the marked tests pass: copies, order, graphs, kernels, plans on real memory",
    ),
    Part(
        name="kernels-exact",
        run=measurements.kernels_exact,
        adds="whether compiled kernels give the bits that the interpreter gives",
        status=("GPU kernels",),
        interpreted=True,
    ),
    Part(
        name="unets-exact",
        run=measurements.unets_exact,
        adds="the proof of whole UNets at full size, captured and compiled",
        status=(NATIVE,),
        interpreted=True,
    ),
    Part(
        name="kernels-fast",
        run=measurements.kernels_fast,
        adds="times of kernels beside cuBLAS, cuDNN, torch.compile, torch._int_mm and FP8",
        interpreted=True,
    ),
    Part(
        name="unets-fast",
        run=measurements.unets_fast,
        adds="times and memory of a step beside torch.compile float16 with CUDA graphs and FP8",
        status=(f"{NATIVE}: speed",),
    ),
    Part(
        name="backends",
        run=engines.backends,
        adds="rates of copies and launches; what both libraries give back",
        status=("cuda-core", "pycuda"),
    ),
    Part(name="plans", run=engines.plans, adds="whether plans load, run and how fast", status=(PLANS,)),
    Part(
        name="tune",
        run=engines.tune,
        adds="the table of the fastest configurations",
        status=("dq-tune",),
        interpreted=True,
    ),
    Part(name="profiles", run=measurements.profiles, adds="where the time of a step goes"),
    Part(name="train", run=engines.train, adds="models trained for longer: digits by a DiT, emojis by a text"),
)
BY_NAME = {part.name: part for part in PARTS}
