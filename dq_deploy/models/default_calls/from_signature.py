"""The default call of a class without an entry of its own, as far as its forward's arguments say it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from reprlib import repr as short
from typing import Any

from dq_deploy.errors import ModelError
from dq_deploy.models.conditions import SAMPLES
from dq_deploy.models.default_calls.parts import CallParts, tensor
from dq_deploy.models.sizes import CLIP_TOKENS, HEIGHT, TOKENS, WIDTH
from dq_deploy.record import CallInput

TIMESTEPS = ("timestep", "timesteps")
TEXT_WIDTHS = (
    "joint_attention_dim",
    "caption_channels",
    "text_embed_dim",
    "caption_dim",
    "text_dim",
    "cross_attention_dim",
)
"""Keys of a configuration that say how wide the text is, the surest first."""


UNIT_TIMES = ("AuraFlowTransformer2DModel",)
"""Classes whose pipelines give timesteps from 0 to 1; such a class multiplies them itself."""


def parts_from_signature(config: Mapping[str, Any], given: Mapping[str, int]) -> CallParts:
    """Latents [B, C, height, width], the timestep, text and pooled text, where the forward takes them by these names.

    Raises:
        ModelError: diffusers has no such model, or its forward needs more than that; a pipeline's call says it.
    """
    name = config.get("_class_name")
    arguments = _forward_arguments(name)
    known: dict[str, int] = {}
    inputs = [found for argument in arguments if (found := _input(argument, config, given, known)) is not None]
    names = {item.name for item in inputs}
    missing = [
        argument.name for argument in arguments if argument.default is argument.empty and argument.name not in names
    ]
    if not names & set(SAMPLES) or not names & set(TIMESTEPS) or missing:
        what = f"its argument {missing[0]}" if missing else "its latents and timestep"
        raise ModelError(
            f"nothing is known of how {name} is called ({what}); "
            "give the folder of its pipeline with `prompts`, whose calls are recorded"
        )
    return CallParts(inputs=tuple(inputs), sizes=known)


def _forward_arguments(name: object) -> list[inspect.Parameter]:
    import diffusers

    found = getattr(diffusers, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, diffusers.ModelMixin)):
        raise ModelError(f"config.json names the class {short(name)}, which is no model of diffusers")
    forward: Any = vars(found).get("forward")
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    every = inspect.signature(forward).parameters.values()
    return [argument for argument in every if argument.kind in kinds and argument.name != "self"]


def _input(
    argument: inspect.Parameter, config: Mapping[str, Any], given: Mapping[str, int], known: dict[str, int]
) -> CallInput | None:
    """The input of an argument, if its name and the configuration say it; adds its sizes to `known`."""
    if argument.name in SAMPLES:
        return _latents(argument.name, config, given, known)
    if argument.name in TIMESTEPS:
        return tensor(argument.name, limits=(0, 1) if config.get("_class_name") in UNIT_TIMES else None)
    if argument.name == "encoder_hidden_states":
        width = next((config[key] for key in TEXT_WIDTHS if _is_size(config.get(key))), None)
        if width is None:
            return None
        known[TOKENS] = given.get(TOKENS, CLIP_TOKENS)
        return tensor(argument.name, TOKENS, width)
    if argument.name == "pooled_projections" and _is_size(config.get("pooled_projection_dim")):
        return tensor(argument.name, config["pooled_projection_dim"])
    if argument.name == "guidance" and config.get("guidance_embeds"):
        return tensor(argument.name)
    return None


def _latents(name: str, config: Mapping[str, Any], given: Mapping[str, int], known: dict[str, int]) -> CallInput | None:
    size = config.get("sample_size")
    pair = (size, size) if _is_size(size) else size
    sides = dict(zip((HEIGHT, WIDTH), pair, strict=True)) if isinstance(pair, (list, tuple)) and len(pair) == 2 else {}
    sides |= {side: given[side] for side in (HEIGHT, WIDTH) if side in given}
    if len(sides) < 2 or not all(_is_size(side) for side in sides.values()) or not _is_size(config.get("in_channels")):
        return None
    known.update(sides)
    return tensor(name, config["in_channels"], HEIGHT, WIDTH)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
