"""Training on the picture's own error: gradients pass the whole sampling run, as the pipeline takes it.

What a step's output is off by counts for a picture in two ways that no step shows: by what the later steps make of it,
and by adding up with what other steps are off by. Weights that were rounded are off in the same sense at every step,
so their small errors add up. For a picture i with x_i the sample behind the last step, of the record and of the float
model from the same noise, the loss is

    mean over i of  log(mean (x_i - x_i,float)^2)

so that no picture outweighs the others; up to a factor it is the mean PSNR. Trained are weight scales and biases.
Codes stay as they are, and no engine has more to compute. Inputs and outputs of the denoiser are kept for each step,
everything inside it is computed again on the way back (gradient checkpointing, arXiv 1604.06174).

Few pictures an iteration give noisy gradients, so what is looked at is the mean of all values so far (Polyak and
Juditsky, 1992). The best by pictures that nothing was trained on is kept, the state before the training included.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from dq_deploy.calibration import SamplingRun
from dq_deploy.calibration.recording.calls import TIMESTEP, SeenCall
from dq_deploy.calibration.recording.placing import placed
from dq_deploy.errors import NonFiniteError, OptionError
from dq_deploy.methods.blocks.storage import GIB
from dq_deploy.methods.finetuning.finetuner import largest_share
from dq_deploy.methods.finetuning.in_stages import with_output_tables
from dq_deploy.methods.finetuning.own_trajectories import answer_of_record, answered_by, check_own_trajectories
from dq_deploy.methods.options import SharedOptions
from dq_deploy.methods.prepare.calibration_inputs import batch_of, collect_inputs, sampling_run
from dq_deploy.methods.prepare.initial_record import initial_state, working_module
from dq_deploy.methods.progress import Progress
from dq_deploy.methods.ranges.measured_ranges import FLOAT_BATCH
from dq_deploy.methods.run import Run
from dq_deploy.methods.training.pieces import Kept, Pieces, computed_again, kept_by, pieces_that_fit
from dq_deploy.methods.training.resume import load_arrays, save_arrays
from dq_deploy.models import blocks_of, call_denoiser, example_inputs
from dq_deploy.record import Record
from dq_deploy.record.files.arrays import content_sha256
from dq_deploy.simulation.fake_quant import Simulation, StepContext

PICTURES = 64
"""Pictures to train on; each needs its float sample once."""

HELD_OUT = 16
"""Pictures that judge."""

BATCH = 8
"""Pictures an iteration."""

LOOK_EVERY = 4
"""Iterations between two looks at the held-out pictures."""

RATES = {"weight_scale": 7e-4, "bias": 7e-4}
"""Adam's steps: of a weight scale relative to it, of a bias relative to its layer's output."""

SEED = 2_000_003
"""Added to the seed: these pictures are of other noise than the calibration's."""

EPSILON = 1e-12
FLOOR = 1e-12
"""Least error of a picture, relative to the sample: a record that gives the float picture has nothing to learn."""

STATE = "stage-pictures.safetensors"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps of each value."""


def check_picture_training(run: Run, options: SharedOptions) -> None:
    """Refuse, before anything runs, what this training cannot have.

    Raises:
        OptionError: the inputs come from no run of a sampler, or gradients do not pass it.
    """
    if options.picture_iterations:
        check_own_trajectories(run.source, option="`picture_iterations`")
        _sampling(run, options).check_gradients()


def trained_on_pictures(run: Run, options: SharedOptions, record: Record) -> Record:
    """The record with weight scales and biases trained on the error of pictures, or as it is where that helps nothing.

    Args:
        run: the float model and its sampler.
        options: `picture_iterations`, steps, seed, classes, memory.
        record: by any method.

    Raises:
        OptionError: no sampler, or gradients do not pass it; no layer to train; not enough memory.
        NonFiniteError: a picture's error is NaN or infinite.
    """
    training = _Training(run, options, record)
    gained = training.train()
    note = {
        "stage": "picture-training",
        "iterations": options.picture_iterations,
        "pictures": PICTURES,
        "held_out_pictures": HELD_OUT,
        "layers": len(training.layers),
        "values_trained": sum(value.numel() for value in training.values),
        "kept": f"iteration {training.best_at}" if training.best_at else "start",
        "held_out_db_gained": round(gained, 3),
    }
    words = f"training on pictures: {gained:.2f} dB gained on held-out pictures, by {note['kept']}"
    run.progress(Progress(stage="pictures", done=1, total=1, note=words))
    found = training.record() if training.best_at else record
    if training.best_at and options.outputs:
        seen = collect_inputs(run.denoiser, options, run.source, run.progress)
        found = with_output_tables(found, seen, options, batch_of(run.denoiser, FLOAT_BATCH))
    return replace(found, provenance={**record.provenance, "history": [*record.provenance["history"], note]})


def _sampling(run: Run, options: SharedOptions) -> SamplingRun:
    """The run of the pictures that are trained on, and behind them of those that are held out."""
    own = replace(options, seed=(options.seed + SEED) % 2**31, calibration_choice="uniform")
    return sampling_run(run.denoiser, own, run.source, samples=PICTURES + HELD_OUT)


class _Training:
    """One record's training.

    Attributes:
        layers: that are trained, by name.
        values: what is trained.
        best: values of the best look at the held-out pictures.
        best_at: iteration of it; 0 is the start.
    """

    def __init__(self, run: Run, options: SharedOptions, record: Record) -> None:
        self.run, self.options, self.start = run, options, record
        self.sampling = _sampling(run, options)
        context = StepContext()
        module, self.layers = working_module(initial_state(record, run.denoiser), (), {}, context)
        edges = torch.from_numpy(np.array(record.step_edges, np.float32))
        self.simulation = Simulation(module, context, edges, run.denoiser.call.constants).to(options.device)
        self.blocks = [module.get_submodule(block.name) for block in blocks_of(run.denoiser.module, run.denoiser.call)]
        self.groups = [group for layer in self.layers.values() for group in layer.parameter_groups(RATES)]
        self.values: list[torch.Tensor] = [value for group in self.groups for value in group["params"]]
        if not self.values:
            raise OptionError("`picture_iterations` was given, but no integer layer can be trained; leave it out")
        self.best, self.mean = self._now(), self._now()
        self.best_at, self.best_error, self.first_error = 0, math.inf, math.inf
        self.wanted = torch.empty(0)
        self.path = None if run.resume_dir is None else run.resume_dir / STATE

    def train(self) -> float:
        """Train; returns what the best state gains over the start on held-out pictures, in dB."""
        count = self.options.picture_iterations
        optimizer = torch.optim.Adam(self.groups, eps=EPSILON)
        rows = int(self.sampling.visits().rows.max())
        self._set_units(rows)
        pieces = self._pieces(rows)
        done = self._load(optimizer)
        if done is None:
            done = 0
            every = range(PICTURES + HELD_OUT)
            self.wanted = torch.cat([self._floats(part) for part in _split(every, self.sampling.at_once)])
            self.first_error = self.best_error = self._held_out()
            self._save(optimizer, done)
        for i in range(done, count):
            loss = self._iteration(optimizer, i, pieces)
            self.run.progress(Progress(stage="pictures", done=i + 1, total=count, loss=math.exp(loss)))
            for mean, value in zip(self.mean, self.values, strict=True):
                mean += (value.detach() - mean) / (i + 2)
            if (i + 1) % LOOK_EVERY == 0 or i + 1 == count:
                self._look(i + 1)
                self._save(optimizer, i + 1)
        return 10 / math.log(10) * (self.first_error - self.best_error)

    def _look(self, iteration: int) -> None:
        """Compare the mean of all values so far with the best."""
        now = self._now()
        self._put(self.mean)
        found = self._held_out()
        if found < self.best_error:
            self.best, self.best_at, self.best_error = self._now(), iteration, found
        self._put(now)

    @torch.no_grad()
    def record(self) -> Record:
        """The record in its best state; output tables are as before."""
        self._put(self.best)
        new = dict(self.start.layers)
        for name, layer in self.layers.items():
            old = new[name]
            new[name] = replace(layer.harvest(), out_scale=old.out_scale, out_zero_point=old.out_zero_point)
        return replace(self.start, layers=new)

    def _iteration(self, optimizer: torch.optim.Optimizer, i: int, pieces: Pieces) -> float:
        """One step of Adam; returns the loss before it."""
        chosen, total = _batch(self.options.seed, i), 0.0
        optimizer.zero_grad(set_to_none=True)
        with computed_again(self.blocks if pieces.again else []):
            for part in _split(chosen, min(pieces.size, self.sampling.at_once)):
                loss = self._errors(part, self._drawn(part, gradients=True)).log().sum() / len(chosen)
                loss.backward()
                total += loss.item()
        if not math.isfinite(total):
            raise NonFiniteError(
                f"training on pictures: the loss is {total} at iteration {i + 1}, expected a finite number; leave "
                "`picture_iterations` out"
            )
        optimizer.step()
        return total

    def _errors(self, pictures: Sequence[int], given: torch.Tensor) -> torch.Tensor:
        """Mean square error of each picture, relative to the sample's own."""
        wanted = self.wanted[list(pictures)].to(given.device)
        size = wanted.square().flatten(1).mean(1)
        return (given.float() - wanted).square().flatten(1).mean(1) / size.clamp_min(FLOOR) + FLOOR

    def _held_out(self) -> float:
        """Mean of the logarithms of the held-out pictures' errors."""
        pictures = range(PICTURES, PICTURES + HELD_OUT)
        parts = _split(pictures, self.sampling.at_once)
        return float(torch.cat([self._errors(part, self._drawn(part)).log() for part in parts]).mean())

    def _floats(self, pictures: Sequence[int]) -> torch.Tensor:
        """What the float model gives for pictures."""
        with placed(self.sampling.pipeline, self.run.denoiser.module, self.options.device):
            found = self.sampling.last_samples(pictures).float().cpu()
        if not bool(torch.isfinite(found).all()):
            raise NonFiniteError("training on pictures: the float model gives NaN or infinity, expected finite samples")
        return found

    def _drawn(self, pictures: Sequence[int], *, gradients: bool = False) -> torch.Tensor:
        """What the record in training gives for pictures."""
        module, pipeline = self.run.denoiser.module, self.sampling.pipeline
        with (
            placed(pipeline, module, self.options.device),
            _nothing_learned(pipeline),
            answered_by(module, self._answer if gradients else self._answer_plainly, gradients=gradients),
        ):
            return self.sampling.last_samples(pictures, gradients=gradients)

    def _answer_plainly(self, call: SeenCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return answer_of_record(self.simulation, call, args, kwargs)

    def _answer(self, call: SeenCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """As plainly, with only the arguments kept for the way back."""

        def computed(*args: Any, **kwargs: Any) -> Any:
            return answer_of_record(self.simulation, call, args, kwargs)

        return checkpoint(computed, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    def _inputs(self, rows: int) -> dict[str, torch.Tensor]:
        """Some inputs of the denoiser by name."""
        given = example_inputs(self.run.denoiser.call, rows, self.options.seed)
        return {name: torch.from_numpy(value) for name, value in given.items()}

    def _pass(self, rows: int) -> torch.Tensor:
        given = self._inputs(rows)
        self.simulation.context.step = self.simulation.bucket(given[TIMESTEP].to(self.options.device))
        return call_denoiser(self.simulation.denoiser, given, self.run.denoiser.call.constants)

    @torch.no_grad()
    def _set_units(self, rows: int) -> None:
        """The unit of each bias: the standard deviation of its layer's output."""
        seen: dict[str, float] = {}

        def note(name: str, output: torch.Tensor) -> None:
            seen[name] = float(output.std())

        with ExitStack() as stack:
            for name, layer in self.layers.items():
                handle = layer.register_forward_hook(lambda _layer, _args, output, name=name: note(name, output))
                stack.callback(handle.remove)
            self._pass(rows)
        for name, layer in self.layers.items():
            unit = seen.get(name, 1.0)
            layer.spread = unit if math.isfinite(unit) and unit > 0 else 1.0

    def _pieces(self, rows: int) -> Pieces:
        """How many pictures of a batch are drawn at once, and whether blocks are computed again."""
        whole = 0

        def measure(again: bool) -> Kept:
            nonlocal whole
            with computed_again(self.blocks if again else []):
                kept = kept_by(lambda count: self._pass(count * rows), self.blocks if again else ())
            if again:  # on the way back one block at a time is computed again with all that it keeps
                return replace(kept, each=kept.each + int(whole * largest_share(self.run.denoiser)))
            whole = kept.each
            return kept

        limit = self.options.memory_gib * GIB / 2
        memory = self.options.memory_gib
        return pieces_that_fit(measure, BATCH, limit, what="on pictures", share="half", memory_gib=memory)

    def _now(self) -> list[torch.Tensor]:
        return [value.detach().clone() for value in self.values]

    @torch.no_grad()
    def _put(self, values: Sequence[torch.Tensor]) -> None:
        for value, other in zip(self.values, values, strict=True):
            value.copy_(other)

    def _save(self, optimizer: torch.optim.Adam, done: int) -> None:
        """Keep the state of the training, where a run keeps one."""
        if self.path is None or not self.path.parent.is_dir():
            return
        arrays = {"wanted": self.wanted}
        for i, (value, mean, best) in enumerate(zip(self.values, self.mean, self.best, strict=True)):
            arrays |= {f"{i}/value": value.detach(), f"{i}/mean": mean, f"{i}/best": best}
            arrays |= {f"{i}/{name}": optimizer.state[value][name] for name in MOMENTS if value in optimizer.state}
        note = {
            "start": content_sha256(self.start),
            "done": done,
            "best_at": self.best_at,
            "best_error": self.best_error,
            "first_error": self.first_error,
        }
        save_arrays(self.path, {name: value.cpu().numpy() for name, value in arrays.items()}, note)

    def _load(self, optimizer: torch.optim.Adam) -> int | None:
        """Go on from a state that was kept: iterations that are done; None where there is none of this record."""
        loaded = None if self.path is None else load_arrays(self.path)
        if loaded is None or loaded[1].get("start") != content_sha256(self.start):
            return None
        arrays, note = {name: torch.from_numpy(value) for name, value in loaded[0].items()}, loaded[1]
        self.wanted = arrays["wanted"]
        device = self.options.device
        value, self.mean, self.best = (
            [arrays[f"{i}/{name}"].to(device) for i in range(len(self.values))] for name in ("value", "mean", "best")
        )
        self._put(value)
        for i, value in enumerate(self.values):
            if f"{i}/{MOMENTS[0]}" in arrays:
                optimizer.state[value] = {name: arrays[f"{i}/{name}"].to(device) for name in MOMENTS[1:]}
                optimizer.state[value][MOMENTS[0]] = arrays[f"{i}/{MOMENTS[0]}"]  # a count, which stays on the CPU
        self.best_at, self.best_error, self.first_error = note["best_at"], note["best_error"], note["first_error"]
        return int(note["done"])


@contextmanager
def _nothing_learned(pipeline: Any) -> Iterator[None]:
    """Inside, no parameter of the pipeline's own modules takes gradients."""
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    learning = [value for part in parts for value in part.parameters() if value.requires_grad]
    try:
        for value in learning:
            value.requires_grad_(False)
        yield
    finally:
        for value in learning:
            value.requires_grad_(True)


def _split(pictures: Sequence[int], size: int) -> list[Sequence[int]]:
    return [pictures[start : start + size] for start in range(0, len(pictures), size)]


def _batch(seed: int, iteration: int) -> list[int]:
    """Pictures of an iteration: each once before one comes again, in an order by the seed."""
    rounds, place = divmod(iteration * BATCH, PICTURES)
    order = np.random.default_rng([seed, rounds]).permutation(PICTURES)
    return [int(i) for i in order[place : place + BATCH]]
