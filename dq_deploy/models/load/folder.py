"""Read a diffusers folder from disk: configuration, scheduler and weights, without running code from it."""

from __future__ import annotations

import hashlib
import json
import math
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.artifacts import utf8_name
from dq_deploy.errors import DqError, ModelError, raise_if_out_of_memory
from dq_deploy.models.family import build_denoiser, family_of
from dq_deploy.models.layers import Denoiser, first_line
from dq_deploy.models.load.scheduler_file import INDEX, check_scheduler_is_there, find_scheduler, read_scheduler
from dq_deploy.models.load.weight_files import WeightFiles, find_weights

if TYPE_CHECKING:
    import torch

_OLD_ATTENTION = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a model folder.

    Raises:
        ModelError: the file is missing, unreadable or not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing; expected a diffusers folder with it") from error
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON ({error}); expected a diffusers configuration") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def find_denoiser(path: Path) -> Path:
    """The denoiser's folder: the one that is given, or the unet of a pipeline.

    Raises:
        ModelError: `path` is no folder, or neither a denoiser nor a pipeline folder.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ModelError(
            f"model folder {path} {what}; expected a diffusers folder on disk (models are never downloaded: "
            "save yours with save_pretrained and give that folder)"
        )
    if (path / "config.json").is_file():
        return path
    if (path / INDEX).is_file():
        entry = read_json(path / INDEX).get("unet")
        if not (isinstance(entry, list) and len(entry) == 2 and entry[1] is not None):
            raise ModelError(f"{path / INDEX} names no unet, expected a pipeline with one")
    elif not (path / "unet").is_dir():
        raise ModelError(
            f"model folder {path} has neither config.json, model_index.json nor unet/; "
            "expected a diffusers denoiser or pipeline folder"
        )
    return path / "unet"


def _check_declared_sizes(path: Path) -> None:
    """Refuse a zip bomb before torch unpacks it: torch stores weights plainly, so they cannot exceed the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile:
        return  # the older form of torch.save, or a damaged file that torch.load names
    declared = sum(entry.file_size for entry in entries)
    if declared > path.stat().st_size or any(e.compress_type != zipfile.ZIP_STORED for e in entries):
        raise ModelError(
            f"weights {path} declare {declared} bytes in a file of {path.stat().st_size}, or compress them; "
            "nothing was unpacked, save the model as safetensors"
        )


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            with utf8_name(path) as name:
                return dict(load_file(name))
        _check_declared_sizes(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"cannot read weights {path}: {error.strerror or error}") from error
    except ModelError:
        raise
    except Exception as error:
        raise_if_out_of_memory(error)
        if path.suffix == ".bin" and "weights_only" in str(error).lower():
            raise ModelError(
                f"weights {path} hold Python objects besides tensors, or are damaged; nothing was executed, "
                "save the model as safetensors"
            ) from error
        raise ModelError(
            f"weights {path} are truncated or damaged ({first_line(error)}); copy the file again"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
    ):
        raise ModelError(f"weights {path} are not a flat state dict of tensors, expected one")
    return state


def _state_of(weights: WeightFiles) -> dict[str, torch.Tensor]:
    """Every tensor of the files.

    Raises:
        ModelError: a file is damaged, or holds other tensors than the index says.
    """
    state: dict[str, torch.Tensor] = {}
    for path in weights.files:
        found = _read_tensors(path)
        expected = set(found) if weights.keys is None else weights.keys[path]
        if other := set(found) ^ expected:
            raise ModelError(f"{path} and its index {weights.name.name} differ in {_few(other)}; copy both again")
        state.update(found)
    return state


def _check_finite(config: dict[str, Any], path: Path) -> None:
    for key, value in config.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ModelError(f"{path} has {key} {value}, expected a finite number")


def _renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of attention layers written by diffusers before 0.15 become today's."""
    renamed = {}
    for key, value in state.items():
        for old, new in _OLD_ATTENTION:
            key = re.sub(rf"(attentions\.\d+)\.{old}\.(weight|bias)$", rf"\1.{new}.\2", key)
        renamed[key] = value
    return renamed


def _few(names: set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def fit_state(
    module: torch.nn.Module,
    state: dict[str, torch.Tensor],
    source: str,
    error_type: type[DqError] = ModelError,
) -> None:
    """Put a state dict into a module, converted to float32; every name and shape must match.

    Raises:
        ModelError: (or `error_type`) names the missing, unknown, misshapen or non-finite tensors.
    """
    import torch

    expected = module.state_dict()
    missing, unknown = set(expected) - set(state), set(state) - set(expected)
    if missing:
        raise error_type(f"{source} lacks {_few(missing)}, which the configuration asks for")
    if unknown:
        raise error_type(f"{source} has {_few(unknown)}, which the configuration does not have")
    ready = {}
    for key, value in state.items():
        if tuple(value.shape) != tuple(expected[key].shape):
            raise error_type(f"{source}: {key} has shape {tuple(value.shape)}, expected {tuple(expected[key].shape)}")
        if expected[key].dtype.is_floating_point != value.dtype.is_floating_point:
            raise error_type(f"{source}: {key} is {value.dtype}, expected {expected[key].dtype}")
        value = value.to(expected[key].dtype)
        if value.is_floating_point() and not value.is_meta and not bool(torch.isfinite(value).all()):
            raise error_type(f"{source}: {key} holds NaN or infinity, expected finite numbers")
        ready[key] = value.contiguous()
    module.load_state_dict(ready, assign=True)
    module.eval().requires_grad_(False)


def load_folder(path: Path, *, variant: str | None = None) -> Denoiser:
    """See `dq_deploy.models.load_model`."""
    folder = find_denoiser(path)
    config = read_json(folder / "config.json")
    _check_finite(config, folder / "config.json")
    scheduler_file, index = find_scheduler(folder)
    if scheduler_file is None:
        check_scheduler_is_there(folder, read_json)
    try:
        family = family_of(config)
        weights = find_weights(folder, variant)
        module = build_denoiser(family, config, device="meta")
    except ModelError as error:
        raise ModelError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from error
    fit_state(module, _renamed(_state_of(weights)), str(weights.name))
    digest = hashlib.sha256()
    for file in weights.files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    digest.update((folder / "config.json").read_bytes())
    return Denoiser(
        family=family,
        module=module,
        config=config,
        scheduler_config=read_scheduler(scheduler_file, index, read_json) if scheduler_file else None,
        source=str(path),
        source_sha256=digest.hexdigest(),
    )
