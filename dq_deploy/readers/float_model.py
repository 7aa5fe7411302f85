"""The float model that a checkpoint was made from: the source's own file, or a diffusers folder of the same network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dq_deploy import models
from dq_deploy.artifacts import sha256_of_file
from dq_deploy.errors import FileProblemError
from dq_deploy.numerics.arrays import Array
from dq_deploy.readers.architectures.described_network import float_state, without_prefix
from dq_deploy.readers.architectures.module_paths import Architecture, Target
from dq_deploy.readers.tensors import few, load_float_file

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class FloatModel:
    """Float parameters by the source's keys, and where they are from.

    Attributes:
        state: in the source's shapes from a file, in diffusers' from a folder, which lack axes of 1.
        scheduler_config: the folder's, or None.
        sha256: of the file, or of the folder as `dq_deploy.models.load_model` has it.
    """

    state: dict[str, Array]
    scheduler_config: dict[str, Any] | None
    sha256: str


def load_float_model(
    path: Path, architecture: Architecture, module: torch.nn.Module, *, component: str | None = None
) -> FloatModel:
    """The float model in a file or folder.

    Args:
        path: file of the source's weights, or a diffusers folder.
        architecture: the network.
        module: its diffusers module; only names, shapes and configuration are used.
        component: the denoiser's name in a pipeline's folder that has several.

    Raises:
        FileProblemError: missing or damaged, or another network than the architecture.
        ModelError: a folder that is no diffusers model.
    """
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    if path.is_dir():
        return _from_folder(models.load_model(path, component=component), path, architecture, module, shapes)
    tensors = without_prefix(load_float_file(path), path.name, architecture)
    state = float_state(tensors, architecture, shapes)
    if tensors.unasked():
        raise FileProblemError(
            f"{path.name} has {few(tensors.unasked())}, which the architecture in the settings has no place for"
        )
    return FloatModel(state=state, scheduler_config=None, sha256=sha256_of_file(path))


def _from_folder(
    found: models.Denoiser,
    path: Path,
    architecture: Architecture,
    module: torch.nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
) -> FloatModel:
    theirs = {key: value.numpy() for key, value in found.module.state_dict().items()}
    other = sorted(key for key in {*theirs, *shapes} if key not in theirs or theirs[key].shape != shapes.get(key))
    if other:
        raise FileProblemError(f"{path}: {few(other)} differ in shape from the architecture in the settings")
    ours, given = _choices(module, architecture.config), _choices(found.module, architecture.config)
    for key in ours:
        if ours[key] != given[key]:
            raise FileProblemError(
                f"{path}: config.json has {key} {given[key]!r}, the architecture in the settings means {ours[key]!r}; "
                "correct one of them"
            )
    state = {}
    for source, targets in architecture.targets.items():
        for end in ("weight", "bias"):
            if f"{targets[0].name}.{end}" in theirs:
                state[f"{source}.{end}"] = _joined(targets, [theirs[f"{t.name}.{end}"] for t in targets])
    return FloatModel(state=state, scheduler_config=found.scheduler_config, sha256=found.source_sha256)


def _choices(module: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a module computes beyond the shapes of its parameters: options, and the heads of its attentions."""
    from diffusers.models.attention_processor import Attention

    compared = ("sample_size", "freq_shift", "flip_sin_to_cos", "downsample_padding", "norm_num_groups", "norm_eps")
    values = {key: module.config[key] for key in compared if key in config}
    heads = {name: child.heads for name, child in module.named_modules() if isinstance(child, Attention)}
    return {**values, "attention heads": sorted(heads.items())}


def _joined(targets: tuple[Target, ...], values: list[Array]) -> Array:
    """The source's tensor from those of its diffusers modules."""
    if targets[0].rows is None:
        return values[0]
    rows = sum(len(value) for value in values)
    joined = np.empty((rows, *values[0].shape[1:]), values[0].dtype)
    for target, value in zip(targets, values, strict=True):
        joined[target.rows] = value
    return joined
