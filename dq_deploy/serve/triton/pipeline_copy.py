"""A pipeline's folder without what the engine stands for: the weights of its denoiser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from dq_deploy.models.load.pipeline_folder import INDEX
from dq_deploy.models.pipeline.folder import PipelineFolder

_CONFIG = "config.json"
_OTHER_WEIGHTS = (".bin", ".ckpt", ".h5", ".msgpack", ".pt", ".pth", ".onnx", ".onnx_data", ".pb")
"""Weights that nothing reads where the same folder has them as safetensors."""


def copy_pipeline(folder: PipelineFolder, component: str, out: Path) -> None:
    """Copy a pipeline's folder.

    Left out are the denoiser's weights, files of Python, hidden files, folders that the index does not name, and
    weights in other formats beside those in safetensors.

    Args:
        folder: of the pipeline; links in it are followed.
        component: the denoiser's name.
        out: folder to make.
    """
    out.mkdir()
    shutil.copyfile(folder.path / INDEX, out / INDEX)
    (out / component).mkdir()
    shutil.copyfile(folder.path / component / _CONFIG, out / component / _CONFIG)
    for name in sorted(folder.components):
        if name != component:
            for source, place in _files(folder.path / name, out / name):
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, place)


def _files(folder: Path, out: Path) -> Iterator[tuple[Path, Path]]:
    entries = sorted(one for one in folder.iterdir() if not one.name.startswith("."))
    safe = any(one.suffix == ".safetensors" for one in entries)
    for one in entries:
        if one.is_dir():
            yield from _files(one, out / one.name)
        elif one.suffix != ".py" and not (safe and one.suffix in _OTHER_WEIGHTS):
            yield one, out / one.name
