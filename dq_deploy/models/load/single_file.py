"""A checkpoint in one file, in the names of the model's authors: converted by diffusers, for a given configuration."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import ModelError, first_line, raise_if_out_of_memory
from dq_deploy.models.load.hub_files import check_link
from dq_deploy.models.load.state import check_float_model
from dq_deploy.models.load.tensor_file import TensorFile

if TYPE_CHECKING:
    import torch

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def is_weight_file(path: Path) -> bool:
    """Whether a path is a file of weights by its name, or a link of such a name.

    Raises:
        ModelError: a file of another tool that holds quantized weights or a graph.
    """
    if path.is_dir() or not (path.is_file() or path.is_symlink()):
        return False
    if path.suffix in (".gguf", ".onnx"):
        what = "weights that were quantized elsewhere" if path.suffix == ".gguf" else "a graph"
        raise ModelError(f"{path} holds {what}; give the float model as a folder or a file of diffusers")
    check_link(path)
    return path.suffix in SUFFIXES


def needs_config(path: Path) -> ModelError:
    """The refusal of a file of weights without a configuration."""
    folder = path.parent
    if (folder / "config.json").is_file():
        return ModelError(f"{path} is one file of a model; give its folder {folder}")
    return ModelError(
        f"{path} is a file of weights, which does not say what model it is; give as `config` a folder with the "
        "config.json of its denoiser, or that of a pipeline of the same kind (nothing is downloaded)"
    )


def single_file_state(
    path: Path, config: Mapping[str, Any], expected: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint by the names of diffusers.

    Args:
        path: the file; it may hold a text encoder and a VAE too, which are left out.
        config: of the denoiser, as today's diffusers takes it.
        expected: the denoiser's tensors by name, with or without values.

    Raises:
        ModelError: the file is damaged, diffusers has no conversion for this class, or the file holds another model.
    """
    file = TensorFile(path)
    check_float_model(set(file.names) - set(expected), str(path))
    state = {name: file.read(name) for name in file.names}
    if set(state) >= set(expected):
        return state  # diffusers' own names
    name = str(config["_class_name"])
    try:
        from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
    except ImportError as error:
        raise ModelError(f"this diffusers cannot convert the single file {path}; give the model's folder") from error
    if name not in SINGLE_FILE_LOADABLE_CLASSES:
        raise ModelError(
            f"{path} has other names than {name} of diffusers, which has no conversion for this class; save the model "
            "with diffusers and give its folder"
        )
    try:
        with offline():
            found = SINGLE_FILE_LOADABLE_CLASSES[name]["checkpoint_mapping_fn"](config=dict(config), checkpoint=state)
    except Exception as error:  # a key that is not there, or any other error of code that checks nothing
        raise_if_out_of_memory(error)
        raise ModelError(
            f"{path} is not a checkpoint that diffusers can convert to a {name} "
            f"({type(error).__name__}: {first_line(error)}); check that `config` is of the same model"
        ) from error
    if not found:
        raise ModelError(f"{path} holds no weights of a {name}; check that `config` is of the same model")
    return dict(found)


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Inside, the hub's client refuses to ask the network."""
    from huggingface_hub import constants

    before, variable = constants.HF_HUB_OFFLINE, os.environ.get("HF_HUB_OFFLINE")
    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        if variable is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = variable
