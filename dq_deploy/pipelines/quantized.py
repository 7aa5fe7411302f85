"""A quantized model as it is sampled: from its record or an engine, in the denoiser's place of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING, Any

import numpy as np

from dq_deploy.errors import FileProblemError, OptionError
from dq_deploy.models import Denoiser, call_of_record, float_model_of
from dq_deploy.models.family import family_of
from dq_deploy.models.load.json_file import read_json
from dq_deploy.models.load.pipeline_folder import find_denoiser
from dq_deploy.models.pipeline import PipelineCall, build_scheduler, open_pipeline, scheduler_name
from dq_deploy.models.pipeline.open import pipeline_of_denoiser
from dq_deploy.native.runner import RecordRunner
from dq_deploy.open_engine import open_engine
from dq_deploy.pipelines.draw import bucket_distances
from dq_deploy.pipelines.integer_denoiser import IntegerDenoiser
from dq_deploy.pipelines.module_runner import ModuleRunner
from dq_deploy.pipelines.same_scheduler import NAME_ONE, check_same_scheduler, check_same_values
from dq_deploy.record import Call, Record, content_sha256, load_record
from dq_deploy.targets.manifest import call_of_manifest, manifest_of_record

if TYPE_CHECKING:
    from torch import nn

    from dq_deploy.engines.base import Runner
    from dq_deploy.manifest.values import EngineManifest


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantized:
    """What is sampled.

    Attributes:
        runner: the engine, or the record's simulation.
        name: `engine` or `simulation`.
        manifest: of the engine.
        record: where it is known.
        path: of the record, or else of the engine.
    """

    runner: Runner
    name: str
    manifest: EngineManifest
    record: Record | None
    path: Path

    @property
    def call(self) -> Call:
        """How its denoiser is called: as the record or the engine says, or by its configuration."""
        return call_of_manifest(self.manifest) if self.record is None else call_of_record(self.record)

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Of the record; empty where it is not known."""
        return {} if self.record is None else self.record.provenance

    @property
    def steps(self) -> int | None:
        """Sampling steps it was calibrated with: as the record says, else one for each step bucket."""
        options = self.provenance.get("options")
        said = options.get("steps") if isinstance(options, Mapping) else None
        return said if isinstance(said, int) else len(self.manifest.timesteps) or None

    def denoiser(self) -> IntegerDenoiser:
        """In the denoiser's place; the runner stays this value's."""
        return IntegerDenoiser(self.runner)

    def distances(self, timesteps: Sequence[float]) -> np.ndarray[Any, Any]:
        """How far each timestep lies from the calibrated one of its bucket."""
        edges = np.asarray(self.manifest.step_edges, np.float32)
        return bucket_distances(timesteps, np.asarray(self.manifest.timesteps, np.float32), edges)


def open_quantized(
    ckpt: Path | None,
    engine: Path | None,
    stack: ExitStack,
    *,
    threads: int | None = None,
    isa: str | None = None,
    device: str | None = None,
    attention: str | None = None,
    hash_check: bool = True,
) -> Quantized:
    """Open an engine, or a record's simulation.

    Args:
        ckpt: record; without an engine it is simulated.
        engine: exported file, plan or record.
        stack: closes the engine.
        threads: as of `open_engine`, and so the next three.
        isa: instruction set of the native engine.
        device: of the native engine.
        attention: likewise.
        hash_check: refuse a file whose content is not what was written.

    Raises:
        OptionError: neither a record nor an engine.
        FileProblemError: the engine is of another record.
    """
    if ckpt is None and engine is None:
        raise OptionError("got neither `record` nor `engine`, expected at least one of them")
    record = None if ckpt is None else load_record(ckpt, hash_check=hash_check)
    if engine is None:
        from dq_deploy.simulation.fake_quant import simulate

        assert record is not None
        assert ckpt is not None
        manifest = manifest_of_record(record, target="simulation")
        runner: Runner = stack.enter_context(ModuleRunner(simulate(record), manifest))
        return Quantized(runner=runner, name="simulation", manifest=manifest, record=record, path=ckpt)
    runner = stack.enter_context(
        open_engine(engine, threads=threads, isa=isa, device=device, attention=attention, hash_check=hash_check)
    )
    found = runner.manifest
    assert found is not None  # open_engine requires it by default
    if record is None and isinstance(runner, RecordRunner):
        record = runner.record
    elif record is not None and content_sha256(record) != found.record_sha256:
        raise FileProblemError(
            f"engine {engine} was exported from the record {str(found.record_sha256)[:12]}, expected "
            f"{content_sha256(record)[:12]} as in {ckpt}; export it again or give its own record"
        )
    return Quantized(runner=runner, name="engine", manifest=found, record=record, path=ckpt or engine)


def pipeline_around(
    quantized: Quantized, folder: Path | None, asked: PipelineCall, *, component: str | None = None
) -> Any:
    """The pipeline that draws.

    Args:
        quantized: goes in the denoiser's place.
        folder: of the pipeline; None for the denoiser alone.
        asked: of the pipeline; without a scheduler it is the one that the record was calibrated with, else the
            folder's.
        component: the denoiser's name, where the pipeline has several.

    Raises:
        ModelError: no pipeline can be opened there.
        OptionError: a scheduler that does not exist or does not fit, or a pipeline around another denoiser than the
            one that was quantized.
    """
    config = quantized.manifest.scheduler_config
    denoiser = quantized.denoiser()
    if folder is None:
        return pipeline_of_denoiser(denoiser, build_scheduler(config, asked.scheduler))
    place = find_denoiser(folder, component).folder
    manifest = quantized.manifest
    check_same_kind(manifest.family, manifest.model_config, read_json(place / "config.json"), str(place))
    check_same_scheduler(config, place, asked=asked.scheduler, advice=NAME_ONE)
    pipeline = open_pipeline(folder, component=component, denoiser=denoiser, scheduler=asked.scheduler, asked=asked)
    steps = scheduler_name(pipeline, denoiser)
    if asked.scheduler is None and config is not None and steps is not None:
        setattr(pipeline, steps, build_scheduler(config))
    return pipeline


def float_denoiser(
    quantized: Quantized, model: Path | None, component: str | None, *, alone: bool
) -> tuple[Denoiser, str | None]:
    """The float model that was quantized, or the one the user names, and a remark where it could not be checked.

    Args:
        quantized: what it is compared with.
        model: folder; None for the one that the record names.
        component: the denoiser's name, where that is a pipeline with several.
        alone: no pipeline draws, whose scheduler `pipeline_around` compares.

    Raises:
        OptionError: it is not known or not there, another model than was quantized, or one with a scheduler that does
            not step it.
    """
    source = model if model is not None else quantized.provenance.get("source")
    if source is None:
        raise OptionError("`compare` needs the float model, expected `record` with its source, or `model` DIR")
    if model is None and not Path(source).exists():
        raise OptionError(f"the float model {source} that {quantized.path} names does not exist; give `model` DIR")
    provenance = quantized.provenance
    denoiser = float_model_of(provenance, source, component=component, sizes=quantized.call.sizes)
    if alone:
        check_same_values(quantized.manifest.scheduler_config, denoiser.scheduler_config, str(source))
    expected = provenance.get("source_sha256")
    if expected is None:
        manifest = quantized.manifest
        check_same_kind(manifest.family, manifest.model_config, denoiser.config, denoiser.source)
        advice = (
            "; give `record` to have them checked" if quantized.record is None else ": the record has no hash of them"
        )
        return denoiser, (
            f"the weights of the float model {source} could not be compared with those that were quantized{advice}"
        )
    if denoiser.source_sha256 != expected:
        advice = "give the folder of that one" if model is not None else "give the folder of that one with `model`"
        raise OptionError(
            f"the float model {source} has the hash {denoiser.source_sha256[:12]}, expected {expected[:12]}, "
            f"the one that was quantized; {advice}"
        )
    return denoiser, None


def check_same_kind(family: str | None, theirs: Mapping[str, Any], mine: Mapping[str, Any], source: str) -> None:
    """Refuse a float model of another class or configuration than was quantized, where both name a value.

    Args:
        family: of what was quantized; None where it is not known.
        theirs: configuration of that.
        mine: configuration of the float model.
        source: of the float model, in words.

    Raises:
        OptionError: names the first difference.
    """
    advice = "give the model that was quantized with `model`"
    given, wanted = (str(config.get("_class_name", "model of no named class")) for config in (mine, theirs))
    if family not in (None, family_of(mine)) or ("_class_name" in theirs and given != wanted):
        raise OptionError(f"the float model {source} is a {given}, expected the {wanted} quantized; {advice}")
    for key in sorted(mine.keys() & theirs.keys()):  # a value left out is the default, which a newer file may spell out
        if not key.startswith("_") and mine[key] != theirs[key]:  # the folder's name and diffusers' version may differ
            raise OptionError(
                f"the float model {source} has {key} {short(mine[key])}, expected {short(theirs[key])} as what was "
                f"quantized; {advice}"
            )


def first_non_finite_of(module: nn.Module, arguments: Mapping[str, Any]) -> str | None:
    """Path of the first submodule whose output is not finite for these arguments of a denoiser, or None."""
    from dq_deploy.calibration.non_finite import first_non_finite

    given = dict(arguments)
    sample = given.pop("sample", None)
    first = given.pop("hidden_states") if sample is None else sample
    return first_non_finite(module, lambda: module(first.float(), **given))
