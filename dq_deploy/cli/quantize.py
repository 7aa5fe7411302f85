"""`dq-quantize`: a float model becomes a record."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.cli.frame import check_outputs, in_flags_throughout, numbers_from_text, refuse, run, warn, write_json
from dq_deploy.cli.frame.arguments import takes
from dq_deploy.cli.frame.reused_rows import warn_of_reuse
from dq_deploy.cli.frame.torchrun import is_first, is_launched, workers_for
from dq_deploy.cli.text.quantize.arguments import QuantizeArguments

if TYPE_CHECKING:
    from dq_deploy.calibration.request import CalibrationRequest
    from dq_deploy.methods import SharedOptions
    from dq_deploy.models.pipeline import PipelineCall


@takes(QuantizeArguments)
def quantize(given: QuantizeArguments) -> None:
    """Quantize a diffusion model."""
    request = calibration_request(given)
    asked = request.asked(steps=given.steps, seed=given.seed)
    overrides = _overrides(given, asked)
    if given.compare is not None:
        others = {
            "--method": given.method,
            "--init": given.init,
            "--resume-dir": given.resume_dir,
            "--list-layers": given.list_layers or None,
        }
        _refuse_any(others, "was given with --compare, which has no use for it; leave one out")
        refuse(is_launched(), "--compare was given to processes of torchrun, expected one method; leave it out")
        from dq_deploy.cli.quantize_compare import compare_command

        compare_command(given, _words(given.compare), overrides, request, asked)
        return
    measures = {
        "--compare-images": given.compare_images,
        "--reference-images": given.reference_images,
        "--classifier": given.classifier,
        "--extractor": given.extractor,
        "--engine": given.engine,
    }
    _refuse_any(measures, "was given without --compare, which alone has it; leave it out")
    from dq_deploy.cli.text.quantize.summary import list_layers, say_engine_limits
    from dq_deploy.methods import options_from_preset

    options = options_from_preset(
        "balanced" if given.preset is None else given.preset, method=given.method, **overrides
    )
    _check_options(options, given)
    say_engine_limits(options, given.for_engine)
    if given.list_layers:
        refuse(given.out is not None, "--list-layers and --out were given, expected one of them")
        check_outputs(given.json, inputs=(given.model,))
        list_layers(given, options)
        return
    refuse(given.out is None, "--out is missing, expected a file name such as model.pt")
    assert given.out is not None
    _check_contradictions(options, given)
    _quantize_one(given, options, given.out, request, asked)


def calibration_request(given: QuantizeArguments) -> CalibrationRequest:
    """What the command line asks of calibration."""
    from dq_deploy.calibration.request import CalibrationRequest

    def text(path: Path | None) -> str | None:
        return None if path is None else str(path)

    return CalibrationRequest(
        kind=given.calibration,
        conditions=text(given.conditions),
        latents=text(given.latents),
        prompts=text(given.prompts),
        negative_prompt=given.negative_prompt,
        guidance=given.guidance,
        scheduler=given.scheduler,
        height=given.height,
        width=given.width,
        call=text(given.call),
    )


def _overrides(given: QuantizeArguments, asked: PipelineCall) -> dict[str, Any]:
    """The method's options by name; None replaces nothing of the preset.

    A file of the call may say the steps, the seed and the number of pictures; each prompt that is given draws one.
    """
    drawn = asked.count if asked.count > 1 else len(asked.prompts) or None
    return {
        "weight_bits": given.weights,
        "activation_bits": given.activations,
        "block_size": given.block_size,
        "channel_scales": given.channel_scales or None,
        "steps": asked.steps,
        "step_groups": given.step_groups,
        "static": given.static,
        "symmetric_activations": given.symmetric_activations or None,
        "asymmetric_weights": given.asymmetric_weights,
        "split_skips": given.split_skips,
        "keep": None if given.keep is None else tuple(_words(given.keep)),
        "layer_bits": _layer_bits(given.layer_bits) or None,
        "budget": given.budget,
        "activation_budget": given.activation_budget,
        "step_correction": given.step_correction or None,
        "picture_iterations": given.picture_iterations,
        "without": None if given.without is None else tuple(_words(given.without)),
        "calibration_choice": given.calibration_choice,
        "seed": asked.seed or given.seed,
        "samples": drawn if given.samples is None else given.samples,
        "labels": None if given.labels is None else numbers_from_text(given.labels, "--labels", low=0),
        "iterations": given.iterations,
        "memory_gib": given.memory_gib,
        "device": given.device,
        "attention": given.attention,
    }


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _layer_bits(entries: list[str] | None) -> dict[str, int | tuple[int, ...]]:
    """`pattern=4` and `pattern=4/8` as a table.

    Raises:
        OptionError: not of that form.
    """
    table: dict[str, int | tuple[int, ...]] = {}
    for entry in entries or ():
        pattern, equals, value = entry.rpartition("=")
        pieces = value.split("/")
        good = equals and pattern and len(pieces) in (1, 2) and all(p.strip().isdecimal() for p in pieces)
        refuse(not good, f"--layer-bits got {entry!r}, expected PATTERN=BITS or PATTERN=WEIGHTS/ACTIVATIONS")
        numbers = tuple(int(p) for p in pieces)
        table.pop(pattern, None)
        table[pattern] = numbers if len(numbers) == 2 else numbers[0]
    return table


def _refuse_any(values: Mapping[str, object], why: str) -> None:
    for name, value in values.items():
        refuse(value is not None, f"{name} {why}")


def _check_options(options: SharedOptions, given: QuantizeArguments) -> None:
    """Refuse what the other options leave without a use."""
    refuse(
        given.block_size is not None and not options.has_weight_only,
        f"--block-size {given.block_size} was given, but no layer has 16-bit activations; leave it out",
    )
    refuse(
        given.channel_scales and not hasattr(options, "channel_scales"),
        f"--channel-scales was given with --method {options.method}, expected minmax or dilatequant",
    )
    refuse(
        given.init is not None and options.method != "quest",
        f"--init was given with --method {options.method}, expected --method quest",
    )


def _check_contradictions(options: SharedOptions, given: QuantizeArguments) -> None:
    """Refuse what this method, or another option, has no use for."""
    refuse(
        not hasattr(options, "iterations") and given.iterations is not None,
        f"--iterations {given.iterations} was given with --method {options.method}, which does not train; "
        "leave one out",
    )
    refuse(
        options.method == "minmax" and given.resume_dir is not None and not is_launched(),
        "--resume-dir was given with --method minmax, which keeps a state only under torchrun; leave one out",
    )
    refuse(
        not given.resume and given.resume_dir is not None,
        "--no-resume and --resume-dir were given, expected one of them",
    )


def _state_dir(options: SharedOptions, out: Path, resume_dir: Path | None) -> Path | None:
    """Where a stopped run is kept; None for what does not train, unless processes share it: then its inputs are."""
    trained = {
        "dilatequant": ("distillation",),
        "dmq": ("learned-scaling", "reconstruction"),
        "eda-dm": ("reconstruction",),
    }
    works_long = any(options.uses(part) for part in trained.get(options.method, ()))
    works_long |= options.method in ("quest", "gptq")  # which always finetune, or round block by block
    if not works_long and not is_launched():
        return None
    return resume_dir or out.with_name(f"{out.name}.resume")


def _quantize_one(
    given: QuantizeArguments, options: SharedOptions, out: Path, request: CalibrationRequest, asked: PipelineCall
) -> None:
    """Quantize with one method, write the record and print what it is."""
    from dq_deploy.record.files import check_record_path

    check_record_path(out)
    read = (given.model, given.conditions, given.latents, given.init, given.prompts, given.call)
    check_outputs(out, given.json, inputs=read)

    from dq_deploy.calibration import prepare_calibration
    from dq_deploy.cli.text.quantize.float_model import float_model
    from dq_deploy.cli.text.quantize.progress import ProgressView
    from dq_deploy.cli.text.quantize.summary import show_summary, summary_of
    from dq_deploy.methods import quantize as quantize_model
    from dq_deploy.methods.training.resume import discard_state
    from dq_deploy.models import words_of_untried
    from dq_deploy.record import load_record, save_record

    denoiser = float_model(given)
    if untried := words_of_untried(denoiser.family):
        warn(untried)
    start = None if given.init is None else load_record(given.init)
    prepared = prepare_calibration(denoiser, given.model, request, asked, variant=given.variant)
    for remark in prepared.remarks:
        warn(remark)
    denoiser, source = prepared.denoiser, prepared.source
    warn_of_reuse(source, options.samples, "calibration trajectories")
    started = time.perf_counter()
    state = _state_dir(options, out, given.resume_dir)
    with (
        workers_for(options.device) as workers,
        _kept_when_stopped(state, resume=given.resume, several=workers.count > 1),
        ProgressView() as view,
    ):
        record = quantize_model(
            denoiser,
            options,
            calibration=source,
            progress=view,
            resume_dir=state,
            init=start,
            workers=workers,
        )
    if not is_first():
        return
    save_record(record, out)
    if state is not None:
        discard_state(state)
    summary = in_flags_throughout(summary_of(record, out, seconds=time.perf_counter() - started))
    if given.json is not None:
        write_json(given.json, summary)
    show_summary(summary)


@contextmanager
def _kept_when_stopped(state: Path | None, *, resume: bool, several: bool) -> Iterator[None]:
    """Inside, a run with its state in this folder: an earlier one is continued or discarded, this one's is kept.

    Of several processes the first one keeps it; what is said when they stop, `why_terminated` says.
    """
    from dq_deploy.artifacts import hold_folder
    from dq_deploy.methods.training.resume import discard_state, holds_work

    if state is None or not is_first():
        yield
        return
    if not resume and state.exists():
        with hold_folder(state):
            discard_state(state)
    found = state.exists()  # may be another run's: then it is refused, and stays
    if found:
        print(f"going on with the state in {state}", flush=True)
    try:
        yield
    except BaseException as stop:
        if not found and not holds_work(state, several=is_launched()):
            discard_state(state)
        elif not isinstance(stop, Exception) and not several:
            print(f"what is finished is kept in {state}; run the same command to go on", file=sys.stderr)
        raise


def main() -> None:
    """Console script `dq-quantize`."""
    # before torch is loaded: spinning threads cost several times the work on a shared machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    run(quantize, many=True)


if __name__ == "__main__":
    main()
