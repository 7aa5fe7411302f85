"""`dq-verify`: prove that an engine computes what the checkpoint says, and in integers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dq_deploy.cli.frame import check_outputs, console, run, write_json
from dq_deploy.errors import GuaranteeError, OptionError

if TYPE_CHECKING:
    from dq_deploy.verify import Report
    from dq_deploy.verify.plan.report import PlanReport


_LONGEST = 220
"""Characters of a finding in the line that a command ends with; the whole of it stands in the table and in --json."""

_TOGETHER = 205
"""Of the two kinds of finding where both stand in that line."""

_SHORTEST = 65
"""Of the first of them, at least."""


def verify(
    engine: Annotated[
        Path, typer.Option(help="Engine: .onnx by dq-export, a plan by dq-build, or a record, which runs as it is.")
    ],
    ckpt: Annotated[
        Path | None,
        typer.Option(help="Quantized model it was made from, .pt or .safetensors; a plan and a record need none."),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Exit 3 on any difference and on anything not compared.")
    ] = False,
    require_integer: Annotated[
        float | None, typer.Option(help="Exit 3 where the integer share of all MACs is below this, as 0.95.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one self-contained HTML page.")] = None,
    steps_checked: Annotated[
        int, typer.Option(help="Step buckets with inputs of their own; every bucket is met at least once.")
    ] = 5,
    inputs: Annotated[int, typer.Option(help="Inputs at each of them.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the inputs.")] = 0,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            "--float-model",
            help="Float model folder it was quantized from: adds simulation against float, and serves for the "
            "quantization error in place of the folder that the record names.",
        ),
    ] = None,
    quantization_error: Annotated[
        bool,
        typer.Option(
            "--quantization-error/--no-quantization-error",
            help="Measure what quantization costs by layer and step, which decides nothing.",
        ),
    ] = True,
    runtime: Annotated[
        str | None, typer.Option(help="onnxruntime, openvino or native; by default the engine's own.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of one run; by default the engine's choice.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Of the native engine: cpu or cuda; by default a GPU that can run it.")
    ] = None,
    isa: Annotated[
        str | None,
        typer.Option(help="Instruction set of the native engine, or all for each this CPU has; by default the best."),
    ] = None,
    hash_check: Annotated[
        bool,
        typer.Option(
            "--hash-check/--no-hash-check",
            help="Refuse a --ckpt whose content is not what was written. An engine is compared whatever its hash.",
        ),
    ] = True,
) -> None:
    """Compare an engine with what its record makes, and every layer in it with the numerics while it runs.

    The record is exported again and compared node by node and constant by constant; a difference exits 3.

    A record given as the engine runs on this project's own kernels.

    A plan is read, not run: what each layer was asked to be, what it became, what stands alone.
    """
    _check_options(require_integer, steps_checked, inputs, seed, threads)
    check_outputs(json, html, inputs=(engine, ckpt, model))
    from dq_deploy.manifest.plan import is_plan
    from dq_deploy.open_engine import RECORD_SUFFIXES
    from dq_deploy.record import load_record

    if engine.suffix in RECORD_SUFFIXES:
        ckpt = ckpt or engine
    elif is_plan(engine):
        _refuse_for_plans(
            {"--model": model, "--runtime": runtime, "--threads": threads, "--isa": isa, "--device": device}
        )
        _verify_plan(engine, ckpt, exact=exact, require_integer=require_integer, json=json, html=html)
        return
    if ckpt is None:
        raise OptionError(f"--engine {engine} is compared with its quantized model; give it as --ckpt model.pt")
    from dq_deploy.verify import verify as prove
    from dq_deploy.verify.report.values import print_report

    record = load_record(ckpt, hash_check=hash_check)
    denoiser = None
    if model is not None:
        from dq_deploy.models import load_model

        denoiser = load_model(model)
    report = prove(
        record,
        engine,
        model=denoiser,
        engine=runtime,
        steps=steps_checked,
        inputs=inputs,
        seed=seed,
        threads=threads,
        isa=isa,
        device=device,
        quantization_error=quantization_error,
        progress=_progress,
    )
    if json is not None:
        write_json(json, report.to_json())
    if html is not None:
        from dq_deploy.artifacts import write_text_atomic
        from dq_deploy.verify.report.html import html_of_report

        write_text_atomic(html, html_of_report(report))
    print_report(report, console())
    refuse(report, exact=exact, require_integer=require_integer)


def _verify_plan(
    engine: Path,
    ckpt: Path | None,
    *,
    exact: bool,
    require_integer: float | None,
    json: Path | None,
    html: Path | None,
) -> None:
    from dq_deploy.record import load_record
    from dq_deploy.verify.plan.report import print_plan_report, verify_plan

    record = None if ckpt is None else load_record(ckpt)
    report = verify_plan(engine, record=record, compare=exact, progress=_progress)
    if json is not None:
        write_json(json, report.to_json())
    if html is not None:
        from dq_deploy.artifacts import write_text_atomic
        from dq_deploy.verify.report.plan_html import html_of_plan

        write_text_atomic(html, html_of_plan(report))
    print_plan_report(report, console())
    refuse(report, exact=exact, require_integer=require_integer)


def _refuse_for_plans(options: dict[str, object]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise OptionError(f"{', '.join(given)} does not go with a plan, which is read and not run; leave it out")


def refuse(report: Report | PlanReport, *, exact: bool, require_integer: float | None) -> None:
    """Raise where a demanded guarantee does not hold.

    Raises:
        GuaranteeError: naming the first layer, step and coordinate, or the layers that are not integer.
    """
    from dq_deploy.verify.plan.report import PlanReport

    problems = []
    if isinstance(report, PlanReport):
        if exact and report.failures:
            problems.append(report.comparison)
    else:
        # both in words where both hold: what runs is wrong because the file is
        runs = report.run_failures if exact else ()
        room = _LONGEST
        if report.file_differences:
            room = max(_TOGETHER - len(runs[0]), _SHORTEST) if runs else _LONGEST
            problems.append(_counted("engine is not what its record makes", report.file_differences, room))
            room = _TOGETHER - room
        if runs:
            problems.append(_counted("engine is not exact", runs, room))
    if require_integer is not None and report.integer_mac_share < require_integer:
        largest = sorted(report.float_layers, key=lambda row: -row["macs"])[:3]
        named = "; ".join(
            f"{row['name']} ({row['macs'] / report.macs['of_all']:.1%}): {row['reason']}" for row in largest
        )
        attention = report.macs["attention"] / report.macs["of_all"]
        named += f"{'; ' if named else ''}attention products ({attention:.1%}): always float" if attention else ""
        problems.insert(
            0,
            f"integer share is {report.integer_mac_share:.4f} of all MACs, required {require_integer:g}; "
            f"not integer: {named}",
        )
    if problems:
        raise GuaranteeError("; ".join(problems))


def _counted(what: str, found: Sequence[str], room: int = _LONGEST) -> str:
    """The first of some findings, shortened to stay on one line, and how many more there are."""
    more = len(found) - 1
    text = found[0] if len(found[0]) <= room else f"{found[0][: room - 3]}..."
    return f"{what}: {text}" + (f" (and {more} more)" if more else "")


def _check_options(
    require_integer: float | None, steps_checked: int, inputs: int, seed: int, threads: int | None
) -> None:
    if require_integer is not None and not 0 <= require_integer <= 1:
        raise OptionError(f"--require-integer got {require_integer:g}, expected a share from 0 to 1, such as 0.95")
    for name, value, least in (("--steps-checked", steps_checked, 1), ("--inputs", inputs, 1), ("--seed", seed, 0)):
        if value < least:
            raise OptionError(f"{name} got {value}, expected at least {least}")
    if threads is not None and threads < 1:
        raise OptionError(f"--threads got {threads}, expected at least 1")


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Console script."""
    run(verify)


if __name__ == "__main__":
    main()
