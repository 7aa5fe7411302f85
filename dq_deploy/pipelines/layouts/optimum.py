"""A pipeline's folder as Optimum loads it: the integer denoiser, and the rest of the pipeline in float beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dq_deploy.artifacts import atomic_folder
from dq_deploy.errors import OptionError
from dq_deploy.models import call_of_record, input_specs
from dq_deploy.models.load.hub_files import snapshot_of
from dq_deploy.models.load.json_file import read_json
from dq_deploy.models.load.pipeline_folder import INDEX, find_denoiser
from dq_deploy.models.load.scheduler_file import FILE
from dq_deploy.models.pipeline.folder import PipelineFolder, read_pipeline_folder
from dq_deploy.pipelines.layouts.openvino_ir import check_openvino, write_ir
from dq_deploy.pipelines.layouts.optimum_reads import (
    ENGINE_FILE,
    TEXT_OUTPUTS,
    FolderPlan,
    check_inputs,
    check_text_encoder,
    plan_folder,
)
from dq_deploy.pipelines.layouts.tokenizer_files import copy_files, write_slow_tokenizer
from dq_deploy.pipelines.quantized import check_same_kind
from dq_deploy.pipelines.same_scheduler import check_same_scheduler
from dq_deploy.targets import check_target, export

if TYPE_CHECKING:
    from dq_deploy.manifest.values import EngineManifest
    from dq_deploy.pipelines.layouts.float_parts import FloatPart
    from dq_deploy.record import Record

LAYOUT = "optimum"
_CONFIG = "config.json"
_SETTINGS = '{"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY", "CPU_RUNTIME_CACHE_CAPACITY": "0"}'
_CALLS = {
    "onnxruntime": 'optimum.onnxruntime.ORTDiffusionPipeline.from_pretrained("{out}")',
    "openvino": 'optimum.intel.OVDiffusionPipeline.from_pretrained("{out}", ov_config=' + _SETTINGS + ")",
}
"""How each tool opens the folder; OpenVINO would else compute the float operations in bfloat16 where it can."""


@dataclass(frozen=True, kw_only=True)
class WrittenFolder:
    """What was written.

    Attributes:
        path: of the folder.
        engine: the denoiser's graph in it, with its manifest beside it.
        manifest: of the denoiser.
        parts: folders of the float graphs.
        left_out: components that are not in it, one line each with the reason.
        call: how Optimum opens it, in Python.
    """

    path: Path
    engine: Path
    manifest: EngineManifest
    parts: tuple[str, ...]
    left_out: tuple[str, ...]
    call: str


def write_optimum_folder(
    record: Record,
    model: Path,
    out: Path,
    *,
    target: str = "onnxruntime",
    mode: str = "exact",
    component: str | None = None,
    on_part: Callable[[str], None] | None = None,
) -> WrittenFolder:
    """Write a pipeline with a quantized denoiser as a folder that Optimum opens.

    The scheduler is the one that the record was calibrated with, as `dq-sample` takes it, else the pipeline's own.

    Args:
        record: of the pipeline's denoiser.
        model: folder of the pipeline, with its float components.
        out: folder to write, new or empty; it is there whole or not at all.
        target: `onnxruntime` or `openvino`.
        mode: of the export.
        component: name of the denoiser, where the pipeline has several.
        on_part: called with the name of each part before it is made.

    Raises:
        OptionError: the pipeline or the record is not one that Optimum runs, or the target has no such layout.
        ModelError: the pipeline cannot be opened, or a part of it cannot be exported.
        FileProblemError: the folder is not empty, or cannot be written.
        MissingDependencyError: transformers or openvino is needed and not installed.
    """
    check_target(target, mode, layout=LAYOUT)
    if target == "openvino":
        check_openvino()
    source, name = _pipeline_of(model, component)
    config = read_json(source.path / name / _CONFIG)
    check_same_kind(record.family, record.model_config, config, str(source.path / name))
    check_same_scheduler(
        record.scheduler_config, source.path / name, advice=f"edit {out}/scheduler/{FILE} to have the other"
    )
    plan = plan_folder(source, name, target)
    check_inputs([spec.name for spec in input_specs(call_of_record(record))], name)
    for encoder in plan.text_encoders:
        check_text_encoder(read_json(source.path / encoder / _CONFIG), str(source.path / encoder))
    tell = on_part if on_part is not None else _nothing
    with atomic_folder(out) as folder:
        tell(name)
        manifest = _write_denoiser(record, folder / name, config, target=target, mode=mode)
        parts = []
        for part in _write_rest(source, name, plan, folder, record, target=target):
            tell(part.name)
            _write_part(part, folder / part.name, source, target=target)
            parts.append(part.name)
    return WrittenFolder(
        path=out,
        engine=out / name / ENGINE_FILE,
        manifest=manifest,
        parts=tuple(parts),
        left_out=plan.left_out,
        call=_CALLS[target].replace("{out}", str(out)),
    )


def _nothing(part: str) -> None:
    pass


def _pipeline_of(model: Path, component: str | None) -> tuple[PipelineFolder, str]:
    place = find_denoiser(model, component)
    folder = None if place.pipeline is None else read_pipeline_folder(place.pipeline)
    if folder is None or place.component is None:
        raise OptionError(
            f"{snapshot_of(model)} is the folder of a denoiser alone, expected a pipeline's with {INDEX}: Optimum "
            "loads whole pipelines"
        )
    return folder, place.component


def _write_denoiser(record: Record, folder: Path, config: dict[str, Any], *, target: str, mode: str) -> EngineManifest:
    folder.mkdir()
    manifest = export(record, folder / ENGINE_FILE, target=target, mode=mode, layout=LAYOUT)
    if target == "openvino":
        write_ir(folder / ENGINE_FILE, folder)
    # Optimum asks a UNet for it, and files of old have it not
    _write_json(folder / _CONFIG, {"time_cond_proj_dim": None, **config} if folder.name == "unet" else config)
    return manifest


def _write_rest(
    source: PipelineFolder, name: str, plan: FolderPlan, folder: Path, record: Record, *, target: str
) -> Iterator[FloatPart]:
    """Write what needs no tracer, then give the float parts one by one."""
    import torch

    from dq_deploy.models.pipeline import build_scheduler, open_pipeline
    from dq_deploy.pipelines.layouts.float_parts import text_part, vae_parts

    pipeline: Any = open_pipeline(source.path, component=name, denoiser=torch.nn.Identity())
    scheduler = pipeline.scheduler if record.scheduler_config is None else build_scheduler(record.scheduler_config)
    scheduler.save_pretrained(folder / "scheduler")
    index = read_json(source.path / INDEX)
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    for left in ("safety_checker", "image_encoder"):
        if left in index:
            index[left] = [None, None]
    _write_json(folder / INDEX, index)
    for part in plan.copied:
        copy_files(source.path / part, folder / part)
        write_slow_tokenizer(folder / part, source.components[part][1])
    for part, kind in plan.text_encoders.items():
        encoder = getattr(pipeline, part)
        layers = getattr(encoder.config, "num_hidden_layers", 0) + (1 if target == "openvino" else 0)
        hidden = layers if plan.hidden_states and kind.startswith("CLIP") else 0
        yield text_part(part, encoder, TEXT_OUTPUTS[kind], hidden=hidden)
    yield from vae_parts(pipeline.vae)


def _write_part(part: FloatPart, folder: Path, source: PipelineFolder, *, target: str) -> None:
    from dq_deploy.graph.onnx_file import write_onnx
    from dq_deploy.pipelines.layouts.float_parts import traced_part

    folder.mkdir()
    model = traced_part(part)
    if target == "openvino":
        with TemporaryDirectory(prefix="dq-", dir=folder.parent) as place:
            write_onnx(model, Path(place) / ENGINE_FILE, None)
            write_ir(Path(place) / ENGINE_FILE, folder)
    else:
        write_onnx(model, folder / ENGINE_FILE, None)
    component = "vae" if part.name.startswith("vae") else part.name
    config = read_json(source.path / component / _CONFIG)
    if component != "vae":  # Optimum counts the layers by this name, T5 has another
        config.setdefault("num_hidden_layers", part.layers)
    _write_json(folder / _CONFIG, config)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
