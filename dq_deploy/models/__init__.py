"""Denoiser families: load one from a folder, list its layers, rebuild it from a record.

Functions take the configuration to find the family, so that callers stay the same when families are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.models.call import INPUT_NAMES, call_arguments, call_denoiser
from dq_deploy.models.family import (
    CLASS_NAMES,
    FAMILIES,
    build_denoiser,
    call_of,
    family_of,
    family_of_config,
    family_of_module,
    input_specs,
    output_specs,
)
from dq_deploy.models.layers import Block, Denoiser, Family, FoldSite, LayerSite, Macs, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from dq_deploy.models.rebuild import LazyWeight
    from dq_deploy.record import Record

__all__ = [
    "CLASS_NAMES",
    "FAMILIES",
    "INPUT_NAMES",
    "Block",
    "Denoiser",
    "Family",
    "FoldSite",
    "LayerSite",
    "Macs",
    "TensorSpec",
    "blocks_of",
    "build_denoiser",
    "call_arguments",
    "call_denoiser",
    "call_of",
    "denoiser_from_record",
    "example_inputs",
    "family_of",
    "fold_refusals",
    "fold_sites",
    "input_specs",
    "lazy_weights",
    "load_model",
    "macs_of",
    "middle_of",
    "output_specs",
    "quantizable_layers",
    "random_conditions",
    "skip_splits",
]


def load_model(
    path: str | Path,
    *,
    variant: str | None = None,
    component: str | None = None,
    config: str | Path | None = None,
) -> Denoiser:
    """Load a float denoiser from disk; nothing is downloaded and no code in it is run.

    Weights are mapped into memory: float32 stays in the map of its file, other types are converted tensor by tensor.

    Args:
        path: a denoiser folder (config.json and weights), a pipeline folder (model_index.json), such a folder in the
            hub's cache, or one file of weights.
        variant: file variant as `fp16`; None takes the plain file, or the only variant there is.
        component: name of the denoiser in a pipeline that has several, as `prior`.
        config: for a file of weights, the folder with its configuration: of a denoiser, or of a pipeline of the same
            kind. Names as the model's authors wrote them are converted by diffusers.

    Returns:
        The denoiser in float32 and eval mode, whatever type the file holds.

    Raises:
        ModelError: the folder, its configuration or its weights are not usable; the message says what to do.
    """
    from dq_deploy.models.load.folder import load_folder

    return load_folder(
        Path(path), variant=variant, component=component, config=None if config is None else Path(config)
    )


def denoiser_from_record(record: Record, *, dequantize: bool = True) -> torch.nn.Module:
    """The diffusers module a record stands for: float parameters as stored, quantized weights dequantized.

    A quantized layer's weight is w_q * s_w * pre (weight set 0, float32); its bias is the layer's.

    Args:
        record: the quantized denoiser.
        dequantize: False leaves the integer layers' weights without values (device `meta`), for a caller that puts
            something else in their place.

    Raises:
        RecordError: the record lacks a parameter, has one too many, or one of another shape.
    """
    from dq_deploy.models.rebuild import module_from_record

    return module_from_record(record, dequantize=dequantize)


def lazy_weights(record: Record) -> dict[str, LazyWeight]:
    """The float weights of a record's quantized layers by state-dict key, each computed when it is read."""
    from dq_deploy.models import rebuild

    return rebuild.lazy_weights(record)


def quantizable_layers(module: torch.nn.Module, config: Mapping[str, Any], *, batch: int = 1) -> list[LayerSite]:
    """Every linear and 2-D convolution in execution order, with shapes at `batch` and MACs of one sample."""
    return family_of_config(config).quantizable_layers(module, config, batch=batch)


def macs_of(module: torch.nn.Module | None, config: Mapping[str, Any]) -> Macs:
    """Multiply-accumulates of one sample at the configuration's sample size; None needs no weights at all."""
    family = family_of_config(config)
    return family.macs_of(family.build(config, device="meta") if module is None else module, config)


def example_inputs(config: Mapping[str, Any], batch: int, seed: int) -> dict[str, np.ndarray]:
    """Random valid inputs by name: normal samples, whole timesteps, conditions; the same for the same seed."""
    return family_of_config(config).example_inputs(config, batch, seed)


def random_conditions(
    config: Mapping[str, Any], batch: int, generator: np.random.Generator, *, sizes: Mapping[str, int] | None = None
) -> dict[str, NDArray[np.generic]]:
    """Valid values of the inputs besides `sample` and `timestep`: labels, normal embeddings, the model's own size.

    Args:
        config: of the denoiser.
        batch: number of samples.
        generator: where the numbers come from.
        sizes: of the axes that vary, by name; by default as `sizes.EXAMPLE_SIZES` has them.
    """
    from dq_deploy.models import conditions
    from dq_deploy.models.sizes import EXAMPLE_SIZES

    return conditions.random_conditions(input_specs(config), config, batch, generator, sizes or EXAMPLE_SIZES)


def skip_splits(module: torch.nn.Module) -> dict[str, int]:
    """Layers whose input is a concatenation with a skip, and the channels of its first half."""
    return family_of_module(module).skip_splits(module)


def middle_of(module: torch.nn.Module) -> str:
    """Path of the middle attention, or of what stands in the middle where there is none: its input is the feature."""
    return family_of_module(module).middle_of(module)


def fold_sites(module: torch.nn.Module) -> list[FoldSite]:
    """Producers that may take over `pre` of all their consumers."""
    return family_of_module(module).fold_sites(module)


def fold_refusals(module: torch.nn.Module) -> dict[str, str]:
    """Reason why `pre` cannot be folded, for every quantizable layer that no fold site serves."""
    return family_of_module(module).fold_refusals(module)


def blocks_of(module: torch.nn.Module) -> list[Block]:
    """Reconstruction blocks as they run: residual blocks, attentions, the time embedding, single layers."""
    return family_of_module(module).blocks_of(module)
