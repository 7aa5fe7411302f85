"""The scheduler's configuration that belongs to a denoiser's folder, however the folder was named."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from reprlib import repr as short
from typing import Any

from dq_deploy.errors import ModelError

FILE = "scheduler_config.json"
INDEX = "model_index.json"

NO_LIMIT = "lambda_min_clipped"
"""-Infinity here is the default of every class that has the key (DPM-Solver's); it means no limit."""


def find_scheduler(folder: Path) -> tuple[Path | None, Path | None]:
    """The file of the scheduler and the pipeline's model_index.json, each None where there is none.

    A denoiser lies in its pipeline beside `scheduler/`, by the name it was given or behind the links of that name
    (`.` inside it, a link to it). A file inside the denoiser's own folder counts before a neighbour of another name.
    """
    # the name as it is given first: a linked unet/ of a pipeline belongs to that pipeline
    named = [folder] if folder.name not in ("", "..") else []
    places = [*named, folder.resolve()]
    beside = [place.parent / "scheduler" / FILE for place in places]
    own = folder / FILE
    in_order = [path for path, place in zip(beside, places, strict=True) if place.name == "unet"]
    for path in (*in_order, own, *beside):
        if path.is_file():
            index = path.parent.parent / INDEX
            return path, index if path != own and index.is_file() else None
    return None, None


def check_scheduler_is_there(folder: Path, read_json: Callable[[Path], dict[str, Any]]) -> None:
    """Refuse a denoiser without a scheduler's file in a pipeline that names a scheduler.

    Raises:
        ModelError: what the pipeline names is not there.
    """
    named = [folder] if folder.name not in ("", "..") else []
    for place in (*named, folder.resolve()):
        index = place.parent / INDEX
        if place.name != "unet" or not index.is_file():
            continue
        if (name := _named_scheduler(index, read_json)) is not None:
            raise ModelError(
                f"{index} names {name[:60]}, but {place.parent / 'scheduler' / FILE} is missing; copy it from "
                "where the pipeline came from"
            )


def _named_scheduler(index: Path, read_json: Callable[[Path], dict[str, Any]]) -> str | None:
    entry = read_json(index).get("scheduler")
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    return name if isinstance(name, str) else None


def read_scheduler(path: Path, index: Path | None, read_json: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The configuration, with the class of model_index.json where the file names none, as diffusers loads it.

    Raises:
        ModelError: no JSON object, two classes for one scheduler, or a value that is not finite.
    """
    config = {key: value for key, value in read_json(path).items() if (key, value) != (NO_LIMIT, -math.inf)}
    for key, value in config.items():
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ModelError(f"{path} has {key} {short(value)}, expected finite numbers")
    named = None if index is None else _named_scheduler(index, read_json)
    if named is None:
        return config
    if config.get("_class_name", named) != named:
        raise ModelError(
            f"{index} names the scheduler {short(named)}, {path} {short(config['_class_name'])}; give both one class"
        )
    return {**config, "_class_name": named}
