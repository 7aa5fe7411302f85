"""One method of `dq-quantize`: what is checked before hours of training, and what an interrupt leaves behind."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.cli.frame import check_outputs, warn, write_json
from dq_deploy.errors import OptionError

if TYPE_CHECKING:
    from dq_deploy.methods import QuantizeOptions


def refuse(wrong: bool, message: str) -> None:
    """Raise the message as an OptionError where `wrong` holds."""
    if wrong:
        raise OptionError(message)


def check_options(options: QuantizeOptions, *, block_size: int | None, init: Path | None) -> None:
    """Refuse options that the others leave without a use.

    Raises:
        OptionError: naming them.
    """
    refuse(
        block_size is not None and not options.has_weight_only,
        f"--block-size {block_size} was given, but no layer has 16-bit activations; leave it out",
    )
    refuse(
        init is not None and options.method != "quest",
        f"--init was given with --method {options.method}, expected --method quest",
    )


def check_contradictions(
    options: QuantizeOptions, *, iterations: int | None, resume: bool, resume_dir: Path | None
) -> None:
    """Refuse options that one method has no use for.

    Raises:
        OptionError: naming them.
    """
    trains = options.method != "minmax"
    refuse(
        not trains and iterations is not None,
        f"--iterations {iterations} was given with --method minmax, which does not train; leave one out",
    )
    refuse(
        not trains and resume_dir is not None,
        "--resume-dir was given with --method minmax, which keeps no state; leave one out",
    )
    refuse(not resume and resume_dir is not None, "--no-resume and --resume-dir were given, expected one of them")


def state_dir(options: QuantizeOptions, out: Path, resume: bool, resume_dir: Path | None) -> Path | None:
    """Where a stopped run's blocks are kept; None for what does not train."""
    trained = {
        "dilatequant": ("distillation",),
        "dmq": ("learned-scaling", "reconstruction"),
        "eda-dm": ("reconstruction",),
    }
    trains = any(options.uses(part) for part in trained.get(options.method, ()))
    if not trains and options.method != "quest":  # which always finetunes
        return None
    return resume_dir or out.with_name(f"{out.name}.resume")


def quantize_one(
    model: Path,
    variant: str | None,
    options: QuantizeOptions,
    out: Path,
    json: Path | None,
    state: Path | None,
    *,
    resume: bool,
    calibration: dict[str, Any],
    init: Path | None,
) -> None:
    """Quantize with one method, write the record and print what it is."""
    from dq_deploy.record.files import check_record_path

    check_record_path(out)
    check_outputs(out, json, inputs=(model, calibration["conditions"], calibration["latents"], init))

    from dq_deploy.artifacts import hold_folder
    from dq_deploy.calibration import read_source
    from dq_deploy.cli.text.quantize_progress import ProgressView
    from dq_deploy.cli.text.quantize_summary import show_summary, summary_of
    from dq_deploy.methods import quantize as quantize_model
    from dq_deploy.methods.training.resume import discard_state, holds_training
    from dq_deploy.models import input_specs, load_model
    from dq_deploy.record import load_record, save_record

    denoiser = load_model(model, variant=variant)
    start = None if init is None else load_record(init)
    source = read_source(input_specs(denoiser.config), **calibration)
    if denoiser.scheduler_config is None and source.kind != "latents":
        warn(
            f"{model} has no scheduler: calibrated at the steps of a DDIMScheduler with its defaults (1,000 linear "
            "steps, noise prediction, clipped to 1); give the pipeline's folder if it was trained with another"
        )
    started = time.perf_counter()
    if state is not None and not resume and state.exists():
        with hold_folder(state):
            discard_state(state)
    found = state is not None and state.exists()  # may be another run's: then it is refused, and stays
    if found:
        print(f"going on with the state in {state}", flush=True)
    try:
        with ProgressView() as view:
            record = quantize_model(denoiser, options, calibration=source, progress=view, resume_dir=state, init=start)
    except BaseException as stop:
        if state is not None and not found and not holds_training(state):
            discard_state(state)
        elif state is not None and not isinstance(stop, Exception):
            print(f"what is finished is kept in {state}; run the same command to go on", file=sys.stderr)
        raise
    save_record(record, out)
    if state is not None:
        discard_state(state)
    summary = summary_of(record, out, seconds=time.perf_counter() - started)
    if json is not None:
        write_json(json, summary)
    show_summary(summary)


def say_engine_limits(options: QuantizeOptions, engine: str | None) -> None:
    """Warn of what the engine would not run in integers.

    Raises:
        OptionError: an unknown engine, or one that would run nothing of it.
    """
    if engine is None:
        return
    from dq_deploy.comparison import check_engine

    for remark in check_engine(options, engine):
        warn(remark)
