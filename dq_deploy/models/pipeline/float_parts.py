"""The parts of a pipeline beside its denoiser, whole: diffusers would fill what a file lacks with random numbers."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from dq_deploy.errors import ModelError
from dq_deploy.models.load.state import check_float_model, few, is_finite
from dq_deploy.models.load.weight_files import check_no_adapter
from dq_deploy.models.pipeline.folder import LIBRARIES, PipelineFolder

_OF_INTEGERS = ("I8", "U8", "F8_E4M3", "F8_E5M2")
"""Types of safetensors in which only quantized weights are stored."""


def float_parts(
    folder: PipelineFolder,
    without: Collection[str],
    variant: str | None,
    in_words: AbstractContextManager[None],
) -> dict[str, Any]:
    """Text encoders, VAE and the other models of a pipeline, float32.

    Args:
        folder: of the pipeline.
        without: components that are not loaded here; what is no model of diffusers or transformers is not either.
        variant: of the weight files, where a component has it.
        in_words: entered around what the libraries do.

    Raises:
        ModelError: a file lacks a weight, has one of another shape, of integers or without end, or belongs to an
            adapter.
    """
    found = {}
    with in_words:
        kinds = {
            name: kind
            for name, (library, named) in folder.components.items()
            if name not in without and (kind := _model_class(library, named)) is not None
        }
        for name, kind in kinds.items():
            place = folder.path / name
            check_no_adapter(place)
            _check_types(place)
            found[name] = _whole(kind, place, variant)
    return found


def _model_class(library: str, named: str) -> Any:
    """The class, or None where it has no weights or lies in a module of one pipeline."""
    import torch

    if library not in LIBRARIES:
        return None
    kind = getattr(importlib.import_module(library), named, None)
    return kind if isinstance(kind, type) and issubclass(kind, torch.nn.Module) else None


def _check_types(place: Path) -> None:
    import safetensors

    for file in sorted(place.glob("*.safetensors")):
        try:
            with safetensors.safe_open(str(file), framework="np") as stream:
                names = stream.keys()
                wrong = {name for name in names if stream.get_slice(name).get_dtype() in _OF_INTEGERS}
        except (safetensors.SafetensorError, OSError):
            continue  # who loads it says so
        if wrong:
            raise ModelError(f"{file} has {few(wrong)} in 8 bits, expected float weights; give the float model")


def _whole(kind: Any, place: Path, variant: str | None) -> Any:
    has = variant is not None and any(f".{variant}." in file.name for file in place.iterdir())
    import torch

    dtype = "dtype" if kind.__module__.startswith("transformers.") else "torch_dtype"
    model, info = kind.from_pretrained(
        place,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # what differs is said in our words
        **{dtype: torch.float32},
        **({"variant": variant} if has else {}),
    )
    check_float_model(set(info["unexpected_keys"]), str(place))
    for entry in sorted(info["mismatched_keys"]):
        shapes = f"{tuple(entry[1])}, expected {tuple(entry[2])}" if len(entry) == 3 else "another than expected"
        raise ModelError(f"{place}: {entry[0]} has shape {shapes}; copy the folder again")
    if missing := set(info["missing_keys"]):
        raise ModelError(f"{place} lacks {few(missing)}, which a {kind.__name__} has; copy the folder again")
    for name, value in model.named_parameters():
        if value.is_floating_point() and not is_finite(value.detach()):
            raise ModelError(f"{place}: {name} holds NaN or infinity, expected finite numbers; copy the folder again")
    return model
