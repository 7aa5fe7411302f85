"""Whole UNets: the native engine beside what a user would pick instead, each in a process of its own, taking turns.

    python -m benchmarks.unets.run --model cifar --threads 2                     # W4A8 and W8A8, all engines
    python -m benchmarks.unets.run --model cifar --isa avx512_vnni --hide-bf16   # as on a CPU without bfloat16
    python -m benchmarks.unets.run --model sd15 --engine openvino --engine "nncf int8" --at-once 1

Models: the demo model; the CIFAR-10 DDPM shape (35.7 M parameters); by request terrain (--terrain FOLDER, made by
examples/terrain.py), Stable Diffusion 1.5 (batch 2, 64x64) and DiT-XL/2 (batch 2, 32x32). Random weights where there is
no model: time does not depend on their values. First the gate: the accumulators of every integer layer against an exact
float64 product of the codes it saw; a red engine prints RED and no speed, and the exit code is 3.

`onnxruntime int8` and `openvino int8` are the exact graphs of dq-export. All others are other people's packages as
their documentation runs them (benchmarks/peers), in environments that are made in the folder --environments; they are
calibrated with the same inputs as our record. The native engine opens a program file, as they open files of theirs. An
engine that cannot do a model prints why. PSNR is to the float model: of pictures from the same noise by DDIM (demo), or
of the output of one step (the others); that of our own engines is taken in this process, where the libraries have all
instructions. For avx2, avx_vnni and with --hide-bf16 the libraries are timed as on a CPU without the rest
(machine/avx2.py), torch by its own switches alone. Memory is the highest resident size of each process, interpreter
included. The folder --work keeps records, and program files and graphs of each commit. A row of each table is appended
to benchmarks/results/unets.jsonl, and what is there for the same commit is not measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from benchmarks.machine import quiet
from benchmarks.machine.avx2 import MachineError
from benchmarks.machine.commit import commit
from benchmarks.unets import fidelity
from benchmarks.unets.denoisers import subject_of
from benchmarks.unets.engines import (
    ENGINES,
    EXACT,
    NATIVE,
    Cpu,
    program_path,
    start_exact,
    start_native,
    start_peer,
    words_of,
)
from benchmarks.unets.float_model import BATCHES as PEER_BATCHES
from benchmarks.unets.float_model import ready_folder
from benchmarks.unets.peer_process import PeerProcess, PeerSettings
from dq_deploy.engines.options import ATTENTION
from dq_deploy.errors import DqError

ROOT = Path(__file__).resolve().parents[1]
RED = 3
BATCHES = {"cifar": 1, "demo": 1, "terrain": 1, "sd15": 2, "dit-xl": 2}
"""Batch of each model where no other is asked for."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the native engine has to be, on 2 threads, at the model's own batch.

    Attributes:
        model: one of `BATCHES`.
        bits: of the record.
        isa: of the native engine.
        engine: that it is held against.
        speedup: so many times as fast.
        memory: at most so much of its memory.
    """

    model: str
    bits: str
    isa: str
    engine: str
    speedup: float | None = None
    memory: float | None = None


_AVX2 = {"model": "cifar", "bits": "W4A8", "isa": "avx2"}
_VNNI = {"model": "cifar", "bits": "W4A8", "isa": "avx512_vnni"}
CLAIMS = (
    Claim(**_AVX2, engine="onnxruntime float32", speedup=2.0),
    Claim(**_AVX2, engine="openvino int8", speedup=1.3),
    Claim(**_AVX2, engine="onnxruntime float32", memory=1 / 3),
    Claim(**_VNNI, engine="nncf int8", speedup=1.5),
    *(Claim(model="cifar", bits=b, isa="amx", engine="nncf int8", speedup=1.5) for b in ("W4A8", "W8A8")),
    *(Claim(model="cifar", bits=b, isa="amx", engine="openvino", speedup=2.0) for b in ("W4A8", "W8A8")),
    *(Claim(model="sd15", bits="W4A8", isa=i, engine="nncf int8", speedup=1.3) for i in ("avx2", "avx512_vnni", "amx")),
    *(Claim(model="sd15", bits="W4A8", isa=i, engine="openvino", speedup=2.0) for i in ("avx2", "avx512_vnni", "amx")),
    *(Claim(model="sd15", bits="W4A8", isa=i, engine="openvino", memory=1 / 3) for i in ("avx2", "avx512_vnni", "amx")),
)


@dataclass(frozen=True)
class Series:
    """What one engine's process gave.

    Attributes:
        rounds: latencies in ms of each turn.
        peak_mib: highest resident memory.
        load_ms: from nothing to ready.
    """

    rounds: tuple[tuple[float, ...], ...]
    peak_mib: float
    load_ms: float

    def to_json(self) -> dict[str, Any]:
        """Median, least and 90th percentile over all runs, the median of each round, and the rest."""
        every = [ms for turn in self.rounds for ms in turn]
        p50, p90 = (float(value) for value in np.percentile(every, [50, 90]))
        rounds = [float(np.median(turn)) for turn in self.rounds]
        ms = {"p50": p50, "min": min(every), "p90": p90, "rounds": rounds}
        return {"ms": ms, "peak_mib": self.peak_mib, "load_ms": self.load_ms}


def record_path(model: str, bits: int, work: Path, pipeline: Path | None = None, attention: str | None = None) -> Path:
    """The record in the work folder, with quantizers of attention for int8; made where it is not there."""
    import dq_deploy

    own: dict[str, Any] = {"attention": "int8"} if attention == "int8" else {}
    path = work / f"{model}-w{bits}a8{'-int8attention' if own else ''}.pt"
    if not path.is_file():
        subject = subject_of(model, pipeline)
        options = {**subject.options, "method": "minmax", "weight_bits": bits, "activation_bits": 8, **own}
        dq_deploy.save_record(dq_deploy.quantize(subject.denoiser, calibration=subject.source, **options), path)
    return path


def graph_path(record: Path, engine: str, work: Path) -> Path:
    """The ONNX file that one of `EXACT` runs; exported where this commit has not done it yet."""
    import dq_deploy

    library = engine.partition(" ")[0]
    path = work / f"{record.stem}-{library}-{commit()}.onnx"
    if not path.is_file():
        dq_deploy.export(dq_deploy.load_record(record), path, target=library)
    return path


def red_layers(program: Path, isa: str, threads: int, batch: int) -> list[str]:
    """Integer layers whose accumulators are not the exact product of their codes, with the number that differ."""
    import torch

    from dq_deploy.bench.clocks import feeds_for
    from dq_deploy.open_engine import open_engine

    torch.set_num_threads(threads)
    found = []
    with open_engine(program, isa=isa, threads=threads) as runner:
        _, layers = runner.observe(feeds_for(runner.inputs, batch, runner.manifest))
        for name, trace in layers.items():
            layer = runner.record.layers[name]
            for part, codes, got in zip(layer.parts, trace.codes, trace.accumulators, strict=True):
                wanted = exact_product(layer, part.q_weight(0), codes)
                wrong = int((wanted.reshape(got.shape) != got).sum())
                if wrong:
                    found.append(f"{name}: {wrong} of {got.size} accumulators")
    return found


def exact_product(layer: Any, weights: Any, codes: Any) -> Any:
    """The layer's product of centred codes and integer weights, int64 by float64."""
    import torch
    from torch.nn import functional as F

    x, w = (torch.from_numpy(np.ascontiguousarray(value, np.float64)) for value in (codes, weights))
    if layer.kind == "linear":
        return (x @ w.T).numpy().astype(np.int64)
    top, left, bottom, right = layer.padding
    padded = F.pad(x, (left, right, top, bottom))
    return F.conv2d(padded, w, stride=layer.stride, dilation=layer.dilation).numpy().astype(np.int64)


@dataclass
class Found:
    """What the engines of one table gave, by name, as it comes in.

    Attributes:
        series: times and memory.
        native_is: see `ratios`.
        fidelity: see `benchmarks.unets.fidelity`.
        precision: that a peer reports.
        not_run: why an engine was not.
        busy: how busy others kept the machine before each round.
    """

    series: dict[str, Series] = field(default_factory=dict)
    native_is: dict[str, dict[str, float]] = field(default_factory=dict)
    fidelity: dict[str, Any] = field(default_factory=dict)
    precision: dict[str, str] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    busy: list[float] = field(default_factory=list)

    def add(self, series: Mapping[str, Series]) -> None:
        """A group of engines that took turns, the native one among them."""
        self.native_is |= ratios(series)
        before = self.series.get(NATIVE)
        self.series |= series
        if before is not None:
            now = series[NATIVE]
            rounds, peak = before.rounds + now.rounds, max(before.peak_mib, now.peak_mib)
            self.series[NATIVE] = Series(rounds=rounds, peak_mib=peak, load_ms=before.load_ms)


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table: the model and what it runs on.

    Attributes:
        model: one of `BATCHES`.
        bits: of the weights.
        cpu: that the engines are given.
        threads: of a call.
        batch: samples of a call.
        attention: of the native engine, see `dq_deploy.open_engine`; None is its default.
    """

    model: str
    bits: int
    cpu: Cpu
    threads: int
    batch: int
    attention: str | None = None

    @property
    def key(self) -> dict[str, Any]:
        """What tells it from other rows."""
        own = {"model": self.model, "bits": f"W{self.bits}A8", "isa": self.cpu.isa}
        hidden: dict[str, Any] = {"bf16": False} if self.cpu.hide_bf16 else {}
        hidden |= {"attention": self.attention} if self.attention else {}
        return {**own, "threads": self.threads, "batch": self.batch, **hidden}

    @property
    def title(self) -> str:
        """The same in words."""
        hidden = ", libraries without bfloat16 and AMX" if self.cpu.hide_bf16 else ""
        hidden += f", our attention in {self.attention}" if self.attention else ""
        return f"{self.model} W{self.bits}A8, batch {self.batch}, {self.cpu.isa}{hidden}, threads {self.threads}"


def measure_group(
    table: Table, names: Sequence[str], record: Path, arguments: argparse.Namespace, found: Found
) -> None:
    """The native engine and some others, taking turns; what was found goes into `found`."""
    folder = ready_folder(table.model, arguments.work, arguments.terrain)
    cpu, threads = table.cpu, table.threads
    program = program_path(record, cpu.isa, arguments.work)
    with contextlib.ExitStack() as stack:
        running: dict[str, Any] = {NATIVE: stack.enter_context(start_native(program, cpu, threads, table.attention))}
        for name in names:
            try:
                if name in EXACT:
                    graph = graph_path(record, name, arguments.work)
                    running[name] = stack.enter_context(start_exact(name, graph, cpu, threads))
                    continue
                settings = PeerSettings(engine=name, folder=str(folder), batch=table.batch, threads=threads)
                peer = start_peer(name, folder, cpu, settings, arguments.environments)
                running[name] = stack.enter_context(peer)
                found.precision[name] = peer.precision
            except DqError as error:
                found.not_run[name] = str(error)
        series, busy = take_turns(running, table.batch, arguments.rounds, arguments.seconds)
        found.add(series)
        found.busy += busy
        for name, worker in running.items():
            if isinstance(worker, PeerProcess):
                found.fidelity[name] = fidelity.of_peer(worker, folder)


def own_fidelity(table: Table, record: Path, found: Found, arguments: argparse.Namespace) -> None:
    """Of the native engine and of our graphs, in this process."""
    folder = ready_folder(table.model, arguments.work, arguments.terrain)
    for name in (NATIVE, *EXACT):
        if name in found.series:
            isa, engine = table.cpu.isa, name.partition(" ")[0]
            native, path = {"isa": isa, "attention": table.attention}, program_path(record, isa, arguments.work)
            if name != NATIVE:
                native, path = {}, graph_path(record, name, arguments.work)
            found.fidelity[name] = fidelity.of_file(path, engine, folder, table.batch, table.threads, **native)


def take_turns(
    running: Mapping[str, Any], batch: int, rounds: int, seconds: float, sizes: Mapping[str, int] | None = None
) -> tuple[dict[str, Series], list[float]]:
    """Every round is a turn of each engine; two runs of a turn are not counted, at least three are.

    Args:
        running: an open process of each engine, by name.
        batch: samples of a call.
        rounds: turns of each engine.
        seconds: of a turn.
        sizes: of the axes that vary, for our own engines; a peer has its inputs in a file.

    Returns:
        Series by name, and how busy others kept the machine before each round.
    """
    turns: dict[str, list[tuple[float, ...]]] = {name: [] for name in running}
    peaks: dict[str, float] = {}
    busy = []
    for _ in range(rounds):
        busy.append(quiet.others_busy())
        for name, worker in running.items():
            time.sleep(0.05)  # the threads of the one before end their spinning
            answer = worker.time(batch=batch, warmup=2, runs=3, seconds=seconds, clock="host", sizes=sizes)
            turns[name].append(answer.latency_ms)
            peaks[name] = answer.peak_mib
    series = {
        name: Series(rounds=tuple(turns[name]), peak_mib=peaks[name], load_ms=worker.load_ms)
        for name, worker in running.items()
    }
    return series, busy


def ratios(series: Mapping[str, Series]) -> dict[str, dict[str, float]]:
    """The native engine against each other one.

    Returns:
        By engine `speedup`, the median over rounds of its median over ours; `least` and `most` of the rounds; and
        `memory`, our peak over its.
    """
    own = series[NATIVE].to_json()
    found = {}
    for name, other in series.items():
        if name != NATIVE:
            theirs = other.to_json()
            each = [b / a for a, b in zip(own["ms"]["rounds"], theirs["ms"]["rounds"], strict=True)]
            memory = own["peak_mib"] / theirs["peak_mib"]
            found[name] = {"speedup": float(np.median(each)), "least": min(each), "most": max(each), "memory": memory}
    return found


def verdicts(key: Mapping[str, Any], compared: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The claims about this row, in words; none where there is none."""
    lines = []
    for claim in CLAIMS:
        own = (claim.model, claim.bits, claim.isa, 2, BATCHES[claim.model])
        row = (key["model"], key["bits"], key["isa"], key["threads"], key["batch"])
        if own != row or claim.engine not in compared:
            continue
        got = compared[claim.engine]
        if claim.speedup is not None:
            word = "met" if got["speedup"] >= claim.speedup else "NOT MET"
            lines.append(f"{word}: {got['speedup']:.2f}x {claim.engine}, claimed {claim.speedup:.1f}x")
        if claim.memory is not None:
            word = "met" if got["memory"] < claim.memory else "NOT MET"
            lines.append(
                f"{word}: {got['memory']:.2f} of the memory of {claim.engine}, claimed under {claim.memory:.2f}"
            )
    return lines


def table(
    series: Mapping[str, Series],
    compared: Mapping[str, Mapping[str, float]],
    near: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[str]:
    """Lines of text, one an engine.

    Args:
        series: of `take_turns`.
        compared: of `ratios`.
        near: PSNR by engine, where it was measured.
    """
    head = f"{'engine':24}{'p50 ms':>9}{'min ms':>9}{'peak MiB':>10}{'load ms':>9}"
    lines = [head + (f"{'PSNR dB':>9}" if near else "") + f"{'native is':>11}{'of rounds':>16}"]
    for name, own in series.items():
        values = own.to_json()
        text = f"{name:24}{values['ms']['p50']:9.1f}{values['ms']['min']:9.1f}"
        text += f"{values['peak_mib']:10.0f}{values['load_ms']:9.0f}"
        if near:
            text += f"{near[name]['psnr_db']:9.1f}" if name in near else f"{'':9}"
        if name in compared:
            other = compared[name]
            span = f"{other['least']:.2f} to {other['most']:.2f}"
            text += f"{other['speedup']:10.2f}x{span:>16}"
        lines.append(text)
    return lines


def measure(asked: Table, arguments: argparse.Namespace) -> int:
    """One table; the exit code."""
    from dq_deploy.bench.environment import describe_environment

    key, threads = asked.key, asked.threads
    if not arguments.again and json.dumps(key, sort_keys=True) in done_rows(arguments.results):
        return 0
    record = record_path(asked.model, asked.bits, arguments.work, arguments.terrain, asked.attention)
    print(f"\n{asked.title}", flush=True)
    row: dict[str, Any] = {"key": key, "commit": commit(), "environment": describe_environment(threads=threads)}
    red = red_layers(program_path(record, asked.cpu.isa, arguments.work), asked.cpu.isa, threads, asked.batch)
    if red:
        print("RED: " + "; ".join(red), flush=True)
        row["red"] = red
    else:
        found, size = Found(), arguments.at_once or len(arguments.engine)
        for start in range(0, len(arguments.engine), size):
            measure_group(asked, arguments.engine[start : start + size], record, arguments, found)
        own_fidelity(asked, record, found, arguments)
        claims = verdicts(key, found.native_is)
        lines = table(found.series, found.native_is, found.fidelity)
        lines += [f"{name}: computes in {said}" for name, said in found.precision.items()]
        lines += [f"{name}: not run: {why}" for name, why in found.not_run.items()]
        print("\n".join([*lines, *claims, *filter(None, [quiet.remark(found.busy)])]), flush=True)
        row |= {"engines": {name: own.to_json() for name, own in found.series.items()}, "native_is": found.native_is}
        row |= {"fidelity": found.fidelity, "precision": found.precision, "not_run": found.not_run, "claims": claims}
        row |= {"rounds": arguments.rounds, "others_busy": float(np.mean(found.busy))}
        row["goes_first"] = quiet.goes_first()
    with arguments.results.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, sort_keys=True) + "\n")
    return RED if red else 0


def done_rows(results: Path) -> set[str]:
    """Keys of the green rows that this commit has in the results."""
    if not results.is_file():
        return set()
    rows: Sequence[Any] = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    name = commit()
    return {json.dumps(row["key"], sort_keys=True) for row in rows if row["commit"] == name and "red" not in row}


class Options(argparse.ArgumentParser):
    """Options whose mistakes are one line."""

    def error(self, message: str) -> NoReturn:
        """Say it and end with exit code 2."""
        self.exit(2, f"error: {message}; --help lists the options\n")


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    from dq_kernels.cpu.library import known_isas

    temporary = Path(tempfile.gettempdir())
    engines = "; ".join(f"{name!r}: {words_of(name)}" for name in ENGINES)
    parser = Options(description=(__doc__ or "").splitlines()[0], epilog=f"Engines. {engines}.", allow_abbrev=False)
    add = parser.add_argument
    add("--model", action="append", choices=tuple(BATCHES), help="repeatable; demo and cifar by default")
    add("--weights", type=int, action="append", choices=(4, 8), help="bits, repeatable; both by default")
    add("--isa", action="append", choices=known_isas(), help="repeatable; avx2 and the best by default")
    add("--hide-bf16", action="store_true", help="with avx512_vnni: libraries as on a CPU without bfloat16 and AMX")
    add("--attention", choices=ATTENTION, help="what our attention computes in; its default by default")
    add("--threads", type=int, action="append", choices=(1, 2), help="repeatable; both by default")
    add("--batch", type=int, action="append", choices=PEER_BATCHES, help="repeatable; that of the model by default")
    add("--engine", action="append", choices=ENGINES, help="beside the native one, repeatable; all by default")
    add("--at-once", type=int, help="so many engines are open beside the native one; all by default")
    add("--rounds", type=int, default=9)
    add("--seconds", type=float, default=0.5, help="of a turn")
    add("--quick", action="store_true", help="three short rounds, for a look")
    add("--again", action="store_true", help="measure what this commit has in the results already")
    add("--terrain", type=Path, help="pipeline of examples/terrain.py, for the model terrain")
    add("--work", type=Path, default=temporary / "dq-unets", help="folder of records and graphs")
    add("--environments", type=Path, help="folder of the peers' environments; below --work by default")
    add("--machine", type=Path, default=temporary / "dq-avx2-machine", help="folder of patched copies")
    add("--results", type=Path, default=ROOT / "results" / "unets.jsonl")
    arguments = parser.parse_args(words)
    arguments.model = arguments.model or ["demo", "cifar"]
    arguments.isa = arguments.isa or list(dict.fromkeys(["avx2", known_isas()[-1]]))
    arguments.weights, arguments.threads = arguments.weights or [4, 8], arguments.threads or [1, 2]
    arguments.engine = list(dict.fromkeys(arguments.engine or ENGINES))
    arguments.environments = arguments.environments or arguments.work / "environments"
    if arguments.hide_bf16 and arguments.isa != ["avx512_vnni"]:
        parser.error(f"--hide-bf16 was given with --isa {', '.join(arguments.isa)}, expected --isa avx512_vnni alone")
    if arguments.quick:
        arguments.rounds, arguments.seconds = 3, 0.1
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """Measure what the options ask for; 3 where an engine is red."""
    given = parsed(words)
    given.work.mkdir(parents=True, exist_ok=True)
    code = 0
    for model, bits, isa, threads in itertools.product(given.model, given.weights, given.isa, given.threads):
        cpu = Cpu(isa=isa, hide_bf16=given.hide_bf16, folder=given.machine)
        for batch in given.batch or [BATCHES[model]]:
            try:
                where = {"cpu": cpu, "threads": threads, "batch": batch, "attention": given.attention}
                asked = Table(model=model, bits=bits, **where)
                code = max(code, measure(asked, given))
            except (DqError, MachineError) as error:
                print(f"error: {error}", file=sys.stderr)
                return getattr(error, "exit_code", 2)
    return code


if __name__ == "__main__":
    sys.exit(main())
