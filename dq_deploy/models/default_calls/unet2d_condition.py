"""The default call of UNet2DConditionModel, in all the variants that diffusers' pipelines have of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dq_deploy.errors import ModelError
from dq_deploy.models.default_calls.parts import CallParts, class_labels, sample_sizes, tensor, whole, with_default
from dq_deploy.models.default_calls.unet2d import TRAINED, first_width, sample_and_timestep
from dq_deploy.models.sizes import CLIP_TOKENS, HEIGHT, TOKENS, WIDTH, multiple_name
from dq_deploy.record import BATCH, CallInput
from dq_deploy.record.model_config import channels_of, value_of

BASE_TIME_IDS = 6
"""SDXL's sizes: original height and width, crop top and left, target height and width."""

REFINER_TIME_IDS = 5
"""SDXL's refiner has an aesthetic score in place of the target size."""

REFINER_SINUSOIDS = 256
"""Features of each of them in SDXL."""

HINT_PIXELS = 8
"""Pixels of a control picture along each side of a latent pixel."""

PICTURE = (multiple_name(HEIGHT, HINT_PIXELS), multiple_name(WIDTH, HINT_PIXELS))
"""Names of its sizes, as a recorded call has them."""

HINT_CHANNELS = 4
"""What Kandinsky 2.2's hint adds to the sample's channels."""

_ADDED = "added_cond_kwargs."
_WHOLE_CALL = "give a pipeline folder, whose calls are recorded"


def unet2d_condition_parts(config: Mapping[str, Any], given: Mapping[str, int]) -> CallParts:
    """`sample`, `timestep`, labels, text, and the conditions that the configuration's embeddings read."""
    hint = value_of(config, "addition_embed_type") == "image_hint"
    channels = channels_of(config, "in_channels") - HINT_CHANNELS if hint else None
    inputs = [*sample_and_timestep(config, channels), *labels(config)]
    sizes = sample_sizes(config, given)
    width = text_width(config)
    if width is not None:
        inputs.append(tensor("encoder_hidden_states", TOKENS, width))
        sizes |= with_default(given, tokens=CLIP_TOKENS)
    if value_of(config, "time_cond_proj_dim") is not None:
        inputs.append(tensor("timestep_cond", whole(config, "time_cond_proj_dim")))
    inputs += added_conditions(config)
    if hint:
        sizes |= picture_sizes(sizes)
    constants = {"encoder_hidden_states": None} if width is None else {}
    output = (BATCH, whole(config, "out_channels"), HEIGHT, WIDTH)
    return CallParts(inputs=tuple(inputs), sizes=sizes, output=output, constants=constants)


def picture_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes of a control picture for a latent of these sizes."""
    return {name: HINT_PIXELS * sizes[side] for name, side in zip(PICTURE, (HEIGHT, WIDTH), strict=True)}


def text_width(config: Mapping[str, Any]) -> int | None:
    """Features of the text; None where the pipelines of such a configuration give no text.

    Raises:
        ModelError: the configuration does not say it.
    """
    kind = value_of(config, "encoder_hid_dim_type")
    if kind == "image_proj":  # Kandinsky 2.2: the text is projected from the picture's embedding
        return None
    if value_of(config, "encoder_hid_dim") is not None and kind in (None, "text_proj", "text_image_proj"):
        return whole(config, "encoder_hid_dim")
    width = value_of(config, "cross_attention_dim")
    widths = list(width) if isinstance(width, (list, tuple)) else [width]
    if isinstance(width, (list, tuple)) and len(widths) > 1 and widths == list(value_of(config, "block_out_channels")):
        return None  # AudioLDM: every level attends to itself
    only = widths[0] if widths and all(one == widths[0] for one in widths) else None
    if not isinstance(only, int) or isinstance(only, bool) or only < 1:
        raise ModelError(f"config.json has cross_attention_dim {width!r}, expected one whole number")
    return only


def labels(config: Mapping[str, Any]) -> tuple[CallInput, ...]:
    """`class_labels` as the class's embedding reads them: whole numbers, a number to embed, or a vector.

    Raises:
        ModelError: the embedding has no width, or is of a kind that diffusers does not have.
    """
    kind = value_of(config, "class_embed_type")
    if kind is None:
        known = value_of(config, "num_class_embeds") is not None
        return (class_labels(whole(config, "num_class_embeds")),) if known else ()
    if kind == "timestep":
        return (tensor("class_labels", limits=TRAINED),)
    if kind == "identity":
        return (tensor("class_labels", _time_width(config)),)
    if kind in ("projection", "simple_projection"):
        return (tensor("class_labels", whole(config, "projection_class_embeddings_input_dim")),)
    raise ModelError(
        f"config.json has class_embed_type {kind!r}, expected null, 'timestep', 'identity', 'projection' or "
        "'simple_projection'"
    )


def _time_width(config: Mapping[str, Any]) -> int:
    """Features of the time embedding."""
    if value_of(config, "time_embedding_dim") is not None:
        return whole(config, "time_embedding_dim")
    return (2 if value_of(config, "time_embedding_type") == "fourier" else 4) * first_width(config)


def added_conditions(config: Mapping[str, Any]) -> tuple[CallInput, ...]:
    """What is given inside `added_cond_kwargs`.

    Raises:
        ModelError: a width that the configuration does not say, or an embedding that only a pipeline can feed.
    """
    addition, hidden = value_of(config, "addition_embed_type"), value_of(config, "encoder_hid_dim_type")
    if hidden == "ip_image_proj":
        raise ModelError(f"config.json has encoder_hid_dim_type 'ip_image_proj', an IP-Adapter; {_WHOLE_CALL}")
    found: list[CallInput] = []
    if addition == "text_time":
        pooled, ids = pooled_width(config)
        found += [tensor(_ADDED + "text_embeds", pooled), tensor(_ADDED + "time_ids", ids)]
    elif addition == "text_image":
        width = whole(config, "cross_attention_dim")
        found += [tensor(_ADDED + "text_embeds", width), tensor(_ADDED + "image_embeds", width)]
    elif addition in ("image", "image_hint"):
        found.append(tensor(_ADDED + "image_embeds", whole(config, "encoder_hid_dim")))
        if addition == "image_hint":
            found.append(tensor(_ADDED + "hint", 3, *PICTURE))
    elif addition not in (None, "text"):
        raise ModelError(
            f"config.json has addition_embed_type {addition!r}, expected null, 'text', 'text_time', 'text_image', "
            "'image' or 'image_hint'"
        )
    if hidden in ("image_proj", "text_image_proj") and all(item.name != _ADDED + "image_embeds" for item in found):
        key = "encoder_hid_dim" if hidden == "image_proj" else "cross_attention_dim"
        found.append(tensor(_ADDED + "image_embeds", whole(config, key)))
    return tuple(found)


def pooled_width(config: Mapping[str, Any]) -> tuple[int, int]:
    """Features of `text_embeds` and count of `time_ids`.

    The addition embedding reads both beside each other::

        projection_class_embeddings_input_dim == text_embeds + time_ids * addition_time_embed_dim

    The refiner has one text encoder, whose pooled embedding is as wide as its text: by that its 5 ids are told from
    the base model's 6.

    Raises:
        ModelError: the widths do not fit.
    """
    total = value_of(config, "projection_class_embeddings_input_dim")
    each = value_of(config, "addition_time_embed_dim")
    both = isinstance(total, int) and isinstance(each, int)
    refiner = both and each == REFINER_SINUSOIDS and total - REFINER_TIME_IDS * each == text_width(config)
    ids = REFINER_TIME_IDS if refiner else BASE_TIME_IDS
    if not both or total - ids * each < 1:
        raise ModelError(
            f"config.json has projection_class_embeddings_input_dim {total!r} and addition_time_embed_dim {each!r}, "
            f"expected whole numbers, the first above {BASE_TIME_IDS} times the second"
        )
    return total - ids * each, ids
