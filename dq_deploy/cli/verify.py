"""`dq-verify`: prove that an engine computes what the checkpoint says, and in integers."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dq_deploy.cli.frame import check_outputs, console, in_flags, in_flags_throughout, run, write_json
from dq_deploy.cli.frame.attention import Attention
from dq_deploy.cli.frame.sizes import sizes_from_options
from dq_deploy.errors import GuaranteeError, OptionError
from dq_deploy.processes.threads import check_threads

if TYPE_CHECKING:
    from dq_deploy.models import Denoiser
    from dq_deploy.record import Record
    from dq_deploy.verify import Report
    from dq_deploy.verify.plan.report import PlanReport
    from dq_deploy.verify.prover import ProofOptions

_LONGEST = 220
"""Characters of a finding in the line that a command ends with; the whole of it stands in the table and in --json."""

_TOGETHER = 205
"""Of the two kinds of finding where both stand in that line."""

_SHORTEST = 65
"""Of the first of them, at least."""

_Engine = Annotated[
    Path, typer.Option(help="Engine: .onnx or .dqn by dq-export, a plan by dq-build, or a record, which runs as it is.")
]
_Ckpt = Annotated[
    Path | None,
    typer.Option(help="Quantized model it was made from, .pt or .safetensors; a plan and a record need none."),
]
_Exact = Annotated[bool, typer.Option("--exact", help="Exit 3 on any difference and on anything not compared.")]
_RequireInteger = Annotated[
    float | None, typer.Option(help="Exit 3 where the integer share of all MACs is below this, as 0.95.")
]
_Json = Annotated[Path | None, typer.Option(help="Write the report as JSON.")]
_Html = Annotated[Path | None, typer.Option(help="Write the report as one self-contained HTML page.")]
_StepsChecked = Annotated[
    int, typer.Option(help="Step buckets with inputs of their own; every bucket is met at least once.")
]
_Inputs = Annotated[int, typer.Option(help="Inputs at each of them.")]
_Seed = Annotated[int, typer.Option(help="Seed of the inputs.")]
_Model = Annotated[
    Path | None,
    typer.Option(
        "--model",
        "--float-model",
        help="Float model folder it was quantized from: adds simulation against float, and serves for the "
        "quantization error in place of the folder that the record names.",
    ),
]
_QuantizationError = Annotated[
    bool,
    typer.Option(
        "--quantization-error/--no-quantization-error",
        help="Measure what quantization costs by layer and step, which decides nothing.",
    ),
]
_Runtime = Annotated[str | None, typer.Option(help="onnxruntime, openvino or native; by default the engine's own.")]
_Threads = Annotated[int | None, typer.Option(help="Threads of one run; by default the engine's choice.")]
_Device = Annotated[
    str | None, typer.Option(help="Of the native engine: cpu or cuda; by default a GPU that can run it.")
]
_Isa = Annotated[
    str | None,
    typer.Option(help="Instruction set of the native engine, or all for each this CPU has; by default the best."),
]
_HashCheck = Annotated[
    bool,
    typer.Option(
        "--hash-check/--no-hash-check",
        help="Refuse a --ckpt whose content is not what was written. An engine is compared whatever its hash.",
    ),
]
_Size = Annotated[
    list[str] | None,
    typer.Option(
        "--size",
        help="NAME=N, may be repeated: prove at this size too, as height=16; by default at smaller ones.",
    ),
]


def verify(
    engine: _Engine,
    ckpt: _Ckpt = None,
    exact: _Exact = False,
    require_integer: _RequireInteger = None,
    json: _Json = None,
    html: _Html = None,
    steps_checked: _StepsChecked = 5,
    inputs: _Inputs = 2,
    seed: _Seed = 0,
    model: _Model = None,
    quantization_error: _QuantizationError = True,
    runtime: _Runtime = None,
    threads: _Threads = None,
    device: _Device = None,
    isa: _Isa = None,
    attention: Attention = None,
    size: _Size = None,
    hash_check: _HashCheck = True,
) -> None:
    """Compare an engine with what its record makes, and every layer in it with the numerics while it runs.

    The record is exported again and compared node by node and constant by constant; a difference exits 3.

    A record given as the engine runs on this project's own kernels.

    A plan is read, not run: what each layer was asked to be, what it became, what stands alone.
    """
    _check_options(require_integer, steps_checked, inputs, seed, threads)
    check_outputs(json, html, inputs=(engine, ckpt, model))
    if html is not None:
        from dq_deploy.verify.report.page import require_jinja

        require_jinja()
    sizes = sizes_from_options(size)
    for_plans: dict[str, object] = {
        "--size": size or None,
        "--model": model,
        "--runtime": runtime,
        "--threads": threads,
        "--isa": isa,
        "--device": device,
        "--attention": attention,
    }
    record = _record_of(engine, ckpt, for_plans, hash_check=hash_check)
    from dq_deploy.verify.prover import ProofOptions

    options = ProofOptions(
        steps=steps_checked,
        inputs=inputs,
        seed=seed,
        model=None if model is None else _float_model(record, model),
        engine=runtime,
        threads=threads,
        isa=isa,
        device=device,
        attention=attention,
        run_plan=exact,
        sizes=sizes,
        progress=_progress,
    )
    report = _proven(record, engine, options, quantization_error=quantization_error)
    _write(report, json, html)
    refuse(report, exact=exact, require_integer=require_integer)


def _record_of(
    engine: Path, ckpt: Path | None, refused_for_plans: Mapping[str, object], *, hash_check: bool
) -> Record | None:
    """The record an engine is held against; a plan can do without.

    Raises:
        OptionError: none was given, or an option that does not go with a plan.
    """
    from dq_deploy.manifest.plan import is_plan
    from dq_deploy.open_engine import RECORD_SUFFIXES
    from dq_deploy.record import load_record

    if engine.suffix in RECORD_SUFFIXES:
        ckpt = ckpt or engine
    elif is_plan(engine):
        given = [name for name, value in refused_for_plans.items() if value is not None]
        if given:
            raise OptionError(f"{', '.join(given)} does not go with a plan, which is read and not run; leave it out")
        return None if ckpt is None else load_record(ckpt, hash_check=hash_check)
    if ckpt is None:
        raise OptionError(f"--engine {engine} is compared with its quantized model; give it as --ckpt model.pt")
    return load_record(ckpt, hash_check=hash_check)


def _float_model(record: Record | None, folder: Path) -> Denoiser:
    from dq_deploy.models import call_of_record, float_model_of, load_model

    if record is None:
        return load_model(folder)
    return float_model_of(record.provenance, folder, sizes=call_of_record(record).sizes)


def _proven(
    record: Record | None, engine: Path, options: ProofOptions, *, quantization_error: bool
) -> Report | PlanReport:
    from dq_deploy.verify.proof import prove_engine

    return in_flags_throughout(prove_engine(record, engine, options, quantization_error=quantization_error))


def _write(report: Report | PlanReport, json: Path | None, html: Path | None) -> None:
    """The files that were asked for, then the report on the terminal."""
    from dq_deploy.cli.text.verify import print_plan_report, print_report
    from dq_deploy.verify.plan.report import PlanReport

    if json is not None:
        write_json(json, report.to_json())
    if html is not None:
        from dq_deploy.artifacts import write_text_atomic
        from dq_deploy.verify.report.page import page_of_plan, page_of_report

        write_text_atomic(html, page_of_plan(report) if isinstance(report, PlanReport) else page_of_report(report))
    if isinstance(report, PlanReport):
        print_plan_report(report, console())
    else:
        print_report(report, console())


def refuse(report: Report | PlanReport, *, exact: bool, require_integer: float | None) -> None:
    """Raise where a demanded guarantee does not hold.

    Raises:
        GuaranteeError: naming the first layer, step and coordinate, or the layers that are not integer.
    """
    from dq_deploy.verify.plan.report import PlanReport

    if isinstance(report, PlanReport):
        problems = list(report.failures) if exact else []
    else:
        problems = _problems(report, exact=exact)
    if require_integer is not None and report.integer_mac_share < require_integer:
        problems.insert(0, _missing_share(report, require_integer))
    if problems:
        raise GuaranteeError("; ".join(problems))


def _problems(report: Report, *, exact: bool) -> list[str]:
    """What is wrong, in words: of the file always, of what runs where exactness is demanded.

    Both where both hold: what runs is wrong because the file is.
    """
    problems = []
    runs = report.run_failures if exact else ()
    room = _LONGEST
    if report.file_differences:
        room = max(_TOGETHER - len(runs[0]), _SHORTEST) if runs else _LONGEST
        problems.append(_counted("engine is not what its record makes", report.file_differences, room))
        room = _TOGETHER - room
    if runs:
        problems.append(_counted("engine is not exact", runs, room))
    return problems


def _missing_share(report: Report | PlanReport, required: float) -> str:
    """How much is not integer, with the largest layers."""
    from dq_deploy.verify.report.values import Report

    macs = report.macs
    largest = sorted(report.float_layers, key=lambda row: -row.macs)[:3]
    named = "; ".join(f"{row.name} ({row.macs / macs.of_all:.1%}): {row.reason}" for row in largest)
    inside = report.attention_in_integers if isinstance(report, Report) else 0
    attention = (macs.attention - inside) / macs.of_all
    named += f"{'; ' if named else ''}attention products ({attention:.1%}): float" if attention else ""
    return f"integer share is {report.integer_mac_share:.4f} of all MACs, required {required:g}; not integer: {named}"


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
    check_threads(threads, "--threads")


def _progress(line: str) -> None:
    print(in_flags(line), file=sys.stderr, flush=True)


def main() -> None:
    """Console script."""
    run(verify)


if __name__ == "__main__":
    main()
