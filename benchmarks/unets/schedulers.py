"""Final latents of the W8A8 engine beside the float pipeline's, scheduler by scheduler, from the same noise.

Each record is calibrated by the scheduler it is sampled with. The digits' UNet predicts noise and was trained for it:
the schedulers by betas fit it. For flow matching, EDM and consistency the same weights stand in for a model of that
kind: its outputs are read as they would be there, which makes no picture but asks as much of the integers.

    python -m benchmarks.unets.schedulers --out docs/schedulers.md
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.machine.commit import commit

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DIGITS, EMOJIS = EXAMPLES / "mnist-ddpm-32", EXAMPLES / "emoji-ddpm-32"
BETAS = (
    ("DDIM", "ddim"),
    ("DDPM", "ddpm"),
    ("PNDM", "pndm"),
    ("LMS", "lms"),
    ("Euler", "euler"),
    ("Euler ancestral", "euler-ancestral"),
    ("DPM++ 2M", "dpm++2m"),
    ("DPM++ SDE", "dpm++sde"),
    ("Heun", "heun"),
    ("UniPC", "unipc"),
    ("LCM", "lcm"),
    ("TCD", "tcd"),
    ("DEIS", "deis"),
    ("KDPM2", "kdpm2"),
)
OTHERS = (
    ("Flow match Euler", "FlowMatchEulerDiscreteScheduler"),
    ("EDM Euler", "EDMEulerScheduler"),
    ("Consistency (CM stochastic iterative)", "CMStochasticIterativeScheduler"),
)
OF_EMOJIS = ("tcd",)
"""Begins at timestep 999 and does not clip: the digits' schedule has no signal left there (a cumulative alpha of
2.4e-9) and a prediction of the noise is divided by its root; the emojis' network predicts the velocity."""

LIMIT = 0.1
"""Largest L2 of the difference over the L2 of the float latents."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One scheduler: its name and class, steps, timesteps that it visits, its model, and the distances."""

    name: str
    kind: str
    steps: int
    visited: int
    fits: bool
    model: str
    control: float
    distance: float
    seconds: float


def scheduler_config(denoiser: Any, name: str) -> dict[str, Any]:
    """Configuration of a scheduler built from the digits' own, or by its defaults where it takes no betas."""
    from dq_deploy.models.pipeline import build_scheduler

    own = name if name.endswith("Scheduler") else None
    scheduler = (
        build_scheduler(denoiser.scheduler_config, name) if own is None else build_scheduler({"_class_name": own})
    )
    found = {**scheduler.config, "_class_name": type(scheduler).__name__}
    return {key: value for key, value in found.items() if key not in ("_use_default_values", "lambda_min_clipped")}


def measured(name: str, short: str, steps: int, count: int) -> Row:
    """Calibrate, quantize and sample by one scheduler."""
    import torch

    from dq_deploy import IntegerDenoiser, load_model, open_engine, quantize, save_record
    from dq_deploy.methods import options_from_preset
    from dq_deploy.models.pipeline import PipelineCall, build_scheduler
    from dq_deploy.models.pipeline.denoiser_pipeline import DenoiserPipeline

    started = time.perf_counter()
    model = EMOJIS if short in OF_EMOJIS else DIGITS
    denoiser = load_model(model)
    config = scheduler_config(denoiser, short)
    denoiser = replace(denoiser, scheduler_config=config)
    options = options_from_preset(
        "fast", method="minmax", weight_bits=8, activation_bits=8, steps=steps, samples=10, labels=tuple(range(10))
    )
    record = quantize(denoiser, options)
    asked = PipelineCall(steps=steps, seed=1234, count=count, labels=tuple(i % 10 for i in range(count)))

    def latents(module: Any) -> torch.Tensor:
        pipeline = DenoiserPipeline(module, build_scheduler(config))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(**asked.arguments(pipeline, range(count), output_type="latent")).images

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        save_record(record, path)
        with open_engine(path) as runner:
            engine = latents(IntegerDenoiser(runner))
    reference, again = latents(denoiser.module), latents(_as_engine(denoiser))
    scale = float(reference.norm())
    return Row(
        name=name,
        kind=str(config["_class_name"]),
        steps=steps,
        visited=len(record.timesteps),
        fits=short == short.lower(),
        model=model.name,
        control=float((again - reference).abs().max()),
        distance=float((engine - reference).norm()) / scale,
        seconds=time.perf_counter() - started,
    )


def _as_engine(denoiser: Any) -> Any:
    """The float module behind the interface of the engines: the control, which must change nothing."""
    from dq_deploy import IntegerDenoiser
    from dq_deploy.manifest.values import EngineManifest, TensorEntry
    from dq_deploy.models import input_specs, output_specs
    from dq_deploy.pipelines.module_runner import ModuleRunner

    inputs, outputs = (
        tuple(TensorEntry(name=spec.name, dtype=spec.dtype, shape=tuple(spec.shape)) for spec in specs)
        for specs in (input_specs(denoiser.call), output_specs(denoiser.call))
    )
    manifest = EngineManifest(
        target="torch",
        mode="exact",
        family=denoiser.family,
        model_config=denoiser.config,
        scheduler_config=None,
        inputs=inputs,
        outputs=outputs,
        timesteps=(),
        step_edges=(),
        layers=(),
    )
    return IntegerDenoiser(ModuleRunner(denoiser.module, manifest))


def page(rows: Sequence[Row], count: int) -> str:
    """The table as a page of the documentation."""
    import diffusers
    import torch

    lines = [
        "# Schedulers",
        "",
        "No scheduler is written a second time here: `dq-sample` and calibration run diffusers' own. The table holds",
        f"the final latents of the W8A8 engine (native, minmax, {rows[0].steps} steps) against those of the float",
        f"pipeline from the same noise, {count} pictures of a shipped model, each record calibrated by the",
        "scheduler it is sampled with. Distance is the L2 norm of the difference over that of the float latents.",
        "Control is the largest difference where the float network itself stands in the integer denoiser's place.",
        "",
        "| scheduler | class of diffusers | model | timesteps visited | control | distance |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.name}{'' if row.fits else ' *'} | `{row.kind}` | {row.model} | {row.visited} | {row.control:g} | "
        f"{row.distance:.4f} |"
        for row in rows
    ]
    worst = max(rows, key=lambda row: row.distance)
    lines += [
        "",
        f"The largest distance is {worst.distance:.4f} ({worst.name}); {LIMIT} is the limit that the script holds.",
        "",
        "\\* The digits' network predicts noise. Here its output is read as a velocity, or behind the preconditioning",
        "of EDM and of consistency models: no picture comes of that; timesteps are fractional or negative as there.",
        "",
        "TCD begins at timestep 999 and does not clip. The digits' schedule has no signal left there (a cumulative",
        "alpha of 2.4e-9): what is taken for the picture is the difference of the noise and the predicted noise, times",
        "20,000, and the distance on the digits is 0.36. The emojis' network predicts the velocity, which fits.",
        "",
        f"Made by `python -m benchmarks.unets.schedulers` at {commit()[:12]}, torch {torch.__version__}, diffusers",
        f"{diffusers.__version__}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure every scheduler and write the table; exits with 3 where one is beyond the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="page to write")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--count", type=int, default=10, help="images")
    parser.add_argument("--only", nargs="*", help="names of schedulers")
    given = parser.parse_args()
    rows = []
    for name, short in (*BETAS, *OTHERS):
        if given.only and name not in given.only:
            continue
        rows.append(measured(name, short, given.steps, given.count))
        print(rows[-1], flush=True)
    given.out.write_text(page(rows, given.count), encoding="utf-8")
    beyond = [row.name for row in rows if row.distance > LIMIT or row.control > 0]
    if beyond:
        raise SystemExit(f"beyond the limit: {', '.join(beyond)}")


if __name__ == "__main__":
    main()
