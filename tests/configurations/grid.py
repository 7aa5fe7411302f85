"""The grid of published configurations: `make test-all` tries each and writes the table docs/configurations.md.

At full size each is built without weights, and accepted or refused. Its small form is then quantized to W8A8 and W4A8,
run natively and on ONNX Runtime, held against the numerics bit for bit, and sampled for a few steps.

    python -m tests.configurations.grid --help
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import torch

import dq_deploy
from dq_deploy.errors import DqError
from dq_deploy.graph.onnx_file import write_onnx
from dq_deploy.models import build_denoiser, default_call, family_of, quantizable_layers
from dq_deploy.models.default_calls.output_shapes import with_outputs
from dq_deploy.native.runner import NativeRunner
from dq_deploy.numerics.arrays import Array
from dq_deploy.record import Record
from dq_deploy.targets import engine_graph
from dq_deploy.verify.file.same_file import TracedOnce
from tests.configurations.configuration import Configuration
from tests.configurations.published import PUBLISHED, small_forms
from tests.configurations.sampling import sampled
from tests.configurations.trial import mixed_feeds, quantized, small_denoiser, wrong_values

BITS = (8, 4)
NO, NOT_TRIED = "**no**", "not tried"


@dataclass(kw_only=True)
class Tried:
    """What came of one small form.

    Attributes:
        native: by weight bits, whether every integer is the numerics'.
        onnx: likewise on ONNX Runtime, by `dq_deploy.verify`.
        sampled: by weight bits, whether a few steps gave finite latents.
        numpy_operations: that run without a kernel of their own.
        failures: what went wrong, in words.
    """

    native: dict[int, bool] = field(default_factory=dict)
    onnx: dict[int, bool] = field(default_factory=dict)
    sampled: dict[int, bool] = field(default_factory=dict)
    numpy_operations: tuple[str, ...] = ()
    failures: list[str] = field(default_factory=list)

    @classmethod
    def of_json(cls, read: Mapping[str, Any]) -> Tried:
        """Of what `asdict` gave, through a file or not."""
        by_bits = {key: {int(bits): good for bits, good in read[key].items()} for key in ("native", "onnx", "sampled")}
        return cls(**by_bits, numpy_operations=tuple(read["numpy_operations"]), failures=list(read["failures"]))


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A configuration at full size: its layers, or why it is refused."""

    parameters: int | None
    layers: int | None
    refusal: str | None


def at_full_size(full: Configuration) -> Whole:
    """Build it without weights."""
    try:
        module = build_denoiser(family_of(full.config), full.config, device="meta")
        call = with_outputs(default_call(full.config, full.sizes), module)
        layers = len(quantizable_layers(module, call))
    except DqError as error:
        return Whole(parameters=full.parameters, layers=None, refusal=str(error))
    return Whole(parameters=sum(p.numel() for p in module.parameters()), layers=layers, refusal=None)


def tried(small: Configuration, *, onnx: bool) -> Tried:
    """Quantize a small form twice, and look at it natively, or on ONNX Runtime."""
    found = Tried()

    def attempt(what: str, bits: int, into: dict[int, bool], trial: Callable[[], bool]) -> None:
        try:
            into[bits] = trial()
            if not into[bits]:
                found.failures.append(f"W{bits}A8 {what}: not so")
        except Exception as error:
            if not isinstance(error, DqError):
                traceback.print_exc()
            into[bits] = False
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            found.failures.append(f"W{bits}A8 {what}: {first}")

    for bits in BITS:
        try:
            denoiser = small_denoiser(small)
            record = quantized(denoiser, weight_bits=bits)
        except Exception as error:
            traceback.print_exc()
            found.failures.append(f"W{bits}A8 quantized: {error}")
            continue

        def native(record: Record = record, denoiser: dq_deploy.Denoiser = denoiser) -> bool:
            with NativeRunner(record, threads=1) as runner:
                feeds = mixed_feeds(denoiser)
                wrong = wrong_values(record, runner, feeds)
                found.numpy_operations = numpy_operations(runner, feeds)
            return set(wrong) == set(record.layers) and not any(wrong.values())

        def samples(record: Record = record, denoiser: dq_deploy.Denoiser = denoiser) -> bool:
            with NativeRunner(record, threads=1) as runner:
                return bool(torch.isfinite(sampled(denoiser, runner)).all())

        if onnx:
            attempt("exact on ONNX Runtime", bits, found.onnx, lambda record=record: onnx_exact(record))
        else:
            attempt("natively exact", bits, found.native, native)
            attempt("sampled", bits, found.sampled, samples)
    return found


def numpy_operations(runner: NativeRunner, feeds: Mapping[str, Array]) -> tuple[str, ...]:
    """Names of the operations of the program that no kernel computes."""
    ops = runner.executor.plan_of(feeds).program.ops
    return tuple(
        sorted(
            {str(op.attributes["function"]).split("::")[-1].removesuffix(".default") for op in ops if op.kind == "host"}
        )
    )


def onnx_exact(record: Record) -> bool:
    """Export it and prove the file; traced once for both."""
    traced = TracedOnce(record)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.onnx"
        made = engine_graph(record, traced=traced())
        write_onnx(made.model, path, made.manifest)
        return bool(dq_deploy.verify(record, path, steps=2, inputs=1, threads=1, traced=traced).exact)


HEAD = """# Configurations

`make test-all` writes this page; it is not edited by hand. It tries published configurations of denoisers, from memory
of their config.json, with random weights.

- **Parameters and layers** are those at full size, built without weights. Accepted is what builds and runs on shapes
  alone; what is refused is refused there, with the line that is given.
- **The other columns** are of a small form that follows from the full one: one level for each kind of block, one
  block, more than one head. It is quantized by minmax, to W8A8 and to W4A8; `8 4` in a column says that both did.
  Exact means every code, accumulator and layer output bit for bit as the numerics: natively on two samples at
  different steps, on ONNX Runtime by the whole proof of `dq-verify`. Sampled means that three steps by diffusers' own
  scheduler with the integer denoiser in place gave finite latents.
- **In numpy** are the operations that run natively without a kernel of their own.

| configuration | class | parameters | layers | exact natively | exact on ONNX Runtime | sampled | in numpy |
|---|---|---:|---:|---|---|---|---|
"""


Row = tuple[Configuration, Whole, Tried | None]


def page(rows: Sequence[Row]) -> str:
    """The table, with what failed and what is refused below it."""
    lines, refused, failed = [], [], []
    for full, whole, trial in rows:
        count = "" if whole.parameters is None else f"{whole.parameters:,}"
        if whole.refusal is not None or trial is None:
            lines.append(f"| {full.name} | {full.class_name} | {count} | | refused | | | |")
            refused.append(f"- **{full.name}**: {whole.refusal}")
            continue
        cells = [_bits(trial.native), _bits(trial.onnx), _bits(trial.sampled), ", ".join(trial.numpy_operations)]
        lines.append(
            f"| {full.name} | {full.class_name} | {count} | {whole.layers or NOT_TRIED} | {' | '.join(cells)} |"
        )
        failed += [f"- **{full.name}**: {line}" for line in trial.failures]
    parts = [HEAD + "\n".join(lines)]
    if failed:
        parts.append("## What did not work\n\n" + "\n".join(failed))
    if refused:
        parts.append("## What is refused, and how\n\n" + "\n".join(refused))
    return "\n\n".join(parts) + "\n"


def _bits(good: Mapping[int, bool]) -> str:
    if not good:
        return NOT_TRIED
    return " ".join(str(bits) for bits in BITS if good.get(bits)) or NO


def main(arguments: Sequence[str] | None = None) -> int:
    """Try all, write the page; 1 where something that is accepted failed, or a refusal is not the expected one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="a part of the configurations' names")
    parser.add_argument("--out", type=Path, help="the page to write")
    parser.add_argument("--results", type=Path, help="file of what was tried before and is not tried again")
    parser.add_argument("--native", action="store_true", help="leave out ONNX Runtime, which takes most of the time")
    parser.add_argument("--known", action="store_true", help="try nothing: write the page of what the results hold")
    given = parser.parse_args(arguments)
    diffusers.utils.logging.set_verbosity_error()
    results = Results(given.results, native=given.native, known=given.known)
    rows = [results.row(full) for full in PUBLISHED if given.only in full.name]
    wrong = sum(not as_expected(*row) for row in rows)
    if given.out is not None:
        given.out.write_text(page(rows), encoding="utf-8")
    print(f"{len(rows)} configurations, {wrong} of them not as expected")
    return int(wrong > 0)


UNTRIED = {"parameters": None, "layers": None, "refusal": None}


class Results:
    """What was tried, in a file that a later run goes on from; small forms are tried once for all that share them."""

    def __init__(self, path: Path | None, *, native: bool, known: bool) -> None:
        self.path, self.native, self.only_known = path, native, known
        self.known: dict[str, Any] = json.loads(path.read_text()) if path is not None and path.exists() else {}
        self.small = {name: (names, small) for names, small in small_forms().items() for name in names.split("; ")}

    def row(self, full: Configuration) -> Row:
        """Both trials of a configuration."""
        start = time.perf_counter()
        if full.refusal is not None:
            return full, at_full_size(full), None
        whole = Whole(**(self._once(f"{full.name} at full size", lambda: asdict(at_full_size(full))) or UNTRIED))
        whole = replace(whole, parameters=full.parameters if whole.parameters is None else whole.parameters)
        trial = None
        if whole.refusal is None:
            names, small = self.small[full.name]
            trial = Tried.of_json(self._once(names, lambda: asdict(tried(small, onnx=False))) or asdict(Tried()))
            key = f"{names} on ONNX Runtime"
            if key in self.known or not self.native:
                other = Tried.of_json(self._once(key, lambda: asdict(tried(small, onnx=True))) or asdict(Tried()))
                trial = replace(trial, onnx=other.onnx, failures=[*trial.failures, *other.failures])
        if self.only_known:
            return full, whole, trial
        told = whole.refusal or (trial and "; ".join(trial.failures)) or "all right"
        print(f"{full.name}: {told} ({time.perf_counter() - start:.0f} s)", flush=True)
        return full, whole, trial

    def _once(self, key: str, trial: Callable[[], Any]) -> Any:
        if key not in self.known and self.only_known:
            return None
        if key not in self.known:
            self.known[key] = trial()
            if self.path is not None:
                self.path.write_text(json.dumps(self.known, indent=1))
        return self.known[key]


def as_expected(full: Configuration, whole: Whole, trial: Tried | None) -> bool:
    """Whether it is accepted or refused as it should be, has its parameters, and nothing failed."""
    if full.refusal is not None:
        return full.refusal in (whole.refusal or "")
    return whole.refusal is None and whole.parameters == full.parameters and not (trial and trial.failures)


if __name__ == "__main__":
    sys.exit(main())
