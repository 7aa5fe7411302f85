"""`dq-bench`: how fast an engine runs, next to the float graph on a library, or a plan next to a float16 plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dq_deploy.cli.frame import (
    check_outputs,
    in_flags_throughout,
    numbers_from_text,
    progress,
    refuse,
    run,
    write_json,
)
from dq_deploy.cli.frame.attention import Attention
from dq_deploy.cli.frame.hash_check import HashCheck
from dq_deploy.cli.frame.paths import check_picture
from dq_deploy.cli.frame.sizes import sizes_from_options

if TYPE_CHECKING:
    from dq_deploy.bench import BenchOptions, BenchReport


def bench(
    engine: Annotated[Path, typer.Option(help="Exported ONNX file or plan with its manifest, or a record.")],
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also time the float graph, in turns; for a plan one built in float16.")
    ] = False,
    ckpt: Annotated[
        Path | None, typer.Option(help="Quantized model: gives the float graph its weights, else random.")
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes; the first one is what is compared.")] = "1,4,8",
    rounds: Annotated[int, typer.Option(help="Rounds; at least 7 with --baseline.")] = 7,
    runs: Annotated[int, typer.Option(help="Least number of timed runs of one engine in one round.")] = 10,
    warmup: Annotated[int, typer.Option(help="Runs before them that are not counted.")] = 3,
    threads: Annotated[int | None, typer.Option(help="Threads of one run; default: the engine's choice.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Of the native engine: cpu or cuda; by default a GPU that can run it.")
    ] = None,
    isa: Annotated[str | None, typer.Option(help="Instruction set of the native engine; default: the best.")] = None,
    attention: Attention = None,
    size: Annotated[
        list[str] | None,
        typer.Option("--size", help="NAME=N, may be repeated: time at this size, as height=16; default: the model's."),
    ] = None,
    finite_check: Annotated[
        bool, typer.Option("--finite-check/--no-finite-check", help="Look for NaN and infinity, as in use.")
    ] = True,
    hash_check: HashCheck = True,
    json: Annotated[Path | None, typer.Option(help="Also write the report as JSON.")] = None,
    png: Annotated[Path | None, typer.Option(help="Also draw a chart; needs dq-deploy[report].")] = None,
) -> None:
    """Time an engine; with --baseline against the float graph of the same tracer on the same engine.

    A record runs on this project's own kernels, its float graph on ONNX Runtime.

    A plan is timed by CUDA events, with and without a CUDA graph, and against a plan built in float16.
    """
    batches = numbers_from_text(batch, "--batch", low=1)
    why = f"--ckpt {ckpt} was given without --baseline, which alone has it; leave it out"
    refuse(ckpt is not None and not baseline, why)
    if png is not None:
        check_picture(png, "--png")
    check_outputs(json, png, inputs=(engine, ckpt))
    from dq_deploy.bench import BenchOptions
    from dq_deploy.bench.chart import require_matplotlib, write_chart
    from dq_deploy.cli.text.bench_report import show_bench

    if png is not None:
        require_matplotlib()
    options = BenchOptions(
        batches=batches,
        rounds=rounds,
        runs=runs,
        warmup=warmup,
        threads=threads,
        finite_check=finite_check,
        isa=isa,
        device=device,
        attention=attention,
        sizes=sizes_from_options(size),
        hash_check=hash_check,
    )
    report = in_flags_throughout(_measured(engine, ckpt, options, baseline=baseline))
    if json is not None:
        write_json(json, report.to_json())
    if png is not None:
        write_chart(report, png)
    show_bench(report)


def _measured(engine: Path, ckpt: Path | None, options: BenchOptions, *, baseline: bool) -> BenchReport:
    from dq_deploy.bench import benchmark
    from dq_deploy.manifest.plan import is_plan
    from dq_deploy.open_engine import open_engine
    from dq_deploy.record import load_record
    from dq_deploy.verify.share import attest

    if is_plan(engine):  # a missing driver is said before a record is read and a baseline built
        open_engine(engine, hash_check=options.hash_check).close()
    record = None if ckpt is None else load_record(ckpt, hash_check=options.hash_check)
    attested = attest(engine, device=options.device, attention=options.attention, hash_check=options.hash_check)
    with progress("timing") as advance:
        return benchmark(
            engine,
            baseline=baseline,
            record=record,
            options=options,
            integer_mac_share=None if attested is None else attested.integer_mac_share,
            on_progress=advance,
        )


def main() -> None:
    """Entry of the console script."""
    run(bench)


if __name__ == "__main__":
    main()
