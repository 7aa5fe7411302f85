"""Writes a model repository: two models, each with its configuration, whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING

from dq_deploy.artifacts import atomic_folder, check_new_folder
from dq_deploy.errors import OptionError
from dq_deploy.models.pipeline import open_pipeline
from dq_deploy.models.pipeline.open import quiet
from dq_deploy.serve.triton.config_text import TensorText, block, parameters, quoted, remark, tensors
from dq_deploy.serve.triton.denoiser_config import Batching, batching_of, denoiser_config, facts_of
from dq_deploy.serve.triton.engine_source import read_engine, write_engine
from dq_deploy.serve.triton.loop_settings import Loop, plan_loop
from dq_deploy.serve.triton.pipeline_copy import copy_pipeline

if TYPE_CHECKING:
    from dq_deploy.manifest.values import EngineManifest

CONFIG, VERSION = "config.pbtxt", "1"
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"
_MOST_PICTURES, _LONGEST_SIDE = 64, 2048
_PACKAGES = ("torch", "diffusers", "transformers")


@dataclass(frozen=True, kw_only=True)
class RepositoryRequest:
    """What is asked for; the attributes are those of `write_triton_repository`."""

    model: Path | None
    engine: Path
    name: str
    component: str | None
    scheduler: str | None
    max_batch: int
    instances: int
    torch_threads: int
    hash_check: bool


@dataclass(frozen=True, kw_only=True)
class WrittenRepository:
    """What was written.

    Attributes:
        path: of the repository.
        denoiser: name of the model of one step.
        loop: name of the model of whole pictures.
        engine: the engine's file in it.
        manifest: of the engine.
        inputs: names of what a request for pictures holds.
        output: name of what it is answered with: `IMAGES` or `LATENTS`.
        not_batched: why Triton does not join requests, in words; empty where it does.
        requirements: Python packages that the loop's model needs, with the versions it was written with.
    """

    path: Path
    denoiser: str
    loop: str
    engine: Path
    manifest: EngineManifest
    inputs: tuple[str, ...]
    output: str
    not_batched: str
    requirements: tuple[str, ...]


def write_repository(out: Path, asked: RepositoryRequest) -> WrittenRepository:
    """See `dq_deploy.serve.triton.write_triton_repository`."""
    _check(asked)
    check_new_folder(out)
    source = read_engine(asked.engine, hash_check=asked.hash_check)
    with quiet():
        loop = plan_loop(source.manifest, asked.model, component=asked.component, scheduler=asked.scheduler)
        _check_float_parts(loop)
    _check_batch(loop, batching_of(source.manifest, asked.max_batch))
    denoiser = f"{asked.name}_denoiser"
    with atomic_folder(out) as folder:
        step = folder / denoiser / VERSION
        step.mkdir(parents=True)
        manifest = write_engine(source, step)
        batching = batching_of(manifest, asked.max_batch)
        text = denoiser_config(denoiser, manifest, batching, instances=asked.instances)
        _write(step.parent / CONFIG, text)
        inputs = loop.inputs(manifest)
        place = folder / asked.name / VERSION
        place.mkdir(parents=True)
        _write(place.parent / CONFIG, _loop_config(asked, loop, manifest, inputs))
        settings = loop.settings(manifest, denoiser=denoiser, steps=source.steps, most=batching.most)
        _write(place / "loop.json", json.dumps(settings, sort_keys=True, indent=1) + "\n")
        shutil.copyfile(Path(__file__).with_name("loop_model.py"), place / "model.py")
        needed = requirements(loop)
        _write(place.parent / "requirements.txt", "\n".join(needed) + "\n")
        if loop.folder is not None and loop.component is not None:
            copy_pipeline(loop.folder, loop.component, place / "pipeline")
    return WrittenRepository(
        path=out,
        denoiser=denoiser,
        loop=asked.name,
        engine=out / denoiser / VERSION / source.file,
        manifest=manifest,
        inputs=tuple(entry.name for entry in inputs),
        output="LATENTS" if loop.latents else "IMAGES",
        not_batched=batching.reason,
        requirements=needed,
    )


def _check_float_parts(loop: Loop) -> None:
    """Refuse a pipeline of which a part cannot be loaded whole; the loop in Triton loads it without a word."""
    import torch

    if loop.folder is not None:
        open_pipeline(loop.folder.path, component=loop.component, denoiser=torch.nn.Identity())


def _check(asked: RepositoryRequest) -> None:
    if not re.fullmatch(_NAME, asked.name):
        raise OptionError(
            f"name is {short(asked.name)}, expected 1 to 100 letters, digits, `_`, `-` and `.`, not beginning with "
            "`-` or `.`: it is a folder's name and a part of an address"
        )
    for what, value in (
        ("max_batch", asked.max_batch),
        ("instances", asked.instances),
        ("torch_threads", asked.torch_threads),
    ):
        if value < 1:
            raise OptionError(f"{what} is {value}, expected at least 1")


def _check_batch(loop: Loop, batching: Batching) -> None:
    """Refuse an engine that cannot take both halves of guidance.

    Raises:
        OptionError: it takes one sample a call.
    """
    if loop.guided and batching.most == 1:
        raise OptionError(
            f"the engine is called with batches of 1, expected at least 2: a {loop.class_name} with guidance draws "
            "with and without the prompt in one call; give a larger `max_batch`, or a plan for one"
        )


def _loop_config(asked: RepositoryRequest, loop: Loop, manifest: EngineManifest, inputs: list[TensorText]) -> str:
    channels = -1 if loop.sample is None else loop.sample[0]
    output = (
        TensorText(name="LATENTS", dtype="float32", dims=(-1, channels, -1, -1))
        if loop.latents
        else TensorText(name="IMAGES", dtype="uint8", dims=(-1, -1, -1, channels))
    )
    limits = {"max_pictures": _MOST_PICTURES, "max_side": _LONGEST_SIDE, "torch_threads": asked.torch_threads}
    lines = [
        remark(f"Whole pictures by {loop.class_name}: model.py asks {asked.name}_denoiser for each step."),
        f"name: {quoted(asked.name)}",
        f"backend: {quoted('python')}",
        "max_batch_size: 0",
        *tensors("input", inputs),
        *tensors("output", [output]),
        *block("instance_group", [f"count: {asked.instances}", "kind: KIND_CPU"]),
        "version_policy: { latest: { num_versions: 1 } }",
        remark("No dynamic batching: a request is one drawing, whose steps are joined in the denoiser's model."),
        remark("No warm-up: models are loaded in any order, and a drawing needs the other one."),
        *parameters(facts_of(manifest) | {name: str(value) for name, value in limits.items()}),
    ]
    return "\n".join(lines) + "\n"


def requirements(loop: Loop) -> tuple[str, ...]:
    """Lines for pip: what draws, in the versions that are installed here.

    The server's Python wants numpy below 2: its outputs come back empty with a later one.
    """
    whole = loop.folder is not None and any(library == "transformers" for library, _ in loop.folder.components.values())
    names = [name for name in _PACKAGES if name != "transformers" or whole]
    config = loop.scheduler or {}
    names += ["scipy"] if config.get("_class_name") == "LMSDiscreteScheduler" or config.get("use_beta_sigmas") else []
    return (*(f"{name}=={metadata.version(name).partition('+')[0]}" for name in names), "numpy<2")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
