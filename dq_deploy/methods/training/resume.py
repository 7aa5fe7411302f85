"""State of a training run after each block, so that a killed run goes on where it was.

A folder with `state.json` (what the run is), `trajectory.safetensors`, what a method stores of its earlier stages,
and one `block-NNN.safetensors` a finished block. Every file is written under a temporary name and renamed.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from dq_deploy.artifacts import atomic_path, utf8_name, write_text_atomic
from dq_deploy.calibration import CalibrationInputs
from dq_deploy.calibration.sharding import Workers
from dq_deploy.errors import FileProblemError, OptionError
from dq_deploy.methods.options import SharedOptions, json_of_options
from dq_deploy.methods.prepare.assembly import layer_of_parts, versions
from dq_deploy.methods.prepare.preparation import PreparedLayer
from dq_deploy.methods.run import Run
from dq_deploy.numerics.arrays import Array
from dq_deploy.record import Layer, Part

FORMAT = "dq_deploy.resume"
VERSION = 2
SPENT = "spent.json"

RATES = "lr_"
"""How the names of learning rates begin: what may change when a diverged run is continued."""

PART_ARRAYS = tuple(field.name for field in fields(Part))

Arrays = dict[str, Array]


class ResumeFolder:
    """The state of one run; of several processes the first one reads and writes it, and tells the others.

    Raises:
        OptionError: the folder holds the state of another run.
        FileProblemError: it cannot be read or written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], workers: Workers | None = None) -> None:
        self.folder = folder
        self.workers = workers or Workers()
        self.options = json.loads(json.dumps(identity["options"]))
        self.symmetric = bool(self.options["symmetric_activations"])
        if self.workers.shards > 1:
            identity = {**identity, "shards": self.workers.shards}
        known = json.loads(json.dumps({"format": FORMAT, "version": VERSION, **identity}))
        self.workers.first(lambda: self._open(known))

    def _open(self, identity: Mapping[str, Any]) -> None:
        """Continue or begin."""
        folder, state = self.folder, self.folder / "state.json"
        if state.exists():
            self._compare(state, identity)
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileProblemError(
                f"cannot make {folder}: {error.strerror}; choose another `resume_dir` or use `resume_dir=None`"
            ) from error
        write_text_atomic(state, json.dumps(identity, indent=1, sort_keys=True))

    def _compare(self, state: Path, identity: Mapping[str, Any]) -> None:
        try:
            found = json.loads(state.read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise ValueError("not a table")
        except (OSError, ValueError) as error:
            raise FileProblemError(f"cannot read {state}: {error}; remove the folder to start again") from error
        stopped = found.pop("diverged", None) is not None
        if found.get("shards") != identity.get("shards"):
            ways = ("torchrun, with any number of processes", "the command alone, without torchrun")
            begun, now = ways if found.get("shards") else ways[::-1]
            raise OptionError(
                f"{self.folder} holds a run that was started by {begun}, this one is {now}: its sums have another "
                "order; start it as that one to continue it, or remove the folder to start again"
            )
        for key in sorted({*found, *identity}):
            mine, theirs = identity.get(key), found.get(key)
            if key == "options" and isinstance(mine, dict) and isinstance(theirs, dict):
                names = [n for n in sorted({*mine, *theirs}) if mine.get(n) != theirs.get(n)]
                names = [n for n in names if not (stopped and n.startswith(RATES))]
                if not names:
                    continue
                key, mine, theirs = f"option {names[0]}", mine.get(names[0]), theirs.get(names[0])
            if mine != theirs:
                raise OptionError(
                    f"{self.folder} holds another run: its {key} is {theirs!r}, asked for is {mine!r}; "
                    "give the same options to continue it, or remove the folder to start again"
                )
        if stopped:
            write_text_atomic(state, json.dumps(identity, indent=1, sort_keys=True))

    def note_divergence(self, block: str) -> None:
        """A block diverged: the run may be continued with other learning rates."""
        if not self.workers.is_first:
            return
        state = self.folder / "state.json"
        found = json.loads(state.read_text(encoding="utf-8"))
        write_text_atomic(state, json.dumps({**found, "diverged": block}, indent=1, sort_keys=True))

    def _rates(self) -> dict[str, Any]:
        return {name: value for name, value in self.options.items() if name.startswith(RATES)}

    def _path(self, index: int) -> Path:
        return self.folder / f"block-{index:03d}.safetensors"

    def load_inputs(self) -> CalibrationInputs | None:
        """The calibration inputs, or None where they were not stored yet."""
        loaded = load_arrays(self.folder / "trajectory.safetensors")
        if loaded is None:
            return None
        arrays, note = loaded
        timesteps = arrays.pop("timesteps")
        return CalibrationInputs(inputs=arrays, timesteps=timesteps, provenance=note)

    def save_inputs(self, calibration: CalibrationInputs) -> None:
        """Store the calibration inputs."""
        arrays: Arrays = {**calibration.inputs, "timesteps": calibration.timesteps}
        save_arrays(self.folder / "trajectory.safetensors", arrays, calibration.provenance)

    def load_stage(self, name: str) -> tuple[Arrays, dict[str, Any]] | None:
        """Arrays that a stage before the blocks ended in and the note stored with them, or None."""
        return load_arrays(self.folder / f"stage-{name}.safetensors")

    def save_stage(self, name: str, arrays: Arrays, note: Mapping[str, Any]) -> None:
        """Store what a stage before the blocks ended in."""
        save_arrays(self.folder / f"stage-{name}.safetensors", arrays, note)

    def load_block(
        self, index: int, name: str, prepared: Mapping[str, PreparedLayer]
    ) -> tuple[dict[str, Layer], dict[str, Any]] | None:
        """Layers of a finished block and its note, or None; the note holds learning rates that are not this run's."""
        return self.workers.first(lambda: self._loaded_block(index, name, prepared))

    def _loaded_block(
        self, index: int, name: str, prepared: Mapping[str, PreparedLayer]
    ) -> tuple[dict[str, Layer], dict[str, Any]] | None:
        loaded = load_arrays(self._path(index))
        if loaded is None:
            return None
        arrays, note = loaded
        try:
            if note["block"] != name:
                raise KeyError(name)
            layers = {layer: _layer_from_arrays(prepared[layer], arrays, self.symmetric) for layer in note["layers"]}
        except KeyError as error:
            raise FileProblemError(
                f"{self._path(index)} does not hold {error} of block {name}; remove {self.folder} to start again"
            ) from error
        history = note["history"]
        return layers, history if note["rates"] == self._rates() else {**history, "rates": note["rates"]}

    def save_block(self, index: int, name: str, layers: Mapping[str, Layer], history: Mapping[str, Any]) -> None:
        """Store a finished block."""
        if not self.workers.is_first:
            return
        arrays: Arrays = {}
        for layer in layers.values():
            arrays.update(_arrays_from_layer(layer))
        note = {"block": name, "layers": list(layers), "history": dict(history), "rates": self._rates()}
        save_arrays(self._path(index), arrays, note)


def state_of_run(run: Run, options: SharedOptions, **more: Any) -> ResumeFolder | None:
    """The state of a run with these options, or None where none is kept; `more` belongs to its identity.

    Raises:
        OptionError: the folder holds the state of another run.
        FileProblemError: it cannot be read or written.
    """
    if run.resume_dir is None:
        return None
    denoiser, source = run.denoiser, run.source
    identity: dict[str, Any] = {
        "source_sha256": denoiser.source_sha256,
        "scheduler_sha256": denoiser.scheduler_sha256,
        "options": json_of_options(options),
        "versions": versions(),
    }
    if source.kind != "trajectory" or source.files:
        identity["calibration"] = {"kind": source.kind, **source.files}
    if source.pipeline is not None:
        identity["calibration"] = dict(source.pipeline.words)
    return ResumeFolder(run.resume_dir, {**identity, **more}, run.workers)


def _arrays_from_layer(layer: Layer) -> Arrays:
    arrays: Arrays = {}
    for i, part in enumerate(layer.parts):
        arrays.update({f"{layer.name}/{i}/{name}": getattr(part, name) for name in PART_ARRAYS})
    for name in ("bias", "out_scale", "out_zero_point"):
        value = getattr(layer, name)
        if value is not None:
            arrays[f"{layer.name}/{name}"] = value
    return arrays


def _layer_from_arrays(prepared: PreparedLayer, arrays: Arrays, symmetric: bool) -> Layer:
    name = prepared.site.name
    output = None
    if f"{name}/out_scale" in arrays:
        output = (arrays[f"{name}/out_scale"], arrays[f"{name}/out_zero_point"])
    return layer_of_parts(
        prepared,
        [Part(**{key: arrays[f"{name}/{i}/{key}"] for key in PART_ARRAYS}) for i in range(len(prepared.widths))],
        bias=arrays.get(f"{name}/bias"),
        output=output,
        symmetric=symmetric,
    )


def save_arrays(path: Path, arrays: Arrays, note: Mapping[str, Any]) -> None:
    """Write arrays and a note of JSON values to a file of the state."""
    from dq_deploy.record.files.safetensors import write_arrays

    whole = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
    with atomic_path(path) as temporary:
        write_arrays(temporary, json.dumps(note), whole, key="note")


def load_arrays(path: Path) -> tuple[Arrays, dict[str, Any]] | None:
    """Arrays and note of a file of the state, or None where it is not there.

    Raises:
        FileProblemError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with utf8_name(path) as name, safe_open(name, framework="np") as stream:
            note = json.loads((stream.metadata() or {})["note"])
            return {key: stream.get_tensor(key) for key in stream.keys()}, note  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise FileProblemError(f"cannot read {path}: {error}; remove {path.parent} to start again") from error


def holds_work(folder: Path, *, several: bool) -> bool:
    """Whether a stage or a block of a run is finished there.

    Of several processes, which are for models whose samples take long, the calibration inputs count too.
    """
    kinds = ("stage-*", "block-*", *(("trajectory",) if several else ()))
    return any(path for kind in kinds for path in folder.glob(f"{kind}.safetensors"))


class Spent:
    """Seconds and memory of all the parts of a run that was stopped and continued, kept beside its state.

    Attributes:
        before_s: seconds of earlier parts.
        before_mib: highest memory of them.
    """

    INTERVAL_S = 1.0

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / SPENT
        self.before_s, self.before_mib = 0.0, 0.0
        self._start = self._written = time.perf_counter()
        if self._path is not None and self._path.is_file():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # damaged: only the time is lost
                found = json.loads(self._path.read_text(encoding="utf-8"))
                self.before_s, self.before_mib = float(found["seconds"]), float(found["peak_mib"])

    @property
    def seconds(self) -> float:
        """Of all parts."""
        return self.before_s + time.perf_counter() - self._start

    def note(self, peak_mib: float, *, last: bool = False) -> None:
        """Write what was spent so far, at most once a second but for the last time, once the run has a state."""
        now = time.perf_counter()
        early = not last and now - self._written < self.INTERVAL_S
        if self._path is None or early or not self._path.parent.is_dir():
            return
        self._written = now
        value = {"seconds": self.seconds, "peak_mib": max(peak_mib, self.before_mib)}
        with contextlib.suppress(FileProblemError):  # what is full or gone is said by what must be written
            write_text_atomic(self._path, json.dumps(value))


def discard_state(folder: Path) -> None:
    """Remove a run's state: its own files, and the folder where nothing else is in it."""
    patterns = ("state.json", SPENT, "trajectory.safetensors", "stage-*.safetensors", "block-*.safetensors", ".*.part")
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
