"""`dq-quantize --compare`: several methods on one model, and the table of what each gives and costs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.cli.frame import check_outputs, console, in_flags, refuse, warn, write_json
from dq_deploy.cli.frame.reused_rows import warn_of_reuse
from dq_deploy.cli.text.quantize.arguments import QuantizeArguments
from dq_deploy.cli.text.quantize.summary import say_engine_limits
from dq_deploy.errors import DqError

if TYPE_CHECKING:
    from dq_deploy.calibration.request import CalibrationRequest
    from dq_deploy.comparison import Cell, Comparison, Settings, Subject
    from dq_deploy.methods import Progress, SharedOptions
    from dq_deploy.models.pipeline import PipelineCall

NO_EXTRACTOR = "none"


class MethodsFailedError(DqError):
    """Some methods of a comparison failed; the others are in the table."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def compare_command(
    given: QuantizeArguments,
    methods: Sequence[str],
    overrides: dict[str, Any],
    request: CalibrationRequest,
    asked: PipelineCall,
) -> None:
    """Check everything, run the methods, print the table.

    Args:
        given: the command line; its `out` is the folder to write.
        methods: names.
        overrides: of `options_by_method`.
        request: what calibrates the model.
        asked: of its pipeline.

    Raises:
        MethodsFailedError: behind the table, where a method failed.
    """
    refuse(given.out is None, "--out is missing, expected a folder for the records of the comparison")
    assert given.out is not None
    out = given.out
    from dq_deploy.comparison import FILE_NAME, Settings, compare_methods, open_folder, options_by_method

    options, remark = options_by_method(methods, "balanced" if given.preset is None else given.preset, **overrides)
    settings = Settings(
        steps=options[0].steps,
        images=Settings.images if given.compare_images is None else given.compare_images,
        engine=Settings.engine if given.engine is None else given.engine,
    )
    for own in options:
        say_engine_limits(own, settings.engine)
        say_engine_limits(own, given.for_engine)
    if remark:
        warn(remark)
    made = not out.exists()
    open_folder(out)
    try:
        records = [out / FILE_NAME, *(out / f"{name}.pt" for name in _names(options))]
        read = (given.model, given.reference_images, given.conditions, given.latents, given.prompts, given.call)
        check_outputs(given.json, *records, inputs=read, folder=out)
        subject = _subject(given, settings, options, out, request, asked)
    except BaseException:
        if made and not any(out.iterdir()):
            out.rmdir()
        raise
    for line in subject.remarks:
        warn(line)
    if given.conditions is not None:
        warn("images are drawn with the rows of --conditions that calibrate: how a method does on others is not shown")
    with _Watch(len(options), out) as watch:
        comparison = compare_methods(
            subject,
            options,
            out,
            calibration=request,
            resume=given.resume,
            on_progress=watch.progress,
            on_cell=watch.cell,
            wording=in_flags,
        )
    _finish(comparison, out, given.json)


def _names(options: Sequence[SharedOptions]) -> list[str]:
    from dq_deploy.comparison import cell_name

    return [cell_name(own) for own in options]


def _subject(
    given: QuantizeArguments,
    settings: Settings,
    options: Sequence[SharedOptions],
    out: Path,
    request: CalibrationRequest,
    asked: PipelineCall,
) -> Subject:
    """The float model with its images; every file that is given is read here."""
    from dq_deploy.calibration import prepare_calibration
    from dq_deploy.cli.frame import progress
    from dq_deploy.cli.text.quantize.float_model import float_model
    from dq_deploy.comparison import Measures, check_layers, prepare_subject, read_real_images
    from dq_deploy.record.model_config import channels_of

    denoiser = float_model(given)
    check_layers(denoiser, options)
    prepared = prepare_calibration(denoiser, given.model, request, asked, variant=given.variant)
    for line in prepared.remarks:
        warn(line)
    source = prepared.source
    warn_of_reuse(source, max(settings.images, options[0].samples), "images and calibration trajectories")
    path = given.reference_images
    real = None if path is None else read_real_images(path, channels_of(denoiser.config, "in_channels"))
    extractor = Measures.extractor if given.extractor is None else given.extractor
    if extractor == NO_EXTRACTOR:
        refuse(real is not None, "--reference-images and --extractor none were given, expected one of them")
        extractor = None
    measures = Measures(classifier=given.classifier, extractor=extractor, real=real, real_name=str(path or ""))
    with progress("sampling, float model") as advance:
        return prepare_subject(
            prepared.denoiser,
            settings,
            measures,
            model=given.model,
            cache=out,
            variant=given.variant,
            classes=options[0].labels,
            conditions=source.conditions,
            drawn_by=source.pipeline,
            on_step=advance,
        )


class _Watch:
    """Shows which method runs and how far it is; a context manager."""

    def __init__(self, count: int, out: Path) -> None:
        self._count, self._out, self._done, self._name = count, out, 0, ""
        self._stack = ExitStack()
        self._view: Any = None

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._stack.close()
        if kind is not None and not issubclass(kind, Exception):
            print(f"what is finished is in {self._out}; run the same command to go on", file=sys.stderr)

    def progress(self, name: str, report: Progress) -> None:
        """A report of a running method."""
        from dq_deploy.cli.text.quantize.progress import ProgressView

        if name != self._name:
            self._stack.close()
            print(f"{name}, {self._done + 1} of {self._count}", file=sys.stderr, flush=True)
            self._name, self._view = name, self._stack.enter_context(ProgressView())
        self._view(report)

    def cell(self, cell: Cell, kept: bool) -> None:
        """A finished cell."""
        self._stack.close()
        self._done += 1
        if kept:
            print(f"{cell.name}: taken from the earlier run, nothing it depends on has changed", file=sys.stderr)
        if cell.error is not None:
            warn(f"{cell.name} failed: {cell.error}")


def _finish(comparison: Comparison, out: Path, json: Path | None) -> None:
    from dq_deploy.cli.text.quantize.comparison_table import rich_table
    from dq_deploy.comparison import FILE_NAME

    if json is not None:
        write_json(json, comparison.as_json())
    facts, cells = comparison.facts, comparison.cells
    images = facts["settings"]["images"]
    title = f"{len(cells)} methods on {facts['model']}, {images} images beside the float model's from the same noise"
    console().print(rich_table(comparison.rows(), title))
    print("[a, b] is a 95 % interval; a difference whose interval holds 0 is none")
    for cell in cells:
        for note in cell.notes:
            print(f"{cell.name}: {note}")
    print(f"records and {FILE_NAME} are in {out}")
    failed = [cell for cell in cells if cell.error is not None]
    if failed:
        raise MethodsFailedError(
            f"{len(failed)} of {len(cells)} methods failed, first {failed[0].name}: {failed[0].error}",
            failed[0].exit_code,
        )
