"""What a diffusers class is: whether it denoises, and under which name diffusers has it today."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from reprlib import repr as short
from typing import Any

from dq_deploy.errors import ModelError

TODAY = {
    ("Transformer2DModel", "ada_norm_zero"): "DiTTransformer2DModel",
    ("Transformer2DModel", "ada_norm_single"): "PixArtTransformer2DModel",
}
"""Class that diffusers loads for a class of an older version, by the `norm_type` in its configuration."""

_OF_TRAINING = frozenset(
    ("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup")
)
"""What training scripts write of their moving average into the configuration of the averaged model."""


def diffusers_class(name: str, library: str = "diffusers") -> type | None:
    """The class of this name that diffusers has, at its top or in the pipeline that a model_index.json calls `library`.

    Nothing outside of diffusers is imported. None where there is no such class.
    """
    import diffusers

    found = _attribute(diffusers, name)
    if found is None and library.isidentifier() and library != "diffusers":
        try:
            found = _attribute(importlib.import_module(f"diffusers.pipelines.{library}"), name)
        except Exception:  # no such pipeline, or one whose libraries are not installed
            return None
    return found


def _attribute(place: Any, name: str) -> type | None:
    try:
        found = getattr(place, name, None)
    except Exception:  # diffusers imports the file now: a library that it needs may be missing
        return None
    return found if isinstance(found, type) else None


def denoises(found: type) -> bool:
    """Whether a class is a model that is told the time: its forward has a timestep, or `t`, or `r` as it was called."""
    from diffusers import ModelMixin

    if not issubclass(found, ModelMixin):
        return False
    model: type[ModelMixin] = found
    names = inspect.signature(model.forward).parameters
    return any("timestep" in name or name in ("t", "r") for name in names)


def is_controlnet(found: type) -> bool:
    """Whether a class is a control network, whose outputs another denoiser takes in."""
    return "ControlNet" in found.__name__ and not found.__name__.startswith("UNet")


def diffusers_version() -> str:
    """Of the library that is installed."""
    import diffusers

    return str(diffusers.__version__)


def checked_class(config: Mapping[str, Any], place: str) -> type:
    """The denoiser class that a configuration names.

    Raises:
        ModelError: it is no configuration of a float denoiser of diffusers, in a line that says what it is.
    """
    name = config.get("_class_name")
    if "auto_map" in config or (isinstance(name, list) and len(name) == 2):
        raise ModelError(
            f"{place} names a class whose code lies in the model's own folder; such code is never run, so only "
            "classes of diffusers itself can be loaded"
        )
    if (method := _quantized_by(config)) is not None:
        raise ModelError(
            f"{place} has a quantization_config: its weights were quantized elsewhere ({method}); give the float model"
        )
    if name is None and ("architectures" in config or "model_type" in config):
        kinds = config.get("architectures") or [config.get("model_type")]
        what = kinds[0] if isinstance(kinds, list) and kinds else kinds
        raise ModelError(
            f"{place} is of {short(what)}, a model of transformers such as a text encoder, which does not denoise; "
            "give the pipeline's folder or that of its denoiser"
        )
    if not isinstance(name, str):
        raise ModelError(f"{place} names the class {short(name)}, expected the name of a diffusers class")
    found = diffusers_class(name)
    if found is None:
        more = "; diffusers has no Flax models any more, save it with PyTorch weights" if name[:4] == "Flax" else ""
        raise ModelError(
            f"{place} names the class {short(name)}, which diffusers {diffusers_version()} does not have{more}"
        )
    if not denoises(found):
        raise ModelError(
            f"{place} is of {name}, which does not denoise; give the pipeline's folder or that of its denoiser"
        )
    return found


def _quantized_by(config: Mapping[str, Any]) -> str | None:
    """Who quantized the weights, by `quantization_config`; None where nobody did."""
    entry = config.get("quantization_config")
    if entry is None:
        return None
    method = entry.get("quant_method") if isinstance(entry, dict) else None
    return method if isinstance(method, str) else "no method is named"


def todays_config(config: Mapping[str, Any], found: type) -> dict[str, Any]:
    """A configuration as today's diffusers takes it.

    Classes of older versions get the name, and only the entries, of the class that diffusers loads in their place;
    what a training script wrote of its moving average is left out.
    """
    plain = {key: value for key, value in config.items() if key not in _OF_TRAINING}
    name = TODAY.get((found.__name__, str(config.get("norm_type", "layer_norm"))))
    if name is None:
        return plain
    today = diffusers_class(name)
    assert today is not None
    taken = inspect.signature(today).parameters
    kept = {key: value for key, value in plain.items() if key.startswith("_") or key in taken}
    return {**kept, "_class_name": name}
