"""One cell of a comparison: a method at some bits, quantized in its own process, sampled on an engine, measured."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from dq_deploy.artifacts import sha256_of_file
from dq_deploy.calibration.request import FILES, CalibrationRequest
from dq_deploy.comparison.latency import StepTime, step_time
from dq_deploy.comparison.subject import Subject
from dq_deploy.comparison.worker import TrainingRequest, train
from dq_deploy.engines.base import Runner
from dq_deploy.errors import explained
from dq_deploy.methods import Progress, SharedOptions
from dq_deploy.open_engine import open_engine
from dq_deploy.quality import row_of

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What was measured of one method; None where it failed before that.

    Attributes:
        name: as `dmq-w4a4`, with `-no-PART` for each part left out.
        method: one of `dq_deploy.methods.METHODS`, or another program's name.
        weight_bits: of the layers that are not named otherwise.
        activation_bits: likewise.
        without: parts of the method left out.
        error: why the method or its measurement failed, one line, or None.
        exit_code: of that failure, 0 without.
        notes: sentences about the numbers.
        made_from: hash of what decides the record: model, scheduler, options, calibration files, versions.
        measured_by: hash of what decides the measurement, with `made_from`.
        record: file name of the record.
        record_sha256: of that file.
        calibration_s: seconds the method took.
        peak_mib: highest memory of the method's process.
        loaded_mib: of it before the method began.
        record_mib: size of the file.
        quality: `QualityRow.as_json`.
        psnr_db: of each image, capped, to three decimals.
        recognised: of each image, whether its label was recognised; empty without a classifier.
        latency: of a step, or None where it was not timed.
        options: of the method, JSON values.
    """

    name: str
    method: str
    weight_bits: int
    activation_bits: int
    without: tuple[str, ...] = ()
    error: str | None = None
    exit_code: int = 0
    notes: tuple[str, ...] = ()
    made_from: str = ""
    measured_by: str = ""
    record: str | None = None
    record_sha256: str | None = None
    calibration_s: float | None = None
    peak_mib: float | None = None
    loaded_mib: float | None = None
    record_mib: float | None = None
    quality: dict[str, Any] | None = None
    psnr_db: tuple[float, ...] = ()
    recognised: tuple[bool, ...] = ()
    latency: StepTime | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def bits(self) -> str:
        """As `W4A8`."""
        return f"W{self.weight_bits}A{self.activation_bits}"

    def as_json(self) -> dict[str, Any]:
        """JSON values; tuples are lists."""
        value = asdict(self) | {"latency": None if self.latency is None else self.latency.to_json()}
        return dict(json.loads(json.dumps(value)))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Cell:
        """A cell from `as_json`; unknown keys are passed over.

        Raises:
            TypeError: a needed key is missing.
        """
        known = {f.name: value[f.name] for f in fields(cls) if f.name in value}
        for name in ("without", "notes", "psnr_db", "recognised"):
            known[name] = tuple(known.get(name, ()))
        if known.get("latency") is not None:
            known["latency"] = StepTime(**known["latency"])
        return cls(**known)


def cell_name(options: SharedOptions) -> str:
    """Name of the cell and stem of its record."""
    parts = "".join(f"-no-{part}" for part in options.without)
    return f"{options.method}-w{options.weight_bits}a{options.activation_bits}{parts}"


def digest(*values: Any) -> str:
    """Short hash of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


def empty_cell(subject: Subject, options: SharedOptions, calibration: CalibrationRequest) -> Cell:
    """The cell before anything is measured, with the hashes of what it will depend on."""
    from dq_deploy.methods.options import json_of_options
    from dq_deploy.methods.prepare.assembly import versions

    files = {
        name: sha256_of_file(Path(value)) if name in FILES and value is not None else value
        for name, value in asdict(calibration).items()
    }
    values = dict(json.loads(json.dumps(json_of_options(options))))
    denoiser = subject.denoiser
    made_from = digest(
        versions(), denoiser.source_sha256, denoiser.scheduler_sha256, values, files, subject.identity.get("asked")
    )
    name = cell_name(options)
    return Cell(
        name=name,
        method=options.method,
        weight_bits=options.weight_bits,
        activation_bits=options.activation_bits,
        without=options.without,
        made_from=made_from,
        measured_by=digest(made_from, subject.identity, subject.settings.engine),
        record=f"{name}.pt",
        options=values,
    )


def run_cell(
    subject: Subject,
    options: SharedOptions,
    folder: Path,
    *,
    calibration: CalibrationRequest | None = None,
    before: Cell | None = None,
    resume: bool = True,
    on_progress: OnProgress = lambda report: None,
    on_trained: Callable[[Cell], None] = lambda cell: None,
) -> Cell:
    """Quantize, sample, measure and time one method; a failure is the cell's error.

    Args:
        subject: the float model and its images.
        options: of the method.
        folder: where the record is written, and the state of its training while that lasts.
        calibration: what calibrates the model; by default what its folder has.
        before: the cell as an earlier run left it: its record is taken where it is unchanged and made from the same,
            and the whole cell where its measurement is the same too.
        resume: go on with the blocks that a stopped training of the same left in the folder; else they are removed.
        on_progress: called with reports of the method, then of sampling.
        on_trained: called with the cell once its record is there.
    """
    given = calibration or CalibrationRequest()
    cell = empty_cell(subject, options, given)
    kept = before if before is not None and _holds(before, cell, folder) else None
    if kept is not None and _is_measured(kept, cell, subject):
        return kept
    try:
        trained = (
            _with_training(cell, kept)
            if kept is not None
            else _trained(subject, cell, folder, given, on_progress, resume=resume)
        )
        on_trained(trained)
    except Exception as error:
        return _failed(cell, "", error)
    try:
        return measured(subject, trained, folder / str(trained.record), on_progress)
    except Exception as error:
        return _failed(trained, "made, but not measured: ", error)


def _failed(cell: Cell, where: str, error: Exception) -> Cell:
    message, code = explained(error)
    return replace(cell, error=f"{where}{message}", exit_code=code)


def _is_measured(kept: Cell, cell: Cell, subject: Subject) -> bool:
    whole = kept.error is None and kept.quality is not None and kept.measured_by == cell.measured_by
    return whole and (kept.latency is not None or not subject.settings.rounds)


def _holds(before: Cell, cell: Cell, folder: Path) -> bool:
    """Whether the record of an earlier run is there, whole, and what would be made now."""
    path = folder / str(cell.record)
    same = before.made_from == cell.made_from and before.record_sha256 is not None
    return same and path.is_file() and sha256_of_file(path) == before.record_sha256


def _with_training(cell: Cell, kept: Cell) -> Cell:
    names = ("record_sha256", "calibration_s", "peak_mib", "loaded_mib", "record_mib", "notes")
    return replace(cell, **{name: getattr(kept, name) for name in names})


def _trained(
    subject: Subject,
    cell: Cell,
    folder: Path,
    calibration: CalibrationRequest,
    on_progress: OnProgress,
    *,
    resume: bool,
) -> Cell:
    from dq_deploy.methods.training.resume import discard_state

    path = folder / str(cell.record)
    state = path.with_name(f"{cell.name}.{cell.made_from[:8]}.resume")
    if not resume:
        discard_state(state)
    request = TrainingRequest(
        model=str(subject.model),
        variant=subject.variant,
        component=subject.denoiser.component,
        config=subject.denoiser.config_source,
        options=cell.options,
        calibration=calibration,
        out=str(path),
        state=None if cell.method == "minmax" else str(state),
    )
    found = train(request, on_progress)
    for stale in folder.glob(f"{cell.name}.????????.resume"):  # of other options
        discard_state(stale)
    notes = ("a stopped run was continued: the time is the sum of its parts",) if found.continued else ()
    return replace(
        cell,
        record_sha256=sha256_of_file(path),
        calibration_s=round(found.seconds, 3),
        peak_mib=round(found.peak_mib, 1),
        loaded_mib=round(found.loaded_mib, 1),
        record_mib=path.stat().st_size / 2**20,
        notes=notes,
    )


def measured(subject: Subject, cell: Cell, record: Path, on_progress: OnProgress = lambda report: None) -> Cell:
    """The cell with the quality of its record's images and the time of a step.

    Raises:
        DqError: the engine refuses the record, or gives values that are not finite.
    """
    with _runnable(subject, record) as path:
        with open_engine(path, engine=subject.settings.engine, threads=subject.settings.threads) as runner:
            images = _drawn(subject, runner, on_progress)
        latency = None
        if subject.settings.rounds:
            on_progress(Progress(stage="timing", done=0, total=1))
            latency = step_time(path, subject.float_graph(), subject.settings, sizes=subject.denoiser.call.sizes)
            on_progress(Progress(stage="timing", done=1, total=1))
    return replace(with_quality(subject, cell, images), latency=latency)


def with_quality(subject: Subject, cell: Cell, images: Any) -> Cell:
    """The cell with the quality of some images [N, C, H, W], drawn from the subject's noise."""
    row = row_of(subject.baseline, np.asarray(images))
    return replace(
        cell,
        quality=row.as_json(),
        psnr_db=tuple(round(value, 3) for value in row.per_image.psnr_db),
        recognised=tuple(bool(value) for value in row.per_image.recognised),
    )


def _drawn(subject: Subject, runner: Runner, on_progress: OnProgress) -> Any:
    from dq_deploy.pipelines.integer_denoiser import IntegerDenoiser

    return subject.draw(
        IntegerDenoiser(runner),
        lambda done, total: on_progress(Progress(stage="sampling", done=done, total=total)),
    )


@contextlib.contextmanager
def _runnable(subject: Subject, record: Path) -> Iterator[Path]:
    """What the engine opens: the record itself, or its exact graph in a temporary folder."""
    if subject.settings.engine == "native":
        yield record
        return
    from dq_deploy.record import load_record
    from dq_deploy.targets import export

    with tempfile.TemporaryDirectory(prefix="dq-compare-") as folder:
        path = Path(folder) / f"{record.stem}.onnx"
        export(load_record(record), path, target=subject.settings.engine)
        yield path
