"""A user's pipeline made ready to calibrate with: prompts, what its tokenizers cut, and what the record says of it."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.artifacts import sha256_of_file
from dq_deploy.calibration.recording.prompts import prompts_sha256, shipped_prompts
from dq_deploy.calibration.recording.second_calls import LENGTH, call_of_pipeline
from dq_deploy.errors import OptionError
from dq_deploy.models import Denoiser
from dq_deploy.models.pipeline import PipelineCall, open_pipeline, scheduler_name
from dq_deploy.models.pipeline.call import lacks_text_encoder
from dq_deploy.models.pipeline.open import quiet

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True, kw_only=True, eq=False)
class AskedPipeline:
    """A pipeline with a float denoiser in it, and what is asked of it.

    Attributes:
        pipeline: of diffusers.
        asked: everything but steps, seed, classes and the number of pictures, which are a method's options.
        words: for the provenance, JSON values.
    """

    pipeline: DiffusionPipeline
    asked: PipelineCall
    words: Mapping[str, Any]

    @property
    def takes_classes(self) -> bool:
        """Whether the pipeline draws classes, and the call names none."""
        return _takes_classes(self.pipeline, self.asked)


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadyPipeline:
    """What `ready_pipeline` made.

    Attributes:
        denoiser: called as its pipeline does, with the scheduler that takes the steps.
        source: the pipeline.
        remarks: what the user is to know, a line each.
    """

    denoiser: Denoiser
    source: AskedPipeline
    remarks: tuple[str, ...]


def ready_pipeline(
    denoiser: Denoiser, path: Path, asked: PipelineCall, *, component: str | None = None, variant: str | None = None
) -> ReadyPipeline:
    """Open the pipeline of a folder around a float denoiser that is loaded already, and see how it calls it.

    Args:
        denoiser: of this folder; its module is the pipeline's, nothing is loaded twice.
        path: the folder, with model_index.json.
        asked: of the pipeline; without prompts a text pipeline takes the shipped ones.
        component: which denoiser it is, where the pipeline has several.
        variant: of the weight files.

    Raises:
        ModelError: the folder cannot be opened.
        OptionError: the pipeline does not take what is asked, or has no text encoder for the prompts.
        InputError: it calls the denoiser in a way that no record holds.
    """
    with quiet():
        pipeline = open_pipeline(
            path,
            component=component,
            denoiser=denoiser.module,
            scheduler=asked.scheduler,
            variant=variant,
            asked=asked,
        )
        remarks: list[str] = []
        if asked.prompts:
            _check_text_encoder(pipeline)
        elif _wants_prompts(pipeline, asked):
            _check_text_encoder(pipeline)
            asked = replace(asked, prompts=shipped_prompts())
            remarks.append(
                f"no `prompts` were given: some of the {len(asked.prompts)} plain ones that are shipped are taken"
            )
        remarks += cut_prompts(pipeline, asked)
        limits = {item.name: item.limits for item in denoiser.call.inputs}
        first = replace(asked, labels=(0,)) if _takes_classes(pipeline, asked) else asked
        derived = call_of_pipeline(pipeline, denoiser.module, first, limits)
    own = denoiser.scheduler_config
    config = own if asked.scheduler is None else scheduler_config_of(pipeline, denoiser.module)
    return ReadyPipeline(
        denoiser=replace(denoiser, call=derived.call, scheduler_config=config),
        source=AskedPipeline(pipeline=pipeline, asked=asked, words=_words(pipeline, denoiser.module, asked)),
        remarks=(*remarks, *derived.notes),
    )


def _takes(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(pipeline).__call__).parameters


def _wants_prompts(pipeline: Any, asked: PipelineCall) -> bool:
    given = any(name.endswith(("prompt_embeds", "image_embeds")) for name in asked.extra)
    return "prompt" in _takes(pipeline) and not given


def _check_text_encoder(pipeline: Any) -> None:
    """Refuse prompts where nothing turns them into embeddings.

    Raises:
        OptionError: the pipeline takes prompts and has no text encoder.
    """
    if lacks_text_encoder(pipeline):
        raise OptionError(
            f"the {type(pipeline).__name__} has no text encoder, expected one for prompts; copy text_encoder/ and "
            "tokenizer/ into its folder, or calibrate with `conditions` FILE"
        )


def cut_prompts(pipeline: Any, asked: PipelineCall) -> list[str]:
    """What is to be said of prompts that a tokenizer cuts, a line for each tokenizer that cuts some."""
    found = []
    for name, tokenizer in pipeline.components.items():
        if not name.startswith("tokenizer") or tokenizer is None:
            continue
        most = getattr(tokenizer, "model_max_length", None)
        if "T5" in type(tokenizer).__name__:  # of long texts the pipeline says how long
            most = asked.extra.get(LENGTH, getattr(_takes(pipeline).get(LENGTH), "default", most))
        if not isinstance(most, int) or most > 1 << 20:
            continue
        texts = [*asked.prompts, *([asked.negative_prompt] if asked.negative_prompt else [])]
        lengths = [len(tokenizer(text, truncation=False, verbose=False)["input_ids"]) for text in texts]
        cut = sum(length > most for length in lengths)
        if cut:
            found.append(
                f"{cut} of {len(texts)} prompts have more than the {most} tokens that {name} keeps, up to "
                f"{max(lengths)}: what is behind them is cut"
            )
    return found


def _takes_classes(pipeline: Any, asked: PipelineCall) -> bool:
    return "class_labels" in _takes(pipeline) and asked.labels is None and "class_labels" not in asked.extra


def scheduler_config_of(pipeline: Any, denoiser: Any) -> dict[str, Any] | None:
    """The configuration of the scheduler that takes the denoiser's steps, JSON values with its class."""
    name = scheduler_name(pipeline, denoiser)
    return None if name is None else plain_config(getattr(pipeline, name))


def plain_config(scheduler: Any) -> dict[str, Any]:
    """A scheduler's configuration as JSON values, its class among them."""
    plain = json.loads(scheduler.to_json_string())
    infinite = [key for key, value in plain.items() if isinstance(value, float) and not math.isfinite(value)]
    return {key: value for key, value in plain.items() if key not in infinite}  # -inf is the default of its keys


def _words(pipeline: Any, denoiser: Any, asked: PipelineCall) -> dict[str, Any]:
    config = scheduler_config_of(pipeline, denoiser)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    words: dict[str, Any] = {
        "pipeline": type(pipeline).__name__,
        "scheduler": None if config is None else config["_class_name"],
        "scheduler_sha256": digest,
    }
    if asked.prompts:
        words["prompts"] = {"count": len(asked.prompts), "sha256": prompts_sha256(asked.prompts)}
    for name in ("negative_prompt", "guidance", "height", "width", "strength", "eta"):
        if (value := getattr(asked, name)) is not None:
            words[name] = value
    for name in ("image", "mask", "control_image"):
        if (path := getattr(asked, name)) is not None:
            words[name] = f"{path.name} {sha256_of_file(path)}"
    if asked.extra:
        words["arguments"] = {name: _plain(value) for name, value in sorted(asked.extra.items())}
    return words


def _plain(value: Any) -> Any:
    """A JSON value as it is; of a picture the hash of its pixels."""
    if hasattr(value, "tobytes") and hasattr(value, "size"):
        return f"{type(value).__name__} {value.size} {hashlib.sha256(value.tobytes()).hexdigest()}"
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return type(value).__name__
