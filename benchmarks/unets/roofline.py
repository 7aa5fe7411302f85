"""How far the native engine is from what the machine can do: work, bytes, limit and time by class of layer.

    python -m benchmarks.unets.roofline --model cifar --model demo --threads 2
    python -m benchmarks.unets.roofline --page docs/roofline.md    # the page from the rows that are there

For each operation of a step the work and the bytes are counted from the program that runs: products and sums of the
multiplications, and what it reads and writes once. Its limit is the longer of two times, as in a roofline (Williams,
Waterman and Patterson, doi 10.1145/1498765.1498785): the work at the rate of the instruction that does it, and the
bytes at the rate of a copy that touches as many. Both rates are measured in the same run (machine/peaks.py). Weights
are read once a step, so their rate is that of a copy as large as all weights together. The time is the least of many
steps for each operation; a class of layers is the sum of its operations.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import peaks, quiet
from benchmarks.machine.commit import commit
from benchmarks.unets.run import BATCHES, record_path
from dq_deploy.engines.options import ATTENTION
from dq_deploy.native.program.program import Op, Program, View

ROOT = Path(__file__).resolve().parents[1]
TITLES = {
    "3x3": "convolutions of several taps, integer",
    "1x1": "1x1 convolutions, integer",
    "linear": "linear layers, integer",
    "attention": "attention's two products, float32",
    "attention bf16": "attention's two products, bf16",
    "attention int8": "attention's two products, int8",
    "norm": "norms with activation and codes",
    "codes": "other codes (quantize, GEGLU)",
    "float": "float layers and elementwise operations",
    "numpy": "operations in numpy",
}
"""Classes of operations in the order of the page."""
KINDS = {
    "int_linear": "linear",
    "attention": "attention",
    "group_norm_silu_quantize": "norm",
    "layer_norm_quantize": "norm",
    "quantize": "codes",
    "geglu_quantize": "codes",
    "host": "numpy",
}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one operation has to do.

    Attributes:
        work: products and sums of its multiplications; 0 where others decide.
        weights: bytes of parameters and packed weights it reads.
        values: bytes of activations it reads and writes.
        limit_us: microseconds that it takes at least.
        bound: `work` or `bytes`, whichever takes longer.
    """

    work: int
    weights: int
    values: int
    limit_us: float
    bound: str


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class of operations in a step.

    Attributes:
        name: key of `TITLES`.
        operations: how many.
        gop: 10^9 products and sums.
        mib: bytes read and written, in MiB.
        limit_ms: that they take at least.
        by_bytes: share of that limit that bytes decide.
        ms: that they took.
    """

    name: str
    operations: int
    gop: float
    mib: float
    limit_ms: float
    by_bytes: float
    ms: float


def class_of(op: Op, layers: Mapping[str, Any], attention: str = "float32") -> str:
    """Key of `TITLES`; `attention` is what the engine runs its products in."""
    if op.kind == "attention":
        return "attention" if type_of(op, attention) == "float32" else f"attention {attention}"
    if op.kind == "int_conv2d":
        return "1x1" if layers[op.attributes["layer"]].kernel == (1, 1) else "3x3"
    return KINDS.get(op.kind, "float")


def type_of(op: Op, attention: str) -> str:
    """What one attention runs in: without quantizers int8 is float32."""
    return "float32" if attention == "int8" and "name" not in op.attributes else attention


def attention_loop(isa: str, kind: str) -> str:
    """The instruction that bounds attention's products."""
    if kind == "int8":
        return peaks.CODES[isa]
    return peaks.BFLOATS.get(isa, peaks.FLOATS[isa]) if kind == "bf16" else peaks.FLOATS[isa]


def work_of(op: Op, layers: Mapping[str, Any]) -> int:
    """Products and sums of an operation's multiplications."""
    out = {role: int(np.prod(view.sizes)) for role, view in op.writes.items()}
    if op.kind in ("int_linear", "int_conv2d"):
        layer = layers[op.attributes["layer"]]
        width = len(layer.parts[op.attributes["part"]].pre)
        return 2 * out["y"] * (int(width) // layer.groups) * int(math.prod(layer.kernel))
    if op.kind == "attention":
        *_, rows, width = op.reads["q"].sizes
        return 4 * int(np.prod(op.reads["q"].sizes[:-2])) * int(rows) * int(op.reads["k"].sizes[-2]) * int(width)
    if op.kind in ("float_linear", "float_conv2d"):
        weights = op.reads["weights"].sizes
        return 2 * out["y"] * int(np.prod(weights)) // weights[0]
    return 0


def bytes_of(op: Op, program: Program, skipped: Collection[int | str]) -> tuple[int, int]:
    """Bytes of parameters, and of values, that an operation reads or writes; packed integer weights are not in it.

    Args:
        op: of the program.
        program: of one batch size.
        skipped: buffers that nothing writes, because what makes and what reads them is done in one.
    """

    def size(view: View) -> int:
        item = 4 if isinstance(view.buffer, str) else program.buffers[view.buffer].itemsize
        return int(np.prod([n for n, stride in zip(view.sizes, view.strides, strict=True) if stride])) * item

    parameters = [view for view in op.reads.values() if isinstance(view.buffer, str)]
    values = [view for view in op.views() if not isinstance(view.buffer, str) and view.buffer not in skipped]
    return sum(map(size, parameters)), sum(map(size, values))


def costs(executor: Any, batch: int, isa: str, threads: int, sizes: Any = None) -> list[Cost]:
    """Of every operation of a step, in order; `sizes` are of the axes that vary, by default the engine's own."""
    plan, layers = executor.plan(batch, sizes), executor.record.layers
    program, inside = plan.program, [i for found, _ in plan.at_once.values() for i in range(found.first, found.last)]
    skipped = {view.buffer for i in inside for view in program.ops[i].writes.values()}
    packed = {key: own.packed.nbytes if own.packed is not None else 0 for key, own in executor.constants.items()}
    counted = []
    for op in program.ops:
        parameters, values = bytes_of(op, program, skipped)
        if op.kind in ("int_linear", "int_conv2d"):
            parameters += packed[op.attributes["layer"], op.attributes["part"]]
        counted.append((op, work_of(op, layers), parameters, values))
    weight_rate = peaks.copy_peak(sum(parameters for *_, parameters, _ in counted), threads)
    found = []
    for op, work, parameters, values in counted:
        by_work = 0.0
        if work:
            integer = op.kind in ("int_linear", "int_conv2d")
            bits = layers[op.attributes["layer"]].weight_bits if integer else 0
            rate = peaks.product_peak(isa, 4 if bits <= 4 else 8, threads) if integer else None
            kind = type_of(op, executor.attention) if op.kind == "attention" else "float32"
            by_work = work / (rate or peaks.operations(attention_loop(isa, kind), threads)) / 1e3
        by_bytes = (parameters / weight_rate + values / peaks.copy_peak(max(values, 1), threads)) / 1e3
        bound = "work" if by_work >= by_bytes else "bytes"
        found.append(Cost(work=work, weights=parameters, values=values, limit_us=max(by_work, by_bytes), bound=bound))
    return found


def rows_of(executor: Any, each: Sequence[Cost], spent: Sequence[float], batch: int) -> Iterator[ClassRow]:
    """The classes that a model has."""
    ops, layers = executor.plan(batch).program.ops, executor.record.layers
    names = [class_of(op, layers, executor.attention) for op in ops]
    for name in TITLES:
        mine = [i for i, other in enumerate(names) if other == name]
        if not mine:
            continue
        limit = sum(each[i].limit_us for i in mine)
        yield ClassRow(
            name=name,
            operations=len(mine),
            gop=sum(each[i].work for i in mine) / 1e9,
            mib=sum(each[i].weights + each[i].values for i in mine) / 2**20,
            limit_ms=limit / 1e3,
            by_bytes=sum(each[i].limit_us for i in mine if each[i].bound == "bytes") / limit if limit else 0.0,
            ms=sum(spent[i] for i in mine) / 1e3,
        )


def in_order(ops: Sequence[Op], timed: Iterator[tuple[Op, float]]) -> Iterator[tuple[Op, float]]:
    """The same, once it is sure that they are the program's operations in its order."""
    for op, (other, spent) in zip(ops, timed, strict=True):
        if op is not other:
            raise AssertionError(f"{other.kind} was timed where the program has {op.kind}")
        yield op, spent


def measure(
    model: str, record: Path, bits: int, isa: str, threads: int, repeats: int, attention: str = "float32"
) -> dict[str, Any]:
    """One model: its rows, and a whole step without a clock between the operations."""
    from time import perf_counter

    from dq_deploy.bench.clocks import feeds_for
    from dq_deploy.bench.environment import describe_environment
    from dq_deploy.native.runner import NativeRunner

    batch = BATCHES[model]
    with NativeRunner(record, isa=isa, threads=threads, attention=attention) as runner:
        feeds = feeds_for(runner.inputs, batch, runner.manifest)
        runner.run(feeds)
        ops = runner.executor.plan(batch).program.ops
        busy, turns, steps = [quiet.others_busy()], [], []
        for _ in range(repeats):
            turns.append([spent for _, spent in in_order(ops, runner.executor.timed(feeds))])
            begin = perf_counter()
            runner.run(feeds)
            steps.append((perf_counter() - begin) * 1e3)
        busy.append(quiet.others_busy())
        each = costs(runner.executor, batch, isa, threads)
        rows = list(rows_of(runner.executor, each, np.min(turns, axis=0), batch))
    key = {"model": model, "bits": f"W{bits}A8", "isa": isa, "threads": threads, "batch": batch}
    if attention != "float32":
        key["attention"] = attention
    loops = {peaks.PRODUCTS[isa, 8], peaks.FLOATS[isa], attention_loop(isa, attention)}
    return {
        "key": key,
        "commit": commit(),
        "environment": describe_environment(threads=threads),
        "peaks": {loop: peaks.operations(loop, threads) for loop in loops}
        | {"copy of 2^28 bytes, GB/s": peaks.copy(28, threads)},
        "classes": [asdict(row) for row in rows],
        "step_ms": min(steps),
        "others_busy": float(np.mean(busy)),
    }


def lines_of(row: Mapping[str, Any]) -> list[str]:
    """A Markdown table of one row of the results."""
    classes = [ClassRow(**item) for item in row["classes"]]
    total = ClassRow(
        name="all",
        operations=sum(c.operations for c in classes),
        gop=sum(c.gop for c in classes),
        mib=sum(c.mib for c in classes),
        limit_ms=sum(c.limit_ms for c in classes),
        by_bytes=sum(c.by_bytes * c.limit_ms for c in classes) / sum(c.limit_ms for c in classes),
        ms=sum(c.ms for c in classes),
    )
    lines = [
        "| class | operations | Gop | MiB | limit, ms | of it by bytes | measured, ms | limit reached |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for c in (*classes, total):
        title = "**all**" if c is total else TITLES[c.name]
        lines.append(
            f"| {title} | {c.operations} | {c.gop:.2f} | {c.mib:.1f} | {c.limit_ms:.2f} | {c.by_bytes:.0%} | "
            f"{c.ms:.2f} | {c.limit_ms / c.ms:.0%} |"
        )
    return lines


HEAD = """# How far from the limit

What a step of the native engine has to do, what this machine can do, and what it took.
`python -m benchmarks.unets.roofline` measures it and writes this page; rows in `benchmarks/results/roofline.jsonl`.

- **Gop** are 10^9 products and sums of multiplications.
- **Limit** is for each operation the longer of two times: its work at the rate of the instruction that does it, and
  its bytes at the rate of a copy that touches as many. Both rates were measured in the same run, for as many threads.
  Weights are read once a step, at the rate of a copy as large as all of them.
- Of norms, codes and elementwise operations only the bytes are counted. A norm reads its values twice and takes an
  exponential of each, so no kernel comes near that limit.
- **Measured** is the sum over operations of the least time of each. A whole step, without a clock between the
  operations, stands above each table. A layer that makes the codes of its result itself has their time.
- The rate of AMX's instruction is measured on bytes that differ: on zeros alone the clock is higher.
"""


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The page of the last row for each key."""
    last = {json.dumps(row["key"], sort_keys=True): row for row in rows}
    parts = [HEAD]
    for row in last.values():
        key, own = row["key"], row["environment"]
        rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in sorted(row["peaks"].items()))
        busy, kind = row["others_busy"], f", attention {key['attention']}" if "attention" in key else ""
        shared = f" Other processes kept {busy:.1f} CPUs busy meanwhile, so times are too long." if busy > 0.1 else ""
        parts.append(
            f"## {key['model']}, {key['bits']}, batch {key['batch']}, {key['isa']}, threads {key['threads']}{kind}\n\n"
            f"{own['cpu']}, {own['date'][:10]}, commit {row['commit']}. A whole step: {row['step_ms']:.2f} ms. "
            f"Rates in 10^9 a second: {rates}.{shared}\n\n" + "\n".join(lines_of(row))
        )
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main(words: Sequence[str] | None = None) -> int:
    """Measure what the options ask for, and write the page."""
    from dq_kernels.cpu.library import known_isas

    temporary = Path(tempfile.gettempdir())
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", choices=tuple(BATCHES), default=[], help="repeatable")
    parser.add_argument(
        "--weights", type=int, action="append", choices=(4, 8), help="bits, repeatable; both by default"
    )
    parser.add_argument("--isa", action="append", choices=known_isas()[1:], help="repeatable; the best by default")
    parser.add_argument("--attention", choices=ATTENTION, default="float32", help="what its products run in")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=30, help="steps")
    parser.add_argument("--record", type=Path, help="of the model, in place of one that is made in the work folder")
    parser.add_argument("--work", type=Path, default=temporary / "dq-unets", help="folder of records")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "roofline.jsonl")
    parser.add_argument("--page", type=Path, help="the page to write, of all rows that the results have")
    given = parser.parse_args(words)
    given.work.mkdir(parents=True, exist_ok=True)
    for model in given.model:
        for bits in given.weights or (4, 8):
            record = given.record or record_path(model, bits, given.work, attention=given.attention)
            for isa in given.isa or known_isas()[-1:]:
                row = measure(model, record, bits, isa, given.threads, given.repeats, given.attention)
                print("\n".join([json.dumps(row["key"]), *lines_of(row), f"step {row['step_ms']:.2f} ms"]), flush=True)
                with given.results.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(row, sort_keys=True) + "\n")
    if given.page is not None:
        lines = given.results.read_text(encoding="utf-8").splitlines()
        given.page.write_text(page([json.loads(line) for line in lines]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
