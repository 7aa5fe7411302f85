"""Run a plan and the ONNX graph it stands for, and compare their outputs; never run where there was no GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dq_deploy.errors import DqError
from dq_deploy.manifest.plan import read_plan_manifest
from dq_deploy.manifest.values import ManifestOptions, SizeRange
from dq_deploy.open_engine import open_engine
from dq_deploy.targets import export
from dq_deploy.verify.inputs import batch_at, spread_buckets
from dq_deploy.verify.steps import LeftOut, Reason, Step

if TYPE_CHECKING:
    from dq_deploy.engines.base import Runner
    from dq_deploy.record import Record

NEEDS_GPU = "not compared: needs a GPU"
CODES_UNREAD = "codes and accumulators inside a plan cannot be read"

OUTPUT_PSNR_DB = {"float32": 60.0, "float16": 40.0, "bfloat16": 25.0}
"""Least agreement of outputs by float type: its rounding moves values across the edges of codes, which spreads."""

_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class PlanRun:
    """What running a plan showed.

    Attributes:
        psnr_db: least agreement of outputs with the graph's; 200 stands for equal.
        text: the same in one line, with what could not be read.
    """

    psnr_db: float
    text: str


def run_of_plan(path: Path, record: Record | None) -> PlanRun | LeftOut:
    """Compare a plan's outputs with its graph's on ONNX Runtime.

    Args:
        path: plan with its manifest.
        record: what it was made from; the graph is exported from it once more.

    Returns:
        What was found, or why the plan was not run here.
    """
    manifest = read_plan_manifest(path, check_hash=False)
    try:
        runner = open_engine(path)
    except DqError as error:
        return LeftOut(step=Step.OUTPUTS, reason=Reason.NEEDS_GPU, text=f"{NEEDS_GPU} ({error})")
    with runner:
        if record is None:
            text = "not compared: give `record`, from which the graph to compare with is exported"
            return LeftOut(step=Step.OUTPUTS, reason=Reason.NEEDS_RECORD, text=text)
        options = manifest.options or ManifestOptions()
        with tempfile.TemporaryDirectory(prefix="dq-plan-") as folder:
            graph = Path(folder) / "graph.onnx"
            export(record, graph, target=manifest.target, float_type=options.float_type, conv=options.conv)
            with open_engine(graph, engine="onnxruntime", optimize=False) as reference:
                batch = _smallest_batch(manifest.profiles)
                psnr = least_agreement_db(runner, reference, record, batch=batch)
    return PlanRun(psnr_db=psnr, text=agreement_text(psnr, str(options.float_type)))


def least_agreement_db(runner: Runner, reference: Runner, record: Record, *, batch: int) -> float:
    """Peak signal-to-noise ratio of two runners' outputs at the worst of a few steps; 200 stands for equal."""
    worst = 200.0
    for bucket in spread_buckets(record.steps, _STEPS):
        feeds = batch_at(record, [bucket] * batch, seed=0, kind="step").feeds
        for name, expected in reference.run(feeds).items():
            wanted = np.asarray(expected, np.float64)
            error = float(np.mean((np.asarray(runner.run(feeds)[name], np.float64) - wanted) ** 2))
            peak = float(np.abs(wanted).max()) or 1.0
            worst = min(worst, 200.0 if error == 0 else 10 * np.log10(peak**2 / error))
    return worst


def agreement_text(psnr: float, float_type: str) -> str:
    """What `least_agreement_db` means, in one line."""
    limit = OUTPUT_PSNR_DB[float_type]
    word = "agree" if psnr >= limit else "differ"
    return (
        f"outputs {word}: {psnr:.1f} dB against the graph on ONNX Runtime at the worst step, {limit:g} dB expected in "
        f"{float_type}; {CODES_UNREAD}"
    )


def _smallest_batch(profiles: Sequence[Mapping[str, SizeRange]]) -> int:
    return profiles[0]["timestep"].min[0] if profiles else 1
