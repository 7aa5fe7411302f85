"""The methods beside each other, cell by cell: what each gives, what it costs, and what was expected of it.

    python -m benchmarks.methods.run                                   # the required cells, then the table
    python -m benchmarks.methods.run --group ablations --work work     # every part left out, one by one
    python -m benchmarks.methods.run --cells 'digits/dmq-*' --again
    python -m benchmarks.methods.run --table                           # only the table, from what is there

A cell is a line of benchmarks/results/methods.jsonl; one that is there is not measured again, so a stopped run goes on.
500 images at 20 steps from the same noise as benchmarks/methods/quality_demo.py has. Another --seed gives another
calibration and training, and the noise of the images stays; two seeds or more give intervals over seeds and images.
Folder --work keeps the float models' images and graphs, the records, and the blocks of a stopped training; without it
they are in a temporary folder. Peers are other packages in environments of their own, made below --work.
benchmarks/results/methods.md is written at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import quiet
from benchmarks.machine.commit import commit
from benchmarks.methods.cells import (
    BITS,
    GROUPS,
    METHODS,
    Line,
    Spec,
    Terms,
    append_line,
    chosen_specs,
    latest,
    read_lines,
)
from benchmarks.methods.table import table
from dq_deploy.artifacts import write_text_atomic
from dq_deploy.comparison import (
    Cell,
    Measures,
    Settings,
    Subject,
    options_by_method,
    prepare_subject,
    read_real_images,
    run_cell,
    with_quality,
)
from dq_deploy.comparison.latency import StepTime
from dq_deploy.errors import DqError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "methods.jsonl"
NOISE_SEED = 1234


class Missing(Exception):
    """A cell cannot be run here: a model, its images or a package is not there."""


@dataclass(frozen=True)
class Model:
    """A model of the table.

    Attributes:
        folder: of diffusers.
        classes: that are drawn, from 0; the model may have one more, for no class.
        measures: made when the model is first used.
    """

    folder: Path
    classes: int
    measures: Callable[[], Measures]


def _digits() -> Measures:
    from digits import load_digits

    weights = ROOT / "examples" / "digit-classifier" / "weights.safetensors"
    return Measures(classifier=f"digits:{weights}", real=load_digits()[0], real_name="5,000 digits of MNIST")


def _digits_dit() -> Measures:
    """As the digits, without distances of features: noise on a black background moves them more than blur does."""
    return replace(_digits(), extractor=None, real=None, real_name="")


def _emoji() -> Measures:
    real = read_real_images(ROOT / "examples" / "emoji-ddpm-32" / "reference.npz", 3)
    weights, recognise = ROOT / "examples" / "emoji-classifier" / "weights.safetensors", None
    if weights.is_file():
        from functools import partial

        from emoji_classifier import load_emoji_classifier, recognised_emoji_labels

        recognise = partial(recognised_emoji_labels, load_emoji_classifier(weights))
    return Measures(recognise=recognise, real=real, real_name="emojis")


MODELS = {
    "digits": Model(ROOT / "examples" / "mnist-ddpm-32", 10, _digits),
    "emoji": Model(ROOT / "examples" / "emoji-ddpm-32", 9, _emoji),
    "digits-dit": Model(ROOT / "examples" / "digits-dit", 10, _digits_dit),
}


class Run:
    """The cells of one call: float models are loaded once, and what they need is kept in the work folder."""

    def __init__(self, terms: Terms, work: Path, threads: int, environments: Path | None = None) -> None:
        self.terms, self.work, self.threads, self.environments = terms, work, threads, environments
        self.settings = Settings(images=terms.count, steps=terms.steps, seed=NOISE_SEED, threads=threads)
        self._subjects: dict[str, Subject] = {}

    def subject(self, name: str) -> Subject:
        """A float model with its images.

        Raises:
            Missing: it is not there.
        """
        if name not in self._subjects:
            from dq_deploy import load_model

            model = MODELS[name]
            folder = self.work / name
            folder.mkdir(parents=True, exist_ok=True)
            try:
                denoiser, measures = load_model(model.folder), model.measures()
            except (DqError, ImportError) as error:
                raise Missing(f"{name} cannot be read: {error}") from error
            self._subjects[name] = prepare_subject(
                denoiser, self.settings, measures, model=model.folder, cache=folder, classes=range(model.classes)
            )
        return self._subjects[name]

    def facts_of_float(self, spec: Spec) -> dict[str, Any]:
        """Of each image of the float model, whether it is recognised: 0 or 1; nothing without a classifier."""
        right = self.subject(spec.model).baseline.recognised
        return {} if right is None else {"recognised_of_float": [int(value) for value in right]}

    def options(self, spec: Spec) -> Any:
        """Of a method, on as many samples as every other method."""
        weights, activations = BITS[spec.bits]
        given = {"steps": self.terms.steps, "seed": self.terms.seed}
        shared = {**given, "weight_bits": weights, "activation_bits": activations}
        every, _ = options_by_method(METHODS, self.terms.preset, **shared)
        without = (spec.without,) if spec.without else None
        (own,), _ = options_by_method(
            [spec.method], self.terms.preset, **shared, without=without, samples=every[0].samples
        )
        return own

    def cell(self, spec: Spec) -> Cell:
        """Run one cell."""
        subject = self.subject(spec.model)
        if spec.is_peer:
            return self._peer(spec, subject)
        return run_cell(subject, self.options(spec), self.work / spec.model)

    def _peer(self, spec: Spec, subject: Subject) -> Cell:
        try:
            peers = importlib.import_module("peers")
        except ImportError as error:
            raise Missing(f"benchmarks/peers cannot be imported: {error}") from error
        weights, activations = BITS[spec.bits]
        cell = Cell(
            name=f"{spec.method}-{spec.bits.lower()}",
            method=spec.method,
            weight_bits=weights,
            activation_bits=activations,
        )
        folder = self.work / spec.model
        more = {"steps": self.terms.steps, "threads": self.threads, "environments": self.environments}
        try:
            files = self._peer_files(spec.model, subject)
            found = peers.run(spec.method, folder, subject.model, *files, **more)
            with np.load(found["images_npz"]) as arrays:
                cell = with_quality(subject, cell, arrays["images"])
        except (DqError, RuntimeError, OSError, KeyError) as error:
            return replace(cell, error=" ".join(str(error).split()), exit_code=1)
        return replace(
            cell,
            calibration_s=found["calibration_s"],
            peak_mib=found["peak_mib"],
            record_mib=found["size_mib"],
            latency=_peer_latency(found, spec.method),
            notes=tuple(note for note in (found.get("note"),) if note),
            options={"versions": found["versions"], "layers": found["layers"]},
        )

    def _peer_files(self, name: str, subject: Subject) -> tuple[Path, Path]:
        """The inputs the methods are calibrated with, and the noise and labels of the images."""
        import torch

        from dq_deploy.calibration import CalibrationSource
        from dq_deploy.methods.prepare.calibration_inputs import collect_inputs
        from dq_deploy.methods.progress import silent
        from dq_deploy.models.pipeline.call import generators_of
        from dq_deploy.record.model_config import sample_shape

        folder = self.work / name
        calibration, noise = folder / "calibration.npz", folder / "noise.npz"
        options = self.options(Spec(name, "minmax", "W8A8"))
        np.savez(calibration, **collect_inputs(subject.denoiser, options, CalibrationSource(), silent).inputs)
        shape = sample_shape(subject.denoiser.config)
        generators = generators_of(NOISE_SEED, range(self.terms.count))
        drawn = np.stack([torch.randn(shape, generator=generator).numpy() for generator in generators])
        np.savez(noise, noise=drawn, **({} if subject.labels is None else {"labels": subject.labels}))
        return calibration, noise


def _peer_latency(found: dict[str, Any], engine: str) -> StepTime | None:
    own, other = found["latency_ms"], found["float_latency_ms"]
    return None if own is None else StepTime(ms=own, float_ms=other, ratio=other / own, engine=engine)


def facts(threads: int, busy: float) -> dict[str, Any]:
    """Commit, machine and how busy other work kept it."""
    from dq_deploy.bench.environment import describe_environment

    return {"commit": commit(), "others_busy": round(busy, 3), "environment": describe_environment(threads=threads)}


def run_specs(run: Run, specs: Sequence[Spec], results: Path, *, again: bool) -> int:
    """Run what is not there yet, a line each; the number of failures."""
    known = {} if again else latest(read_lines(results), run.terms)
    failures = 0
    for index, spec in enumerate(specs):
        before = known.get(spec.name)
        place = f"[{index + 1}/{len(specs)}] {spec.name}"
        if before is not None and before.cell.error is None:
            print(f"{place}: there, commit {before.facts['commit']}", flush=True)
            continue
        busy, start = quiet.others_busy(), time.perf_counter()
        try:
            cell = run.cell(spec)
        except Missing as error:
            print(f"{place}: not run, {error}", flush=True)
            continue
        busy = max(busy, quiet.others_busy())
        append_line(results, Line(spec, run.terms, cell, {**facts(run.threads, busy), **run.facts_of_float(spec)}))
        failures += cell.error is not None
        print(f"{place}: {_words(cell)}, {time.perf_counter() - start:.0f} s", flush=True)
    return failures


def _words(cell: Cell) -> str:
    if cell.error is not None or cell.quality is None:
        return f"failed: {cell.error}"
    value = cell.quality["psnr_db"]
    return (
        f"PSNR {value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}] dB, {cell.calibration_s:.0f} s calibration"
    )


@contextlib.contextmanager
def _work_folder(given: Path | None) -> Iterator[Path]:
    if given is None:
        with tempfile.TemporaryDirectory(prefix="methods-") as folder:
            yield Path(folder)
        return
    given.mkdir(parents=True, exist_ok=True)
    yield given.resolve()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", help="comma list of patterns, as 'digits/*-w4a4'")
    parser.add_argument("--group", choices=GROUPS, help="required by default; all with --cells")
    parser.add_argument("--again", action="store_true", help="measure also what is there")
    parser.add_argument("--table", action="store_true", help="measure nothing, only write the table")
    parser.add_argument("--list", action="store_true", help="only name the cells")
    parser.add_argument("--preset", default=Terms.preset)
    parser.add_argument("--count", type=int, default=Terms.count, help="images a cell")
    parser.add_argument("--steps", type=int, default=Terms.steps)
    parser.add_argument("--seed", type=int, default=Terms.seed)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="folder that is kept")
    parser.add_argument("--environments", type=Path, help="of the peers; below --work by default")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def _hold_threads(threads: int, *, again: bool) -> None:
    """Threads of this process and of the methods': numpy's are fixed when it is loaded, so the script begins anew."""
    wanted = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    held = all(os.environ.get(name) == value for name, value in wanted.items())
    os.environ.update(wanted)
    if again and not held:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cells, write and print the table; 1 where a cell failed."""
    args = _arguments(argv)
    terms = Terms(preset=args.preset, seed=args.seed, count=args.count, steps=args.steps)
    patterns = [] if args.cells is None else args.cells.split(",")
    group = args.group or ("all" if patterns else "required")
    try:
        specs = chosen_specs(group, patterns)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.list:
        print("\n".join(f"{spec.name}  ({spec.group})" for spec in specs))
        return 0
    failures = 0
    if not args.table:
        _hold_threads(args.threads, again=argv is None)
        sys.path.append(str(ROOT / "examples"))
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with _work_folder(args.work) as work:
                failures = run_specs(
                    Run(terms, work, args.threads, args.environments), specs, args.results, again=args.again
                )
        except KeyboardInterrupt:
            print("stopped; the same command goes on", file=sys.stderr)
            return 130
        except DqError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
    every = read_lines(args.results)
    text = table(latest(every, terms), terms, every)
    write_text_atomic(args.results.with_suffix(".md"), text)
    print(text)
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
