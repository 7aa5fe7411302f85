"""Correction by step: a bias row for each step bucket, from the mean error of each channel on held-out trajectories.

For a layer, a step t and an output channel n, over N trajectories that nothing was trained on,

    e[i]  = mean over pixels of (y_float - y)            one number a trajectory i, layers in front corrected already
    m     = mean of e,   v = variance of e / N
    row   = b[n] + m * max(0, 1 - v / m^2)

so that a mean which the trajectories do not support is left out (the positive part of James and Stein's estimator).
All layers of a step are found in one pass: what a layer gives is corrected before the next one reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from dq_deploy.calibration import CalibrationInputs
from dq_deploy.errors import OptionError
from dq_deploy.methods.correction.output_fit import with_fitted_output
from dq_deploy.methods.correction.shrinking import shrunk_mean
from dq_deploy.methods.options import SharedOptions
from dq_deploy.methods.prepare.calibration_inputs import batch_of, collect_inputs, step_influence
from dq_deploy.methods.progress import Progress
from dq_deploy.methods.ranges.step_ranges import batches, model_inputs
from dq_deploy.methods.run import Run
from dq_deploy.models import call_denoiser
from dq_deploy.numerics import channel_axis_of
from dq_deploy.numerics.arrays import F32, F64, I64
from dq_deploy.record import Layer, Record
from dq_deploy.simulation.fake_quant import along, simulate

HELD_OUT_SEED = 1_000_003
"""Between the seeds of the trajectories that a method sees and of those the correction is taken from."""
MOST_TRAJECTORIES = 32
JUDGED_SHARE = 4
"""One in so many of them judges the correction and gives nothing to it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """Rows to be added by layer, [T, C_out], and the share of the mean errors that was kept."""

    rows: Mapping[str, F32]
    kept: float


def corrected_by_step(run: Run, options: SharedOptions, record: Record) -> Record:
    """The record with a bias row a step in every integer layer that has a bias, and a factor and offset of its output.

    The last trajectories judge: the rows are kept where they lower the error of the denoiser's output there, each
    step's counted by how far it moves the sample; then factor and offset likewise. What helps nothing is left out.

    Args:
        run: the float model and where its inputs come from.
        options: seed, samples, steps.
        record: of this model by these options.

    Raises:
        OptionError: there are no trajectories but those that were trained on, or fewer than three.
    """
    if not record.layers:
        raise OptionError("step_correction was asked for a record without integer layers; leave it out")
    if run.source.kind == "latents":
        raise OptionError(
            "step_correction needs trajectories that were not trained on, and a file of latents has no others; leave "
            "`step_correction` out or calibrate by the model's own trajectories"
        )
    held = _held_out(run, options)
    first, second = _parts(held.inputs["trajectory"])
    found = _fit(run, record, held, first)
    candidates = {"start": record, "rows": _with_rows(record, found.rows)}
    influence = step_influence(run.denoiser, options, run.source)
    weights = np.ones(record.steps) if influence is None or len(influence) != record.steps else influence

    def error(one: Record) -> float:
        return float(weights**2 @ _output_errors(run, one, held, second))

    errors = {name: error(one) for name, one in candidates.items()}
    kept = min(errors, key=errors.__getitem__)
    fitted = with_fitted_output(run, candidates[kept], held, first, np.abs(weights))
    if fitted is not None:
        candidates["output"] = fitted
        errors["output"] = error(fitted)
    best = min(errors, key=errors.__getitem__)
    note = {
        "stage": "step-correction",
        "trajectories": len(np.unique(held.inputs["trajectory"][first])),
        "judged_on": len(np.unique(held.inputs["trajectory"][second])),
        "layers": len(found.rows),
        "share_of_means_kept": round(found.kept, 4),
        "share_of_error_left": round(errors["rows"] / (errors["start"] or 1.0), 4),
        "kept": kept,
        "output_kept": best == "output",
        "share_of_error_left_at_all": round(errors[best] / (errors["start"] or 1.0), 4),
    }
    run.progress(Progress(stage="correction", done=1, total=1, note=_words(errors, kept, best)))
    chosen = candidates[best]
    provenance = dict(record.provenance)
    provenance["history"] = [*provenance.get("history", []), note]
    return replace(chosen, provenance=provenance)


def _words(errors: Mapping[str, float], kept: str, best: str) -> str:
    """What became of the held-out error, in a line."""
    start = errors["start"] or 1.0
    words = [f"correction by step: {100 * errors['rows'] / start:.1f} % of the held-out error left by its rows"]
    words.append("which are kept" if kept == "rows" else "which are left out")
    if "output" in errors:
        words.append(f"{100 * errors['output'] / start:.1f} % with a factor and an offset of the output")
        words.append("which are kept" if best == "output" else "which are left out")
    return ", ".join(words)


def _held_out(run: Run, options: SharedOptions) -> CalibrationInputs:
    """Inputs of trajectories with other noise than those that the method saw, in the order of their steps."""
    samples = min(MOST_TRAJECTORIES, options.samples)
    if samples < 3:
        raise OptionError(f"samples is {options.samples}, expected at least 3 for `step_correction`")
    seed = (options.seed + HELD_OUT_SEED) % 2**31
    few = replace(options, seed=seed, samples=samples, calibration_choice="uniform")
    found = collect_inputs(run.denoiser, few, run.source, run.progress)
    if len(np.unique(found.inputs["trajectory"])) < 3:
        raise OptionError("step_correction needs 3 trajectories in memory; raise `memory_gib` or leave it out")
    return found


def _parts(trajectory: I64) -> tuple[I64, I64]:
    """Indices of the inputs that rows are taken from, and of those that judge them: whole trajectories."""
    names = np.unique(trajectory)
    judges = max(1, len(names) // JUDGED_SHARE)
    judge = np.isin(trajectory, names[-judges:])
    return np.flatnonzero(~judge), np.flatnonzero(judge)


def _fit(run: Run, record: Record, held: CalibrationInputs, chosen: I64) -> _Found:
    simulation = simulate(record)
    factors = _factors_of_outputs(record)
    layers = {name: layer for name, layer in record.layers.items() if layer.bias is not None}
    rows = {name: np.zeros((record.steps, layer.out_channels), np.float32) for name, layer in layers.items()}
    shares: list[float] = []
    step = held.inputs["step"]
    most = batch_of(run.denoiser, len(chosen))
    for t in range(record.steps):
        run.tell("correction", t, record.steps)
        index: Any = chosen[step[chosen] == t][:most]
        given = model_inputs(held.inputs, index, run.denoiser.call)
        source = torch.from_numpy(np.unique(held.inputs["trajectory"][index], return_inverse=True)[1])
        wanted: dict[str, torch.Tensor] = {}

        def note(name: str, got: torch.Tensor, wanted: dict[str, torch.Tensor] = wanted) -> None:
            wanted[name] = got * factors[name] if name in factors else got

        def correct(
            name: str,
            got: torch.Tensor,
            wanted: Mapping[str, torch.Tensor] = wanted,
            source: torch.Tensor = source,
            t: int = t,
        ) -> torch.Tensor:
            found, share = shrunk_mean(_by_trajectory(wanted[name] - got, source))
            rows[name][t] = found.numpy()
            shares.append(share)
            return found

        with torch.no_grad():
            with _hearing(run.denoiser.module, layers, len(index), note):
                call_denoiser(run.denoiser.module, given)
            simulation.context.step = torch.from_numpy(step[index])
            with _hearing(simulation.denoiser, layers, len(index), correct):
                call_denoiser(simulation.denoiser, given)
    return _Found(rows=rows, kept=float(np.mean(shares or [0.0])))


def _by_trajectory(values: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Means of the rows of each trajectory: guidance gives several at a step, which are no samples of their own."""
    count = int(source.max()) + 1
    if count == len(source):
        return values
    sums = values.new_zeros(count, values.shape[1]).index_add_(0, source, values)
    return sums / torch.bincount(source, minlength=count)[:, None]


def _factors_of_outputs(record: Record) -> dict[str, torch.Tensor]:
    """What a layer's outputs were multiplied with when it took over its readers' equivalent scales, by its name."""
    found = {}
    for layer in record.layers.values():
        if layer.folded is not None and layer.folded.producer in record.layers:
            factor = torch.ones(record.layers[layer.folded.producer].out_channels)
            factor[: len(layer.folded.factor)] = 1 / torch.from_numpy(layer.folded.factor.copy())
            found[layer.folded.producer] = factor
    return found


def _means(values: torch.Tensor, kind: str, samples: int) -> torch.Tensor:
    """Mean over everything but samples and channels, [N, C]."""
    channels_last = values.movedim(channel_axis_of(kind, values.ndim), -1)
    return channels_last.reshape(samples, -1, channels_last.shape[-1]).mean(1)


@contextmanager
def _hearing(
    module: torch.nn.Module,
    layers: Mapping[str, Layer],
    samples: int,
    heard: Callable[[str, torch.Tensor], torch.Tensor | None],
) -> Iterator[None]:
    """Inside, `heard` is given each layer's mean outputs, [samples, C], and what it returns is added to the output."""

    def hook(name: str, kind: str) -> Callable[..., torch.Tensor | None]:
        def hear(_module: torch.nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor | None:
            row = heard(name, _means(output, kind, samples))
            if row is None:
                return None
            return output + along(row, output.ndim, channel_axis_of(kind, output.ndim))

        return hear

    with ExitStack() as stack:
        for name, layer in layers.items():
            handle = module.get_submodule(name).register_forward_hook(hook(name, layer.kind))
            stack.callback(handle.remove)
        yield


def _with_rows(record: Record, rows: Mapping[str, F32]) -> Record:
    """The record with these added to its biases; with one step bucket they stay one row."""
    layers = dict(record.layers)
    for name, added in rows.items():
        bias = layers[name].bias
        assert bias is not None
        whole = (bias + added).astype(np.float32)
        layers[name] = replace(layers[name], bias=whole[0] if record.steps == 1 else whole)
    return replace(record, layers=layers)


def _output_errors(run: Run, record: Record, held: CalibrationInputs, chosen: I64) -> F64:
    """Relative squared error of the denoiser's output at each step, [T], over some of the inputs."""
    simulation = simulate(record)
    error, norm = np.zeros(record.steps), np.zeros(record.steps)
    step = held.inputs["step"]
    with torch.no_grad():
        for part in batches(len(chosen), batch_of(run.denoiser, len(chosen))):
            index: Any = chosen[part]
            given = model_inputs(held.inputs, index, run.denoiser.call)
            wanted = call_denoiser(run.denoiser.module, given)
            simulation.context.step = torch.from_numpy(step[index])
            got = call_denoiser(simulation.denoiser, given)
            np.add.at(error, step[index], _squares(got - wanted))
            np.add.at(norm, step[index], _squares(wanted))
    return error / np.where(norm > 0, norm, 1.0)


def _squares(values: torch.Tensor) -> F64:
    """Sum of squares of each sample, [B]."""
    found: F64 = values.double().square().flatten(1).sum(1).numpy()
    return found
