"""Denoisers: load one from a folder, list its layers, rebuild it from a record.

Functions take the module and its call, so that callers stay the same when classes are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import ModelError
from dq_deploy.models.call import (
    call_arguments,
    call_denoiser,
    denoiser_outputs,
    engine_name,
    input_specs,
    named_outputs,
    output_specs,
)
from dq_deploy.models.conditions import condition_names, example_inputs, label_limits, random_conditions, sample_name
from dq_deploy.models.family import (
    CLASS_NAMES,
    TRIED,
    build_denoiser,
    call_of_record,
    class_of_family,
    default_call,
    family_of,
    family_of_module,
    words_of_untried,
)
from dq_deploy.models.layers import Block, Denoiser, FoldSite, LayerSite, Macs
from dq_deploy.models.sizes import TensorSpec

if TYPE_CHECKING:
    import torch

    from dq_deploy.models.rebuild import LazyWeight
    from dq_deploy.record import Call, Record

__all__ = [
    "CLASS_NAMES",
    "TRIED",
    "Block",
    "Denoiser",
    "FoldSite",
    "LayerSite",
    "Macs",
    "TensorSpec",
    "blocks_of",
    "build_denoiser",
    "call_arguments",
    "call_denoiser",
    "call_of_record",
    "class_of_family",
    "condition_names",
    "default_call",
    "denoiser_from_record",
    "denoiser_outputs",
    "describe_model",
    "engine_name",
    "example_inputs",
    "family_of",
    "family_of_module",
    "float_model_of",
    "fold_refusals",
    "fold_sites",
    "input_specs",
    "label_limits",
    "lazy_weights",
    "load_model",
    "macs_of",
    "middle_of",
    "named_outputs",
    "other_layers",
    "output_specs",
    "quantizable_layers",
    "random_conditions",
    "sample_name",
    "shared_inputs",
    "skip_splits",
    "words_of_untried",
]


def load_model(
    path: str | Path,
    *,
    variant: str | None = None,
    component: str | None = None,
    config: str | Path | None = None,
    sizes: Mapping[str, int] | None = None,
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
        sizes: of the axes that vary, by name, as the `height` and `width` of the sample; by default the
            configuration's. A component without a size takes that of its pipeline's other denoisers.

    Returns:
        The denoiser in float32 and eval mode, whatever type the file holds.

    Raises:
        ModelError: the folder, its configuration or its weights are not usable; the message says what to do.
    """
    from dq_deploy.models.load.folder import load_folder

    found = load_folder(
        Path(path),
        variant=variant,
        component=component,
        config=None if config is None else Path(config),
        sizes=sizes or {},
    )
    if unknown := [name for name in sizes or {} if name not in found.call.sizes]:
        names = ", ".join(found.call.sizes) or "none"
        raise ModelError(f"the sizes name {unknown[0]!r}, which the model's call does not have, expected {names}")
    return found


def float_model_of(
    provenance: Mapping[str, Any],
    path: str | Path | None = None,
    *,
    component: str | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Denoiser:
    """The float model that a record was made from, loaded as it was then: same variant, component, configuration.

    Args:
        provenance: of the record, which says where the model was.
        path: where it is now; None where it is still there.
        component: name of the denoiser in the pipeline at `path`; None takes the recorded one.
        sizes: of its call as the record says, for a configuration that has none.

    Raises:
        ModelError: the record names no model, or it cannot be loaded.
    """
    from dq_deploy.models.load.folder import load_recorded

    return load_recorded(provenance, None if path is None else Path(path), component, sizes or {})


def describe_model(
    path: str | Path,
    *,
    component: str | None = None,
    config: str | Path | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Denoiser:
    """A denoiser from its configuration alone: shapes without values, whether weights are there or not.

    Args:
        path: as of `load_model`.
        component: likewise.
        config: likewise.
        sizes: likewise.

    Raises:
        ModelError: the configuration is not usable; the message says what to do.
    """
    from dq_deploy.models.load.folder import describe_folder

    return describe_folder(
        Path(path), component=component, config=None if config is None else Path(config), sizes=sizes or {}
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


def quantizable_layers(module: torch.nn.Module, call: Call, *, batch: int = 1) -> list[LayerSite]:
    """Every linear and 2-D convolution in execution order, with shapes at `batch` and MACs of one sample.

    Some of them have to stay float all the same, see `LayerSite.float_reason`.

    Raises:
        ModelError: the module cannot run so; this and the functions below run it once on shapes alone.
    """
    from dq_deploy.models.capture.captured import captured, sites_at

    return sites_at(captured(module, call), batch)


def other_layers(module: torch.nn.Module, call: Call) -> dict[str, str]:
    """Why each layer with weights that `quantizable_layers` leaves out stays float, by its path."""
    from dq_deploy.models.capture.captured import captured

    return dict(captured(module, call).other_layers)


def macs_of(module: torch.nn.Module, call: Call) -> Macs:
    """Multiply-accumulates of one sample at the call's sizes; a module on the device `meta` is enough."""
    from dq_deploy.models.capture.captured import captured

    return captured(module, call).macs


def skip_splits(module: torch.nn.Module, call: Call) -> dict[str, int]:
    """Layers whose input is a concatenation, as with a skip, and the channels of its first tensor."""
    from dq_deploy.models.capture.captured import captured

    return dict(captured(module, call).splits)


def shared_inputs(module: torch.nn.Module, call: Call) -> list[tuple[str, ...]]:
    """Layers that read one tensor, as queries, keys and values do, in execution order; others are left out."""
    from dq_deploy.models.capture.captured import captured

    return list(captured(module, call).shared_inputs)


def middle_of(module: torch.nn.Module, call: Call) -> str:
    """Path of the middle attention, or of what stands in the middle where there is none: its input is the feature."""
    from dq_deploy.models.capture.blocks import middle_of as middle
    from dq_deploy.models.capture.captured import captured

    return middle(module, captured(module, call))


def fold_sites(module: torch.nn.Module, call: Call) -> list[FoldSite]:
    """Producers that may take over `pre` of all their consumers."""
    from dq_deploy.models.capture.captured import captured

    return list(captured(module, call).folds)


def fold_refusals(module: torch.nn.Module, call: Call) -> dict[str, str]:
    """Reason why `pre` cannot be folded, for every quantizable layer that no fold site serves."""
    from dq_deploy.models.capture.captured import captured

    return dict(captured(module, call).refusals)


def blocks_of(module: torch.nn.Module, call: Call) -> list[Block]:
    """Reconstruction blocks as they run: residual and transformer blocks, embeddings, single layers."""
    from dq_deploy.models.capture.blocks import blocks_of as blocks
    from dq_deploy.models.capture.captured import captured

    return blocks(module, captured(module, call))
