"""Methods: a float denoiser in, a record out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import ModelError, OptionError
from dq_deploy.methods.layer_bits import LayerBits, bits_of_sites
from dq_deploy.methods.options import (
    METHODS,
    PARTS,
    DilateQuantOptions,
    DmqOptions,
    EdaDmOptions,
    GptqOptions,
    MinmaxOptions,
    QuestOptions,
    SharedOptions,
    check_names,
    options_for,
)
from dq_deploy.methods.presets import BIT_PRESETS, DEFAULT_PRESET, PICTURE_PRESETS, PRESETS, options_from_preset
from dq_deploy.methods.progress import Progress

if TYPE_CHECKING:
    from dq_deploy.calibration import CalibrationSource
    from dq_deploy.calibration.sharding import Workers
    from dq_deploy.methods.run import Run
    from dq_deploy.models import Denoiser
    from dq_deploy.record import Record

__all__ = [
    "BIT_PRESETS",
    "METHODS",
    "PARTS",
    "PICTURE_PRESETS",
    "PRESETS",
    "DilateQuantOptions",
    "DmqOptions",
    "EdaDmOptions",
    "GptqOptions",
    "LayerBits",
    "MinmaxOptions",
    "Progress",
    "QuantizeOptions",
    "QuestOptions",
    "SharedOptions",
    "bits_of_sites",
    "options_for",
    "options_from_preset",
    "quantize",
]


QuantizeOptions = options_for
"""The former name of `options_for`, from when one class held the options of every method."""


def quantize(
    denoiser: Denoiser,
    options: SharedOptions | None = None,
    *,
    calibration: CalibrationSource | None = None,
    progress: Callable[[Progress], None] | None = None,
    resume_dir: str | Path | None = None,
    init: Record | None = None,
    workers: Workers | None = None,
    **kwargs: Any,
) -> Record:
    """Quantize a float denoiser.

    The same denoiser, options, library versions and thread count give the same record, and so do any numbers of
    processes that share the work. In all of them it returns the record; the first one alone writes to `resume_dir`.

    Args:
        denoiser: from `dq_deploy.load_model`; it is not changed. Where its weights were changed since, as by adapters
            merged into them, the record's hash of its source is that of these weights, and no file's.
        options: what to do, as of `options_for`; or give the options as keyword arguments, `method="minmax"` and so on.
        calibration: where calibration inputs come from; by default the model's own sampling trajectory, with random
            embeddings where the model is conditioned on some.
        progress: called with a `Progress` now and then.
        resume_dir: folder where a method that trains keeps its state after each block, and continues from
            when it is called again with the same model and options.
        init: record of the same model that method quest finetunes, instead of one of its own.
        workers: the processes that share the work, this one alone by default.
        **kwargs: options by name, instead of `options`; the others are those of `preset`, by default
            `balanced`, which has rates of its own for some methods.

    Returns:
        The record, ready to be saved, exported or simulated.

    Raises:
        OptionError: options are out of range, contradict each other, or name layers that are not there.
        ModelError: the denoiser was changed since it was loaded, as by adapters, so that a record cannot be of it.
        NonFiniteError: the float model or the training gives NaN or infinity.
        FileProblemError: `resume_dir` cannot be used, or another run is in it.
    """
    from dq_deploy.methods.progress import silent

    if options is not None and kwargs:
        raise OptionError(f"got options and {', '.join(kwargs)}, expected one of the two")
    if options is None:
        preset = kwargs.pop("preset", DEFAULT_PRESET)
        check_names(kwargs)
        options = options_from_preset(str(preset), **kwargs)
    from dq_deploy.calibration import CalibrationSource
    from dq_deploy.calibration.sharding import Workers
    from dq_deploy.methods.run import Run, check_device, check_sharable
    from dq_deploy.models.described import check_as_described, with_hash_of_weights

    _check_kinds(denoiser, options, calibration, init)
    check_device(options.device)
    check_as_described(denoiser)
    run = Run(
        denoiser=with_hash_of_weights(denoiser),
        source=calibration or CalibrationSource(),
        progress=progress or silent,
        resume_dir=None if resume_dir is None else Path(resume_dir),
        workers=workers or Workers(),
    )
    check_sharable(run.workers, options)
    if run.resume_dir is None or not run.workers.is_first:
        return _within_budget(run, options, init)
    from dq_deploy.artifacts import hold_folder

    with hold_folder(run.resume_dir):
        return _within_budget(run, options, init)


def _check_kinds(denoiser: object, options: object, calibration: object, init: object) -> None:
    """Refuse paths, modules and dicts in the place of what `quantize` takes.

    Raises:
        ModelError: no denoiser.
        OptionError: no options, or no source of inputs.
        RecordError: no record.
    """
    from dq_deploy.calibration import CalibrationSource
    from dq_deploy.models import Denoiser
    from dq_deploy.record import check_is_record

    if not isinstance(denoiser, Denoiser):
        raise ModelError(f"the denoiser is a {type(denoiser).__name__}, expected what load_model gives")
    if not isinstance(options, SharedOptions):
        raise OptionError(f"options is a {type(options).__name__}, expected what options_for gives, or none of it")
    if not isinstance(calibration, CalibrationSource | None):
        raise OptionError(f"calibration is a {type(calibration).__name__}, expected a CalibrationSource")
    if init is not None:
        check_is_record(init, "the initial record")


def _within_budget(run: Run, options: SharedOptions, init: Record | None) -> Record:
    if init is not None and options.method != "quest":
        raise OptionError(f"an initial record was given with method {options.method}, expected method quest")
    budgeted = options.budget is not None or options.activation_budget is not None
    if budgeted and init is not None:
        raise OptionError("got a budget and an initial record, expected one: the record's layers have their bits")
    if budgeted:
        from dq_deploy.methods.budget.bit_budget import options_within_budget

        options, chosen = options_within_budget(run.denoiser, options, run.source, run.progress)
        return chosen.noted_in(_with_attention(run, options, init))
    return _with_attention(run, options, init)


def _with_attention(run: Run, options: SharedOptions, init: Record | None) -> Record:
    if options.picture_iterations:
        from dq_deploy.methods.finetuning.picture_training import check_picture_training

        check_picture_training(run, options)
    record = _by_method(run, options, init)
    if options.step_correction:
        from dq_deploy.methods.correction.step_rows import corrected_by_step

        record = corrected_by_step(run, options, record)
    if options.picture_iterations:
        from dq_deploy.methods.finetuning.picture_training import trained_on_pictures

        record = trained_on_pictures(run, options, record)
    if options.attention is None:
        return record
    from dq_deploy.methods.attention_tables import with_attention_tables

    return with_attention_tables(run, options, record)


def _by_method(run: Run, options: SharedOptions, init: Record | None) -> Record:
    if isinstance(options, MinmaxOptions):
        from dq_deploy.methods.minmax import quantize_minmax

        return quantize_minmax(run, options)
    if isinstance(options, GptqOptions):
        from dq_deploy.methods.gptq import quantize_gptq

        return quantize_gptq(run, options)
    if isinstance(options, DilateQuantOptions):
        from dq_deploy.methods.dilatequant import quantize_dilatequant

        return quantize_dilatequant(run, options)
    if isinstance(options, DmqOptions):
        from dq_deploy.methods.dmq import quantize_dmq

        return quantize_dmq(run, options)
    if isinstance(options, EdaDmOptions):
        from dq_deploy.methods.eda_dm import quantize_eda_dm

        return quantize_eda_dm(run, options)
    assert isinstance(options, QuestOptions)
    from dq_deploy.methods.quest import quantize_quest

    return quantize_quest(run, options, init)
