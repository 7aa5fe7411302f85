"""Pictures as a model of KServe: a prompt or label and a seed for each, and raw pixels back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dq_deploy.models.pipeline.call import LONGEST_PROMPT
from dq_deploy.serve.card import ModelCard
from dq_deploy.serve.kserve.body import InferRequest
from dq_deploy.serve.kserve.forms import FREE, ModelForm, TensorForm
from dq_deploy.serve.kserve.tensors import BYTES, Tensor
from dq_deploy.serve.orders import Picture, PictureFormat
from dq_deploy.serve.web.asked import MOST_PICTURES, Asked, asked_of_json
from dq_deploy.serve.web.errors import ApiError

NAME = "generate"
OUTPUT = "IMAGES"

MOST_INPUT_BYTES = (MOST_PICTURES + 1) * 4 * LONGEST_PROMPT + 2**16
"""Of a request: its prompts, of at most four bytes a character, and small numbers."""

_OF_WHAT = {"prompt": "PROMPT", "label": "LABEL", "nothing": "COUNT"}
_FIELDS = {
    "seed": "SEED",
    "steps": "STEPS",
    "guidance": "GUIDANCE",
    "negative_prompt": "NEGATIVE_PROMPT",
    "size": "WIDTH x HEIGHT",
    "timeout_s": "timeout",
}
"""What the images API calls an input."""


def generate_form(card: ModelCard, engine: str) -> ModelForm:
    """What there is for this model.

    Args:
        card: of the model.
        engine: name of the engine.
    """
    pipeline = card.pipeline
    what = {
        "PROMPT": TensorForm(name="PROMPT", datatype=BYTES, shape=(FREE,)),
        "LABEL": TensorForm(name="LABEL", datatype="INT64", shape=(FREE,)),
        "COUNT": TensorForm(name="COUNT", datatype="INT32", shape=(1,), optional=True),
    }
    takes = _OF_WHAT[card.takes]
    words = {"PROMPT": "no PROMPT", "LABEL": "no LABEL", "COUNT": f"no COUNT: {takes} says how many pictures"}
    absent = {name: f"the {pipeline} takes {words[name]}; leave it out" for name in what if name != takes}
    if card.labels is not None:
        low, high = card.labels.low, card.labels.high
        absent["PROMPT"] = f"the {pipeline} takes no PROMPT, expected LABEL with classes from {low} to {high}"
    inputs = [
        what[takes],
        TensorForm(name="SEED", datatype="INT64", shape=(FREE,)),
        TensorForm(name="STEPS", datatype="INT32", shape=(1,), optional=True),
    ]
    for name, datatype, there in (
        ("GUIDANCE", "FP32", card.guidance is not None),
        ("NEGATIVE_PROMPT", BYTES, card.negative_prompt),
        ("HEIGHT", "INT32", card.sizes_vary),
        ("WIDTH", "INT32", card.sizes_vary),
    ):
        if there:
            inputs.append(TensorForm(name=name, datatype=datatype, shape=(1,), optional=True))
        else:
            own = f": pictures are {card.width}x{card.height}" if name in ("HEIGHT", "WIDTH") else ""
            absent[name] = f"the {pipeline} takes no {name}{own}; leave it out"
    sides = (FREE, FREE) if card.sizes_vary else (card.height, card.width)
    return ModelForm(
        name=NAME,
        platform=f"dq_{engine}",
        inputs=tuple(inputs),
        outputs=(TensorForm(name=OUTPUT, datatype="UINT8", shape=(FREE, *sides, card.channels)),),
        most_rows=0,
        absent=absent,
    )


def pictures_asked(
    given: Mapping[str, Tensor], request: InferRequest, card: ModelCard, client: str, time_limit_s: float
) -> list[Asked]:
    """A request of the images API for each picture, with n of 1 and the picture's own seed.

    Raises:
        ApiError: it is not one that this server can answer.
    """
    prompts = _prompts(given, card)
    seeds = [int(seed) for seed in given["SEED"].values]
    if len(seeds) == 1:
        seeds *= len(prompts)
    if len(seeds) != len(prompts):
        what = _OF_WHAT[card.takes]
        raise ApiError(400, f"SEED has {len(seeds)} values, expected {len(prompts)} as {what} says, or one for all")
    body = {**_settings(given), "priority": request.priority}
    if request.timeout_s is not None:
        body["timeout_s"] = request.timeout_s
    raw = PictureFormat(name="raw")
    found: list[Asked] = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        try:
            asked = asked_of_json({**body, "prompt": prompt, "seed": seed}, card, client, time_limit_s)
        except ApiError as error:
            raise _renamed(error, card) from error
        found.append(replace(asked, file=raw, terms=replace(asked.terms, trace_parent=request.trace_parent)))
    return found


def _prompts(given: Mapping[str, Tensor], card: ModelCard) -> list[str]:
    """A prompt of the images API for each picture."""
    name = _OF_WHAT[card.takes]
    if name == "COUNT":
        count = int(given["COUNT"].values[0]) if name in given else len(given["SEED"].values)
        _check_count(count, name if name in given else "SEED")
        return [""] * count
    values = given[name].values
    _check_count(len(values), name)
    return [_text(name, value) if name == "PROMPT" else str(int(value)) for value in values]


def _check_count(count: int, name: str) -> None:
    if not 1 <= count <= MOST_PICTURES:
        raise ApiError(400, f"{name} asks for {count} pictures, expected 1 to {MOST_PICTURES}")


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ApiError(400, f"{name} is no UTF-8 ({error.reason} at byte {error.start})") from error


def _settings(given: Mapping[str, Tensor]) -> dict[str, Any]:
    """What holds for all pictures, as a body of the images API."""
    first = {name: tensor.values[0] for name, tensor in given.items() if len(tensor.values) == 1}
    found: dict[str, Any] = {}
    if "STEPS" in first:
        found["steps"] = int(first["STEPS"])
    if "GUIDANCE" in first:
        found["guidance"] = float(str(first["GUIDANCE"]))  # so that 0.1 is what it is in JSON
    if "NEGATIVE_PROMPT" in first:
        found["negative_prompt"] = _text("NEGATIVE_PROMPT", first["NEGATIVE_PROMPT"])
    sides = [name for name in ("WIDTH", "HEIGHT") if name in first]
    if len(sides) == 1:
        raise ApiError(400, f"got {sides[0]} alone, expected WIDTH and HEIGHT")
    if sides:
        width, height = int(first["WIDTH"]), int(first["HEIGHT"])
        found["size"] = f"{width}x{height}"
    return found


def _renamed(error: ApiError, card: ModelCard) -> ApiError:
    """The error of the images API in the words of this one."""
    field = error.param or ""
    name = _OF_WHAT[card.takes] if field == "prompt" else _FIELDS.get(field, field)
    message = f"{name}{error.message.removeprefix(field)}" if error.message.startswith(field) else error.message
    return ApiError(error.status, message.replace(" or auto", "").replace("auto or ", ""), param=name, code=error.code)


def images_tensor(pictures: Sequence[Picture]) -> Tensor:
    """Pixels [n, H, W, C] of pictures in the format `raw`."""
    first = pictures[0]
    shape = (len(pictures), first.height, first.width, first.channels)
    data = b"".join(picture.data for picture in pictures)
    return Tensor(name=OUTPUT, datatype="UINT8", values=np.frombuffer(data, np.uint8).reshape(shape))
